"""Where the result of an operation lies that is neither a move nor a product, and whether it mixes positions.

Nothing is taken to treat positions alike but what is known to: operations that compute each entry of its own place,
from operands that have the same positions there, and operations along an axis that holds one position.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.columns import Columns
from captum_norm.capture.dataflow import Dataflow
from captum_norm.capture.reach import INPUT
from captum_norm.capture.rules.chosen import chosen_rows
from captum_norm.capture.traces import Trace
from captum_norm.operations.kinds import OperationKind, Property, names_of, names_with
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import NOTHING_YET, TORN, Place, Settled, WholeAxes, broadcast
from captum_norm.operations.steps import step_of

Operands = list[tuple[Tensor, Trace]]

_POSITIONWISE = names_with(Property.POSITIONWISE)
_HIDE_NOTHING = names_of(OperationKind.IDENTITY, OperationKind.SUM, OperationKind.SCALE)  # without a mask
_ALONG_AXES = names_with(Property.ALONG_AXES)
_SHUFFLES = names_with(Property.SHUFFLES)
_AXES_AT = dict.fromkeys("norm vector_norm linalg_vector_norm linalg_norm topk kthvalue normalize".split(), 2)
_LAST_BY_DEFAULT = frozenset("topk sort msort argsort kthvalue median softmax log_softmax softmin glu".split())


def place_after(flow: Dataflow, op: Operation, name: str, operands: Operands, out: Tensor) -> Place | None:
    """Where a result lies, with what has mixed positions on the way.

    Args:
        flow: what is known.
        op: the operation, ``name`` its name without the in-place underscore.
        operands: the operands of which something is known.
        out: one of its results.
    """
    if name in ("min", "max") and isinstance(op.argument(1, "other"), Tensor):
        name += "imum"
    chosen = chosen_rows(flow, op, out)
    if chosen is not None:
        return chosen
    if name in ("scatter", "scatter_add"):
        return _scattered(flow, op)
    if name in ("gather", "take_along_dim") and op.args[0] is op.tensors[0]:
        return _gathered(flow, op, name, out)
    if name in _ALONG_AXES:
        along = _along(flow, op, name, out)
        if along is not None or name in _SHUFFLES:
            return along
    if name in _SHUFFLES:
        return None
    place = _widest(operands, out)
    if place is None or any(trace.mixed for _, trace in operands):  # what scales mixed values is the call's own gate
        return place
    if name in _POSITIONWISE or (name == "batch_norm" and not op.argument(5, "training", False)):
        return _with_operands(flow, op, place, operands, out)
    if not out.is_floating_point() and not out.is_complex():
        return place
    if all(flow.places.agree(place, trace.place, out.shape) for _, trace in operands if trace.place is not None):
        return flow.mixed_by(place, "not known to treat positions alike")
    return _put_together(flow, operands, out)


def _widest(operands: Operands, out: Tensor) -> Place | None:
    """The place of the operand that has all positions; named sources first, then what was embedded first."""
    full = [t.place for tensor, t in operands if t.place is not None and tensor.shape == out.shape]
    if full:
        return min(full, key=lambda place: (*place.anchor.preference, len(place.steps)))
    for tensor, trace in operands:
        if trace.place is not None and broadcasts(tensor.shape, out.shape):
            return trace.place.then(broadcast(out.shape))
    return None


def _put_together(flow: Dataflow, operands: Operands, out: Tensor) -> Place | None:
    """Where a result lies whose entries are of different positions: a row counts as the position that it is in order.

    Torn, where no operand has all positions in their order: of a sum of neighbours, both of which are shifted, nobody
    knows which one a row would be.
    """
    places = [trace.place for _, trace in operands if trace.place is not None]
    in_order = [(x, trace) for x, trace in operands if trace.place is not None and flow.places.in_order(trace.place)]
    place = _widest(in_order, out) or places[0].then(TORN)
    mixers = frozenset[Hashable]().union(*(one.mixers for one in places))
    return flow.mixed_by(place, DIFFERENT).mixed_by(mixers)


def _mixed_in_order(flow: Dataflow, place: Place) -> Place:
    """The place of rows into which others were written; torn, where they were not all positions in their order."""
    return flow.mixed_by(place if flow.places.in_order(place) else place.then(TORN), DIFFERENT)


DIFFERENT = "entries of different positions are put together"


def _with_operands(flow: Dataflow, op: Operation, place: Place, operands: Operands, out: Tensor) -> Place | None:
    """The place, if every operand has the same positions at the same entries; else it is one that mixes them."""
    placed = next((t for t in op.tensors if (known := flow.traces[t]) and known.place), out)
    for tensor in op.tensors:
        trace = flow.traces[tensor]
        other = None if trace is None else trace.place
        if other is not None:
            place = place.mixed_by(other.mixers)
            if not flow.places.agree(place, other, out.shape) and not _constant_among(flow, op, tensor):
                return _put_together(flow, operands, out)
        elif tensor.is_floating_point() and not _is_weighed(trace) and flow.is_moved(tensor, placed):
            return flow.mixed_by(place, "one operand was made of several positions")
    return place


def _is_weighed(trace: Trace | None) -> bool:
    """Whether a tensor of unknown positions is weights, or what they made; what only divides exponentials is not."""
    return trace is not None and trace.in_attention and trace.softmax_part not in ("normaliser", "log normaliser")


def _constant_among(flow: Dataflow, op: Operation, tensor: Tensor) -> bool:
    """Whether an operand is made of no input while another is."""
    return any(flow.is_constant(tensor, other) for other in op.tensors if other is not tensor)


def told_after(flow: Dataflow, op: Operation, x: Tensor, columns: Columns) -> Columns:
    """Columns of scores or weights x after an operation, by which the model or its inputs may tell what is hidden.

    A number, and an operand that is the same for all keys, hide none of them.
    """
    if columns.told_by == "inputs":
        return columns
    others = [one for one in op.tensors if one is not x and one.ndim and not _is_alike_for_all(columns.axis, x, one)]
    if any(map(flow.is_given, others)):
        return columns.after_telling("inputs")
    return columns.after_telling("the model" if others or base_name(op.name) not in _HIDE_NOTHING else "nothing")


def _is_alike_for_all(axis: int | None, x: Tensor, other: Tensor) -> bool:
    """Whether another operand, broadcast to x, is the same for all keys, which x has along this axis."""
    from_the_end = None if axis is None else x.ndim - axis
    return from_the_end is not None and from_the_end <= other.ndim and other.shape[-from_the_end] == 1


def broadcasts(small: torch.Size, large: torch.Size) -> bool:
    """(batch, position, 1) to (batch, position, model), but not a reduction and not a lower rank."""
    return len(small) == len(large) and all(a in (1, b) for a, b in zip(small, large, strict=True))


def _along(flow: Dataflow, op: Operation, name: str, out: Tensor) -> Place | None:
    """Where an operation's result lies that reads whole axes of its first operand."""
    x = op.tensors[0]
    trace, axes = flow.traces[x], _axes(op, name, x)
    place = None if trace is None else trace.place
    if place is None or axes is None or x is not op.args[0] or out.ndim not in (x.ndim, x.ndim - len(axes)):
        return None
    if flow.places.holds_one(place, axes):
        kept = [n for axis, n in enumerate(x.shape) if axis not in axes]
        left = [n for axis, n in enumerate(out.shape) if out.ndim < x.ndim or axis not in axes]
        return place.then(WholeAxes(axes, out.shape)) if left == kept else None
    beside = _beside_constants(flow, x, place, axes, out)
    if beside is not None:
        return beside
    if out.shape != x.shape or not _stays(name, place, axes):
        return None
    return flow.mixed_by(place, "it reads several positions at once")


