"""How much shorter is y once t_ij is taken away from it, ||y_i|| - ||y_i - t_ij||, for every input j of output i?

The vectors t_ij = sum_h w_hij f_h(x_j) are those of ``block``, without the residual.  In L1, with s the signs of y,

    ||y||_1 - ||y - t||_1 = <s, t> - 2 sum_d max(0, s_d t_d - |y_d|),

and <s_i, t_ij> = sum_h w_hij <W_O^h s_i, v_hj>, the price of a product of queries and keys.  What is left to be
computed vector by vector is how far t overshoots y, which is little: nothing cancels, so that float32 is exact enough,
where a difference of two lengths would lose the digits of every t that is short beside y.  In L2,

    ||y - t||^2 = ||y||^2 - 2 <y, t> + ||t||^2        with ||t|| as in ``norms``.

For float64 results, and where a gate makes f depend on the query, the vectors and their distances are built as they are
written, a few queries and keys at a time; likewise for those queries of float32 where heads cancel.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.block import Block
from captum_norm.functional.gram import kept_once
from captum_norm.functional.normalization import divided, fold
from captum_norm.functional.norms import fill_summed_norms_by_products, is_elementwise, slices
from captum_norm.functional.overshoot import KEYS, Overshoots, overshoots

# Vectors of keys are kept from block to block of queries up to this many numbers, 128 MB; of the first keys, as those
# are what most queries of a causal model see.
_VECTORS_KEPT = 1 << 25

# Numbers in a block of vectors: a core's second cache holds them.
_VECTORS = 1 << 18

# In float32 rounding leaves less than this part of sum_h |w_h| ||f_h||_1 / sqrt(model) ...
_ROUNDING = 1e-7
# ... and where that is more than this part of the longest way that an input brings y_i nearer, query i is done again.
_TOLERATED = 5e-7


def nearer(block: Block, y: Tensor, p: int) -> Tensor:
    """||y_i||_p - ||y_i - t_ij||_p without the residual, (batch, query, key) in float64; y is float64.

    Of a query that is a key itself, what stands there is without its residual, too.
    """
    after = block.behind_attention(block.norms)
    scales = divided(torch.ones_like(y[..., :1]), after)
    if block.dtype == torch.float64 or is_elementwise(block.gate) or block.weights.shape[1] == 0:
        return _vector_by_vector(block, y, scales, p)
    return _by_signs(block, y, scales) if p == 1 else _by_products(block, y, scales)


def _vector_by_vector(block: Block, y: Tensor, scales: Tensor, p: int) -> Tensor:
    projection = fold(block.W_O, block.behind_attention(block.norms))
    batch, _, query, key = block.weights.shape
    distances = y.new_empty(batch, query, key)
    for b in range(batch):
        gate = None if block.gate is None else block.gate[b]
        for k in slices(key, 64):
            tile = block.weights[b, :, :, k], block.values[b, :, k], gate
            _fill_distances(distances[b, :, k], *tile, y[b], projection, scales[b], p)
    return vector_norm(y, ord=p, dim=-1, keepdim=True) - distances


def _fill_distances(
    distances: Tensor, weights: Tensor, values: Tensor, gate: Tensor | None, y: Tensor, projection: Tensor,
    scales: Tensor, p: int,
) -> None:  # fmt: skip
    """||y - t|| of one example into distances (query, key); weights is (head, query, key), values (head, key, ...)."""
    weights = weights.permute(2, 1, 0).double() * scales  # (key, query, head)
    values = values.transpose(0, 1).double()  # (key, head, head_dim)
    gate = None if gate is None else gate.transpose(0, 1).double()  # (query, head, head_dim or 1)
    if gate is not None and not is_elementwise(gate):
        weights, gate = weights * gate[..., 0], None
    f = torch.einsum("khe,hed->khd", values, projection)
    query = min(len(y), 64)
    for k in slices(len(values), _VECTORS // max(1, query * projection.shape[2])):
        for q in slices(len(y), query):
            if gate is None:
                left = (weights[k, q] @ f[k]).sub_(y[q])
            else:
                mixed = weights[k, q, :, None] * values[k, None] * gate[q]
                left = (mixed.flatten(2) @ projection.flatten(0, 1)).sub_(y[q])
            distances[q, k] = (left.abs_().sum(-1) if p == 1 else vector_norm(left, dim=-1)).T


def _by_signs(block: Block, y: Tensor, scales: Tensor) -> Tensor:
    """L1, from signs and overshoots in float32; queries where heads cancel once more in float64."""
    after = block.behind_attention(block.norms)
    exact = fold(block.W_O, after)
    projection = exact.float()
    batch, head, query, key = block.weights.shape
    found = torch.empty(batch, query, key, device=y.device)
    made_of = (block.values, block.W_O, *[norm.weight for norm in after])
    kept = _VECTORS_KEPT // max(1, batch * head * projection.shape[2]) // KEYS * KEYS  # keys
    for b in range(batch):
        factors = scales[b].float().T  # (head or 1, query)
        factors = factors if block.gate is None else factors * block.gate[b, ..., 0].float()
        weights, values = block.weights[b].float(), block.values[b].float()

        over = overshoots(y[b].float(), factors, key, head)

        def prepared(
            k: slice, b: int = b, values: Tensor = values, over: Overshoots = over
        ) -> Sequence[Tensor]:
            def make() -> Sequence[Tensor]:
                return over.prepared(torch.bmm(values[:, k], projection))

            how = b, k.start, type(over), *[norm.centred for norm in after]
            return kept_once(make, nearer, made_of, *how) if k.stop <= kept else make()

        _fill_by_signs(found[b], weights, factors, values, y[b], projection, over, prepared)
        noise = _ROUNDING / projection.shape[2] ** 0.5 * over.sizes
        again = (noise > _TOLERATED * found[b].amax(-1).clamp_min_(0)).nonzero()[:, 0]
        if len(again):
            gate = None if block.gate is None else block.gate[b, :, again]
            distances = y.new_empty(len(again), key)
            for k in slices(key, 64):
                tile = block.weights[b][:, again, k], block.values[b, :, k], gate
                _fill_distances(distances[:, k], *tile, y[b, again], exact, scales[b, again], 1)
            found[b, again] = (y[b, again].abs().sum(-1, keepdim=True) - distances).float()
    return found.double()


def _fill_by_signs(
    found: Tensor, weights: Tensor, factors: Tensor, values: Tensor, y: Tensor, projection: Tensor, over: Overshoots,
    prepared: Callable[[slice], Sequence[Tensor]],
) -> None:  # fmt: skip
    """One example's approaches into found (query, key).

    weights is (head, query, key), factors, by which they are multiplied, (head or 1, query); prepared gives what the
    overshoots need of some keys.
    """
    images = torch.einsum("qd,hed->hqe", torch.where(y < 0, -1.0, 1.0).float(), projection) * factors[..., None]
    for k in slices(weights.shape[2], KEYS):
        seen = weights[:, -1, k].any() or weights[:, :, k].any()
        if not seen and not weights[:, :, k.start :].any():  # behind a causal mask
            found[:, k.start :] = 0
            break
        towards = torch.mul(weights[0, :, k], images[0] @ values[0, k].T, out=found[:, k])
        for h in range(1, len(weights)):
            towards.addcmul_(weights[h, :, k], images[h] @ values[h, k].T)
        over.take_off(towards, weights[:, :, k], prepared(k))


def _by_products(block: Block, y: Tensor, scales: Tensor) -> Tensor:
    """L2, from g = ||t||^2 - 2 <y, t> in float32: -g / (||y|| + sqrt(||y||^2 + g)) keeps the digits of a short t."""
    batch, head, query, key = block.weights.shape
    norms = torch.empty(batch, query, key, device=y.device)
    after = block.behind_attention(block.norms)
    fill_summed_norms_by_products(norms, block.weights, block.values, block.W_O, block.gate, after)
    towards = y * scales
    for norm in reversed(after):
        towards = norm.back(towards)
    images = (towards.float() @ block.W_O.flatten(0, 1).mT.float()).view(batch, query, head, -1).transpose(1, 2)
    if block.gate is not None:
        images = images * block.gate.float()
    values, lengths = block.values.float().mT, vector_norm(y, dim=-1, keepdim=True)
    found = y.new_empty(batch, query, key)
    for q in slices(query, 128):
        growth = (norms[:, q] * scales[:, q]).float().square_()
        for h in range(head):
            growth.addcmul_(block.weights[:, h, q].float(), images[:, h, q] @ values[:, h], value=-2)
        both = (lengths[:, q].square() + growth).clamp_min_(0).sqrt_() + lengths[:, q]
        found[:, q] = -growth / both.clamp_min_(torch.finfo(torch.float64).tiny)
    return found
