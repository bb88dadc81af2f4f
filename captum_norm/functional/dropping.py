"""How far does what attention gives out move when one key is taken away and the softmax is normalised anew?

With o_i = sum_k alpha_ik v_k what a head mixed, and key j gone,

    change^h_ij = (sum_{k != j} alpha_ik v_k) / (sum_{k != j} alpha_ik) - o_i = alpha_ij / (1 - alpha_ij) (o_i - v_j),

and the drop norm is ||sum_h change^h_ij W_O^h||: exact for the call, no first-order estimate, and without b_O, which
cancels.  The quotient loses its digits where alpha_ij nears 1 and is 0/0 where it rounds to 1, so there, at one key of
a row at most, the others are added up.  Where nothing else is left, the head gives out 0 (``nothing_left`` tells).

Weights that add up to less than 1 have a softmax with a term that is no key (a sink); it stays in the denominator.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.  Norms are L2, computed in float64.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.norms import attention_inputs, narrow, pair_blocks
from captum_norm.functional.precision import full_precision


@torch.no_grad()
def drop_norms(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """||change of the call's output without key j||, all heads together.

    Arguments and errors are those of ``head_norms``; weights are those of a softmax.  A gate is held fixed.

    Returns:
        (batch, query, key), non-negative; 0 where a key has no weight.  A head with ``nothing_left`` changes by -o_i.

    Raises:
        ValueError: also if weights are negative or add up to more than 1.

    Example:
        Two keys of one value each.  Without the first, all of the weight falls to the second:

        >>> weights, values = torch.tensor([[[[0.75, 0.25]]]]), torch.tensor([[[[4.0, 0.0], [0.0, 4.0]]]])
        >>> drop_norms(weights, values, torch.eye(2)[None])  # (3, 1) becomes (0, 4) or (4, 0)
        tensor([[[4.2426, 1.4142]]])
    """
    inputs = attention_inputs(weights, values, W_O, gate)
    sizes = check_axes("drop_norms", **inputs)
    dtype = result_dtype(*[tensor for tensor, _ in inputs.values()])
    result = torch.zeros(sizes["batch"], sizes["query"], sizes["key"], dtype=dtype, device=weights.device)
    if result.numel() == 0 or sizes["head"] == 0:
        return result
    with full_precision(weights.device):
        _fill(result, weights, values, W_O, gate)
    return check_finite("drop_norms", result, **inputs)


def nothing_left(weights: Tensor) -> Tensor:
    """Where a head has no weight left once a key is taken away, (batch, head, query, key) bool.

    So it is in the first row of a causal model.  Where other keys were visible but their weights underflowed to 0,
    weights cannot tell the difference.

    Args:
        weights: attention weights of a softmax, (batch, head, query, key).

    Example:
        >>> nothing_left(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]))
        tensor([[[[ True, False],
                  [False, False]]]])
    """
    check_axes("nothing_left", weights=(weights, "batch head query key"))
    largest, others = _without_largest(weights)
    empty = (others.sum(-1) + _beside_keys(weights) == 0)[..., None] & (weights > 0)
    return empty & torch.zeros_like(empty).scatter_(-1, largest, True)


def _without_largest(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The key with the largest weight, (batch, head, query, 1), and the weights with 0 in its place, in float64."""
    if weights.shape[-1] == 0:
        return torch.zeros(0, dtype=torch.long, device=weights.device).expand(*weights.shape[:-1], 0), weights.double()
    largest = weights.argmax(-1, keepdim=True)
    return largest, weights.double().scatter(-1, largest, 0.0)


def _beside_keys(weights: Tensor) -> Tensor:
    """What a softmax gave to no key, (batch, head, query) in float64: 0 where rounding explains it."""
    rounding = torch.finfo(weights.dtype).eps * max(4.0, weights.shape[-1] ** 0.5)
    rest = 1 - weights.double().sum(-1)
    wrong = (rest < -rounding) | (weights < 0).any(-1)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"drop_norms: the weights at (batch, head, query) = {place} are not those of a softmax: their sum is "
            f"{float(weights.double().sum(-1)[place]):.4g}, the smallest {float(weights[place].min()):.4g}. A softmax "
            "without a key can be told of weights that are not negative and add up to 1, or to less beside a sink."
        )
    return torch.where(rest > rounding, rest, 0.0)


def _fill(result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None) -> None:
    head, head_dim, _ = W_O.shape
    projection = narrow(W_O.double().flatten(0, 1))
    v = values.double()
    rest = _beside_keys(weights)
    largest, others = _without_largest(weights)
    left = others.sum(-1) + rest
    mixed = weights.double() @ v
    # One key of a row at most has more than half of the weight.
    other_mixed = (others / left.masked_fill(left == 0, 1)[..., None]) @ v - mixed
    dominant = weights.gather(-1, largest)[..., 0] > 0.5
    for b, q, k in pair_blocks(result, max(projection.shape[0], projection.shape[1])):
        a = weights[b, :, q, k].double()
        change = (a / (1 - a).clamp_min(0.5))[..., None] * (mixed[b, :, q, None] - v[b, :, None, k])
        h, row = (dominant[b, :, q] & (largest[b, :, q, 0] >= k.start) & (largest[b, :, q, 0] < k.stop)).nonzero().T
        change[h, row, largest[b, h, q.start + row, 0] - k.start] = other_mixed[b, h, q.start + row]
        if gate is not None:
            change = change * gate[b, :, q, None]
        vectors = change.permute(1, 2, 0, 3).reshape(*a.shape[1:], head * head_dim) @ projection
        result[b, q, k] = vector_norm(vectors, dim=-1)
