"""Operations that move entries and leave their values alone."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor

from captum_norm.capture.columns import Columns
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.reach import INPUT
from captum_norm.capture.traces import Mixed, Projection, Trace
from captum_norm.operations.kinds import OperationKind
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import NOTHING_YET, TORN, Place, Settled
from captum_norm.operations.steps import NOT_AN_INPUT, Step, step_of, strided_step


@rule(OperationKind.MOVE)
def move(flow: Dataflow, op: Operation) -> None:
    """What is known of a tensor's entries goes where they go."""
    trace = flow.traces[op.tensors[0]] if op.tensors else None
    is_idle = op.tensors and op.out is op.tensors[0] and not op.in_place  # contiguous() and reshape() may be
    if trace is None or is_idle:
        return
    if op.name == "pad" and trace.scores is not None:  # with minus infinity, maybe
        trace = trace._replace(scores=trace.scores.after_telling("the model"))
    for k, out in enumerate(op.outputs):
        step = strided_step(op) if op.name == "as_strided" else step_of(op, k if op.out is not out else None)
        after = trace.after(step)
        if trace.place is not None and _pads_features(flow, op, trace.place):
            after = after._replace(place=trace.place.of_features(out.shape[-1]))
        flow.traces[out] = after


def _pads_features(flow: Dataflow, op: Operation, place: Place) -> bool:
    """Whether each position is given more features, such as the one by which a matrix holds its bias."""
    pads = op.argument(1, "pad") if op.name == "pad" else None
    return isinstance(pads, list | tuple) and len(pads) == 2 and flow.places.holds_one(place, (op.tensors[0].ndim - 1,))


@rule("cat", "hstack", "vstack")
def _cat(flow: Dataflow, op: Operation) -> None:
    pieces = [tensor for tensor in op.tensors if tensor.numel()]  # an empty cache has nothing to say
    traces = [flow.traces[tensor] or Trace() for tensor in pieces]
    if not any(traces):
        return
    axis = {"hstack": 1, "vstack": 0}.get(op.name, op.argument(1, "dim", 0)) % op.out.ndim
    shapes = [tuple(tensor.shape) for tensor in pieces]
    weights, mixed = _cat_weights(traces, op.out), _cat_mixed(traces, shapes, axis)
    flow.traces[op.out] = Trace(weights, mixed, None, _cat_place(flow, pieces, traces, shapes, axis, op.out))


@rule("stack")
def _stack(flow: Dataflow, op: Operation) -> None:
    """Tensors beside each other along a new axis: heads or examples that were mixed one by one."""
    traces = [flow.traces[tensor] or Trace() for tensor in op.tensors]
    if not any(traces):
        return
    axis = op.argument(1, "dim", 0) % op.out.ndim
    place = _stacked_place(flow, list(op.tensors), traces, axis, op.out)
    flow.traces[op.out] = Trace(place=place, projection=_stacked_projections(traces, axis))
    if any(trace.mixed or trace.weights is not None for trace in traces):
        apart = Step(("unsqueeze", axis), lambda t: t.unsqueeze(axis))
        pieces = [tensor.unsqueeze(axis) for tensor in op.tensors]
        shapes = [tuple(piece.shape) for piece in pieces]
        traces = [trace.after(apart) for trace in traces]
        weights, mixed = _cat_weights(traces, op.out), _cat_mixed(traces, shapes, axis)
        flow.traces.update(op.out, weights=weights, mixed=mixed)


def _stacked_place(
    flow: Dataflow, tensors: list[Tensor], traces: list[Trace], axis: int, out: Tensor
) -> Place | None:
    """Where tensors lie beside each other: all at the same positions, or each at its own that nothing has mixed."""
    known, shape = [trace.place for trace in traces if trace.place is not None], out.shape
    first = known[0] if len(known) == len(traces) else None
    if first is not None and all(
        place.anchor is first.anchor and flow.places.agree(first, place, tensors[0].shape) for place in known
    ):
        mixers = frozenset[Hashable]().union(*(place.mixers for place in known))
        beside = Step(("stack", axis, tuple(shape)), lambda n: n.unsqueeze(axis).expand(shape))
        return first.mixed_by(mixers).then(TORN if mixers and _is_one_position(first) else beside)
    if any(place.mixers for place in known):  # as a recurrence gives out
        return None
    apart = Step(("unsqueeze", axis), lambda t: t.unsqueeze(axis))
    pieces = [tensor.unsqueeze(axis) for tensor in tensors]
    traces = [trace.after(apart) for trace in traces]
    return _cat_place(flow, pieces, traces, [tuple(piece.shape) for piece in pieces], axis, out)


