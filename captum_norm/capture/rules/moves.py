"""Operations that move entries and leave their values alone."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.layout import NOT_AN_INPUT, Step
from captum_norm.capture.operations import Operation
from captum_norm.capture.places import Anchor, Features, Place
from captum_norm.capture.traces import Mixed, Trace

MOVES = frozenset(
    (
        "view reshape transpose permute contiguous flatten unsqueeze squeeze unflatten movedim getitem select "
        "narrow chunk split tensor_split unbind roll flip expand expand_as view_as reshape_as t mT adjoint "
        "repeat repeat_interleave index_select unfold diagonal tile swapaxes ravel pad"
    ).split()
)


@rule(*MOVES)
def _move(flow: Dataflow, op: Operation) -> None:
    trace = flow.traces[op.tensors[0]] if op.tensors else None
    if trace is None or op.out is op.tensors[0]:  # contiguous() and reshape() may have had nothing to do
        return
    for k, out in enumerate(op.outputs):
        flow.traces[out] = trace.after(step_of(op, k if isinstance(op.out, list | tuple) else None))


def step_of(op: Operation, k: int | None) -> Step:
    """The move an operation made, to be made again with numbers (which live on the CPU)."""
    name, func = op.name, op.func
    args, kwargs = op.args[1:], op.kwargs
    if name in ("view_as", "reshape_as", "expand_as"):
        name, args, kwargs = name[:-3], (tuple(op.out.shape),), {}
        func = torch.Tensor.expand if name == "expand" else torch.Tensor.reshape
    elif name == "view" and not (args and isinstance(args[0], torch.dtype)):
        func = torch.Tensor.reshape
    elif name == "pad":
        args, kwargs = (args[0] if args else kwargs["pad"],), {"value": NOT_AN_INPUT}
    elif len(op.tensors) > 1:  # an index, which may change later
        args, kwargs = _on_cpu(args), {key: _on_cpu(value) for key, value in kwargs.items()}

    def apply(t: Tensor) -> Tensor:
        moved = func(t, *args, **kwargs)
        return moved if k is None else moved[k]

    return Step(lambda: (name, k, _key(args), _key(tuple(kwargs.items()))), apply)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _key(value: Any) -> Hashable:
    """Equal for equal arguments; small tensors (indices) by their content."""
    if isinstance(value, tuple) and all(type(item) is int for item in value):
        return value
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, list | tuple):
        return tuple(_key(item) for item in value)
    if isinstance(value, slice):
        return ("slice", _key(value.start), _key(value.stop), _key(value.step))
    return value if isinstance(value, Hashable) else object()


@rule("cat", "hstack", "vstack")
def _cat(flow: Dataflow, op: Operation) -> None:
    pieces = [tensor for tensor in op.tensors if tensor.shape != (0,)]  # an empty cache is skipped by torch, too
    traces = [flow.traces[tensor] or Trace() for tensor in pieces]
    if not any(traces):
        return
    axis = {"hstack": 1, "vstack": 0}.get(op.name, op.argument(1, "dim", 0)) % op.out.ndim
    shapes = [tuple(tensor.shape) for tensor in pieces]
    mixed = _cat_mixed(traces, shapes, axis)
    weights = any(trace.weights for trace in traces)
    flow.traces[op.out] = Trace(weights, mixed, None, _cat_place(traces, shapes, axis, op.out.ndim))


def _cat_mixed(traces: list[Trace], shapes: list[tuple[int, ...]], axis: int) -> tuple[Mixed, ...]:
    joined = []
    for mixture in dict.fromkeys(m.mixture for trace in traces for m in trace.mixed):
        parents = [next((m.steps for m in trace.mixed if m.mixture is mixture), None) for trace in traces]
        if any(step.scales for steps in parents if steps is not None for step in steps):
            if sum(steps is not None for steps in parents) > 1:
                continue
            index = next(i for i, steps in enumerate(parents) if steps is not None)
            steps = parents[index] or ()
            joined.append(Mixed(mixture, (*steps, _beside(shapes, index, axis))))
        else:
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


def _cat_place(traces: list[Trace], shapes: list[tuple[int, ...]], axis: int, ndim: int) -> Place | None:
    places = [trace.place for trace in traces]
    known = [place for place in places if place is not None]
    if not known:
        return None
    anchors = {id(place.anchor) for place in known}
    if len(anchors) > 1 and not any(place.named for place in known):
        return None  # for example a cache: positions of several forward passes
    anchor = min((place.anchor for place in known), key=lambda anchor: anchor.preference)
    parents = [place.steps if place is not None and place.anchor is anchor else None for place in places]
    if axis == ndim - 1 and all(steps is not None and steps == parents[0] for steps in parents):
        return Place(anchor, parents[0] or ()).then(Features(sum(shape[axis] for shape in shapes)))
    return Place(anchor, (_side_by_side(parents, shapes, axis),))


def _preference(anchor: Anchor) -> tuple[bool, int]:
    return (not isinstance(anchor.source, int), anchor.order)
