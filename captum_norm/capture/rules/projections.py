"""The output projection W_O: a linear map of the mixed values, with adapters beside it or one part per head."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from captum_norm.capture.columns import mapped
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.rules.alike import place_after
from captum_norm.capture.rules.elementwise import carry
from captum_norm.capture.rules.products import added_product, hidden_product, note_shallow_mask
from captum_norm.capture.rules.softmax import log_weights
from captum_norm.capture.rules.weights import is_weights, map_weights, reduce_weights
from captum_norm.capture.traces import Mixed, Mixture, Projection, Trace
from captum_norm.operations.formats import INT8_PRODUCTS, QUANTISED_MAPS, ROUNDINGS, as_applied, format_name, is_plain
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.steps import Step


@rule("linear")
def _linear(flow: Dataflow, op: Operation) -> None:
    x, weight = op.argument(0, "input"), op.argument(1, "weight")
    trace = flow.traces[x]
    if trace is None:
        return
    if trace.mixed or trace.projection:
        if is_plain(weight):
            flow.project(x, weight.t(), op.argument(2, "bias"), op.out, weight)
        else:
            matrix, _ = as_applied(lambda t: F.linear(t, weight), x)
            flow.project(x, matrix, op.argument(2, "bias"), op.out, weight, format_name(weight))
    elif trace.weights is not None:
        map_weights(flow, x, -1, op.out)
    elif trace.place or trace.scores:
        place = trace.place and flow.read_whole(trace.place, op.out)
        flow.traces[op.out] = Trace(place=place, scores=trace.scores and trace.scores.then(mapped(-1, op.out.shape)))


@rule(*QUANTISED_MAPS)
def _quantised(flow: Dataflow, op: Operation) -> None:
    """A product whose weight is packed: it says itself what its matrix is."""
    x = op.args[0]
    trace = flow.traces[x]
    if trace is not None and (trace.mixed or trace.projection):
        matrix, bias = as_applied(lambda t: op.func(t, *op.args[1:], **op.kwargs), x)
        flow.project(x, matrix, bias, op.out, matrix, op.name)
    elif trace is not None and trace.place:
        flow.traces[op.out] = Trace(place=flow.read_whole(trace.place, op.out))


@rule(*ROUNDINGS)
def _rounded(flow: Dataflow, op: Operation) -> None:
    """8-bit integers in place of numbers: what they were is what the product is taken to have read."""
    rounded = op.outputs[0]
    carry(flow, op)
    flow.unrounded[rounded] = op.tensors[0].detach()


@rule(*INT8_PRODUCTS)
def _int8_product(flow: Dataflow, op: Operation) -> None:
    """bitsandbytes: (x scaled to 8 bits) times (W scaled to 8 bits), both with their scales."""
    scaled, W, _, scale = op.args[:4] if op.name == "int8_scaled_mm" else op.args[1:5]
    x, trace, out = flow.unrounded[scaled], flow.traces[scaled], op.outputs[0]
    if trace is None or x is None:
        return
    matrix = (W.to(out.dtype) * scale.to(out.dtype).view(-1, 1) / 127).t()
    bias = op.argument(4 if op.name == "int8_scaled_mm" else 6, "bias")
    flow.traces[x] = trace
    flow.project(x, matrix, bias, out, W, "bitsandbytes' int8")


@rule("addmm")
def _addmm(flow: Dataflow, op: Operation) -> None:
    bias, x, weight = op.tensors[:3]
    plain = op.kwargs.get("beta", 1) == op.kwargs.get("alpha", 1) == 1
    if not plain or is_weights(flow, x) or is_weights(flow, weight):
        added_product(flow, op)
    elif bias.ndim == 1 or not bias.stride(0):  # one bias for all rows
        flow.project(x, weight, bias if bias.ndim == 1 else bias[0], op.out, weight)
    else:
        _added_branch(flow, op, bias, x, weight)


def _added_branch(flow: Dataflow, op: Operation, rest: Tensor, x: Tensor, weight: Tensor) -> None:
    """rest + x @ weight, where rest is what other heads wrote."""
    mixed, before = flow.traces[x], flow.traces[rest]
    second = None if mixed is None else flow.projections.branch(mixed.mixed, x, weight, None, weight)
    first = None if before is None else before.projection
    if first is not None and second is not None and _are_branches(first, second):
        flow.traces[op.out] = Trace(projection=flow.projections.propose(first.plus(second), op.out))


@rule("add", "sub")
def _add(flow: Dataflow, op: Operation) -> None:
    operands = [operand for operand in op.args[:2] if isinstance(operand, Tensor)]
    traces = [flow.traces[operand] or Trace() for operand in operands]
    projections = [trace.projection for trace in traces]
    merged = _merge(flow, op, operands, projections) if any(projections) else None
    mixed = _sum_of_mixed(op, operands, traces)
    carry(flow, op)
    if len(operands) == 2:
        _note_shallow_mask(flow, op, operands)
    if mixed:
        flow.traces.update(op.out, mixed=mixed)
    if merged is not None:
        flow.traces.update(op.out, projection=merged)
    if len(traces) == 2 and traces[1].softmax_part == "log normaliser" and base_name(op.name) == "sub":
        summed = [axis for axis, count in enumerate(operands[1].shape) if count == 1 < op.out.shape[axis]]
        axis = summed[0] if len(summed) == 1 and operands[1].ndim == op.out.ndim else None
        log_weights(flow, op, operands[0], axis)  # exp(x - logsumexp(x)) is a softmax


def _note_shallow_mask(flow: Dataflow, op: Operation, operands: list[Tensor]) -> None:
    """Scores to which a mask of 0 and -100 or the like was added."""
    for number, mask in enumerate(operands):
        note_shallow_mask(flow, op.out, mask, _sign(op) if number else 1)


def _sum_of_mixed(op: Operation, operands: list[Tensor], traces: list[Trace]) -> tuple[Mixed, ...]:
    """The parts of a sum or difference of mixed values (differential attention)."""
    if not all(trace.mixed for trace in traces) or any(x.shape != op.out.shape for x in operands):
        return ()
    sign = _sign(op)
    if len(operands) == 1:  # 0 + y, as Python's sum() begins
        number = op.args[1] if isinstance(op.args[0], Tensor) else op.args[0]
        return traces[0].mixed if number == 0 and (sign == 1 or isinstance(op.args[0], Tensor)) else ()
    scale = Step(("sum of mixed", object()), lambda t: t * sign, True)
    return traces[0].mixed + tuple(part if sign == 1 else part.then(scale) for part in traces[1].mixed)


def _sign(op: Operation) -> float:
    """What the second operand of a sum or difference is multiplied with."""
    alpha: float = op.kwargs.get("alpha", 1)
    return -alpha if base_name(op.name) == "sub" else alpha


def _merge(
    flow: Dataflow, op: Operation, operands: list[Tensor], projections: list[Projection | None]
) -> Projection | None:
    """The sum of two branches of one W_O (an adapter beside it, one projection per head), or W_O and its bias."""
    sign = _sign(op)
    if len(operands) == 1:  # y + 0, as Python's sum() begins
        number = op.args[1] if isinstance(op.args[0], Tensor) else op.args[0]
        return projections[0] if number == 0 else None
    first, second = projections
    if first is not None and second is not None:
        in_parts = first.parts_axis is not None or second.parts_axis is not None
        if not _are_branches(first, second) or in_parts or op.out.shape[-1] != first.width:
            return None
        if first.roots & second.roots and not flow.projections.is_where_made(first):  # what W_O wrote, and a map of it
            return None
        if sign != 1.0:
            second = second.times(lambda matrix: matrix * sign)
        return flow.projections.propose(first.plus(second), op.out)
    whole, other = (first, operands[1]) if first is not None else (second, operands[0])
    if whole is None or sign != 1.0 or whole.parts_axis is not None:
        return None
    if other.shape == op.out.shape[-1:] and len(other) == whole.width:  # rows may have been laid side by side
        both = whole.plus(Projection(whole.mixtures, (), other, frozenset(), whole.width))
        return both if whole.r is None else flow.projections.propose(both, op.out)
    return None


def _are_branches(first: Projection, second: Projection) -> bool:
    """Whether two projections may be parts of one W_O: of the same mixtures, or of different ones of one module.

    What modules of their own wrote, side by side, are calls of their own.
    """
    ours, theirs = set(first.mixtures), set(second.mixtures)
    return ours == theirs or (not ours & theirs and len({_module_of(mixture) for mixture in ours | theirs}) == 1)


def _module_of(mixture: Mixture) -> object:
    return mixture.callers[-1].module if mixture.callers else None


@rule("sum")
def _sum(flow: Dataflow, op: Operation) -> None:
    trace = flow.traces[op.tensors[0]]
    if trace is None:
        return
    if trace.softmax_part == "exponential":
        place = place_after(flow, op, "sum", [(op.tensors[0], trace)], op.out)
        flow.traces[op.out] = Trace(softmax_part="normaliser", place=place)
        return
    if trace.softmax_part == "spread weights":
        hidden_product(flow, op)
        return
    if reduce_weights(flow, op.tensors[0], _only_axis(op), op.out):
        return
    _sum_over_one(flow, op)
    parts, axis = trace.projection, _only_axis(op)
    if parts is None or parts.parts_axis is None or axis is None:
        return
    whole = parts.mixtures[0].projection
    # One of several parts looks like the whole projection until its siblings arrive.
    if axis == parts.parts_axis and (whole is None or parts.roots > whole.roots):
        flow.traces[op.out] = Trace(projection=flow.projections.propose(parts, op.out))


@rule("mean")
def _mean(flow: Dataflow, op: Operation) -> None:
    if not reduce_weights(flow, op.tensors[0], _only_axis(op), op.out):
        _sum_over_one(flow, op)


def _sum_over_one(flow: Dataflow, op: Operation) -> None:
    """A sum or mean over an axis of one entry only takes the axis away."""
    x, axis = op.tensors[0], _only_axis(op)
    trace = flow.traces[x]
    if trace is not None and axis is not None and x.shape[axis] == 1 and not trace.projection:
        flow.traces[op.out] = trace.after(Step((op.name, axis, op.out.ndim), lambda t: t.reshape(op.out.shape)))
    elif trace is not None and trace.place is not None:
        flow.traces[op.out] = Trace(place=place_after(flow, op, base_name(op.name), [(x, trace)], op.out))


def _only_axis(op: Operation) -> int | None:
    axis = op.argument(1, "dim")
    axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    return axis % op.tensors[0].ndim if isinstance(axis, int) else None
