"""How much of what a feed-forward part adds comes from each part of its input?

A feed-forward part is not linear, so that what it makes of a sum is not the sum of what it makes of the summands.
Integrated gradients share it out: along the path on which all parts y_j grow together from nothing to their sum,

    F_j = int_0^1 J(t sum_k y_k) y_j dt,      sum_j F_j = FF(sum_k y_k) - FF(0),

with J the Jacobian.  The path begins at the biases, which belong to no part; so does b_2.  It has a closed form.  With
P = sum_j W_1 y_j the pre-activation, g the activation and products entry by entry,

    F_j = W_2 [ W_1 y_j * (g(P + b_1) - g(b_1)) / P ],

and of a gated part, W_2 [g(A + b_g) * (U + b_1)] with A and U the sums of a_j = W_gate y_j and u_j = W_1 y_j,

    F_j = W_2 [ a_j * M + u_j * J ],   J = int_0^1 g(tA + b_g) dt,   M = int_0^1 g'(tA + b_g) (tU + b_1) dt,

where A M = (U + b_1) g(A + b_g) - b_1 g(b_g) - U J.

Source: Kobayashi et al. (2024), "Analyzing Feed-Forward Blocks in Transformers through the Lens of Attention Maps",
https://arxiv.org/abs/2302.00456, section 3, for maps through feed-forward parts by integrated gradients; the closed
form of gated parts is ours.

Axes: k key (a part), d model, m hidden.  All in float64.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.precision import full_precision

ActivationName = Literal["gelu", "gelu_new", "silu", "relu"]


@torch.no_grad()
def feed_forward_parts(
    parts: Tensor,
    W_1: Tensor,
    b_1: Tensor | None,
    W_2: Tensor,
    activation: ActivationName,
    *,
    W_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
) -> Tensor:
    """F_j: what each part of a feed-forward part's input adds to its output.

    Args:
        parts: y_j, (..., key, model); what they add up to is what the model computed on.
        W_1, b_1: the first projection, (hidden, model) and (hidden,), ``None`` for no bias; with ``W_gate`` the up
            projection, which the activated gate multiplies.
        W_2: the second projection, (model, hidden).
        activation: ``"gelu"``, ``"gelu_new"`` (its form with tanh), ``"silu"`` or ``"relu"``.
        W_gate, b_gate: the gate's projection, (hidden, model) and (hidden,).

    Returns:
        (..., key, model): summed over keys, the part's output less its output without any input.  ReLU at a
        pre-activation that stays 0 has the slope 1/2.

    Raises:
        TypeError, ValueError: for an unknown activation, a gate's bias without a gate, or as ``head_norms`` does.

    Example:
        Two parts with the sum 1; ReLU(2 * 1 - 1) = 1 is shared by them as their pre-activations are:

        >>> W_1, b_1, W_2 = torch.tensor([[2.0]]), torch.tensor([-1.0]), torch.tensor([[1.0]])
        >>> feed_forward_parts(torch.tensor([[0.75], [0.25]]), W_1, b_1, W_2, "relu")
        tensor([[0.7500],
                [0.2500]])
    """
    inputs = _inputs(parts, W_1, b_1, W_2, W_gate, b_gate)
    check_axes("feed_forward_parts", **inputs)
    with full_precision(parts.device):
        slopes = Slopes.of(parts.double().sum(-2), W_1, b_1, activation, W_gate, b_gate)
        y = parts.double()
        hidden = (y @ W_1.double().mT).mul_(slopes.up.unsqueeze(-2))
        if W_gate is not None and slopes.gate is not None:
            hidden += (y @ W_gate.double().mT).mul_(slopes.gate.unsqueeze(-2))
        result = (hidden @ W_2.double().mT).to(result_dtype(*[tensor for tensor, _ in inputs.values()]))
    return check_finite("feed_forward_parts", result, **inputs)


class Slopes(NamedTuple):
    """What the hidden entries of every part are multiplied with, (..., hidden) each: the part is linear in them.

    Attributes:
        up: on W_1 y_j.
        gate: on W_gate y_j; None without a gate.
    """

    up: Tensor
    gate: Tensor | None

    @classmethod
    def of(
        cls, total: Tensor, W_1: Tensor, b_1: Tensor | None, activation: str, W_gate: Tensor | None = None,
        b_gate: Tensor | None = None,
    ) -> "Slopes":  # fmt: skip
        """Those at the sum of all parts, total (..., model)."""
        if activation != "relu" and activation not in _SMOOTH:
            known = ", ".join(map(repr, get_args(ActivationName)))
            raise ValueError(f"feed_forward_parts: activation should be one of {known}, got {activation!r}.")
        total, P = total.double(), total.double() @ W_1.double().mT
        b = torch.zeros_like(P[..., :1]) if b_1 is None else b_1.double()
        if W_gate is None:
            return cls(_mean_slope(activation, P, b), None)
        A = total @ W_gate.double().mT
        b_g = torch.zeros_like(A) if b_gate is None else b_gate.double().expand_as(A)
        J, M = _gated_by_relu(A, b_g, P, b) if activation == "relu" else _gated(_SMOOTH[activation], A, b_g, P, b)
        return cls(J, M)


def _inputs(
    parts: Tensor, W_1: Tensor, b_1: Tensor | None, W_2: Tensor, W_gate: Tensor | None, b_gate: Tensor | None
) -> dict[str, tuple[Tensor, str]]:
    if b_gate is not None and W_gate is None:
        raise ValueError("feed_forward_parts: b_gate is a gate's bias, but W_gate is None.")
    leading = [f"axis_{n}" for n in range(max(0, getattr(parts, "ndim", 2) - 2))]
    inputs = {
        "parts": (parts, " ".join([*leading, "key", "model"])),
        "W_1": (W_1, "hidden model"),
        "b_1": (b_1, "hidden"),
        "W_2": (W_2, "model hidden"),
        "W_gate": (W_gate, "hidden model"),
        "b_gate": (b_gate, "hidden"),
    }
    return {name: (tensor, axes) for name, (tensor, axes) in inputs.items() if tensor is not None}


# ---- activations and their slopes


class _Smooth(NamedTuple):
    """An activation that is x above ``saturates`` and 0 below the opposite, to the last digit of float64."""

    of: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    saturates: float


def _gelu_slope(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * torch.exp(-x.square() / 2) * (2 * torch.pi) ** -0.5


def _gelu_by_tanh(factor: float) -> _Smooth:
    """The form with tanh, whose factor is the root of 2 / pi, to the digits that a model writes it with."""

    def tanh(x: Tensor) -> Tensor:
        return torch.tanh(factor * (x + 0.044715 * x**3))

    def slope(x: Tensor) -> Tensor:
        return (1 + tanh(x)) / 2 + x / 2 * (1 - tanh(x).square()) * factor * (1 + 3 * 0.044715 * x.square())

    return _Smooth(lambda x: x / 2 * (1 + tanh(x)), slope, 9.0)


def _silu_slope(x: Tensor) -> Tensor:
    sigmoid = x.sigmoid()
    return sigmoid * (1 + x * (1 - sigmoid))


def activated(activation: str, x: Tensor) -> Tensor:
    """An activation by its name."""
    return torch.relu(x) if activation == "relu" else _SMOOTH[activation].of(x)


_SMOOTH = {
    "gelu": _Smooth(torch.nn.functional.gelu, _gelu_slope, 9.0),
    "gelu_new": _gelu_by_tanh((2 / torch.pi) ** 0.5),
    "bloom_gelu": _gelu_by_tanh(0.79788456),
    "silu": _Smooth(torch.nn.functional.silu, _silu_slope, 44.0),
}

# Below this the mean slope is an integral; above it a quotient has all but two digits.
_NEAR = 0.03


def _mean_slope(activation: str, P: Tensor, b: Tensor) -> Tensor:
    """(g(P + b) - g(b)) / P."""
    if activation == "relu":
        start, stop = _active(P, b)
        return stop - start
    g = _SMOOTH[activation]
    near = sum(weight * g.slope(b + node * P) for node, weight in _nodes(6))
    return torch.where(P.abs() < _NEAR, near, (g.of(P + b) - g.of(b)) / torch.where(P == 0, 1, P))


def _active(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """From where to where on [0, 1] tA + b is positive; a half where it stays 0."""
    zero = (-b / torch.where(A == 0, 1, A)).clamp(0, 1)
    start = torch.where(A > 0, zero, 0.0)
    stop = torch.where(A < 0, zero, 1.0)
    still = torch.where(b > 0, 1.0, torch.where(b == 0, 0.5, 0.0)).expand_as(A)
    return torch.where(A == 0, 0.0, start), torch.where(A == 0, still, stop)


def _gated_by_relu(A: Tensor, b_g: Tensor, U: Tensor, b_u: Tensor) -> tuple[Tensor, Tensor]:
    """J and M where the gate's activation is ReLU: integrals of polynomials over where it is open."""
    start, stop = _active(A, b_g)
    width, square = stop - start, (stop.square() - start.square()) / 2
    return A * square + b_g * width, U * square + b_u * width


