"""Which positions stand in the rows of a tensor that was put together of others, as ids that a model has shifted.

The operation is made again with a mark in the place of each position: what comes out as a mark is that position, and
what comes out the same whatever the marks are is no input.  Masks and indices are what they were.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.dataflow import Dataflow
from captum_norm.capture.traces import Trace
from captum_norm.operations.entries import varies_along
from captum_norm.operations.formats import holds_numbers
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import Anchor, Place, Settled
from captum_norm.operations.steps import NOT_AN_INPUT

_FILLS = frozenset({"fill", "zero"})
_WRITES = names_of(OperationKind.WRITE) - {"data_", "index_add", "scatter_add"}
_PUTS = _WRITES - _FILLS | names_of(OperationKind.CHOICE)
_PUTS |= {"slice_scatter", "select_scatter", "diagonal_scatter", "take"}
_SUMS = names_of(OperationKind.SUM, OperationKind.SCALE) | {"maximum", "minimum"}

# Where an operation is told which entries it picks or writes.
_INDEX_AT = {
    "setitem": 1, "index_put": 1, "index_copy": 2, "index_fill": 2, "scatter": 2, "masked_scatter": 1, "take": 1,
    "where": 0, "masked_fill": 1,
}  # fmt: skip


def chosen_rows(flow: Dataflow, op: Operation, out: Tensor) -> Place | None:
    """Where a result lies some of whose entries were others before; None where all stay, or it is not known.

    That is so of ids, and before the first attention call of the states that are made of them.  A constant that the
    inputs choose a row for (ids of a kind, padding, a mask that is given) counts as that row's position, and rows of
    another input as those in whose place they are.

    Args:
        flow: what is known before the operation.
        op: the operation.
        out: what it gave out or overwrote.
    """
    name = base_name(op.name)
    are_ids = not holds_numbers(out) and out.dtype is not torch.bool
    if "out" in op.kwargs or (flow.calls and not are_ids):
        return None
    if name not in _PUTS and not (are_ids and name in _SUMS | _FILLS):
        return None
    told_by = _tensors_of(op.args[_INDEX_AT[name]]) if name in _INDEX_AT and len(op.args) > _INDEX_AT[name] else []
    operands = [one for one in op.tensors if not any(one is other for other in told_by)]
    told = any(map(flow.reach.is_given, told_by))
    places = {id(one): place for one in operands if (place := (flow.traces[one] or Trace()).place) is not None}
    first = next(iter(places.values()), None)
    if first is None or any(place.anchor is not first.anchor for place in places.values()):
        return None
    if name in _WRITES and id(operands[0]) not in places:  # what is empty takes any
        return None
    if any(flow.is_given(one) for one in operands if id(one) not in places):
        return None
    numbers = {key: known for key, place in places.items() if (known := place.numbers()) is not None}
    if len(numbers) < len(places):
        return None
    found = _found(op, out, numbers, first.anchor.shape[0] * first.anchor.length)
    if found is None or (not are_ids and varies_along(found, (found.ndim - 1,))):
        return None
    before = [known for known in numbers.values() if known.shape == found.shape]
    if before and all(torch.equal(known, found) for known in before):
        return None
    told = told or (bool(before) and _differs_by_example(first.anchor, before[-1], found < 0))
    if told and not are_ids:  # which rows are which depends on the inputs
        return None
    if told and before:  # a constant in a row that the inputs choose is that row's own
        found = torch.where(found < 0, before[-1], found)
    return Place(first.anchor, (Settled(found),), frozenset[Hashable]().union(*(one.mixers for one in places.values())))


def _differs_by_example(anchor: Anchor, before: Tensor, lost: Tensor) -> bool:
    """Whether constants stand in other rows of one example than of another, as in those of padding."""
    numbers = before[lost & (before >= 0)]
    rows = torch.zeros(anchor.shape[0], anchor.length, dtype=torch.bool, device="cpu")
    rows.view(-1)[numbers] = True
    return not torch.equal(rows, rows[:1].expand_as(rows))


def _found(op: Operation, out: Tensor, numbers: dict[int, Tensor], count: int) -> Tensor | None:
    """The numbers of a result; None where an entry is made of several, or by an operation that moves no entries."""
    generator, results = torch.Generator(device="cpu").manual_seed(0), []
    for _ in range(2):
        marks = torch.randint(1 << 40, 1 << 50, (count,), generator=generator, device="cpu")

        def swap(one: Tensor, marks: Tensor = marks) -> Tensor:
            if one.dtype is torch.bool or (id(one) not in numbers and not one.ndim):
                return one
            wide = one.double() if one.is_floating_point() else one.long()
            if id(one) not in numbers:
                return wide
            known = numbers[id(one)].to(one.device)
            return torch.where(known >= 0, marks.to(wide)[known.clamp_min(0)], wide)

        try:
            result = op.again(swap).to("cpu").contiguous()
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return None
        if result.shape != out.shape:
            return None
        order = marks.argsort()
        place = torch.searchsorted(marks[order], result.long()).clamp_max(count - 1)
        results.append((result, torch.where(marks[order][place] == result, order[place], NOT_AN_INPUT)))
    (one, found), (other, again) = results
    known = (found == again) & ((found >= 0) | (one == other))
    return found if bool(known.all()) else None


def _tensors_of(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, tuple | list) else (value,)
    return [part for part in parts if isinstance(part, Tensor)]
