"""Which input position an entry of a hidden state belongs to, followed through the model.

A *place* starts where tokens enter (an embedding, a patch convolution, an input tensor) with every entry numbered
``b * length + position``.  It goes unchanged through everything that treats positions alike (linear maps, norms,
elementwise operations) and is moved by whatever moves positions (transposes, windows, flips, rolls, an index).  So the
keys of an attention call are known to be the input's positions, or known not to be.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.operations.steps import Step

Source = int | str
"""A sequence that positions count in: the index of a named source, or a description such as ``"embedding 0"``."""


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