def _stays(name: str, place: Place, axes: tuple[int, ...]) -> bool:
    """Whether each entry counts as its own position still, where several along these axes were read for it.

    A sum so far does along an axis of positions; along one that holds each position more than once, as two states
    stacked do, the last entry is no more its own than the first.
    """
    numbers = place.numbers()
    if numbers is None or name not in ("cumsum", "cumprod"):
        return numbers is not None and name not in _SHUFFLES | {"tril", "triu"}
    slices = numbers.movedim(axes[0], 0).flatten(1)
    if not slices.numel() or bool((slices < 0).any()):
        return False
    apart = slices + (int(slices.amax()) + 1) * torch.arange(len(slices))[:, None]
    return torch.unique(apart).numel() == torch.unique(slices).numel()


def _gathered(flow: Dataflow, op: Operation, name: str, out: Tensor) -> Place | None:
    """Where entries lie that were taken out along one axis."""
    x, axis = op.tensors[0], op.argument(1 if name == "gather" else 2, "dim")
    place = place_of(flow, x)
    if place is None:
        return None
    if isinstance(axis, int):
        axis %= x.ndim
        if x.shape[:axis] == out.shape[:axis] and x.shape[axis + 1 :] == out.shape[axis + 1 :]:
            beside = _beside_constants(flow, x, place, (axis,), out)
            if beside is not None:
                return beside
    return place.then(step_of(op, None))


