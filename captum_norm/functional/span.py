"""Which tokens, which heads, the residual, the biases: what brings a span of rows to what they are, layer by layer?

With the rows i of a span weighted by u_i, an attention block adds up

    X = sum_i u_i y_i = sum_hj z^h_j + sum_i u_i x_i + biases,     z^h_j = (sum_i u_i alpha^h_ij v^h_j) W_O^h,

and what a summand z brings X nearer to what it is, is

    prox(z; X) = max(0, ||X||_1 - ||X - z||_1).

Shares are these divided by their sum over heads and keys, the residual and the biases.  Parts are summed over the rows
*before* the maximum: a span is not the mean of its rows.

Coordinate by coordinate |X| - |X - z| = min(s z, 2 |X| - s z) with s the sign of X: a small z keeps its digits.

Sources: Ferrando and Voita (2024), "Information Flow Routes", https://arxiv.org/abs/2403.00824, for a row;
FlashTrace (2026), https://arxiv.org/abs/2602.01914, for a span.  Theirs leave b_V and b_O out of all parts.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.norms import slices, work
from captum_norm.functional.precision import full_precision


class SpanShares(NamedTuple):
    """Shares of a span in one attention block; tokens, residual and bias add up to 1.

    Attributes:
        tokens: (batch, key), all heads together.
        heads: (batch, head), all keys together.
        residual, bias: (batch,).
    """

    tokens: Tensor
    heads: Tensor
    residual: Tensor
    bias: Tensor


@torch.no_grad()
def span_values(weights: Tensor, values: Tensor, span: Tensor, gate: Tensor | None = None) -> Tensor:
    """sum_i u_i alpha^h_ij (g_i * v^h_j): what each head takes of each key's values for the span.

    Args:
        weights, values, gate: as in ``head_norms``.
        span: u, the weight of each row in the span, (batch, query).

    Returns:
        (batch, head, key, head_dim), in float64 if any tensor is, else float32.

    Example:
        >>> weights, values = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]), torch.tensor([[[[2.0], [4.0]]]])
        >>> span_values(weights, values, span=torch.tensor([[1.0, 2.0]]))[0, 0]
        tensor([[4.],
                [4.]])
    """
    inputs = {
        "weights": (weights, "batch head query key"),
        "values": (values, "batch head key head_dim"),
        "span": (span, "batch query"),
    }
    check_axes("span_values", **inputs)
    dtype = result_dtype(weights, values, gate)
    u, a, v = span.to(dtype), weights.to(dtype), values.to(dtype)
    if gate is not None and gate.shape[-1] != 1:
        taken = torch.einsum("bhqk,bhqe->bhke", a, u[:, None, :, None] * gate.to(dtype))
        return taken * v
    u = u[:, None].expand(-1, a.shape[1], -1) if gate is None else u[:, None] * gate[..., 0].to(dtype)
    return (u[..., None, :] @ a)[..., 0, :, None] * v


@torch.no_grad()
def span_shares(mixed: Tensor, W_O: Tensor, residual: Tensor, state: Tensor, *, threshold: float = 0.0) -> SpanShares:
    """The shares of tokens, heads, residual and biases in a span.

    Args:
        mixed: what the span takes of each key, ``span_values``, (batch, head, key, head_dim).
        W_O: each head's slice of the output projection, (head, head_dim, model).
        residual: sum_i u_i x_i, (batch, model).
        state: X = sum_i u_i y_i, (batch, model); what is neither of a key nor the residual is the biases'.
        threshold: a head's part of a key with a smaller prox, in the units of the stream, counts as 0.

    Returns:
        Shares, 0 where nothing brings the span nearer; float64 if any tensor is, else float32.

    Raises:
        TypeError, ValueError: as ``head_norms`` does.

    Example:
        One head, two keys: the first adds (2, 0), the second (0, 1), the residual (1, 0):

        >>> mixed = torch.tensor([[[[2.0, 0.0], [0.0, 1.0]]]])
        >>> found = span_shares(mixed, torch.eye(2)[None], torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 1.0]]))
        >>> found.tokens, found.residual
        (tensor([[0.5000, 0.2500]]), tensor([0.2500]))
    """
    inputs = {
        "mixed": (mixed, "batch head key head_dim"),
        "W_O": (W_O, "head head_dim model"),
        "residual": (residual, "batch model"),
        "state": (state, "batch model"),
    }
    check_axes("span_shares", **inputs)
    dtype = result_dtype(*[tensor for tensor, _ in inputs.values()])
    with full_precision(mixed.device):
        mixed, W_O, residual, state = (tensor.to(dtype) for tensor in (mixed, W_O, residual, state))
        parts = _nearer(mixed, W_O, state)
        parts = torch.where(parts < threshold, 0, parts)
        of_keys = torch.einsum("bhe,hed->bd", mixed.sum(2), W_O)
        others = proximity(torch.stack([residual, state - of_keys - residual]), state)
        total = parts.sum((1, 2)) + others.sum(0)
        shares = 1 / total.masked_fill(total == 0, 1)
        tokens, heads = parts.sum(1) * shares[:, None], parts.sum(2) * shares[:, None]
        check_finite("span_shares", tokens, **inputs)
        return SpanShares(tokens, heads, others[0] * shares, others[1] * shares)


def proximity(part: Tensor, state: Tensor) -> Tensor:
    """prox(z; X) = max(0, ||X||_1 - ||X - z||_1) over the last axis.

    Args:
        part: z, (..., model).
        state: X, (..., model), which broadcasts.

    Example:
        >>> proximity(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [9.0, 0.0]]), torch.tensor([2.0, 1.0]))
        tensor([1., 0., 0.])
    """
    return towards(part * _sign(state), 2 * state.abs()).clamp_min(0)


def _nearer(mixed: Tensor, W_O: Tensor, state: Tensor) -> Tensor:
    """prox of every head's part of every key, (batch, head, key)."""
    batch, head, key, _ = mixed.shape
    result, sign, twice = mixed.new_zeros(batch, head, key), _sign(state), 2 * state.abs()
    for b in range(batch):
        for h in range(head):
            projection = W_O[h] * sign[b]
            for k in slices(key, work(mixed) // max(1, W_O.shape[2])):
                result[b, h, k] = towards(mixed[b, h, k] @ projection, twice[b])
    return result.clamp_min_(0)


def towards(part: Tensor, twice: Tensor) -> Tensor:
    """sum_d min(s z, 2 |X| - s z) of s z, (..., model)."""
    return torch.minimum(part, twice - part).sum(-1)


def _sign(state: Tensor) -> Tensor:
    """1 or -1; where a coordinate is 0, either will do."""
    return torch.where(state < 0, -1, 1).to(state.dtype)
