"""Attention weights: a softmax, or the same written out by hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor as is_batched

from captum_norm.capture.columns import UNKNOWN_COLUMNS, Columns
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.masks import allowed_by_scores
from captum_norm.capture.rules.alike import is_empty_somewhere, place_after, where_weighted
from captum_norm.capture.rules.elementwise import carry
from captum_norm.capture.traces import Trace
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import Place


@rule("softmax")
def _softmax(flow: Dataflow, op: Operation) -> None:
    if op.out.ndim >= 2:
        trace, axis = flow.traces[op.tensors[0]], op.argument(1, "dim")
        columns = _columns(flow, op.tensors[0], op.out, None if axis is None else axis % op.out.ndim)
        place = None if trace is None else trace.place
        if place is not None and columns.axis is not None and not flow.places.holds_one(place, (columns.axis,)):
            scores = None if trace is None else trace.scores
            if scores is None or scores.axis in (None, columns.axis):  # not over queries, which stay where they are
                learned = _of_queries(flow, place, op.out.shape, columns.axis)
                place = learned or where_weighted(flow, place, op.out, columns.axis)
        flow.softmax(op, op.tensors[0], columns.start)
        flow.traces[op.out] = Trace(weights=columns, place=place)


def _of_queries(flow: Dataflow, place: Place, shape: torch.Size, axis: int) -> Place | None:
    """Where the queries lie of weights that lie where the keys do, for queries times keys of which only the keys have
    positions."""
    rows = len(shape) - 1 if axis == len(shape) - 2 else len(shape) - 2
    others = tuple(n for n in range(1, len(shape)) if n != axis)  # all but the examples'
    if is_empty_somewhere(place) or axis < len(shape) - 2 or not flow.places.holds_one(place, others):
        return None
    return flow.latents(shape, rows)


def _columns(flow: Dataflow, scores: Tensor, out: Tensor, axis: int | None) -> Columns:
    """The keys' axis, and what the softmax was allowed to look at."""
    trace, unchosen = flow.traces[scores], flow.unchosen((scores,))
    told_by = "inputs" if trace is None or trace.scores is None else trace.scores.told_by
    taken = scores if unchosen is None else unchosen
    masked = out.ndim > 2 and (told_by != "nothing" or unchosen is not None)
    allowed = allowed_by_scores(taken, flow.shallow[scores]) if masked else None
    keys = None if trace is None or trace.scores is None else trace.scores.keys
    if masked and allowed is None and unchosen is None and not is_batched(scores):
        told_by = "nothing"
    return Columns(tuple(out.shape), axis, allowed=allowed, chosen=unchosen is not None, told_by=told_by, keys=keys)


@rule("log_softmax")
def _log_softmax(flow: Dataflow, op: Operation) -> None:
    carry(flow, op)
    axis = op.argument(1, "dim")
    log_weights(flow, op, op.tensors[0], None if axis is None else axis % op.out.ndim)


def log_weights(flow: Dataflow, op: Operation, scores: Tensor, axis: int | None) -> None:
    """A result whose exponentials are a softmax of these scores along an axis."""
    flow.traces.update(op.out, softmax_part="log weights")
    flow.exponentials[op.out] = _columns(flow, scores, op.out, axis)


@rule("logsumexp")
def _logsumexp(flow: Dataflow, op: Operation) -> None:
    place = place_after(flow, op, op.name, [(x, trace) for x in op.tensors[:1] if (trace := flow.traces[x])], op.out)
    flow.traces[op.out] = Trace(softmax_part="log normaliser", place=place)


@rule("exp", "exp2")
def _exp(flow: Dataflow, op: Operation) -> None:
    trace = flow.traces[op.tensors[0]]
    carry(flow, op)
    if op.name.startswith("exp2"):
        _exponential_of(flow, op, op.tensors[0])
    elif trace is not None and trace.softmax_part == "log weights":
        of = flow.exponentials[op.tensors[0]]
        flow.softmax(op, op.tensors[0], None if of is None else of.axis)
        flow.traces.update(op.out, weights=of or UNKNOWN_COLUMNS, softmax_part="")
    elif op.out.ndim >= 3:
        flow.exponentials[op.out] = _columns(flow, op.tensors[0], op.out, None)
        flow.traces.update(op.out, softmax_part="exponential")


@rule("pow", "float_power", "__rpow__")
def _power(flow: Dataflow, op: Operation) -> None:
    """A number to the power of scores is an exponential of them."""
    carry(flow, op)
    exponent = op.args[0 if op.name == "__rpow__" else 1] if len(op.args) > 1 else None
    if isinstance(exponent, Tensor) and len(op.tensors) == 1:
        _exponential_of(flow, op, exponent)


def _exponential_of(flow: Dataflow, op: Operation, scores: Tensor) -> None:
    """An exponential to another base than e: a softmax is made of it that no rule takes for one."""
    trace = flow.traces[scores]
    if trace is not None and trace.scores is not None and op.out.shape == scores.shape:
        flow.traces.update(op.out, softmax_part="numerator", scores=trace.scores)


@rule("softmin", "gumbel_softmax", "_safe_softmax", "_masked_softmax", "_sparse_softmax")
def _followed_no_further(flow: Dataflow, op: Operation) -> None:
    """A softmax that is followed no further: of what is subtracted, with noise, of a sparse tensor."""
    carry(flow, op)
    axis = op.kwargs.get("dim", op.argument(1, "dim") if op.name != "gumbel_softmax" else -1)
    flow.softmax(op, op.tensors[0], axis % op.out.ndim if type(axis) is int else None)


@rule("div")
def _div(flow: Dataflow, op: Operation) -> None:
    """exp(x) / sum(exp(x)): a softmax written by hand."""
    carry(flow, op)
    parts = [trace.softmax_part if (trace := flow.traces[tensor]) else "" for tensor in op.tensors[:2]]
    if parts == ["exponential", "normaliser"]:
        summed = [axis for axis, count in enumerate(op.tensors[1].shape) if count == 1 < op.out.shape[axis]]
        of, axis = flow.exponentials[op.tensors[0]] or UNKNOWN_COLUMNS, summed[0] if len(summed) == 1 else None
        columns = Columns(tuple(op.out.shape), axis, (), of.allowed, of.cut, of.chosen, of.told_by, of.patterned)
        flow.softmax(op, op.tensors[0], columns.start)
        flow.traces.update(op.out, weights=columns, softmax_part="")
