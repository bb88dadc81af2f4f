"""Which input position an entry of a hidden state belongs to, followed through the model.

A *place* starts where tokens enter (an embedding, a patch convolution, an input tensor) with every entry numbered
``b * length + position``.  It goes unchanged through everything that treats positions alike (linear maps, norms,
elementwise operations) and is moved by whatever moves positions (transposes, windows, flips, rolls, an index).  So the
keys of an attention call are known to be the input's positions, or known not to be.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.capture.layout import NOT_AN_INPUT, Layout, Step
from captum_norm.capture.record import Positions


@dataclass(frozen=True, eq=False)
class Anchor:
    """Where positions begin to count: a tensor of shape (batch, *grid, ...) whose entries are numbered in order.

    Attributes:
        source: index of the named source, or a description such as ``"embedding 0"``.
        shape: shape of the tensor at the anchor.
        position_axes: its axes that hold positions; axis 0 is the batch.
        order: how many anchors there were before.
        parent: the anchor whose positions these were made of (patches of patches), or None.
    """

    source: int | str
    shape: tuple[int, ...]
    position_axes: tuple[int, ...]
    order: int = 0
    parent: Anchor | None = None

    @property
    def origin(self) -> Anchor:
        """The anchor where all of it began: the same for a picture and its reduced keys."""
        return self if self.parent is None else self.parent.origin

    @property
    def preference(self) -> tuple[bool, int]:
        """Where two sequences meet, the smaller one stays: named sources first, then what was there first."""
        return (not isinstance(self.source, int), self.order)

    @property
    def length(self) -> int:
        return math.prod(self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.position_axes)

    def numbers(self) -> Tensor:
        """``b * length + position``, expanded to the anchor's shape."""
        batch = self.shape[0]
        kept = [n if axis == 0 or axis in self.position_axes else 1 for axis, n in enumerate(self.shape)]
        return torch.arange(batch * self.length, device="cpu").view(kept).expand(self.shape)


@dataclass(frozen=True, eq=False)
class Place:
    """The anchor a tensor's positions come from, and the steps since."""

    anchor: Anchor
    steps: tuple[Step, ...] = ()

    @property
    def key(self) -> Hashable:
        return (id(self.anchor), tuple(step.key for step in self.steps))

    @property
    def named(self) -> bool:
        return isinstance(self.anchor.source, int)

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
        """The place after one more step; of two that only change the features, the last one counts."""
        if isinstance(step, Features) and self.steps and isinstance(self.steps[-1], Features):
            return Place(self.anchor, (*self.steps[:-1], step))
        return Place(self.anchor, (*self.steps, step))


class UnplacedError(ValueError):
    """The entries of one position were torn apart, so the place is no longer known."""


class Features(Step):
    """The step of an operation that reads all features of a position and writes ``count`` new ones."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(("features", count), lambda numbers: self._apply(numbers, count))

    @staticmethod
    def _apply(numbers: Tensor, count: int) -> Tensor:
        if numbers.stride(-1) and not torch.equal(numbers, numbers[..., :1].expand_as(numbers)):
            raise UnplacedError("an operation reads several positions at once")
        return numbers[..., :1].expand(*numbers.shape[:-1], count)


def broadcast(shape: torch.Size) -> Step:
    """The step of an elementwise operation whose result has more entries than this operand."""
    return Step(("broadcast", tuple(shape)), lambda numbers: numbers.expand(shape))


class PositionReader:
    """Evaluates places into :class:`Positions`, once for all layers that share a structure."""

    def __init__(self, remembered: int = 64) -> None:
        self._known: OrderedDict[Hashable, tuple[Positions | None, str, Place]] = OrderedDict()
        self._remembered = remembered

    def read(
        self, place: Place | None, lead: tuple[int, ...], shape: torch.Size, layout: Layout, axis: str
    ) -> tuple[Positions | None, str]:
        """Positions of the query or key axis, or None and the reason.

        Args:
            place: where the weights (axis "query") or values (axis "key") come from, as they entered the product.
            lead: leading axes of the product.
            shape: the tensor's own shape, (..., query or key, features).
            layout: where (batch, head, query) lie.
            axis: "query" or "key".
        """
        if place is None:
            return None, f"the {axis} axis could not be followed back to an input"
        key = (place.key, lead, tuple(shape), id(layout), axis)
        if key not in self._known:
            self._known[key] = (*self._read(place, lead, shape, layout, axis), place)
            if len(self._known) > self._remembered:
                self._known.popitem(last=False)
        positions, reason, _ = self._known[key]
        return positions, reason

    @staticmethod
    def _read(
        place: Place, lead: tuple[int, ...], shape: torch.Size, layout: Layout, axis: str
    ) -> tuple[Positions | None, str]:
        numbers = place.then(Features(1)).numbers()
        if numbers is None:
            return None, f"the {axis} positions were taken apart on the way: an operation reads several at once"
        try:
            numbers = numbers.expand(*lead, shape[-2], 1).reshape(-1, shape[-2])
        except RuntimeError:
            return None, f"the {axis}s are shaped otherwise than the inputs they come from"
        rows = numbers[layout.rows[:, :, 0]]  # (batch, head, query or key)
        if axis == "query":
            rows = rows.gather(-1, layout.queries)
        return _positions(rows, place.anchor, axis)


def _positions(rows: Tensor, anchor: Anchor, axis: str) -> tuple[Positions | None, str]:
    """(batch, head, position) numbers as Positions, where every example and head has the same ones."""
    inputs = rows != NOT_AN_INPUT
    batch, index = rows // anchor.length, rows % anchor.length
    if anchor.shape[0] != 1:  # an anchor of batch 1 is shared by every example
        own = torch.arange(len(rows), device="cpu")[:, None, None]
        if len(rows) != anchor.shape[0] or ((batch != own) & inputs).any():
            return None, (
                f"its {axis}s come in {len(rows)} groups of {rows.shape[-1]}, "
                f"the inputs are {anchor.shape[0]} examples of {anchor.length}"
            )
    index = torch.where(inputs, index, NOT_AN_INPUT)
    if not torch.equal(index, index[:1, :1].expand_as(index)):
        return None, f"examples or heads order their {axis}s differently"
    grid = anchor.grid if len(anchor.grid) > 1 else None
    return Positions(anchor.source, index[0, 0].clone(), grid), ""