def _stacked_projections(traces: list[Trace], axis: int) -> Projection | None:
    """One part of W_O's result for each head, to be summed along the new axis."""
    projections = [trace.projection for trace in traces if trace.projection is not None]
    if len(projections) == len(traces) == 1:  # nothing stands beside it
        return projections[0].after(Step(("unsqueeze", axis), lambda t: t.unsqueeze(axis)))
    if len(projections) < len(traces) or len({frozenset(p.mixtures) for p in projections}) != 1:
        return None
    total = projections[0]
    for projection in projections[1:]:
        total = total.plus(projection)
    return Projection(total.mixtures, total.terms, total.bias, total.roots, total.width, axis)


def _cat_weights(traces: list[Trace], out: Tensor) -> Columns | None:
    columns = [trace.weights for trace in traces if trace.weights is not None]
    if not columns:
        return None
    axes = {column.axis for column in columns}
    return Columns(tuple(out.shape), axes.pop() if len(axes) == 1 else None)


def _cat_mixed(traces: list[Trace], shapes: list[tuple[int, ...]], axis: int) -> tuple[Mixed, ...]:
    joined = []
    for mixture in dict.fromkeys(m.mixture for trace in traces for m in trace.mixed):
        parts = [[m.steps for m in trace.mixed if m.mixture is mixture] for trace in traces]
        if any(len(of_one) > 1 or any(step.scales for steps in of_one for step in steps) for of_one in parts):
            for index, of_one in enumerate(parts):
                joined += [Mixed(mixture, (*steps, _beside(shapes, index, axis))) for steps in of_one]
        else:
            parents = [of_one[0] if of_one else None for of_one in parts]
            joined.append(Mixed(mixture, (_side_by_side(parents, shapes, axis),)))
    return tuple(joined)


def _beside(shapes: list[tuple[int, ...]], index: int, axis: int) -> Step:
    """Concatenation with tensors that hold something else."""

    def apply(t: Tensor) -> Tensor:
        others = [t if i == index else t.new_full(shape, NOT_AN_INPUT) for i, shape in enumerate(shapes)]
        return torch.cat(others, axis)

    return Step(("cat", index, axis, tuple(shapes)), apply)


def _side_by_side(parents: list[tuple[Step, ...] | None], shapes: list[tuple[int, ...]], axis: int) -> Step:
    """Concatenation of several pieces of the same tensor (heads one by one, chunks of queries)."""

    def apply(root: Tensor) -> Tensor:
        pieces = []
        for steps, shape in zip(parents, shapes, strict=True):
            piece = root if steps is not None else root.new_full(shape, NOT_AN_INPUT)
            for step in steps or ():
                piece = step.apply(piece)
            pieces.append(piece)
        return torch.cat(pieces, axis)

    keys = tuple(None if steps is None else tuple(step.key for step in steps) for steps in parents)
    return Step(("cat", axis, tuple(shapes), keys), apply)


def _cat_place(
    flow: Dataflow, pieces: list[Tensor], traces: list[Trace], shapes: list[tuple[int, ...]], axis: int, out: Tensor
) -> Place | None:
    places = [trace.place for trace in traces]
    known = [place for place in places if place is not None]
    if not known:
        return None
    anchors = {id(place.anchor) for place in known}
    if len(anchors) > 1 and not any(place.named for place in known):
        if len(known) == len(pieces) and not flow.reach.of_all(pieces) & INPUT:
            return _cat_latents(flow, known, axis, out)
        return None  # for example a cache: positions of several forward passes
    anchor = min((place.anchor for place in known), key=lambda anchor: anchor.preference)
    mixers: frozenset[Hashable] = frozenset().union(*(place.mixers for place in known))
    if axis == out.ndim - 1:
        beside = _beside_place(flow, pieces, places, mixers)
        if beside is not None:
            return beside.of_features(out.shape[axis])
    joined = _numbers_side_by_side([p if p is None or p.anchor is anchor else None for p in places], shapes, axis)
    # More scores of the same queries; a single key's axis cannot be told.
    of_keys = any(trace.scores is not None and trace.scores.axis in (axis, None) for trace in traces)
    if mixers and joined is not None and not of_keys and _claims_one_twice(joined, axis):
        joined = joined if _are_streams(joined, axis, anchor.shape[0]) else None
    return Place(anchor, (TORN if joined is None else Settled(joined),), mixers).with_rows_of(known)


