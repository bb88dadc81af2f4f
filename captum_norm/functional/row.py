"""The norms of one query's contributions: then the vectors themselves are cheaper than the heads' inner products.

For one query i the vectors sum_h alpha^h_ij f^h(x_j) = concat_h(alpha^h_ij v^h_j) W_O are one matrix product, in
float32.  With m the concatenation, of n entries, rounding m, the products and their sums leaves each of the vector's d
entries off by about 3e-8 sqrt(3 + n / 2) of what is summed up in it, in either direction: so their norm, by 3e-8
sqrt((6 + n) / 2 d) of sqrt(sum_e m_e^2 ||W_O[e]||^2), which is at most max|m| ||W_O||_F.  A key whose vector is much
shorter than that (heads cancel) is computed again in float64.

W_O may be its triangular factor L (:func:`captum_norm.functional.gram.triangle`): ||m W_O|| = ||m L||.

Axes: b batch, h head, q query (one), k key, e head_dim, d model.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

# Below this part of that bound, times sqrt((6 + n) / d) where that is above 1, a key is computed again, so that what is
# left to float32 is right to 1e-6.
_CANCELS = 0.03


def fill_summed_norms_of_row(
    result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None,
    factor: Sequence[tuple[int, Tensor]],
) -> None:  # fmt: skip
    """Writes into result (batch, 1, key), float32, the summed norms of one query.

    weights is (batch, head, 1, key), values (batch, head, key, head_dim), W_O (head, head_dim, model), gate None or
    (batch, head, 1, 1), and factor W_O or its triangle: blocks of columns, each with its first row.
    """
    batch, head, _, key = weights.shape
    alpha = weights.float() if gate is None else weights.float() * gate
    mixed = values.new_empty(batch, key, head, values.shape[-1], dtype=torch.float32)
    torch.mul(values.transpose(1, 2), alpha.permute(0, 3, 1, 2), out=mixed)
    mixed = mixed.flatten(0, 1).flatten(1)  # (batch * key, head * head_dim)
    squares = [(mixed[:, first:] @ columns).square_().sum(-1) for first, columns in factor]
    norms = sum(squares[1:], squares[0]).sqrt_()
    cancels = _CANCELS * max(1.0, math.sqrt((6 + mixed.shape[1]) / W_O.shape[2]))
    bound = cancels * math.hypot(*(_length(columns) for _, columns in factor))
    norms, cancelling = norms.view(batch, key), (norms < bound * mixed.abs_().amax(-1)).view(batch, key)
    if cancelling.any():
        norms[cancelling] = _in_float64(cancelling, weights, values, W_O, gate)
    result.copy_(norms[:, None])


def _length(W: Tensor) -> float:
    """||W||_F of a matrix, in half the time that ``vector_norm`` takes for a transposed one."""
    rows = W if W.is_contiguous() else W.mT.contiguous()
    return math.sqrt(float(torch.dot(rows.view(-1), rows.view(-1))))


def _in_float64(where: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None) -> Tensor:
    """The norms where the mask (batch, key) says so, one after the other."""
    example, key = where.nonzero(as_tuple=True)
    alpha = weights[example, :, 0, key].double()
    alpha = alpha if gate is None else alpha * gate[example, :, 0, 0]
    mixed = (alpha[..., None] * values[example, :, key].double()).flatten(1)
    return vector_norm(mixed @ W_O.flatten(0, 1).double(), dim=-1).float()
