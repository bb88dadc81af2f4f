"""What a model does to attention weights before they meet the values: whatever keeps queries and keys in place.

Mixed over heads, averaged, chosen from, masked, renormalised, normalised over batches: the record holds the weights as
they multiply the values, and the certificate proves them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_norm.capture.columns import UNKNOWN_COLUMNS, Columns, is_constant_along, mapped
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.masks import allowed_at_product
from captum_norm.capture.rules.elementwise import carry
from captum_norm.capture.traces import Trace
from captum_norm.operations.operation import Operation


def is_weights(flow: Dataflow, tensor: Tensor) -> bool:
    """Whether the tensor was made of a softmax that may be attention."""
    trace = flow.traces[tensor]
    return trace is not None and trace.weights is not None


def mixes_values(flow: Dataflow, weights: Tensor, axis: int, other: Tensor, other_axis: int) -> bool:
    """Whether a product that sums over these two axes mixes values, or is a map over another axis of the weights.

    Weights are summed with values over their keys, or, where they are normalised over queries (slots), over whatever
    axis holds the values' positions.  Where neither is known, it is taken for a product with values, which is refused
    later if it is none.
    """
    trace, column = flow.traces[weights], None
    if trace is not None and trace.weights is not None:
        column = trace.weights.axis
    if column is None or column == axis:
        return not isinstance(other, torch.nn.Parameter)
    if isinstance(other, torch.nn.Parameter):
        return False
    values = flow.traces[other]
    if values is None or values.place is None:
        return False
    numbers = values.place.numbers()
    return numbers is not None and not is_constant_along(numbers, other_axis)


def map_weights(flow: Dataflow, weights: Tensor, axis: int, out: Tensor) -> None:
    """A linear map along one axis of weights gives weights again, unless it reads the keys."""
    trace = flow.traces[weights]
    if trace is None or trace.weights is None:
        return
    column, step = trace.weights.axis, mapped(axis % weights.ndim, out.shape)
    place = trace.place and trace.place.then(step)
    if column is None or column == axis % weights.ndim:
        flow.traces[out] = Trace(place=place)
    else:
        flow.traces[out] = Trace(weights=trace.weights.then(step), place=place)


def reduce_weights(flow: Dataflow, weights: Tensor, axis: int | None, out: Tensor) -> bool:
    """A sum, mean or maximum over heads gives weights again; whether this was one."""
    trace = flow.traces[weights]
    if trace is None or trace.weights is None or axis is None or trace.weights.axis in (None, axis):
        return False
    step = mapped(axis, out.shape)
    flow.traces[out] = Trace(weights=trace.weights.then(step), place=trace.place and trace.place.then(step))
    return True


@rule("amax", "amin", "max", "min", "median", "nanmean", "prod", "norm", "std", "var", "topk", "sort", "gather",
      "take_along_dim", "msort", "vector_norm", "linalg_vector_norm")  # fmt: skip
def _along_an_axis(flow: Dataflow, op: Operation) -> None:
    """The largest over heads, the k largest of the keys."""
    carry(flow, op)
    x = op.tensors[0] if op.tensors else None
    trace = None if x is None else flow.traces[x]
    if x is None or trace is None or trace.weights is None or not op.outputs:
        return
    out, axis = op.outputs[0], _axis_asked_for(op)
    if axis is None or not out.is_floating_point():
        return
    if op.name in _CHOOSE:
        _choose(flow, trace, axis, out)
    else:
        reduce_weights(flow, x, axis, out)


_CHOOSE = {"topk": 2, "sort": 1, "gather": 1, "take_along_dim": 2, "msort": None}


def _axis_asked_for(op: Operation) -> int | None:
    ndim = op.tensors[0].ndim
    if op.name == "msort":
        return 0
    default = -1 if op.name in ("topk", "sort") else None
    index = _CHOOSE.get(op.name, 2 if op.name in ("norm", "vector_norm", "linalg_vector_norm") else 1)
    axis = op.argument(index or 0, "dim", default)
    axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    return axis % ndim if isinstance(axis, int) and not isinstance(axis, bool) else None


def _choose(flow: Dataflow, trace: Trace, axis: int, out: Tensor) -> None:
    """Some entries along an axis, in another order; along the keys, they are keys again, and nobody knows which."""
    assert trace.weights is not None
    step, column = mapped(axis, out.shape), trace.weights.axis
    chosen = Columns(tuple(out.shape), axis, before=trace.weights.before or trace.weights)
    columns = chosen if column == axis else trace.weights.then(step)
    flow.traces[out] = Trace(weights=columns, place=trace.place and trace.place.then(step))


def scattered_weights(flow: Dataflow, op: Operation) -> Trace | None:
    """What is known of a tensor into which weights were scattered along an axis, or None if none were."""
    axis, source = op.argument(1, "dim"), op.argument(3, "src")
    trace = flow.traces[source] if isinstance(source, Tensor) else None
    if trace is None or trace.weights is None or not isinstance(axis, int):
        return None
    axis %= source.ndim
    step = mapped(axis, tuple(op.tensors[0].shape))
    columns = trace.weights.then(step)
    if trace.weights.axis == axis:
        columns = _put_back(trace.weights, op.out) or Columns(tuple(op.tensors[0].shape), axis)
    return Trace(weights=columns, place=trace.place and trace.place.then(step))


def _put_back(chosen: Columns, out: Tensor) -> Columns | None:
    """The columns as they were before some weights were chosen that are scattered now; None if others were hidden."""
    before = chosen.before
    allowed = None if before is None else allowed_at_product(before, out, None)
    if before is None or allowed is None or bool(((out != 0) & ~allowed).any()):
        return None
    return before


def written_weights(flow: Dataflow, into: Tensor, value: object) -> Columns | None:
    """The columns of a tensor into a part of which weights were written, or None if none were."""
    trace = flow.traces[value] if isinstance(value, Tensor) else None
    if not isinstance(value, Tensor) or trace is None or trace.weights is None:
        return None
    column = trace.weights.axis
    if column is None:
        return UNKNOWN_COLUMNS
    from_the_end = column - value.ndim
    same = -from_the_end <= into.ndim and into.shape[from_the_end] == value.shape[from_the_end]
    return Columns(tuple(into.shape), into.ndim + from_the_end) if same else UNKNOWN_COLUMNS
