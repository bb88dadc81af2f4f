/* By how much do vectors t = sum_h w_h f_h overshoot y, sum_d max(0, sign(y_d) t_d - |y_d|), for every query and key?

Few coordinates are overshot, and most pairs have none: only where |y_d| is below a bound of |t_d| is t_d computed.
First |t_d| <= sum_h |w_h| max_d |f_hd|, against which each query has its small coordinates in order of their size, then
|t_d| <= (sum_h |w_h|) max_h |f_hd|.  Heads lie last, filled up with zeros to `lanes`, a multiple of LANES.

Axes: h head, q query, k key, d model. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 4    /* numbers that are multiplied at once */
#define KEYS 64    /* at most, at a time */
#define TILE 16    /* coordinates whose heads are brought together at a time */
#define BUCKETS 64 /* of the sizes of small coordinates */

/* f (h, k, d), dense, as by_key (k, d, lanes), with highest (k, d) the largest |f| of any head, and of each head
   largest (h, k) and total (h, k), the largest |f_d| and the sum of all. */
int prepare_keys(const float *restrict f, float *restrict by_key, float *restrict highest, float *restrict largest,
                 float *restrict total, int64_t heads, int64_t keys, int64_t model, int64_t lanes) {
    memset(by_key, 0, sizeof(float) * keys * model * lanes);
    memset(highest, 0, sizeof(float) * keys * model);
    for (int64_t k = 0; k < keys; ++k) {
        float *restrict high = highest + k * model;
        for (int64_t h = 0; h < heads; ++h) {
            const float *restrict from = f + (h * keys + k) * model;
            float most = 0, sum = 0;
#pragma omp simd reduction(max : most) reduction(+ : sum)
            for (int64_t d = 0; d < model; ++d) {
                const float size = fabsf(from[d]);
                high[d] = high[d] > size ? high[d] : size;
                most = most > size ? most : size;
                sum += size;
            }
            largest[h * keys + k] = most;
            total[h * keys + k] = sum;
        }
        for (int64_t d0 = 0; d0 < model; d0 += TILE)
            for (int64_t h = 0; h < heads; ++h) {
                const float *restrict from = f + (h * keys + k) * model;
                float *restrict to = by_key + k * model * lanes + h;
                for (int64_t d = d0; d < d0 + TILE && d < model; ++d) to[d * lanes] = from[d];
            }
    }
    return 0;
}

static inline int64_t bucket(float size, float scale) {
    const float place = size * scale;
    return place < BUCKETS - 1 ? (int64_t)place : BUCKETS - 1;
}

/* Of each query of y (q, d) the coordinates with |y_d| below cap, in order of their bucket: which and what they are,
   small (q, d); how many of the buckets up to each, first (q, BUCKETS + 1); and cap (q,) itself, a quarter of the mean. */
int prepare_queries(const float *restrict y, int32_t *restrict which, float *restrict small, int32_t *restrict first,
                    float *restrict cap, int64_t queries, int64_t model) {
    for (int64_t q = 0; q < queries; ++q) {
        const float *restrict row = y + q * model;
        int32_t *restrict start = first + q * (BUCKETS + 1), next[BUCKETS];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < model; ++d) sum += fabsf(row[d]);
        cap[q] = sum / (4 * model);
        const float scale = BUCKETS / cap[q];
        memset(start, 0, sizeof(int32_t) * (BUCKETS + 1));
        for (int64_t d = 0; d < model; ++d)
            if (fabsf(row[d]) < cap[q]) ++start[bucket(fabsf(row[d]), scale) + 1];
        for (int64_t b = 0; b < BUCKETS; ++b) {
            start[b + 1] += start[b];
            next[b] = start[b];
        }
        for (int64_t d = 0; d < model; ++d)
            if (fabsf(row[d]) < cap[q]) {
                const int64_t place = q * model + next[bucket(fabsf(row[d]), scale)]++;
                which[place] = (int32_t)d;
                small[place] = row[d];
            }
    }
    return 0;
}

/* Of weights (h, q, k) times factors (h, q): w (k, q, lanes), absolute (k, q) the sum of sizes, bound (k, q) of |t_d|,
   and sizes (q,) the largest sum_h |w_h| ||f_h||_1 of any key, if it is larger. */
