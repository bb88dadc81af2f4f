"""What became of each softmax: an attention call, or something that is none, or lost on the way to the values.

Which softmaxes a product of weights and values used is read off what the weights were made of
(:mod:`captum_norm.capture.reach`): those that no other softmax among them was made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fate = Literal["", "call", "refused", "no attention"]
Along = Literal["positions", "features", "unknown"]


@dataclass(eq=False)
class Softmax:
    """One softmax of a running model.

    Attributes:
        module: dotted name of the innermost module that was running; ``""`` where there was none.
        shape: of its result.
        axis: which axis it sums to one; None where that is not known.
        along: what that axis counts: ``"positions"``; ``"features"`` of one position (classes, experts, streams); or
            ``"unknown"``.
        fate: ``"call"``: its weights met values, and the call is read; ``"refused"``: they did, and it is not;
            ``"no attention"``: what they weigh is of one position; ``""``: they were not seen to meet values.
        bit, ancestors: its own bit, and those of what it was made of.
    """

    module: str
    shape: tuple[int, ...]
    axis: int | None
    along: Along
    fate: Fate = ""
    bit: int = 0
    ancestors: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether it looks over positions, and its weights were not seen to meet values.

        Where it is not known what it looks along, the last axis holds features, as a linear map writes them.
        """
        other = self.along == "unknown" and self.axis is not None and self.axis != len(self.shape) - 1
        return (self.along == "positions" or other) and not self.fate

    def __str__(self) -> str:
        where = f" in {self.module!r}" if self.module else ""
        axis = "" if self.axis is None else f" over axis {self.axis}"
        return f"the softmax{where}, {self.shape}{axis}"


class Ledger:
    """The softmaxes of a running model, in the order in which they ran."""

    def __init__(self) -> None:
        self.entries: list[Softmax] = []
        self._bits = 0

    def note(self, softmax: Softmax) -> None:
        """Take in one more."""
        self.entries.append(softmax)
        self._bits |= softmax.bit

    def used_by(self, bits: int) -> tuple[Softmax, ...]:
        """The softmaxes that weights made of these bits come from directly."""
        found, covered = [], 0
        for softmax in reversed(self.entries):
            if not bits & self._bits & ~covered:
                break
            if bits & softmax.bit and not covered & softmax.bit:
                found.append(softmax)
                covered |= softmax.ancestors | softmax.bit
        return tuple(found)

    def lost_on_the_way_to(self, bits: int) -> tuple[Softmax, ...]:
        """Those that are lost, of what was made of these bits."""
        return tuple(softmax for softmax in self.entries if softmax.is_lost and bits & softmax.bit)