def _beside_constants(
    flow: Dataflow, x: Tensor, place: Place, axes: tuple[int, ...], out: Tensor
) -> Place | None:
    """Where each result lies that was made of one position and of what is no input, such as a zero stacked beside it.

    After an attention call rows that are no input hold others.
    """
    numbers = place.numbers()
    if numbers is None or flow.reach.of(x) & flow.calls or not numbers.numel():
        return None
    own = numbers.amax(axes, keepdim=True)
    if bool((own < 0).any()) or not bool(((numbers == own) | (numbers < 0)).all()):
        return None
    own = own if out.ndim == x.ndim else own.squeeze(axes)
    return Place(place.anchor, (Settled(own.expand(out.shape)),), place.mixers) if own.ndim == out.ndim else None


def _is_of_other_inputs(flow: Dataflow, tensor: Tensor, than: Tensor) -> bool:
    """Whether it was made of none of the inputs that ``than`` was made of: a picture's features, in the rows of the
    words that stand for them."""
    ours, theirs = (flow.reach.of(t) & ~INPUT for t in (tensor, than))
    return bool(ours) and bool(theirs) and not ours & theirs


def _scattered(flow: Dataflow, op: Operation) -> Place | None:
    """Where entries lie that were put among others of their own position (scores of some experts among zeros)."""
    into, axis = op.tensors[0], op.argument(1, "dim")
    value = op.argument(3, "src", op.kwargs.get("value"))
    places = [place_of(flow, tensor) for tensor in (into, value) if isinstance(tensor, Tensor)]
    known = [place for place in places if place is not None]
    if not known or not isinstance(axis, int):
        return None
    axis %= into.ndim
    row = torch.Size(1 if n == axis else count for n, count in enumerate(into.shape))
    first, step = known[0], WholeAxes((axis,), row)
    if not all(flow.places.holds_one(place, (axis,)) for place in known):
        return None
    if any(tensor.shape[n] != into.shape[n] for tensor in op.tensors for n in range(into.ndim) if n != axis):
        return None
    if not all(flow.places.agree(first.then(step), place.then(step), row) for place in known):
        return None
    unplaced = [t for t in (into, value) if isinstance(t, Tensor) and place_of(flow, t) is None]
    if any(flow.reach.of(tensor) > INPUT for tensor in unplaced):
        return None
    mixers = frozenset[Hashable]().union(*(place.mixers for place in known))
    return first.mixed_by(mixers).then(WholeAxes((axis,), into.shape))


def _axes(op: Operation, name: str, x: Tensor) -> tuple[int, ...] | None:
    """The axes that an operation reads whole; None where that cannot be told."""
    if name in ("tril", "triu"):
        return (x.ndim - 2, x.ndim - 1)
    axes: Any = op.argument(_AXES_AT.get(name, 1), "dim", op.kwargs.get("axis"))
    if isinstance(axes, Tensor | bool) or axes is None:
        axes = 1 if name == "normalize" else -1 if name in _LAST_BY_DEFAULT else None
    if isinstance(axes, int):
        axes = (axes,)
    return None if axes is None else tuple(sorted({axis % x.ndim for axis in axes}))


def written_place(flow: Dataflow, op: Operation) -> Place | None:
    """Where a tensor lies that was written into, by an index of rows or of anything.

    A position that is written where another one is mixes both; what is still empty takes any.
    """
    chosen = chosen_rows(flow, op, op.tensors[0])
    if chosen is not None:
        return chosen
    into, value = op.tensors[0], op.args[-1] if op.args else None
    before, index = place_of(flow, into), op.args[1] if len(op.args) > 1 else None
    if base_name(op.name) == "index_add":
        index = op.argument(2, "index")
        value = op.argument(3, "source", op.kwargs.get("source"))
        if op.argument(1, "dim", 0) != 0:
            return None
    elif base_name(op.name) == "index_copy":  # rows of a static cache
        axis, index = op.argument(1, "dim", 0) % max(1, into.ndim), op.argument(2, "index")
        value = op.argument(3, "source", op.kwargs.get("source"))
        index = (slice(None),) * axis + (index.cpu(),)
    elif base_name(op.name) in ("scatter", "scatter_add"):
        return _scattered(flow, op)
    elif op.name == "copy_":  # all of it is another tensor from here on
        value = op.argument(1, "src")
        return place_of(flow, value) if isinstance(value, Tensor) and value.shape == into.shape else None
    elif op.name != "setitem":
        return None
    if not isinstance(value, Tensor) or not flow.reach.of(value) & ~1:
        return before
    written, shape = place_of(flow, value), tuple(into.shape)
    if before is not None and _is_of_other_inputs(flow, value, into):
        return before.with_rows_of([] if written is None else [written])
    if written is None or (before is None and flow.reach.of(into) > 1):
        return before and flow.mixed_by(before, "one operand was made of several positions")
    if before is not None and before.anchor is not written.anchor:
        if before.anchor.origin is not written.anchor.origin:
            return replaced_rows(flow, into, value)
        return _mixed_in_order(flow, before)
    numbers = _written(written, before, index, shape, op.name)
    if numbers is None:
        return before and _mixed_in_order(flow, before)
    place = Place(written.anchor, (Settled(numbers),), written.mixers)
    return place if before is None else place.mixed_by(before.mixers)


