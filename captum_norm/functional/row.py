"""The norms of one query's contributions: then the vectors themselves are cheaper than the heads' inner products.

For one query i the vectors sum_h alpha^h_ij f^h(x_j) = concat_h(alpha^h_ij v^h_j) W_O are one matrix product, in
float32.  With m the concatenation, its rounding error is about 1e-7 of sqrt(sum_e m_e^2 ||W_O[e]||^2), at most
max|m| ||W_O||_F; a key whose vector is much shorter than that (heads cancel) is computed again in float64.

Axes: b batch, h head, q query (one), k key, e head_dim, d model.
"""

from torch import Tensor
from torch.linalg import vector_norm

# Below this part of that bound a key is computed again, so that what is left to float32 is right to about 1e-6.
_CANCELS = 0.03


def fill_summed_norms_of_row(result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None) -> None:
    """Writes into result (batch, 1, key), float32, the summed norms of one query.

    weights is (batch, head, 1, key), values (batch, head, key, head_dim), W_O (head, head_dim, model) and gate None or
    (batch, head, 1, 1).
    """
    alpha = weights.float() if gate is None else weights.float() * gate
    projection = W_O.flatten(0, 1)
    mixed = (alpha.transpose(2, 3) * values.float()).transpose(1, 2).flatten(2)  # (batch, key, head * head_dim)
    norms = vector_norm(mixed @ projection.float(), dim=-1)
    bound = vector_norm(projection.float()) * vector_norm(mixed, ord=float("inf"), dim=-1)
    cancelling = norms < _CANCELS * bound
    if cancelling.any():
        example, key = cancelling.nonzero(as_tuple=True)
        alpha = weights[example, :, 0, key].double()
        alpha = alpha if gate is None else alpha * gate[example, :, 0, 0]
        mixed = (alpha[..., None] * values[example, :, key].double()).flatten(1)
        norms[cancelling] = vector_norm(mixed @ projection.double(), dim=-1).float()
    result.copy_(norms[:, None])
