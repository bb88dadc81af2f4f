"""What the parts of a decoder's blocks add to a logit, and how they are tracked down to the inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from captum_norm.attr._maps import CallMap, LaterMap, Needs, Route, check_same_keys, own_keys
from captum_norm.capture import AttentionRecord, Positions
from captum_norm.functional.aggregate import passed_on
from captum_norm.functional.precision import full_precision
from captum_norm.operations.precision import at_least_float32


@dataclass(frozen=True)
class RowMap(CallMap):
    """A call's map, and its record at the rows (batch, logit) that logits are read off.

    Attributes:
        row: the record.
        rows: which of the call's queries these are.
        queried: how many queries it has.
        text: the query at each position of the input, where others (a picture's) are beside them; else None.
    """

    row: AttentionRecord | None = None
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    queried: int = 0
    text: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LaterRowMap(LaterMap):
    """The same with a map that is measured when the model has run, where a layer above needs it."""

    row: AttentionRecord | None = None
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    queried: int = 0
    text: Tensor | None = None


class LogitParts:
    """Each layer's parts of a logit at the positions of its keys, taken for the inputs there ("Logit").

    Attributes:
        maps: those of the calls that count, in order.
        parts: what each layer's keys add to each logit, (batch, logit, layer, key); none before ``settle``.
        tracked: the same taken for the inputs at the keys.
        row: which of the logits is asked for.
    """

    needs: ClassVar[Needs] = "rows"

    def __init__(self) -> None:
        self.maps: list[RowMap | LaterRowMap] = []
        self.parts = self.tracked = torch.zeros(0)
        self.row = 0

    def add(self, one: CallMap | LaterMap) -> None:
        """Take in the next call's map."""
        assert isinstance(one, RowMap | LaterRowMap)
        if isinstance(one, CallMap) and one.length == len(one.keys.index) and own_keys(one) is not None:
            raise ValueError(f"{one.title}: its keys lie in another order than its queries; they have no sum.")
        if self.maps:
            check_same_keys(self.maps[0].keys, one, "sum")
            if self.maps[0].queried != one.queried:
                raise ValueError(
                    f"ALTILogit: {self.maps[0].title} asks for {self.maps[0].queried} positions and {one.title} for "
                    f"{one.queried}, but the parts of a logit are those of one row in all. ALTI follows the row that "
                    "the output was read from."
                )
        self.maps.append(one)

    def routes(self) -> list[Route]:
        """The one that there is."""
        return [one.route for one in self.maps[:1]]

    def keys(self, route: Route) -> Positions:
        """Where the keys lie."""
        return self.maps[0].keys

    def settle(self, gradients: Tensor) -> None:
        """Take in the logits: of each the gradient with respect to the last state at its row, (batch, logit, model)."""
        parts = [attention_parts(one.row, gradients) for one in self.maps if one.row is not None]
        self.parts = torch.stack([part.to(parts[-1].device) for part in parts], dim=2)
        with full_precision(self.parts.device):
            self.tracked = self._tracked()

    def _tracked(self) -> Tensor:
        return self.parts

    @property
    def dtype(self) -> torch.dtype:
        """That of the scores."""
        row = self.maps[-1].row if self.maps else None
        return torch.float32 if row is None else at_least_float32(row.values.dtype)

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        """The logit's parts of all layers together, (batch, 1, key)."""
        scores = self.tracked[:, self.row].sum(1, keepdim=True).to(self.dtype)
        return CallMap(self.maps[-1].call, route, scores, self.keys(route))


class TrackedLogitParts(LogitParts):
    """Each layer's parts of a logit, tracked down by the mixing of the layers below (ALTI-Logit)."""

    needs: ClassVar[Needs] = "rows from the top"

    def _tracked(self) -> Tensor:
        """What the inputs add by way of each layer's keys: from the top down, all layers above at once.

        What is added by way of a key that is no query (memory, a cache's room) stays there.
        """
        batch, logit, _, key = self.parts.shape
        tracked = self.parts[:, :, -1:]
        for number in reversed(range(len(self.maps) - 1)):
            below = _passed_on(tracked.flatten(1, 2), self.maps[number]).view(batch, logit, -1, key)
            tracked = torch.cat([self.parts[:, :, number, None], below], dim=2)
        return tracked


def _passed_on(scores: Tensor, one: CallMap | LaterMap) -> Tensor:
    """scores (batch, row, key) of the queries at these keys times a map."""
    if isinstance(one, CallMap):
        own = own_keys(one)
        if own is None:
            return passed_on(scores, one.scores.to(scores))
        own = own.to(scores.device)
        return passed_on(scores[..., own], one.scores.to(scores), own=scores.index_fill(-1, own, 0))
    total = torch.zeros_like(scores)
    for rows, part in one.blocks((scores != 0).any(1).any(0).cpu()):
        total = passed_on(scores[..., rows], part.to(scores), own=total)
    return total


def attention_parts(record: AttentionRecord, gradients: Tensor) -> Tensor:
    """What each key of an attention call adds to a number, through W_O and what stands between it and the residual.

    Args:
        record: with the rows that count alone.
        gradients: the number's, with respect to the stream at these rows, (batch, row, model).

    Returns:
        (batch, row, key), signed.
    """
    block = record.block
    assert block is not None
    towards = gradients.double()
    if block.inner is not None:
        towards = block.inner.back(towards)
        towards = towards if block.inner.deviation is None else towards / block.inner.deviation[..., None]
    images = torch.einsum("bqd,hed->bhqe", towards, record.W_O.double())
    images = images if record.gate is None else images * record.gate
    return (record.weights.double() * (images @ record.values.double().mT)).sum(1)
