"""Norms between the mixed values and W_O: their scale is a gate, the rest of them belongs to W_O."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_norm.capture.certificate import at_least_float32
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.layout import Step
from captum_norm.capture.operations import Operation
from captum_norm.capture.traces import Mixed, Trace


@rule("layer_norm")
def _layer_norm(flow: Dataflow, op: Operation) -> None:
    x = op.tensors[0]
    trace = flow.traces[x]
    if trace is None:
        return
    if trace.mixed and len(op.args[1]) == 1:
        eps = op.argument(4, "eps", 1e-5)
        centred = x.detach().to(at_least_float32(x.dtype))
        scale = (centred.var(-1, correction=0, keepdim=True) + eps).rsqrt()
        norm = CentredNorm(scale, op.argument(2, "weight"), op.argument(3, "bias"))
        mixed = tuple(Mixed(m.mixture, (*m.steps, Step(norm, lambda t: t * scale, True))) for m in trace.mixed)
        flow.traces[op.out] = Trace(mixed=mixed, place=trace.place)
    elif trace.place:
        flow.traces[op.out] = Trace(place=trace.place)


class CentredNorm:
    """A LayerNorm between mixed values and W_O: 1/sigma goes to the gate, centring, gamma and beta go to W_O.

    Attributes:
        scale: 1/sigma, (..., 1).
        weight, bias: gamma and beta, (column,), or None.
    """

    def __init__(self, scale: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        self.scale, self.weight, self.bias = scale, weight, bias

    def fold(self, W: Tensor) -> Tensor:
        """(I - 11^T / n) diag(gamma) W: what W becomes for the uncentred, unscaled values."""
        scaled = W if self.weight is None else self.weight.detach().to(W.dtype)[:, None] * W
        return scaled - scaled.mean(0, keepdim=True)


@rule("rms_norm")
def _rms_norm(flow: Dataflow, op: Operation) -> None:
    x = op.tensors[0]
    trace = flow.traces[x]
    if trace is None:
        return
    if trace.mixed:
        axes = tuple(range(-len(op.args[1]), 0))
        wide = x.detach().to(at_least_float32(x.dtype))
        eps = op.argument(3, "eps") or torch.finfo(x.dtype).eps
        scale = (wide.square().mean(axes, keepdim=True) + eps).rsqrt()
        if (weight := op.argument(2, "weight")) is not None:
            scale = scale * weight.detach()
        step = Step(("rms_norm", object()), lambda t: t * scale, True)
        mixed = tuple(Mixed(m.mixture, (*m.steps, step)) for m in trace.mixed)
        flow.traces[op.out] = Trace(mixed=mixed, place=trace.place)
    elif trace.place:
        flow.traces[op.out] = Trace(place=trace.place)
