"""Which input position an entry of a hidden state belongs to, followed through the model.

A *place* starts where tokens enter (an embedding, a patch convolution, an input tensor) with every entry numbered
``b * length + position``.  It goes unchanged through everything that treats positions alike (linear maps, norms,
elementwise operations) and is moved by whatever moves positions (transposes, windows, flips, rolls, an index).  So the
keys of an attention call are known to be the input's positions, or known not to be.

Some operations leave every entry at its position and still mix other positions into it (a convolution, a recurrence):
the place goes on, and keeps in ``mixers`` what did so.  Rows of two inputs that were put beside each other count as
those of one; the other is kept there, too.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from captum_norm.operations.entries import varies_along, without_repeats
from captum_norm.operations.steps import NOT_AN_INPUT, Step

Source = int | str
"""A sequence that positions count in: the index of a named source, or a description such as ``"embedding 0"``."""


class OtherInput(NamedTuple):
    """What is kept among a place's mixers where rows of another input stand, which do not count as its positions."""

    source: Source


@dataclass(frozen=True, eq=False)
class Anchor:
    """Where positions begin to count: a tensor of shape (batch, *grid, ...) whose entries are numbered in order.

    Attributes:
        source: the sequence.
        shape: shape of the tensor at the anchor.
        position_axes: its axes that hold positions; axis 0 is the batch.
        order: how many anchors there were before.
        parent: the anchor whose positions these were made of (patches of patches), or None.
    """

    source: Source
    shape: tuple[int, ...]
    position_axes: tuple[int, ...]
    order: int = 0
    parent: Anchor | None = None

    @cached_property
    def origin(self) -> Anchor:
        """The anchor where all of it began: the same for a picture and its reduced keys."""
        return self if self.parent is None else self.parent.origin

    @property
    def preference(self) -> tuple[bool, int]:
        """Where two sequences meet, the smaller one stays: named sources first, then what was there first."""
        return (not isinstance(self.source, int), self.order)

    @cached_property
    def length(self) -> int:
        return math.prod(self.grid)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.position_axes)

    def numbers(self) -> Tensor:
        """``b * length + position``, expanded to the anchor's shape."""
        batch = self.shape[0]
        kept = [n if axis == 0 or axis in self.position_axes else 1 for axis, n in enumerate(self.shape)]
        return torch.arange(batch * self.length, device="cpu").view(kept).expand(self.shape)


@dataclass(frozen=True, eq=False)
class Place:
    """The anchor a tensor's positions come from, the steps since, and what has mixed positions on the way, or whose
    other rows stand there (:class:`OtherInput`)."""

    anchor: Anchor
    steps: tuple[Step, ...] = ()
    mixers: frozenset[Hashable] = frozenset()

    @cached_property
    def key(self) -> Hashable:
        return (id(self.anchor), tuple([step.key for step in self.steps]))

    @cached_property
    def _after(self) -> dict[Step, Place]:
        return {}

    @property
    def named(self) -> bool:
        return isinstance(self.anchor.source, int)

    def with_rows_of(self, others: Iterable[Place]) -> Place:
        """The place of a tensor that holds rows of these places, too; of those of other inputs it keeps which."""
        origin = self.anchor.origin
        inputs = [one.anchor.origin for one in others if isinstance(one.anchor.origin.source, int)]
        return self.mixed_by(frozenset(OtherInput(one.source) for one in inputs if one is not origin))

    def numbers(self) -> Tensor | None:
        """The anchor's numbers where they are now, a tensor of the followed tensor's shape; None if torn apart."""
        numbers = self.anchor.numbers()
        try:
            for step in self.steps:
                numbers = step.apply(numbers)
        except (UnplacedError, RuntimeError, IndexError, ValueError):
            return None
        return numbers

    def then(self, step: Step) -> Place:
        """The place after one more step: the same object after a step that all layers share."""
        place = self._after.get(step) if step.is_shared else None
        if place is None:
            place = Place(self.anchor, (*self.steps, step), self.mixers)
            if step.is_shared:
                self._after[step] = place
        return place

    def of_features(self, count: int) -> Place:
        """The place after an operation that reads all features of a position and writes ``count`` new ones.

        Of two such operations in a row the last one counts: where as many are written, this is the place itself.
        """
        last = self.steps[-1] if self.steps else None
        if not isinstance(last, Features):
            return self.then(Features.writing(count))
        if last.count == count:
            return self
        return Place(self.anchor, (*self.steps[:-1], Features.writing(count)), self.mixers)

    def mixed_by(self, mixers: frozenset[Hashable]) -> Place:
        """The place with these among its mixers."""
        return self if mixers <= self.mixers else Place(self.anchor, self.steps, self.mixers | mixers)


