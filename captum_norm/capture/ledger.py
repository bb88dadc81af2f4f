"""What became of each softmax: an attention call, or something that is none, or lost on the way to the values.

Which softmaxes a product of weights and values used is read off what the weights were made of
(:mod:`captum_norm.capture.reach`): those that no other softmax among them was made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import Parameter

from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation, base_name

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
        """Whether its weights were not seen to meet values, and it looks over positions or may do so."""
        return self.along != "features" and not self.fate

    @property
    def looks(self) -> str:
        """What it looks over, in words for an error."""
        if self.along == "positions":
            return "look over positions"
        return "look along an axis of which it is not known whether it holds positions"

    def __str__(self) -> str:
        where = f" in {self.module!r}" if self.module else ""
        axis = "" if self.axis is None else f" over axis {self.axis}"
        return f"the softmax{where}, {self.shape}{axis}"


_MAPS = names_of(OperationKind.MAP) | {"matmul", "addmm"}
_MOVES = names_of(OperationKind.MOVE)
_SPLITS = frozenset({"view", "reshape", "unflatten", "unsqueeze", "contiguous"})


class Written:
    """Which tensors have features along their last axis, for a map of parameters wrote them there: classes, experts."""

    def __init__(self) -> None:
        self._written: Facts[bool] = Facts()
        self._any = False

    def __contains__(self, tensor: Tensor) -> bool:
        return self._any and tensor in self._written

    def forget(self, into: Tensor) -> None:
        """A tensor was overwritten, and what shares its memory with it."""
        self._written[into] = None
        self._written.follow(into)

    def see(self, op: Operation) -> None:
        """Take in one operation whose result is at no known place."""
        out, name = op.out, base_name(op.name)
        if not isinstance(out, Tensor):
            return
        if name in _MAPS and any(isinstance(tensor, Parameter) for tensor in op.tensors[1:]):
            self._written[out] = self._any = True
        elif self._any and any(tensor in self._written and _keeps_last(name, tensor, out) for tensor in op.tensors):
            self._written[out] = True

    def clear(self) -> None:
        """Forget everything."""
        self._written.clear()


def _keeps_last(name: str, x: Tensor, out: Tensor) -> bool:
    """Whether the last axis of the result is that of x, or a part of it."""
    if name in _MOVES:
        return name in _SPLITS and out.shape[: x.ndim - 1] == x.shape[:-1]
    return out.shape == x.shape


class Ledger:
    """The softmaxes of a running model, in the order in which they ran."""

    def __init__(self) -> None:
        self.entries: list[Softmax] = []
        self.written = Written()
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
