"""Which axis of attention weights a softmax summed to one: the keys' axis, followed through all that is done to them.

Weights may be mixed over heads, chosen from, masked or scaled before they meet the values: they are read as they
multiply the values, whatever was done.  What has to be known is which axis holds the keys, to tell a map over heads,
which gives weights again, from one that reads the keys, which does not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from captum_norm.operations.places import Place, UnplacedError
from captum_norm.operations.steps import Step

ToldBy = Literal["nothing", "the model", "inputs"]


class Columns:
    """The keys' axis of a tensor of weights.

    Args:
        shape: of the weights where the axis was known.
        axis: which one it was; None where that is not known.
        steps: what was done to them since.
        allowed: which weights the softmax was allowed to give, of ``shape``; None where all, or where nobody knows.
        cut: whether weights were set to zero by a mask afterwards.
        chosen: whether others were left out before the softmax for being small.
        patterned: whether weights were multiplied afterwards with what the model holds, which may set some to zero.
        before: the same before some entries along the keys' axis were chosen, which scattering puts back.
        keys: where the keys of the scores lie, which are queries where the scores are read the other way; None where
            that is not known.
        told_by: what may have told which keys are hidden: ``"nothing"`` where none are; ``"the model"``, by a pattern
            of its own; or ``"inputs"``, something that it was given.

    Example:
        >>> columns = Columns((2, 3, 5, 7), 3).then(Step("swap", lambda t: t.transpose(1, 3)))
        >>> columns.axis
        1
    """

    __slots__ = (
        "_known", "allowed", "before", "chosen", "cut", "keys", "patterned", "shape", "start", "steps", "told_by",
    )  # fmt: skip

    def __init__(
        self, shape: tuple[int, ...], axis: int | None, steps: tuple[Step, ...] = (), allowed: Tensor | None = None,
        cut: bool = False, chosen: bool = False, told_by: ToldBy = "inputs",
        patterned: bool = False, before: Columns | None = None, keys: Place | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.start, self.steps, self.allowed = shape, axis, steps, allowed
        self.cut, self.chosen, self.told_by, self.patterned = cut, chosen, told_by, patterned
        self._known, self.before, self.keys = axis if not steps else _UNASKED, before, keys

    def then(self, step: Step) -> Columns:
        """The axis after one more step."""
        return self._but(steps=(*self.steps, step), keys=self.keys and self.keys.then(step))

    def after_a_mask(self) -> Columns:
        """The same where some weights have been set to zero."""
        return self._but(cut=True)

    def after_a_pattern(self) -> Columns:
        """The same where weights have been multiplied with what the model holds."""
        return self._but(patterned=True)

    def after_telling(self, who: ToldBy) -> Columns:
        """The same where the model, or something given to it, may have hidden keys."""
        return self if who == "nothing" or self.told_by in (who, "inputs") else self._but(told_by=who)

    def changed_as(self, other: Columns) -> Columns:
        """The same where weights in the same memory were changed as the others were."""
        told = self.after_telling(other.told_by)
        return told._but(
            cut=self.cut or other.cut, chosen=self.chosen or other.chosen, patterned=self.patterned or other.patterned
        )

    def _but(self, **changes: Any) -> Columns:
        kept = {
            "steps": self.steps, "allowed": self.allowed, "cut": self.cut, "chosen": self.chosen, "keys": self.keys,
            "told_by": self.told_by, "patterned": self.patterned, "before": self.before,
        }  # fmt: skip
        return Columns(self.shape, self.start, **(kept | changes))

    @property
    def hides_nothing(self) -> bool:
        """Whether it is known that no key was hidden from any query."""
        return self.told_by == "nothing" and self.allowed is None and not (self.cut or self.chosen or self.patterned)

    @property
    def axis(self) -> int | None:
        """Where the axis is now, counted from the front; None where it cannot be told."""
        if self._known == _UNASKED:
            self._known = None if self.start is None else self._followed(self.start)
        return self._known

    def _followed(self, start: int) -> int | None:
        key = (self.shape, start, tuple(step.key for step in self.steps))
        if key not in _FOLLOWED:
            if len(_FOLLOWED) >= _REMEMBERED:
                _FOLLOWED.clear()
            _FOLLOWED[key] = _axis_of(self.shape, start, self.steps)
        return _FOLLOWED[key]


_UNASKED = -1
_REMEMBERED = 1024
_FOLLOWED: dict[object, int | None] = {}
UNKNOWN_COLUMNS = Columns((), None)


def _axis_of(shape: tuple[int, ...], start: int, steps: tuple[Step, ...]) -> int | None:
    numbers = _numbered(shape[start]).view([-1 if axis == start else 1 for axis in range(len(shape))]).expand(shape)
    try:
        for step in steps:
            numbers = step.apply(numbers)
    except (UnplacedError, RuntimeError, IndexError, ValueError, TypeError):
        return None
    varies = [axis for axis in range(numbers.ndim) if not is_constant_along(numbers, axis)]
    return varies[0] if len(varies) == 1 else None


@lru_cache(maxsize=64)
def _numbered(count: int) -> Tensor:
    return torch.arange(count, device="cpu")


def is_constant_along(numbers: Tensor, axis: int) -> bool:
    """Whether all entries along an axis are the same."""
    if numbers.shape[axis] < 2 or not numbers.stride(axis):
        return True
    return torch.equal(numbers, numbers.narrow(axis, 0, 1).expand_as(numbers))


def mapped(axis: int, shape: torch.Size | tuple[int, ...]) -> Step:
    """The step of an operation that reads all entries along an axis and writes as many as the new shape has there.

    Positions and columns stay where they are if they do not vary along that axis, and are torn apart if they do.

    Args:
        axis: which one.
        shape: of the result; with one axis less where the operation took the axis away.
    """
    shape = tuple(shape)

    def apply(numbers: Tensor) -> Tensor:
        if not is_constant_along(numbers, axis):
            raise UnplacedError(f"an operation reads several entries of axis {axis} at once")
        numbers = numbers.narrow(axis, 0, 1)
        return (numbers.squeeze(axis) if len(shape) < numbers.ndim else numbers).expand(shape)

    return Step(("mapped", axis, shape), apply)
