"""Which rows a tensor was made of that has no positions of its own any more: a pooled state, logits, a loss.

Axes: b batch, n row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_norm.capture.reach import INPUT, Reach
from captum_norm.capture.row_factors import UNKNOWN, RowFactors
from captum_norm.capture.traces import RowsRead, Traces
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import Anchor, Place, Places
from captum_norm.operations.steps import step_of


class ReadOuts:
    """Follows the rows of tensors without a place, from operation to operation.

    Args:
        traces, reach, places: what is known of the running model.

    Attributes:
        known: the rows of each tensor without a place.
    """

    def __init__(self, traces: Traces, reach: Reach, places: Places) -> None:
        self._traces, self._reach, self._places = traces, reach, places
        self.known: Facts[RowsRead] = Facts()
        self._factors = RowFactors(traces, reach, places)

    def of(self, tensor: Tensor) -> RowsRead | None:
        """The rows that a tensor without a place was made of; None where they are not known."""
        return self.known[tensor]

    def see(self, op: Operation) -> None:
        """Take in one operation, after everything else."""
        self._factors.see(op)
        for out in op.written:
            if self._place(out) is None and out.is_floating_point():
                rows = self._pooled(op) or self._rows_of_all(op)
                self.known[out] = None if rows is None or _turns_examples(op, rows) else rows
            elif op.overwritten:
                self.known[out] = None
        for into in op.overwritten:
            self.known.follow(into)

    def clear(self) -> None:
        """Forget everything."""
        self.known.clear()
        self._factors.clear()

    def _place(self, tensor: Tensor) -> Place | None:
        trace = self._traces[tensor]
        return None if trace is None else trace.place

    def _rows_of_all(self, op: Operation) -> RowsRead | None:
        """The rows that all operands were made of, constants and masks aside; None where they differ."""
        found: RowsRead | None = None
        for tensor in op.tensors:
            if self._reach.of(tensor) <= INPUT or not tensor.is_floating_point():
                continue
            rows = self.known[tensor] or self._one_row(tensor)
            if rows is None or (found is not None and not rows.equals(found)):
                return None
            found = rows if found is None else found.joined(rows)
        return found

    def _one_row(self, tensor: Tensor) -> RowsRead | None:
        """The row that all entries of an example belong to."""
        place = self._place(tensor)
        if place is None or not tensor.ndim or not self._places.holds_one(place, tuple(range(1, tensor.ndim))):
            return None
        numbers = place.numbers()
        if numbers is None or is_of_other_examples(numbers, place.anchor):
            return None
        positions = _positions(numbers.reshape(len(numbers), -1)[:, :1], place)
        return RowsRead(positions, torch.ones(len(numbers), 1), frozenset((place.anchor.source,)), place.mixers)

    def _pooled(self, op: Operation) -> RowsRead | None:
        """A sum or mean over the positions of a state (b, n, d), (n, b, d) or (b, d, n); rows of zeros have no part."""
        if base_name(op.name) not in ("sum", "mean") or op.tensors[0].ndim != 3:
            return None
        place, axis = self._place(op.tensors[0]), op.argument(1, "dim")
        axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
        if place is None or not isinstance(axis, int):
            return None
        axis %= 3
        features = 1 if axis == 2 else 2
        numbers = place.numbers()
        if numbers is None or not self._places.holds_one(place, (features,)):
            return None
        if is_of_other_examples(numbers, place.anchor):
            return None
        if axis == 0 and not _of_one_example_each(numbers[..., 0].T, place):  # a mean of examples
            return None
        weights = (op.tensors[0].detach().movedim(axis, 1) != 0).any(-1).double()
        factor = self._factors[op.tensors[0]]
        if factor is UNKNOWN:
            return None
        if isinstance(factor, Tensor):
            factor = factor.expand(op.tensors[0].shape).movedim(axis, 1)
            if not torch.equal(factor, factor[..., :1].expand_as(factor)):
                return None
            weights = weights * factor[..., 0]
        total = weights.sum(1, keepdim=True)
        if not bool((total > 0).all()) or bool((weights < 0).any()):  # a difference of rows is no mean
            return None
        positions = _positions(numbers.movedim(axis, 1)[..., 0], place)
        return RowsRead(positions, (weights / total).cpu(), frozenset((place.anchor.source,)), place.mixers)


def is_of_other_examples(numbers: Tensor, anchor: Anchor) -> bool:
    """Whether rows, one for each example, were read each from one example, and not from its own: those of the best.

    Args:
        numbers: (row, ...), as the anchor counts them.
        anchor: where positions begin to count.
    """
    examples = anchor.shape[0]
    if examples == 1 or len(numbers) != examples or not numbers.numel() or bool((numbers < 0).any()):
        return False
    read, own = (numbers // anchor.length).reshape(examples, -1), torch.arange(examples, device="cpu")
    return torch.equal(read, read[:, :1].expand_as(read)) and not torch.equal(read[:, 0], own)


def _turns_examples(op: Operation, rows: RowsRead) -> bool:
    """Whether examples change places, or one stands for others, in something that was read from these rows."""
    examples, x = len(rows.positions), op.tensors[0] if op.tensors else None
    if x is None or kind_of(op.name) is not OperationKind.MOVE or not isinstance(op.out, Tensor) or not x.ndim:
        return False
    if examples == 1 or op.out.shape[:1] != (examples,) or x.shape[0] != examples:
        return False
    own = torch.arange(examples, device="cpu")
    try:
        moved = step_of(op, None).apply(own.view(-1, *[1] * (x.ndim - 1)).expand(x.shape)).reshape(examples, -1)
    except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    alike = torch.equal(moved, moved[:, :1].expand_as(moved))  # else examples are along another axis now
    return moved.numel() > 0 and alike and not torch.equal(moved[:, 0], own)


def _of_one_example_each(numbers: Tensor, place: Place) -> bool:
    """Whether each row of numbers (b, n) is of one example, each of another one, and in order."""
    examples = numbers // place.anchor.length
    return torch.equal(examples, torch.arange(len(numbers), device="cpu")[:, None].expand_as(examples))


def _positions(numbers: Tensor, place: Place) -> Tensor:
    """``b * length + position`` as positions; what is no input stays below 0."""
    return torch.where(numbers < 0, numbers, numbers % place.anchor.length)
