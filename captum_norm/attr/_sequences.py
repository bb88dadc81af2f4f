"""What is known of the sequences that attention calls lead from and to, and which calls count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from captum_norm.attr._maps import Route, SequenceName, route_of
from captum_norm.capture import AttentionCall, AttentionRecord, LookedAt, Positions

KindType = Literal["self", "cross"] | None


class RealPositions(NamedTuple):
    """The real tokens of a sequence.

    Attributes:
        mask: (batch, n) bool.
        axis: which positions these are; None where that is not known.
    """

    mask: Tensor
    axis: Positions | None

    def of(self, axis: Positions | None) -> Tensor:
        """The same of another axis, as long as it where it is known which these are."""
        if axis is self.axis or axis is None or self.axis is None:
            return self.mask
        numbers, known = (one.index if one.rows is None else one.rows for one in (axis, self.axis))
        if torch.equal(numbers, known):
            return self.mask
        matches = (numbers[:, None] == known) & (numbers != -1)[:, None]
        place, found = (one.to(self.mask.device) for one in (matches.int().argmax(-1), matches.any(-1)))
        return self.mask[:, place] & found


@dataclass
class Sequences:
    """What the records tell about each sequence: its real tokens, whether it only looks back.

    A token is real if some call does not hide it, looks at it from a real one, or what is explained was read from it.
    ``doubled`` are those that feed an encoder and a decoder alike, so that their self-attention calls cannot be told
    apart.
    """

    causal: dict[SequenceName, bool] = field(default_factory=dict)
    doubled: set[SequenceName] = field(default_factory=set)
    _real: dict[SequenceName, RealPositions] = field(default_factory=dict)
    _looked_at: dict[SequenceName, LookedAt] = field(default_factory=dict)

    def note(self, record: AttentionRecord) -> Route | None:
        """Take in a record; the route of its map, or None where its keys are not known."""
        route = route_of(record)
        if route is None:
            return None
        queries, keys = route
        if record.call.kind != "cross":
            self.causal[keys] = self.causal.get(keys, True) and record.call.kind == "causal"
        elif record.queries is not None and record.queries.source == keys:
            self.doubled.add(keys)
        masks = ((queries, record.query_mask, record.queries), (keys, record.key_mask, record.keys))
        for sequence, mask, axis in masks:
            known = self._real.get(sequence)
            if mask is None or _hides_no_input(mask, axis):
                continue  # what it looks at, ``looked_at`` knows
            if known is None:
                self._real[sequence] = RealPositions(mask, axis)
            elif known.mask.shape == mask.shape:
                self._real[sequence] = known._replace(mask=known.mask | mask)  # a token that one call looks at is real
        if record.looked_at is not None:
            self._looked_at[keys] = record.looked_at
        return route

    def real(self, sequence: SequenceName) -> Tensor | None:
        """The real tokens of a sequence as far as they are known, (batch, position) bool; None where all are."""
        known, looked_at = self._real.get(sequence), self._looked_at.get(sequence)
        if known is None or known.axis is None or looked_at is None:
            return None if known is None else known.mask
        return looked_at.spread(known.mask, known.axis)

    def read(self, sequence: SequenceName, rows: Tensor) -> None:
        """Take in which tokens of a sequence what is explained was read from, (batch, position) bool."""
        known = self._real.get(sequence)
        if known is not None and known.mask.shape == rows.shape:
            # A row that is read beside no real token is no text: a mask of nothing is refused where rows are chosen.
            read = rows.to(known.mask.device) & known.mask.any(-1, keepdim=True)
            self._real[sequence] = known._replace(mask=known.mask | read)

    def taken_for_padding(self, records: Iterable[AttentionRecord]) -> dict[SequenceName, RealPositions]:
        """The real tokens of all sequences, if one of these records takes a token for padding that is real."""
        known = {
            sequence: one._replace(mask=real)
            for sequence, one in self._real.items()
            if (real := self.real(sequence)) is not None
        }
        late = any(with_real(record, known) is not record for record in records)
        return known if late else {}

    def looks_back(self, sequence: SequenceName) -> bool:
        """Whether every self-attention call of these queries is causal; of the whole model where they have none."""
        if sequence in self.causal:
            return self.causal[sequence]
        return bool(self.causal) and all(self.causal.values())


def _hides_no_input(mask: Tensor, axis: Positions | None) -> bool:
    """Whether what is hidden along an axis is none of the inputs: spare slots of a cache, learned vectors."""
    return bool(mask.all()) or (axis is not None and bool((mask | (axis.index < 0).to(mask.device)).all()))


def matches(call: AttentionCall, kind: KindType) -> bool:
    """Whether a call is of the kind asked for; "self" includes causal self-attention."""
    return kind is None or (call.kind == "cross") == (kind == "cross")


def check_kind(kind: KindType) -> KindType:
    """Refuse a kind that does not exist."""
    if kind not in (None, "self", "cross"):
        raise ValueError(f'kind should be "self" (causal included), "cross" or None for all, got {kind!r}.')
    return kind


def with_real(record: AttentionRecord, real: Mapping[SequenceName, RealPositions]) -> AttentionRecord:
    """The record with masks that take none of these tokens for padding; the same one where they take none.

    Args:
        record: a call.
        real: the real tokens of each sequence.
    """
    route = route_of(record)
    if route is None:
        return record
    query_mask = _wider(record.query_mask, real.get(route[0]), record.queries)
    key_mask = _wider(record.key_mask, real.get(route[1]), record.keys)
    if query_mask is record.query_mask and key_mask is record.key_mask:
        return record
    return record.but(query_mask=query_mask, key_mask=key_mask)


def _wider(mask: Tensor | None, known: RealPositions | None, axis: Positions | None) -> Tensor | None:
    """A mask of a call's queries or keys with the tokens among them that are real."""
    real = None if mask is None or known is None else known.of(axis)
    if mask is None or real is None or real.shape != mask.shape:
        return mask
    wider = mask | real.to(mask.device)
    return mask if torch.equal(wider, mask) else wider
