"""Tensors that are overwritten in part or in whole."""

from __future__ import annotations

from torch import Tensor

from captum_norm.capture.columns import Columns
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.rules.alike import put_back, replaced_rows, told_after, written_place
from captum_norm.capture.rules.chosen import chosen_rows
from captum_norm.capture.rules.elementwise import carry
from captum_norm.capture.rules.weights import scattered_weights, written_weights
from captum_norm.capture.traces import Mixed, Trace
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.steps import NOT_AN_INPUT, Step, written_index


@rule("setitem", "copy", "fill", "zero", "index_copy", "index_put", "index_fill")
def _overwrite(flow: Dataflow, op: Operation) -> None:
    """Weights stay the weights that are used, and where weights are written there are weights; the rest is unknown."""
    if not op.tensors or not (op.in_place or op.name == "setitem"):
        chosen = chosen_rows(flow, op, op.out) if op.tensors else None
        if chosen is not None:
            flow.traces[op.out] = Trace(place=chosen)
        return
    into = op.tensors[0]
    trace = flow.traces[into] or Trace()
    weights = trace.weights or written_weights(flow, into, op.tensors[-1])
    weights = weights and _after_zeros(flow, op, told_after(flow, op, into, weights))
    scores = trace.scores and told_after(flow, op, into, trace.scores)
    mixed = _written_mixed(flow, op, trace) if op.name == "setitem" else ()
    flow.traces[into] = Trace(weights=weights, mixed=mixed, place=written_place(flow, op), scores=scores)


@rule("data_")
def _another_tensor(flow: Dataflow, op: Operation) -> None:
    """From here on the tensor is another one: ``x.data = y``."""
    into, value = op.args
    flow.traces[into] = flow.traces[value]


_VALUE = {
    "setitem": (2, "value"), "copy": (1, "src"), "fill": (1, "value"), "index_put": (2, "values"),
    "index_copy": (3, "source"), "index_fill": (3, "value"),
}  # fmt: skip


@rule("index_add")
def _index_add(flow: Dataflow, op: Operation) -> None:
    """Rows are added to others, as an expert's to those of the tokens it was given."""
    flow.traces[op.out] = Trace(place=written_place(flow, op))


def _after_zeros(flow: Dataflow, op: Operation, weights: Columns) -> Columns:
    """The columns of weights of which some have been set to zero, or were written with others that had been."""
    name = base_name(op.name)
    value = op.argument(*_VALUE[name], 0) if name in _VALUE else 0
    trace = flow.traces[value] if isinstance(value, Tensor) else None
    if trace is not None and trace.weights is not None:
        return weights.after_a_mask() if trace.weights.cut else weights
    zeros = not bool(value.any()) if isinstance(value, Tensor) else value == 0
    return weights.after_a_mask() if zeros and not flow.masks.hides_by_size(op) else weights


def _written_mixed(flow: Dataflow, op: Operation, before: Trace) -> tuple[Mixed, ...]:
    """Mixed values in a part of a tensor (heads or queries one after the other), beside those that were there."""
    into, value = op.tensors[0], op.args[2]
    trace = flow.traces[value] if isinstance(value, Tensor) else None
    parts = () if trace is None else trace.mixed
    if not parts and not before.mixed:
        return ()
    index, key = written_index(op)
    shape = tuple(into.shape)

    def put(t: Tensor) -> Tensor:
        whole = t.new_full(shape, NOT_AN_INPUT)
        whole[index] = t
        return whole

    def overwritten(t: Tensor) -> Tensor:
        whole = t.clone()
        whole[index] = NOT_AN_INPUT
        return whole

    kept = tuple(part.then(Step(("overwritten", shape, key), overwritten)) for part in before.mixed)
    return kept + tuple(part.then(Step(("put", shape, key), put)) for part in parts)


@rule("masked_scatter")
def _masked_scatter(flow: Dataflow, op: Operation) -> None:
    """Other vectors stand in rows of a tensor: those of a picture in the rows of its tokens, or what was made of the
    rows themselves."""
    into, mask, value = op.tensors[:3]
    place = chosen_rows(flow, op, op.out) or put_back(flow, into, mask, value) or replaced_rows(flow, into, value)
    flow.traces[op.out] = Trace(place=place)


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
