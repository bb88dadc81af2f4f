/* Norms of sums over heads, ||sum_h a_h f_h||, from what each key needs: M[h, h'] = <f_h, f_h'> and R with R^T R = M.

For each pair of a query and a key 78 products at 12 heads are little work for a processor and much for a library of
whole tensors, as each product is a pass through memory there.  Here they stay in registers.

Axes: h head, q query, k key, e head_dim, and p pairs of heads: of M by rows, (0,0) (0,1) ... (1,1) ..., of R by columns,
(0,0) (0,1) (1,1) (0,2) ...  */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16   /* keys at once */
#define DOUBLES 8  /* keys at once in double precision */
#define QUERIES 8  /* that share what is read of a key */
#define KEYS 256   /* whose factors stay in cache */

typedef float singles __attribute__((vector_size(4 * LANES)));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

/* sums (m, k) of first (m, e, k) times second over e. */
int sums_of_products(double *restrict sums, const double *restrict first, const double *restrict second, int64_t rows,
                     int64_t width, int64_t keys) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t start = 0; start < keys; start += KEYS) {
            const int64_t count = keys - start < KEYS ? keys - start : KEYS;
            double total[KEYS] = {0};
            for (int64_t e = 0; e < width; ++e) {
                const double *restrict one = first + (row * width + e) * keys + start;
                const double *restrict other = second + (row * width + e) * keys + start;
#pragma omp simd
                for (int64_t k = 0; k < count; ++k) total[k] += one[k] * other[k];
            }
            memcpy(sums + row * keys + start, total, sizeof(double) * count);
        }
    return 0;
}

/* From M (p, k) R (p, k), upper triangular.  A head whose vector the earlier ones span adds no row: what is left of its
   pivot, below `smallest` of its square, is rounding.  R is not a number from a pivot on that is below `lost` of it. */
int triangular_factors(float *restrict factor, const double *restrict products, int64_t heads, int64_t keys,
                       double smallest, double lost, double tiny) {
    const int64_t pairs = heads * (heads + 1) / 2;
    double *restrict m = malloc(sizeof(double) * DOUBLES * pairs);
    if (!m) return 1;
    for (int64_t start = 0; start < keys; start += DOUBLES) {
        const int64_t count = keys - start < DOUBLES ? keys - start : DOUBLES;
        memset(m, 0, sizeof(double) * DOUBLES * pairs);
        for (int64_t p = 0; p < pairs; ++p) memcpy(m + p * DOUBLES, products + p * keys + start, sizeof(double) * count);
        double *restrict row = m;
        for (int64_t h = 0; h < heads; row += (heads - h) * DOUBLES, ++h) {
            const double *restrict own = products + (row - m) / DOUBLES * keys + start;
            double scale[DOUBLES] = {0};
            for (int64_t k = 0; k < count; ++k)
                scale[k] = row[k] > smallest * own[k] ? 1 / sqrt(fmax(row[k], tiny)) : row[k] < lost * own[k] ? NAN : 0;
            for (int64_t other = 0; other < heads - h; ++other)
#pragma omp simd
                for (int64_t k = 0; k < DOUBLES; ++k) row[other * DOUBLES + k] *= scale[k];
            double *restrict later = row + (heads - h) * DOUBLES;
            for (int64_t one = 1; one < heads - h; ++one)
                for (int64_t other = one; other < heads - h; ++other, later += DOUBLES)
#pragma omp simd
                    for (int64_t k = 0; k < DOUBLES; ++k)
                        later[k] -= row[one * DOUBLES + k] * row[other * DOUBLES + k];
            for (int64_t column = h; column < heads; ++column) {
                float *restrict to = factor + (column * (column + 1) / 2 + h) * keys + start;
                for (int64_t k = 0; k < count; ++k) to[k] = (float)row[(column - h) * DOUBLES + k];
            }
        }
    }
    free(m);
    return 0;
}

static inline singles lanes_of(const float *from, int64_t count) {
    singles found = {0};
    if (count < LANES)
        memcpy(&found, from, sizeof(float) * count);
    else
        memcpy(&found, from, sizeof(found)); /* of a size that is known: one instruction */
    return found;
}

/* How far it is from one entry to the next, by axis: of norms (b, q), weights and factors (b, h, q), R and M (p, b), and
   lengths (h, b).  Keys are dense. */
typedef struct {
    int64_t norms[2], weights[3], factors[3], factor[2], lengths[2], products[2];
} strides;

static inline double weight_of(const float *weights, const float *factors, int64_t h, const strides *next) {
    const double weight = weights[h * next->weights[1]];
    return factors ? weight * factors[h * next->factors[1]] : weight;
}

/* sqrt(a^T M a) of one query and key, whose weights (h) times factors (h) are a; M (p) likewise. */
static float in_doubles(const float *weights, const float *factors, const double *products, int64_t heads,
                        const strides *next) {
    double total = 0;
    for (int64_t h = 0; h < heads; ++h) {
        const double own = weight_of(weights, factors, h, next);
        for (int64_t other = h; other < heads; ++other, products += next->products[0])
            total += (other == h ? 1 : 2) * own * weight_of(weights, factors, other, next) * *products;
    }
    return (float)sqrt(fmax(total, 0));
}

/* R and lengths of some keys as tiles of LANES keys, of heads * (heads + 1) / 2 and heads rows each. */
static void bring_together(singles *restrict to, const float *restrict factor, const float *restrict lengths,
                           int64_t heads, int64_t keys, const strides *next) {
    for (int64_t k = 0; k < keys; k += LANES) {
        for (int64_t p = 0; p < heads * (heads + 1) / 2; ++p)
            *to++ = lanes_of(factor + p * next->factor[0] + k, keys - k);
        for (int64_t h = 0; h < heads; ++h) *to++ = lanes_of(lengths + h * next->lengths[0] + k, keys - k);
    }
}

