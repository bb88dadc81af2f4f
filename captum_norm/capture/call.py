"""Which attention call it was, where its axes lie in the input, and how exactly it was read.

An *attention call* is one softmax that mixes values.  One module may make many of them: ALBERT runs four layers through
one module, generation calls every layer once per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.capture.modules import Modules

Kind = Literal["self", "causal", "cross"]


class InexactCaptureError(RuntimeError):
    """An attention call could not be read exactly, so nothing is reported for it.

    The message names the call, what was compared or sought, what was found, and the way out.

    Attributes:
        call: what is known of the call, or None.
        bit: the call's own, of all that was made of it (:mod:`captum_norm.capture.reach`); 0 where none is known.
    """

    call: AttentionCall | None = None
    bit: int = 0


@dataclass(frozen=True)
class AttentionCall:
    """Which attention call: the unit of records, maps, certificates and layer classes.

    Attributes:
        name: dotted name of the innermost module that mixed the values, from the outermost module that was running,
            for example ``"encoder.layer.0.attention.self"``; ``""`` where no module was running.
        kind: ``"self"``, ``"causal"`` (self-attention that never looks ahead) or ``"cross"``.  Where positions are not
            known, rows are counted instead, and a call of fewer queries than keys is ``"self"`` unless a cache holds
            the keys before them.
        call: how many calls this module had made before, in this recording.
        heads: number of heads.
        projection: name of the parameter used as W_O, for example ``"encoder.layer.0.attention.output.dense.weight"``.
        modules: the modules that were running, outermost first; the last one is the module of ``name``.  The call does
            not keep them: they are there as long as the model is, and neither in copies nor in what is pickled.
    """

    name: str
    kind: Kind
    call: int
    heads: int
    projection: str
    modules: Sequence[Module] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.modules, Modules):
            object.__setattr__(self, "modules", Modules(self.modules))

    @cached_property
    def without_modules(self) -> AttentionCall:
        """The call as it is kept: without the modules, of which it says nothing more once they are gone."""
        return AttentionCall(self.name, self.kind, self.call, self.heads, self.projection)

    @property
    def module(self) -> Module | None:
        """The innermost module that mixed the values; None where the model is gone."""
        return self.modules[-1] if self.modules else None


@dataclass(frozen=True)
class Mixer:
    """Something beside attention that mixed positions: a convolution, a recurrence, a sum of two positions.

    Attributes:
        operation: the torch operation that did.
        module: dotted name of the innermost module that was running; ``""`` where there was none.
        why: how it is known, in words for a report.
    """

    operation: str
    module: str
    why: str

    def __str__(self) -> str:
        where = f" in {self.module!r}" if self.module else ""
        return f"{self.operation}{where} ({self.why})"


@dataclass(frozen=True)
class Certificate:
    """How far the record is from what the model computed: max |predicted - actual| / max |attention part of actual|.

    Attributes:
        error: the relative error found, dimensionless; ``float(certificate)`` gives it.
        tolerance: what was allowed for the model's dtype.
        covers: what a larger error would have shown wrong: ``("weights", "values", "layout", "W_O")``.
        rows: of each example, the queries whose weights were checked; None: all.
    """

    error: float
    tolerance: float
    covers: tuple[str, ...] = ("weights", "values", "layout", "W_O")
    rows: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False)

    def __float__(self) -> float:
        return self.error

    def joined(self, other: Certificate) -> Certificate:
        """Of what either has checked: the larger error."""
        rows = None
        if self.rows is not None and other.rows is not None:
            pairs = zip(self.rows, other.rows, strict=True)
            rows = tuple(tuple(sorted({*ours, *theirs})) for ours, theirs in pairs)
        return replace(self, error=max(self.error, other.error), rows=rows)


@dataclass(frozen=True)
class Positions:
    """Where an axis of a record lies in the model's input.

    Attributes:
        source: what the positions count in: the index of the tensor in ``recording(sources=...)``, or a name such as
            ``"embedding 0"`` for tokens embedded during the recording that were not named as sources.
        index: (position,) long, the input position of each entry of the axis; -1 where the entry is no input (a class
            token, a memory key, a sink).
        grid: the spatial shape of the positions where they come from a convolution over pixels, else None.
        rows: as ``index``, but that entries that are no input have numbers of their own below 0; None where examples
            differ in these.
    """

    source: int | str
    index: Tensor
    grid: tuple[int, ...] | None = None
    rows: Tensor | None = field(default=None, repr=False, compare=False)

    def at(self, entries: Tensor) -> Positions:
        """Those of some entries of the axis, (entry,) long."""
        rows = None if self.rows is None else self.rows[entries.to(self.rows.device)]
        return replace(self, index=self.index[entries.to(self.index.device)], rows=rows)

    @cached_property
    def all_inputs(self) -> bool:
        """Whether every entry of the axis is an input."""
        return not bool((self.index < 0).any())

    @cached_property
    def count_themselves(self) -> bool:
        """Whether the entries are 0, 1, 2, ...: entry n of the axis is position n of the input."""
        return torch.equal(self.index, torch.arange(len(self.index), device=self.index.device))

    @cached_property
    def in_order(self) -> bool:
        """Whether the entries that are inputs follow one another as they do in the input."""
        inputs = self.index[self.index >= 0]
        return not bool((inputs[1:] < inputs[:-1]).any())

    @cached_property
    def all_distinct(self) -> bool:
        """Whether no two entries of the axis are one."""
        return len(torch.unique(self.index)) == len(self.index)


POSITIONS_FIRST = "positions first"
"""What ``AttentionRecord.unknown_keys`` says of keys whose input has its positions on axis 0."""

ONE_EXAMPLE = "it attends example by example"
"""What it says of keys that are those of one example of several."""


def refusal(call: AttentionCall, why: object) -> InexactCaptureError:
    """The error of a call, which it names."""
    error = InexactCaptureError(f"{call.name or 'attention'} (call {call.call}): {why}")
    error.call = call
    return error
