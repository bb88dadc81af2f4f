"""What is known of the sequences that attention calls lead from and to, and which calls count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from captum_norm.attr._maps import Route, SequenceName, route_of
from captum_norm.capture import AttentionCall, AttentionRecord

KindType = Literal["self", "cross"] | None


@dataclass
class Sequences:
    """What the records tell about each sequence: its real tokens, whether it only looks back.

    ``doubled`` are those that feed an encoder and a decoder alike, so that their self-attention calls cannot be told
    apart.
    """

    real: dict[SequenceName, Tensor] = field(default_factory=dict)
    causal: dict[SequenceName, bool] = field(default_factory=dict)
    doubled: set[SequenceName] = field(default_factory=set)

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
        for sequence, mask in ((queries, record.query_mask), (keys, record.key_mask)):
            known = self.real.get(sequence, mask)
            if mask is not None and known is not None:  # a token that one call looks at is real
                self.real[sequence] = known | mask if known.shape == mask.shape else known
        return route

    def looks_back(self, sequence: SequenceName) -> bool:
        """Whether every self-attention call of these queries is causal; of the whole model where they have none."""
        if sequence in self.causal:
            return self.causal[sequence]
        return bool(self.causal) and all(self.causal.values())


def matches(call: AttentionCall, kind: KindType) -> bool:
    """Whether a call is of the kind asked for; "self" includes causal self-attention."""
    return kind is None or (call.kind == "cross") == (kind == "cross")


def check_kind(kind: KindType) -> KindType:
    """Refuse a kind that does not exist."""
    if kind not in (None, "self", "cross"):
        raise ValueError(f'kind should be "self" (causal included), "cross" or None for all, got {kind!r}.')
    return kind
