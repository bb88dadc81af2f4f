"""What one step of ``generate`` reads, and how it goes on from the step before: rows, texts, and cached keys by value.

Axes: row of the running batch (example or beam), position of the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, HeadValues
from captum_norm.functional.growing import GrowingFactors


@dataclass(eq=False)
class GenerationStep:
    """One pass of the model.

    Attributes:
        ids: what each row has read in it, (row, token).
        length: of the text that each row has read by then.
        parents: from which rows of the step before each row may go on, (row, row before), all of them alike in whatever
            is cached; None where the pass read the text from its beginning.
        scores: of what comes next, (row, position).
    """

    ids: Tensor
    length: int
    parents: Tensor | None
    scores: Tensor

    def has_read(self, text: Tensor, before: Tensor, among: Tensor | None = None) -> Tensor:
        """Which rows, (row,), have read a text (position,), where ``before`` (row,) says it of the step before."""
        same = (self.ids == text[len(text) - self.ids.shape[1] :]).all(1)
        if self.parents is not None:
            return same & (self.parents & before).any(1)
        return same & among if among is not None and len(among) == len(same) else same


@dataclass(eq=False)
class GenerationPass:
    """What one pass reads.

    Attributes:
        ids: (row, token).
        before: how many positions stand before them.
        alike: which rows of the step before have the values that each row finds cached, (row, row before), in all calls
            so far; None where the pass reads the text from its beginning.
        goes_on: whether a call has read keys that were cached.
    """

    ids: Tensor
    before: int
    alike: Tensor | None
    goes_on: bool = False

    @property
    def length(self) -> int:
        """How long the text is when it was read."""
        return self.ids.shape[1] + self.before

    def go_on(self, values: Tensor, kept: Tensor) -> Tensor | None:
        """A row of ``kept`` that each row of ``values`` equals, (row,), its own if that is one; None if one has none.

        Rows that another call told apart are none.
        """
        assert self.alike is not None
        self.alike, self.goes_on = _equal_rows(values, kept, self.alike), self.goes_on or values.shape[2] > 0
        if not bool(self.alike.any(1).all()):
            return None
        own = torch.arange(len(values))
        stays = len(kept) == len(values) and self.alike[own, own]
        return torch.where(torch.as_tensor(stays), own, self.alike.int().argmax(1))


@dataclass(eq=False)
class CachedCall:
    """One attention call from step to step.

    Attributes:
        call: which.
        certificate: of all steps.
        values: of the keys that were read last, (row, head, key, head_dim); their last one is the last position.
        room: memory of which they are a part, with more behind them.
        factors: what was prepared for them.
    """

    call: AttentionCall
    certificate: Certificate
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    room: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0, 0))
    factors: GrowingFactors = field(default_factory=GrowingFactors)

    def first(self, record: AttentionRecord, passes: GenerationPass) -> Tensor:
        """Which position each key is, (key,), where the text is read from its beginning; -1 for none yet."""
        index = None if record.keys is None or record.keys.source != 0 else record.keys.index.cpu()
        if index is None or not torch.equal(index[: passes.length], torch.arange(passes.length)):
            why = record.unknown_keys or "they are not the prompt's tokens in order"
            raise unlike(record, f"its keys are not known to be the text's positions ({why}); was the cache empty?")
        if record.shape[2] > 1 and record.call.kind != "causal":
            raise unlike(record, "it looks ahead or at another sequence")
        self._keep(record.head_values, passes.length, 0)
        self.factors = GrowingFactors()
        return torch.where(torch.arange(len(index)) < passes.length, index, -1)

    def next(self, record: AttentionRecord, passes: GenerationPass) -> Tensor:
        """The same for one more token, whose older keys must have the values of the step before."""
        length, keys, known = passes.length, record.shape[3], self.values.shape[2]
        end = min(keys, length)  # a static cache has room left behind
        old = end - 1
        if old > known:
            raise unlike(record, f"it reads {old} older keys, and the step before had {known}")
        groups = record.head_values
        kept = self.values[:, :: groups.shared_by, known - old :]
        parents = passes.go_on(groups.given[:, :, :old], kept)
        if parents is None:
            raise unlike(record, "its older keys are not those of the step before")
        self.factors.go_on(parents, known - old)
        stays = known == old and torch.equal(parents, torch.arange(len(kept)))
        self._keep(groups, end, old if stays else 0)
        positions = torch.full((keys,), -1)
        positions[:end] = torch.arange(length - end, length)
        return positions

    def _keep(self, groups: HeadValues, keys: int, old: int) -> None:
        """Copies the values of so many keys, of which the first ``old`` lie there: a cache grows by one at a time."""
        batch, head, _, head_dim = groups.shape
        if self.room.shape[:2] != (batch, head) or keys > self.room.shape[2]:
            old = 0
            self.room = groups.given.new_empty(batch, head, keys + keys // 4 + 1, head_dim)
        new = groups.given[:, :, None, old:keys]  # for each head of a group
        self.room[:, :, old:keys].view(batch, -1, groups.shared_by, *new.shape[3:]).copy_(new)
        self.values = self.room[:, :, :keys]


def _equal_rows(values: Tensor, kept: Tensor, among: Tensor) -> Tensor:
    """Which rows of ``kept`` each row of ``values`` equals, (row, row kept), of those that are ``among``."""
    if values.shape[1:] != kept.shape[1:]:
        return torch.zeros_like(among)
    if len(values) == len(kept) and torch.equal(among, torch.eye(len(values)).bool()) and _same(values, kept):
        return among
    if values.shape[2]:  # most rows differ in the last key already
        among = among & (values[:, None, :, -1] == kept[None, :, :, -1]).all(-1).all(-1).cpu()
    found = among.clone()
    for number, other in among.nonzero().tolist():
        found[number, other] = _same(values[number], kept[other])
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """``torch.equal``: numpy, where it knows the number format, takes a quarter of the time on a CPU."""
    if {one.dtype, other.dtype} <= {torch.float32, torch.float64} and one.device.type == other.device.type == "cpu":
        return np.array_equal(one.detach().numpy(), other.detach().numpy())
    return torch.equal(one, other)


def unlike(record: AttentionRecord, why: str) -> ValueError:
    """The error of a call that is not as in the step before."""
    return ValueError(
        f"GenerationAttribution: attention call {record.call.name!r} cannot be followed from step to step: {why}. "
        "LLMAttentionAttribution explains the text in a pass of its own."
    )