def _cat_latents(flow: Dataflow, places: list[Place], axis: int, out: Tensor) -> Place | None:
    """Where sequences lie that are no input and were put one behind the other: one sequence, counted anew."""
    for place in places:
        numbers = place.numbers()
        if numbers is None:
            return None
        rows = numbers.movedim(axis, 0).flatten(1)
        if len(set(rows[:, 0].tolist())) < len(rows) or not torch.equal(rows, rows[:, :1].expand_as(rows)):
            return None
    return flow.latents(out.shape, axis).mixed_by(frozenset().union(*(place.mixers for place in places)))


def _is_one_position(place: Place) -> bool:
    """Whether all entries are of one position, for each example; of what was mixed of one and the next, as a recurrence
    does, it is not known which of the two it is."""
    numbers = place.numbers()
    batch = place.anchor.shape[0]
    return numbers is not None and len(set(numbers.flatten().tolist())) <= batch < math.prod(place.anchor.shape)


def _claims_one_twice(numbers: Tensor, axis: int) -> bool:
    """Whether two pieces are said to be the same positions."""
    rows = numbers.movedim(axis, 0).flatten(1)[:, 0].tolist()
    return len(set(rows)) < len(rows)


def _are_streams(numbers: Tensor, axis: int, batch: int) -> bool:
    """Whether the pieces lie at the same positions, several for each example, as streams of one sequence do."""
    rows = numbers.movedim(axis, 0)
    return torch.equal(rows, rows[:1].expand_as(rows)) and len(set(rows[0].flatten().tolist())) > batch


def _numbers_side_by_side(
    places: list[Place | None], shapes: list[tuple[int, ...]], axis: int
) -> Tensor | None:
    """The numbers of a concatenation, narrow where nothing changes in any piece; None where one is torn apart.

    Rows that are no input (class tokens, memory) have numbers of their own below all others, so that no two are one.
    """
    known = [None if place is None else place.numbers() for place in places]
    lowest = min([NOTHING_YET, *(int(numbers.min()) for numbers in known if numbers is not None and numbers.numel())])
    pieces: list[Tensor] = []
    for place, numbers, shape in zip(places, known, shapes, strict=True):
        if place is None:
            rows = torch.arange(lowest - shape[axis], lowest, device="cpu")
            numbers = rows.view([-1 if n == axis else 1 for n in range(len(shape))]).expand(shape)
            lowest -= len(rows)
        if numbers is None or numbers.shape != shape:
            return None
        pieces.append(numbers)
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    for other, count in enumerate(whole):
        if other != axis and count > 1 and not any(piece.stride(other) for piece in pieces):
            pieces = [piece.narrow(other, 0, 1) for piece in pieces]
    return torch.cat(pieces, axis).expand(whole)


def _beside_place(
    flow: Dataflow, pieces: list[Tensor], places: list[Place | None], mixers: frozenset[Hashable]
) -> Place | None:
    """The place of features put beside features: where they are those of the same positions, or of none."""
    first = next(i for i, place in enumerate(places) if place is not None)
    start, rows = places[first], (*pieces[first].shape[:-1], 1)
    if start is None or not flow.places.holds_one(start, (pieces[first].ndim - 1,)):
        return None
    for tensor, place in zip(pieces, places, strict=True):
        if place is None and flow.is_moved(tensor, pieces[first]):
            return flow.mixed_by(start, "beside something that was made of several positions").mixed_by(mixers)
        if place is None or flow.is_constant(tensor, pieces[first]):
            continue
        if not flow.places.agree(start.of_features(1), place.of_features(1), torch.Size(rows)):
            return None
    return start.mixed_by(mixers)