def _gated(g: _Smooth, A: Tensor, b_g: Tensor, U: Tensor, b_u: Tensor) -> tuple[Tensor, Tensor]:
    """J and M; J by Gauss-Legendre between the places where the activation begins to bend, bends most and ends to."""
    divisor = torch.where(A == 0, 1, A)
    places = [torch.where(A == 0, 0.0, ((x - b_g) / divisor).clamp(0, 1)) for x in (-g.saturates, 0.0, g.saturates)]
    first, middle, last = torch.stack(places).sort(0).values
    knots = (torch.zeros_like(A), first, middle, last, torch.ones_like(A))
    J = torch.zeros_like(A)
    for start, stop in pairwise(knots):
        straight = start is knots[0] or stop is knots[-1]
        widest = 0.0 if straight or not A.numel() else float(((stop - start) * A).abs().max())
        for node, weight in _nodes(_nodes_for(widest)):
            J += weight * (stop - start) * g.of((start + node * (stop - start)) * A + b_g)
    near = torch.zeros_like(A)
    for node, weight in _nodes(16):
        near += weight * g.slope(b_g + node * A) * (node * U + b_u)
    M = ((U + b_u) * g.of(A + b_g) - b_u * g.of(b_g) - U * J) / divisor
    return J, torch.where(A.abs() < 1, near, M)


def _nodes_for(width: float) -> int:
    """How many nodes integrate an activation over so wide an interval on one side of 0, to about 1e-13."""
    return next((number for number, widest in ((2, 0.0), (16, 3.0), (32, 12.0)) if width <= widest), 64)


@cache
def _nodes(number: int) -> tuple[tuple[float, float], ...]:
    """Nodes and weights of Gauss-Legendre on [0, 1] (Golub and Welsch 1969)."""
    n = torch.arange(1, number, dtype=torch.float64)
    beside = n / (4 * n.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return tuple(zip(((nodes + 1) / 2).tolist(), vectors[0].square().tolist(), strict=True))