def replaced_rows(flow: Dataflow, into: Tensor, value: Tensor) -> Place | None:
    """Where a tensor lies in some of whose rows others stand now; they count as what these rows hold.

    That is so before anything has mixed the rows, and where the others are made of nothing that they are made of.
    """
    before, (ours, theirs) = place_of(flow, into), (flow.reach.of(tensor) & ~1 for tensor in (into, value))
    if before is None or _is_of_other_inputs(flow, value, into) or not (ours & (theirs | flow.calls)):
        written = place_of(flow, value)
        return before and before.with_rows_of([] if written is None else [written])
    return _mixed_in_order(flow, before)


def put_back(flow: Dataflow, into: Tensor, mask: Tensor, value: Tensor) -> Place | None:
    """Where a tensor lies whose rows were taken out by a mask and put back where they were; None where they were not,
    or it is not known."""
    before, written = place_of(flow, into), place_of(flow, value)
    if before is None or written is None or before.anchor is not written.anchor:
        return None
    start, numbers = before.numbers(), written.numbers()
    if start is None or numbers is None:
        return None
    if mask.ndim == into.ndim and mask.shape[-1] == 1 < into.shape[-1]:  # whole rows, each of one position
        if not all(flow.places.holds_one(place, (t.ndim - 1,)) for place, t in ((before, into), (written, value))):
            return None
        start, numbers = start[..., :1], numbers[..., :1]
    put = start.clone().masked_scatter(mask.cpu(), numbers.contiguous())
    return before.mixed_by(written.mixers) if torch.equal(put, start) else None


def place_of(flow: Dataflow, tensor: Tensor) -> Place | None:
    """Where a tensor lies."""
    trace = flow.traces[tensor]
    return None if trace is None else trace.place


def where_weighted(flow: Dataflow, place: Place, weights: Tensor, axis: int) -> Place | None:
    """The place of the queries that weights belong to; None where one row's weights are several queries'.

    Entries without weight say nothing: a band of scores is cut out of blocks, and what the cut takes in of other rows
    is masked.
    """
    axis %= weights.ndim
    if flow.places.holds_one(place, (axis,)):
        return place
    numbers, some = place.numbers(), (weights != 0).cpu()
    if numbers is None or numbers.shape != some.shape:
        return None
    row = numbers.gather(axis, some.int().argmax(axis, keepdim=True))
    row = torch.where(some.any(axis, keepdim=True), row, NOTHING_YET)
    if bool(((numbers != row) & some).any()):
        return None
    return Place(place.anchor, (Settled(row.expand_as(numbers)),), place.mixers)


def is_empty_somewhere(place: Place | None) -> bool:
    """Whether some entries are of no position yet."""
    numbers = None if place is None else place.numbers()
    return numbers is not None and bool((numbers == NOTHING_YET).any())


def _written(written: Place, before: Place | None, index: Any, shape: tuple[int, ...], name: str) -> Tensor | None:
    """The numbers of a tensor after a write; None where positions were torn apart, or one is added to another."""
    numbers, start = written.numbers(), None if before is None else before.numbers()
    if numbers is None or (before is not None and start is None):
        return None
    out = numbers.new_full(shape, NOTHING_YET) if start is None else start.clone()
    try:
        rows = out[index]
        if base_name(name) == "index_add" and bool(((rows != NOTHING_YET) & (rows != numbers)).any()):
            return None
        out[index] = numbers.expand_as(rows)
        alone = torch.equal(out[index], numbers.expand_as(rows))  # each row is written once, or by one position
    except (RuntimeError, IndexError, ValueError):
        return None
    return out if alone else None
