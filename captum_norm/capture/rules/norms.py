"""Norms between the mixed values and W_O: their scale is a gate, the rest of them belongs to W_O."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.traces import Mixed, Trace
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import Place
from captum_norm.operations.precision import at_least_float32
from captum_norm.operations.steps import Step


@rule("layer_norm")
def _layer_norm(flow: Dataflow, op: Operation) -> None:
    x = op.args[0]
    trace = flow.traces[x] or Trace()
    axes = len(op.argument(1, "normalized_shape"))
    if not trace.mixed or axes > 1:
        place = trace.place and normalised_place(flow, trace.place, op.out, axes)
        flow.traces[op.out] = Trace(weights=trace.weights, place=place)
        return
    wide = x.detach().to(at_least_float32(x.dtype))
    scale = (wide.var(-1, correction=0, keepdim=True) + op.argument(4, "eps", 1e-5)).rsqrt()
    flow.traces[op.out] = _scaled(trace, scale, CentredNorm(op.argument(2, "weight"), op.argument(3, "bias")))


@rule("rms_norm")
def _rms_norm(flow: Dataflow, op: Operation) -> None:
    x = op.args[0]
    trace = flow.traces[x] or Trace()
    axes = len(op.argument(1, "normalized_shape"))
    if not trace.mixed:
        place = trace.place and normalised_place(flow, trace.place, op.out, axes)
        flow.traces[op.out] = Trace(weights=trace.weights, place=place)
        return
    wide, eps, weight = x.detach().to(at_least_float32(x.dtype)), op.argument(3, "eps"), op.argument(2, "weight")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = (wide.square().mean(tuple(range(-axes, 0)), keepdim=True) + eps).rsqrt()
    flow.traces[op.out] = _scaled(trace, scale if weight is None else scale * weight.detach(), ("rms_norm", object()))


def _scaled(trace: Trace, scale: Tensor, key: Hashable) -> Trace:
    """Positions stay, mixed values are scaled."""
    step = Step(key, lambda t: t * scale, True)
    mixed = tuple(Mixed(m.mixture, (*m.steps, step)) for m in trace.mixed)
    return Trace(mixed=mixed, place=trace.place)


def normalised_place(flow: Dataflow, place: Place, out: Tensor, axes: int) -> Place:
    """The place behind a norm over the last axes, which mixes positions where these hold several."""
    over = tuple(range(out.ndim - axes, out.ndim))
    place = flow.cut_into_patches(place, over) or place
    if flow.places.holds_one(place, over):
        return place
    return flow.mixed_by(place, "a norm over several positions")


class CentredNorm:
    """A LayerNorm between mixed values and W_O: 1/sigma goes to the gate, centring, gamma and beta go to W_O.

    Attributes:
        weight, bias: gamma and beta, (column,), or None.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def fold(self, W: Tensor) -> Tensor:
        """(I - 11^T / n) diag(gamma) W: what W becomes for the uncentred, unscaled values."""
        scaled = W if self.weight is None else self.weight.detach().to(W.dtype)[:, None] * W
        return scaled - scaled.mean(0, keepdim=True)
