"""Which head's part of which key, the residual or the biases: what brings each row of a block to what it is?

In an attention block a row is a sum, y_i = sum_hj z^h_ij + x_i + biases with z^h_ij = alpha^h_ij v^h_j W_O^h, and what
a summand z brings y nearer to what it is, is

    prox(z; y) = max(0, ||y||_1 - ||y - z||_1).

Shares are these divided by their sum over heads, keys, residual and biases; those of a feed-forward part and of what
was there before it likewise.  Norms behind the residual or between are taken in, their divisors held fixed.

Source: Ferrando and Voita (2024), "Information Flow Routes", https://arxiv.org/abs/2403.00824.  Their code leaves b_V
and b_O out of all parts and gives each part, a masked key's too, 1e-5 at least.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.normalization import Norms, fold
from captum_norm.functional.norms import attention_inputs, is_elementwise, slices, work
from captum_norm.functional.precision import full_precision
from captum_norm.functional.span import proximity, towards


class RouteShares(NamedTuple):
    """Shares of each row of an attention block; attention, residual and bias add up to 1, or are 0 altogether.

    Attributes:
        attention: (batch, head, query, key).
        residual, bias: (batch, query).
    """

    attention: Tensor
    residual: Tensor
    bias: Tensor


@torch.no_grad()
def route_shares(
    weights: Tensor,
    values: Tensor,
    W_O: Tensor,
    residual: Tensor,
    output: Tensor,
    *,
    gate: Tensor | None = None,
    inner: Norms = (),
    norm: Norms = (),
) -> RouteShares:
    """The shares of every head and key, the residual and the biases in each row.

    Args:
        weights, values, W_O, gate: as in ``head_norms``.
        residual: x, what the model adds to attention's output, (batch, query, model).
        output: y, what came of attention and residual, with all biases and norms, (batch, query, model).
        inner: norms between attention and residual.
        norm: norms behind the residual.

    Raises:
        TypeError, ValueError: as ``head_norms`` does.

    Example:
        One head, two keys: the first adds (2, 0), the second (0, 1), the residual (1, 0):

        >>> weights, values = torch.ones(1, 1, 1, 2), torch.tensor([[[[2.0, 0.0], [0.0, 1.0]]]])
        >>> y = torch.tensor([[[3.0, 1.0]]])
        >>> found = route_shares(weights, values, torch.eye(2)[None], torch.tensor([[[1.0, 0.0]]]), y)
        >>> found.attention[0, 0, 0], found.residual
        (tensor([0.5000, 0.2500]), tensor([[0.2500]]))
    """
    inputs = attention_inputs(weights, values, W_O, gate)
    inputs |= {name: (tensor, "batch query model") for name, tensor in (("residual", residual), ("output", output))}
    check_axes("route_shares", **inputs)
    dtype = result_dtype(*[tensor for tensor, _ in inputs.values()])
    with full_precision(weights.device):
        after = [*inner, *norm]
        scale = torch.ones_like(output[..., 0], dtype=torch.float64)
        for one in after:
            scale = scale if one.deviation is None else scale / one.deviation
        weights = weights.to(dtype) * scale[:, None, :, None].to(dtype)
        y = output.to(dtype)
        found, mixed = _nearer(weights, values.to(dtype), fold(W_O, after).to(dtype), y, gate)
        own = residual.double()
        for one in norm:
            own = one(own)
        others = proximity(torch.stack([own.to(dtype), y - mixed - own.to(dtype)]), y)
        total = found.sum((1, 3)) + others.sum(0)
        shares = 1 / total.masked_fill(total == 0, 1)
        found *= shares[:, None, :, None]
        return RouteShares(check_finite("route_shares", found, **inputs), others[0] * shares, others[1] * shares)


def feed_forward_share(before: Tensor, behind: Tensor) -> Tensor:
    """How much of what a row is behind a feed-forward part is that part's, the rest being what was there before it.

    Args:
        before: the row before the part, behind the norms that stand behind it, (..., model).
        behind: the row behind it, likewise.

    Example:
        >>> feed_forward_share(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0]))
        tensor(0.7500)
    """
    kept, added = proximity(torch.stack([before, behind - before]), behind)
    return torch.where(kept + added == 0, 0, added / (kept + added))


def _nearer(
    weights: Tensor, values: Tensor, projection: Tensor, y: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """prox of every part, (batch, head, query, key), and what all parts add up to, (batch, query, model)."""
    sign, twice = torch.where(y < 0, -1, 1).to(y.dtype), 2 * y.abs()
    result, mixed = torch.zeros_like(weights), torch.zeros_like(y)
    batch, head, query, key = weights.shape
    for b in range(batch):
        for h in range(head):
            f = None if is_elementwise(gate) else values[b, h] @ projection[h]
            for q in slices(query, work(y) // max(1, key * y.shape[2])):
                some = (weights[b, h, q] != 0).any(0).nonzero()[:, 0]
                if not len(some):
                    continue
                keys = slice(int(some[0]), int(some[-1]) + 1)
                w = weights[b, h, q, keys, None]
                w = w if gate is None else w * gate[b, h, q, None].to(w.dtype)
                parts = (w * values[b, h, keys]) @ projection[h] if f is None else w * f[keys]
                mixed[b, q] += parts.sum(1)
                result[b, h, q, keys] = towards(parts.mul_(sign[b, q, None]), twice[b, q, None])
    return result.clamp_min_(0), mixed