static void prepare_weights(float *restrict w, float *restrict absolute, float *restrict bound, float *restrict sizes,
                            const float *restrict weights, const float *restrict factors,
                            const float *restrict largest, const float *restrict total, int64_t heads, int64_t queries,
                            int64_t keys, int64_t lanes, int64_t next_head, int64_t next_query, int64_t next_factor) {
    for (int64_t q = 0; q < queries; ++q) {
        float a[KEYS] = {0}, b[KEYS] = {0}, s[KEYS] = {0};
        for (int64_t h = 0; h < heads; ++h) {
            const float *restrict from = weights + h * next_head + q * next_query;
            const float factor = factors[h * next_factor + q];
            for (int64_t k = 0; k < keys; ++k) {
                const float size = fabsf(from[k] * factor);
                a[k] += size;
                b[k] += size * largest[h * keys + k];
                s[k] += size * total[h * keys + k];
            }
            for (int64_t k = 0; k < keys; ++k) w[(k * queries + q) * lanes + h] = from[k] * factor;
        }
        for (int64_t h = heads; h < lanes; ++h)
            for (int64_t k = 0; k < keys; ++k) w[(k * queries + q) * lanes + h] = 0;
        for (int64_t k = 0; k < keys; ++k) {
            absolute[k * queries + q] = a[k];
            bound[k * queries + q] = b[k];
            sizes[q] = sizes[q] > s[k] ? sizes[q] : s[k];
        }
    }
}

static inline float along(const float *restrict w, const float *restrict f, int64_t lanes) {
    float sum[LANES] = {0};
    for (int64_t part = 0; part < lanes; part += LANES)
        for (int64_t h = 0; h < LANES; ++h) sum[h] += w[part + h] * f[part + h];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* towards (q, k) -= 2 overshoot, and sizes as above; of at most KEYS keys.  The last axis of each tensor is dense, and
   so are all others but those whose strides are given.  1 where memory is short, else 0. */
int take_off_overshoots(float *restrict towards, float *restrict sizes, const float *restrict weights,
                        const float *restrict factors, const float *restrict by_key, const float *restrict highest,
                        const float *restrict largest, const float *restrict total, const float *restrict y,
                        const int32_t *restrict which, const float *restrict small, const int32_t *restrict first,
                        const float *restrict cap, int64_t heads, int64_t queries, int64_t keys, int64_t model,
                        int64_t lanes, int64_t next_head, int64_t next_query, int64_t next_factor,
                        int64_t next_towards) {
    float *restrict w = malloc(sizeof(float) * (queries * keys * (lanes + 2) + 2 * model));
    if (!w) return 1;
    float *restrict absolute = w + queries * keys * lanes, *restrict bound = absolute + queries * keys;
    float *restrict of = bound + queries * keys;
    int32_t *restrict chosen = (int32_t *)(of + model);
    prepare_weights(w, absolute, bound, sizes, weights, factors, largest, total, heads, queries, keys, lanes, next_head,
                    next_query, next_factor);
    for (int64_t k = 0; k < keys; ++k) {
        const float *restrict f = by_key + k * model * lanes, *restrict high = highest + k * model;
        of[0] = 0; /* what is read in order comes before it is waited for */
        for (int64_t d = 0; d < model * lanes; d += 16) of[0] += f[d];
        for (int64_t q = 0; q < queries; ++q) {
            const float most = bound[k * queries + q], weight = absolute[k * queries + q];
            if (weight == 0) continue; /* behind a causal mask, outside a window, padding */
            const int32_t *restrict among = which + q * model;
            const float *restrict beside = small + q * model;
            int64_t left = 0;
            if (most < cap[q]) {
                const int64_t count = first[q * (BUCKETS + 1) + bucket(most, BUCKETS / cap[q]) + 1];
                for (int64_t n = 0; n < count; ++n) {
                    chosen[left] = among[n];
                    of[left] = beside[n];
                    left += weight * high[among[n]] > fabsf(beside[n]);
                }
            } else {
                const float *restrict row = y + q * model;
                for (int64_t d = 0; d < model; ++d) {
                    chosen[left] = (int32_t)d;
                    of[left] = row[d];
                    left += weight * high[d] > fabsf(row[d]);
                }
            }
            float twice = 0;
            for (int64_t n = 0; n < left; ++n) {
                const float t = along(w + (k * queries + q) * lanes, f + chosen[n] * lanes, lanes);
                const float over = (of[n] < 0 ? -t : t) - fabsf(of[n]); /* -0 has the sign of 0 */
                twice += over + fabsf(over); /* without a branch, as a wrong guess would wait for f */
            }
            towards[q * next_towards + k] -= twice;
        }
    }
    free(w);
    return 0;
}
