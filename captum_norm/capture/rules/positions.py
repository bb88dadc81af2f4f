"""Where positions come from: embeddings, and convolutions that cut a picture into patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_norm.capture.call import Mixer
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.rules.alike import DIFFERENT
from captum_norm.capture.rules.moves import move
from captum_norm.capture.rules.weights import is_weights, map_weights
from captum_norm.capture.traces import Trace
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import Anchor, Place, broadcast, patches
from captum_norm.operations.steps import Step


@rule("embedding")
def _embedding(flow: Dataflow, op: Operation) -> None:
    embedded(flow, next((tensor for tensor in op.tensors if not tensor.is_floating_point()), op.tensors[0]), op.out)


def embedded(flow: Dataflow, ids: Tensor, out: Tensor) -> None:
    """Rows of a table, looked up by ids: ``out`` has the axes of the ids, then those of a row."""
    trace = flow.traces[ids]
    place = trace.place if trace else None
    if place is not None and place.named:
        for _ in range(out.ndim - ids.ndim):
            place = place.then(Step(("unsqueeze", -1), lambda n: n.unsqueeze(-1)))
        place = place.then(broadcast(out.shape)) if out.ndim > ids.ndim + 1 else place.of_features(out.shape[-1])
        # The anchor is made anew: encoder and decoder may be given the same tensor, and are not the same sequence.
        anchor = Anchor(place.anchor.source, place.anchor.shape, place.anchor.position_axes, flow.next_anchor())
        flow.begins(ids)
        # What only counts ids (a running sum, for a table of positions) is forgotten, and not what puts them together.
        mixers = frozenset(one for one in place.mixers if isinstance(one, Mixer) and one.why == DIFFERENT)
        flow.traces[out] = Trace(place=Place(anchor, place.steps, mixers))
    elif ids.ndim == 2:
        flow.begins(ids)
        anchor = Anchor(flow.next_embedding(), tuple(out.shape), (1,), flow.next_anchor())
        flow.traces[out] = Trace(place=Place(anchor))


@rule("one_hot")
def _one_hot(flow: Dataflow, op: Operation) -> None:
    trace = flow.traces[op.tensors[0]]
    if trace is not None and trace.place is not None:
        place = trace.place.then(Step(("unsqueeze", -1), lambda n: n.unsqueeze(-1)))
        flow.traces[op.out] = Trace(place=place.of_features(op.out.shape[-1]))


@rule("index_select")
def _index_select(flow: Dataflow, op: Operation) -> None:
    """Rows of a table, or entries of a tensor that is followed."""
    ids = op.argument(2, "index")
    if op.argument(1, "dim", 0) == 0 and is_table(flow, op.tensors[0]):
        embedded(flow, ids, op.out)
    else:
        move(flow, op)


@rule("getitem")
def _getitem(flow: Dataflow, op: Operation) -> None:
    """``W_E[ids]``, ``W_E[ids, :]``, or entries of a tensor that is followed."""
    index = op.args[1]
    first, *others = index if isinstance(index, tuple) else (index,)
    is_ids = isinstance(first, Tensor) and not first.is_floating_point() and first.dtype is not torch.bool
    if is_ids and all(i == slice(None) or i is Ellipsis for i in others) and is_table(flow, op.tensors[0]):
        embedded(flow, first, op.out)
    else:
        move(flow, op)


def is_table(flow: Dataflow, tensor: Tensor) -> bool:
    """Whether a tensor is made of no input, and is nothing that is followed."""
    return tensor.is_floating_point() and flow.traces[tensor] is None and not flow.reach.of(tensor)


@rule("conv1d", "conv2d", "conv3d")
def _convolution(flow: Dataflow, op: Operation) -> None:
    x, weight = op.tensors[:2]
    if _is_pointwise(op, weight):
        trace = flow.traces[x]
        if trace is None:
            return
        if trace.weights is not None:  # talking heads: a linear map over the heads of the weights
            map_weights(flow, x, 1, op.out)
        elif trace.mixed or trace.projection:
            last = x.ndim - 1
            to_last = Step(("movedim", 1, last, x.ndim), lambda t: t.movedim(1, last))
            moved = x.movedim(1, last)
            flow.traces[moved] = trace.after(to_last) if trace.mixed else trace  # of W_O with features last, already
            out = op.out.movedim(1, last)
            flow.project(moved, weight.flatten(1).t(), op.argument(2, "bias"), out, weight)
            flow.traces[op.out] = (flow.traces[out] or Trace())._replace(place=None)
        elif trace.place is not None:
            flow.traces[op.out] = Trace(place=flow.read_whole(trace.place, op.out, 1))
        return
    if is_weights(flow, x) and op.out.shape[2:] == x.shape[2:]:  # queries and keys stay in place
        map_weights(flow, x, 1, op.out)
        return
    trace = flow.traces[x]
    origin = trace.place if trace is not None else None
    # The picture itself, or what elementwise operations (another dtype, a normalisation) made of it.
    source = origin.anchor.source if origin is not None and origin.named and not origin.steps else None
    stride = op.argument(3, "stride", 1)
    padding = op.argument(4, "padding", 0)
    kernel = tuple(weight.shape[2:])
    stride = tuple(stride) if isinstance(stride, list | tuple) else (stride,) * len(kernel)
    is_padded = any(padding) if isinstance(padding, list | tuple) else padding not in (0, "valid")
    is_patches = kernel == stride and not is_padded
    cut = _patches_of_moved(flow, origin, op, kernel) if is_patches and source is None else None
    if cut is not None:
        flow.begins(x)
        flow.traces[op.out] = Trace(place=cut)
    elif max(stride) > 1 or source is not None:
        named = source if source is not None and is_patches else flow.next_embedding()
        # Of an input with its axes moved, these are no cells of its own grid.
        is_moved = origin is not None and origin.named and origin.anchor.parent is None and bool(origin.steps)
        parent = None if origin is None or is_moved else origin.anchor
        anchor = Anchor(named, tuple(op.out.shape), tuple(range(2, op.out.ndim)), flow.next_anchor(), parent)
        flow.begins(x)
        place = Place(anchor, mixers=frozenset() if origin is None else origin.mixers)
        if flow.reach.of(x) & flow.calls:
            place = flow.mixed_by(place, f"patches of what attention has mixed, kernel {kernel}, stride {stride}")
        flow.traces[op.out] = Trace(place=place)
    elif origin is not None and op.out.shape[2:] == x.shape[2:]:
        # A convolution over neighbours, as position embedding or token shift: positions stay where they are.
        channels = op.out.shape[1]
        step = Step(("channels", channels), lambda n: n[:, :1].expand(n.shape[0], channels, *n.shape[2:]))
        place = origin.then(step)
        is_stem = len(kernel) > 1 and not flow.reach.of(x) & flow.calls  # a picture is not cut into patches yet
        flow.traces[op.out] = Trace(place=place if is_stem else flow.mixed_by(place, f"neighbours, kernel {kernel}"))


def _patches_of_moved(flow: Dataflow, origin: Place | None, op: Operation, kernel: tuple[int, ...]) -> Place | None:
    """The place of patches of an input whose axes were moved before: a spectrogram, frames of a film, channels last."""
    if origin is None or not origin.named or origin.anchor.parent is not None or not all(map(_moves, origin.steps)):
        return None
    x, out, shape = op.tensors[0], op.out, origin.anchor.shape
    if any(n != cells * width for n, cells, width in zip(x.shape[2:], out.shape[2:], kernel, strict=True)):
        return None
    entries = Anchor(origin.anchor.source, shape, tuple(range(1, len(shape))), flow.next_anchor())
    pairs = [size for pair in zip(out.shape[2:], kernel, strict=True) for size in pair]
    apart = Step(("unflatten", tuple(pairs)), lambda n: n.reshape(*n.shape[:2], *pairs))
    inside = (1, *range(3, 3 + len(pairs), 2))
    cut = patches(Place(entries, (*origin.steps, apart), origin.mixers), inside, flow.next_anchor())

    def one_of_each(numbers: Tensor) -> Tensor:
        for axis in reversed(inside[1:]):
            numbers = numbers.select(axis, 0)
        return numbers[:, :1].expand(out.shape)

    return None if cut is None else cut.then(Step(("one of each patch", tuple(out.shape)), one_of_each))


def _moves(step: Step) -> bool:
    """Whether a step does to any tensor what it did to the one it was seen on."""
    return isinstance(step.key, tuple) and step.key[0] in names_of(OperationKind.MOVE)


def _is_pointwise(op: Operation, weight: Tensor) -> bool:
    return math.prod(weight.shape[2:]) == 1 and op.argument(3, "stride", 1) in (
        1, (1,), (1, 1), (1, 1, 1), [1], [1, 1], [1, 1, 1],
    )  # fmt: skip
