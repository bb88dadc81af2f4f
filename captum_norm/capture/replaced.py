"""Which rows of a state hold nothing of what they held: those over which something was written that is not made of it.

An operation is made again on two states that differ in every entry: what comes out the same holds nothing of either,
however it was written (a choice, a product with zeros, a write, other rows put beside some of the state's).

Axes: b batch, n row, d feature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.chain import Chain, Replaced
from captum_norm.capture.dataflow import Dataflow
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import NOTHING_YET, Place

_SCALES = names_of(OperationKind.SCALE) | {"einsum"}
_REPLACING = {
    *_SCALES, *names_of(OperationKind.CHOICE, OperationKind.WRITE, OperationKind.JOIN), "lerp", "addcmul", "addcdiv",
    "pad",
} - {"data_"}  # fmt: skip


def replaced(flow: Dataflow, chain: Chain, op: Operation) -> Replaced | None:
    """The rows of a result that hold nothing of the states among its operands that attention wrote.

    None where there are none, or where it is not known.

    Args:
        flow, chain: what is known after the operation, and before it.
        op: the operation.
    """
    name = base_name(op.name)
    if name not in _REPLACING:
        return None
    states = {id(one) for one in op.tensors if chain.is_written_by_attention(one) and _place_of(flow, one) is not None}
    if not states or (name in _SCALES and not _has_zeros(op, states)):
        return None
    out = op.overwritten[0] if op.overwritten else op.out
    trace = flow.traces[out]
    if trace is None or trace.place is None or trace.scores is not None:
        return None
    if trace.in_attention and trace.projection is None:  # weights, or a gate before W_O, which the map holds
        return None
    place, lost = trace.place, _alike_for_all_states(op, states)
    numbers = place.numbers() if bool(lost.any()) else None
    if numbers is None or numbers.shape != lost.shape:
        return None
    features = [axis for axis in range(out.ndim) if flow.places.holds_one(place, (axis,))]
    for axis in reversed(features):
        lost, numbers = lost.all(axis), numbers.select(axis, 0)
    examples, length = place.anchor.shape[0], place.anchor.length
    rows = set[tuple[int | None, int]]()
    for number in set(numbers[lost.cpu()].tolist()) - {NOTHING_YET}:
        is_input = number >= 0
        rows.add((number // length if is_input and examples > 1 else None, number % length if is_input else number))
    at = f"{op.name} in {running!r}" if (running := flow.module()) else op.name
    return Replaced(frozenset(rows), numbers.numel() // examples, at) if rows else None


def _place_of(flow: Dataflow, tensor: Tensor) -> Place | None:
    trace = flow.traces[tensor]
    return None if trace is None else trace.place


def _has_zeros(op: Operation, states: set[int]) -> bool:
    """Whether a factor that is no state is zero somewhere."""
    factors = [one for one in (*op.args[:2], *op.tensors) if id(one) not in states]
    return any(bool((one == 0).any()) if isinstance(one, Tensor) else one == 0 for one in factors)


def _alike_for_all_states(op: Operation, states: set[int]) -> Tensor:
    """Which entries of its result are the same whatever the states hold; of a product those with a factor of zero."""
    by = [one for one in op.args[:2] if isinstance(one, Tensor) and id(one) not in states]
    if base_name(op.name) == "mul" and len(by) == 1:
        return (by[0] == 0).expand((op.overwritten[0] if op.overwritten else op.out).shape)

    def of(number: float) -> Any:
        def swap(one: Tensor) -> Tensor:
            if id(one) in states:
                return torch.full_like(one, number)
            return torch.empty_like(one) if one is op.kwargs.get("out") else one

        return op.again(swap)

    with torch.no_grad():
        return (of(0.0) == of(1.0)).detach()