/* norms (q, k) of a tile of keys and a[h][query], which are weights (h, q, k) times factors (h, q) rounded. */
static inline void of_tile(float *restrict norms, const singles *restrict r, const singles *restrict a,
                           const float *weights, const float *factors, const double *restrict products, int64_t heads,
                           int64_t queries, int64_t keys, const strides *next, float cancels) {
    const singles *restrict length = r + heads * (heads + 1) / 2;
    singles total[QUERIES] = {{0}}, most[QUERIES] = {{0}};
    for (int64_t row = 0; row < heads; ++row) {
        singles sum[QUERIES] = {{0}};
        for (int64_t h = row; h < heads; ++h) {
            const singles one = r[h * (h + 1) / 2 + row];
            for (int64_t n = 0; n < QUERIES; ++n) sum[n] += one * a[h * QUERIES + n];
        }
        for (int64_t n = 0; n < QUERIES; ++n) total[n] += sum[n] * sum[n];
    }
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t n = 0; n < QUERIES; ++n)
            most[n] += (singles)((bits)a[h * QUERIES + n] & 0x7fffffff) * length[h];
    for (int64_t n = 0; n < QUERIES && n < queries; ++n) {
        float found[LANES], bound[LANES];
        int cancelling = 0;
        memcpy(found, total + n, sizeof(found));
        memcpy(bound, most + n, sizeof(bound));
#pragma omp simd reduction(| : cancelling)
        for (int64_t l = 0; l < LANES; ++l) {
            found[l] = sqrtf(found[l]);
            cancelling |= !(found[l] >= cancels * bound[l]);
        }
        const int64_t count = keys < LANES ? keys : LANES;
        for (int64_t l = 0; cancelling && l < count; ++l)
            if (!(found[l] >= cancels * bound[l]))
                found[l] = in_doubles(weights + n * next->weights[2] + l, factors ? factors + n * next->factors[2] : 0,
                                      products + l, heads, next);
        memcpy(norms + n * next->norms[1], found, sizeof(float) * count);
    }
}

/* Weights (h, q, k) times factors (h, q) or by themselves as tiles of LANES keys, each (h, QUERIES); where there are fewer
   queries, the last stands for more.  In the order of their memory: rows far apart share places in a cache.  Whether any is
   not 0. */
static int gather(singles *restrict to, const float *weights, const float *factors, int64_t heads, int64_t queries,
                  int64_t keys, const strides *next) {
    bits set = {0};
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t n = 0; n < QUERIES; ++n) {
            const int64_t q = n < queries ? n : queries - 1;
            const float *restrict from = weights + h * next->weights[1] + q * next->weights[2];
            const float factor = factors ? factors[h * next->factors[1] + q * next->factors[2]] : 1;
            singles *restrict own = to + h * QUERIES + n;
            for (int64_t k = 0; k < keys; k += LANES, own += heads * QUERIES) {
                *own = lanes_of(from + k, keys - k) * factor;
                set |= (bits)*own;
            }
        }
    int any = 0;
    for (int64_t l = 0; l < LANES; ++l) any |= set[l] & 0x7fffffff;
    return any;
}

/* norms (b, q, k) of weights (b, h, q, k) times factors (b, h, q) or by themselves, from R (p, b, k) in float32; from M
   (p, b, k) where the norm is below `cancels` of sum_h |a_h| ||f_h||, with lengths (h, b, k). */
int norms_of_sums(float *norms, const float *weights, const float *factors, const float *factor, const float *lengths,
                  const double *products, const strides *next, int64_t batch, int64_t heads, int64_t queries,
                  int64_t keys, double cancels) {
    const int64_t pairs = heads * (heads + 1) / 2, tile = pairs + heads, wide = heads * QUERIES;
    singles *kept = aligned_alloc(sizeof(singles), sizeof(singles) * (tile + wide) * (KEYS / LANES));
    if (!kept) return 1;
    singles *restrict gathered = kept + tile * (KEYS / LANES);
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t start = 0; start < keys; start += KEYS) {
            const int64_t here = keys - start < KEYS ? keys - start : KEYS;
            bring_together(kept, factor + b * next->factor[1] + start, lengths + b * next->lengths[1] + start, heads,
                           here, next);
            for (int64_t q = 0; q < queries; q += QUERIES) {
                float *restrict to = norms + b * next->norms[0] + q * next->norms[1] + start;
                const float *from = weights + b * next->weights[0] + q * next->weights[2] + start;
                const float *times = factors ? factors + b * next->factors[0] + q * next->factors[2] : 0;
                if (!gather(gathered, from, times, heads, queries - q, here, next)) {
                    /* behind a causal mask, outside a window, padding */
                    for (int64_t n = q; n < queries && n < q + QUERIES; ++n)
                        memset(to + (n - q) * next->norms[1], 0, sizeof(float) * here);
                    continue;
                }
                for (int64_t k = 0; k < here; k += LANES) {
                    const singles *restrict r = kept + k / LANES * tile, *restrict a = gathered + k / LANES * wide;
                    const double *restrict exact = products + b * next->products[1] + start + k;
                    of_tile(to + k, r, a, from + k, times, exact, heads, queries - q, here - k, next, (float)cancels);
                }
            }
        }
    free(kept);
    return 0;
}
