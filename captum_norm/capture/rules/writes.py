"""Tensors that are overwritten in part or in whole."""

from __future__ import annotations

from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.rules.elementwise import carry
from captum_norm.capture.rules.weights import scattered_weights, written_weights
from captum_norm.capture.traces import Trace
from captum_norm.operations.operation import Operation


@rule("setitem", "copy", "fill", "zero", "index_copy", "index_put", "index_fill")
def _overwrite(flow: Dataflow, op: Operation) -> None:
    """Weights stay the weights that are used, and where weights are written there are weights; the rest is unknown."""
    if not op.tensors or not (op.in_place or op.name == "setitem"):
        return
    into = op.tensors[0]
    trace = flow.traces[into] or Trace()
    weights = trace.weights or written_weights(flow, into, op.tensors[-1])
    flow.traces[into] = Trace(weights=weights, place=trace.place if op.name == "setitem" else None)


@rule("scatter", "scatter_add")
def _scatter(flow: Dataflow, op: Operation) -> None:
    """The largest weights, put back among zeros."""
    scattered = scattered_weights(flow, op)
    if scattered is not None:
        flow.traces[op.out] = scattered
    elif op.in_place:
        _overwrite(flow, op)
    else:
        carry(flow, op)