class UnplacedError(ValueError):
    """The entries of one position were torn apart, so the place is no longer known."""


def _tear(numbers: Tensor) -> Tensor:
    raise UnplacedError("positions were taken apart before they were put together")


TORN = Step(("torn",), _tear)
"""The step of an operation behind which nobody knows which position a row is; what has mixed them stays known."""


class Features(Step):
    """The step of an operation that reads all features of a position and writes ``count`` new ones."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        super().__init__(("features", count), lambda numbers: self._apply(numbers, count), is_shared=True)
        self.count = count

    @classmethod
    @lru_cache(maxsize=1024)
    def writing(cls, count: int) -> Features:
        """The step of this count, one object for all."""
        return cls(count)

    @staticmethod
    def _apply(numbers: Tensor, count: int) -> Tensor:
        if numbers.stride(-1) and not torch.equal(numbers, numbers[..., :1].expand_as(numbers)):
            raise UnplacedError("an operation reads several positions at once")
        return numbers[..., :1].expand(*numbers.shape[:-1], count)


class WholeAxes(Step):
    """The step of an operation that reads whole axes, each of which holds one position.

    Args:
        axes: what it reads.
        shape: the shape of its result, which has these axes at another length or not at all.
    """

    __slots__ = ()

    def __init__(self, axes: tuple[int, ...], shape: torch.Size) -> None:
        super().__init__(("whole", axes, tuple(shape)), lambda numbers: self._apply(numbers, axes, shape))

    @staticmethod
    def _apply(numbers: Tensor, axes: tuple[int, ...], shape: torch.Size) -> Tensor:
        if varies_along(numbers, axes):
            raise UnplacedError("an operation reads several positions at once")
        for axis in sorted(axes, reverse=True):
            numbers = numbers.narrow(axis, 0, 1) if len(shape) == numbers.ndim else numbers.select(axis, 0)
        return numbers.expand(shape)


class Settled(Step):
    """The step behind an operation that puts positions together: the numbers as they are then, whatever was before.

    Equal numbers make equal steps.  What is split and joined again in each layer would otherwise be gone through anew
    for each of its pieces.

    Args:
        numbers: where the entries are now; it is kept without the axes along which nothing changes.
    """

    __slots__ = ()

    def __init__(self, numbers: Tensor) -> None:
        shape, kept = numbers.shape, numbers
        for axis, count in enumerate(shape):
            if count > 1 and not varies_along(kept, (axis,)):
                kept = kept.narrow(axis, 0, 1)
        kept = kept.contiguous()
        super().__init__(lambda: ("settled", tuple(shape), kept.numpy().tobytes()), lambda _: kept.expand(shape))


def patches(place: Place, axes: tuple[int, ...], order: int) -> Place | None:
    """The place of a picture's tensor in which these axes hold whole patches: from here on a patch is one position.

    Args:
        place: where the tensor lies on the picture's grid.
        axes: the axes that an operation reads as one.
        order: how many anchors there were before.

    Returns:
        None where they hold anything but the cells of one grid: patches of one size, side by side, without overlap.
    """
    numbers, anchor = place.numbers(), place.anchor
    if numbers is None or not numbers.numel() or bool((numbers < 0).any()):
        return None
    kept = [axis for axis in range(numbers.ndim) if axis not in axes]
    rows = numbers.permute(*kept, *axes).flatten(len(kept))
    example, cell = rows[..., 0] // anchor.length, torch.zeros_like(rows[..., 0])
    if not torch.equal(rows // anchor.length, example[..., None].expand_as(rows)):
        return None
    grid, index, size = [], rows % anchor.length, 1
    for stride, cells in zip(_strides(anchor.grid), anchor.grid, strict=True):
        along = index // stride % cells
        first, last = along.amin(-1), along.amax(-1)
        width = int((last - first).flatten()[0]) + 1
        if cells % width or bool((first % width).any()) or bool((last - first + 1 != width).any()):
            return None
        grid.append(cells // width)
        cell, size = cell * grid[-1] + first // width, size * width
    distinct = (rows.sort(-1).values.diff(dim=-1) != 0).sum(-1) + 1
    if size in (1, anchor.length) or bool((distinct != size).any()):
        return None
    patch = Anchor(anchor.source, (anchor.shape[0], *grid), tuple(range(1, len(grid) + 1)), order, anchor)
    settled = (example * patch.length + cell).view([n if a in kept else 1 for a, n in enumerate(numbers.shape)])
    shape = numbers.shape
    return Place(patch, (Step(("patches", object()), lambda _: settled.expand(shape)),), place.mixers)


def _strides(grid: tuple[int, ...]) -> list[int]:
    return [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]


def along(anchor: Anchor, shape: torch.Size, axis: int) -> Place:
    """The place of a tensor whose positions, those of an anchor of one example, lie along an axis."""
    one = [count if n == axis % len(shape) else 1 for n, count in enumerate(shape)]
    return Place(anchor, (Step(("along", axis, tuple(shape)), lambda numbers: numbers.view(one).expand(shape)),))


def broadcast(shape: torch.Size) -> Step:
    """The step of an elementwise operation whose result has more entries than this operand."""
    return Step(("broadcast", tuple(shape)), lambda numbers: numbers.expand(shape))


NOTHING_YET = -2
"""The number of an entry that is zero until a position is written there."""


class Places:
    """Answers about places, worked out on their numbers once for all layers that share a structure."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[bool, tuple[Place, ...]]] = {}  # the places hold what the keys are ids of

    def holds_one(self, place: Place, axes: tuple[int, ...]) -> bool:
        """Whether all entries along these axes belong to one position."""
        key = (place.key, axes)
        if key not in self._known:
            numbers = place.numbers()
            self._known[key] = numbers is not None and not varies_along(numbers, axes), (place,)
        return self._known[key][0]

    def in_order(self, place: Place) -> bool:
        """Whether the rows, of each example or head, are all positions in their order, and what is no input between."""
        key = (place.key, "in order")
        if key not in self._known:
            self._known[key] = _in_order(place), (place,)
        return self._known[key][0]

    def along_same_axes(self, one: Place, other: Place, shape: torch.Size) -> bool:
        """Whether positions of two tensors, broadcast to one shape, lie along the same axes."""
        key = (one.key, other.key, tuple(shape), "axes")
        if key not in self._known:
            self._known[key] = _axes_of(one, shape) == _axes_of(other, shape), (one, other)
        return self._known[key][0]

    def agree(self, one: Place, other: Place, shape: torch.Size) -> bool:
        """Whether two tensors, broadcast to one shape, have the same positions at the same entries.

        Positions of two sequences of one length are the same where their numbers are.
        """
        if one is other or (one.steps is other.steps and one.anchor is other.anchor):
            return True
        key = (one.key, other.key, tuple(shape))
        if key not in self._known:
            self._known[key] = _agree(one, other, shape), (one, other)
        return self._known[key][0]


def _in_order(place: Place) -> bool:
    numbers, length = place.numbers(), place.anchor.length
    if numbers is None or not numbers.numel():
        return False
    numbers = without_repeats(numbers)
    positions = torch.where(numbers < 0, NOT_AN_INPUT, numbers % length)
    for axis in range(positions.ndim):
        positions = positions if varies_along(positions, (axis,)) else positions.narrow(axis, 0, 1)
    positions = positions[positions >= 0]
    if positions.numel() % length or not positions.numel():
        return False
    return bool((positions.view(-1, length) == torch.arange(length, device="cpu")).all())


def _axes_of(place: Place, shape: torch.Size) -> list[int] | None:
    """The axes along which positions differ, counted from the back; None where they are not known."""
    numbers = place.numbers()
    if numbers is None:
        return None
    numbers = without_repeats(numbers)
    positions = torch.where(numbers < 0, numbers, numbers % place.anchor.length)
    return [axis - len(shape) for axis in range(len(shape)) if varies_along(positions.expand(shape), (axis,))]


def _agree(one: Place, other: Place, shape: torch.Size) -> bool:
    a, b = one.numbers(), other.numbers()
    if a is None or b is None:
        return False
    try:
        a, b = a.expand(shape), b.expand(shape)
    except RuntimeError:
        return False
    for axis in range(a.ndim):  # features, as a rule: nothing to compare along them
        if not a.stride(axis) and not b.stride(axis):
            a, b = a.narrow(axis, 0, 1), b.narrow(axis, 0, 1)
    if one.anchor is not other.anchor:
        if one.anchor.length != other.anchor.length:
            return False
        a, b = (torch.where(n < 0, n, n % one.anchor.length) for n in (a, b))
    return bool(((a == b) | (a == NOTHING_YET) | (b == NOTHING_YET)).all())
