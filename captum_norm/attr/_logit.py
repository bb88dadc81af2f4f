"""What the parts of a decoder's blocks add to a logit, and how they are tracked down to the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captum_norm.attr._maps import CallMap, Needs, Route, check_same_keys, square
from captum_norm.capture import AttentionRecord, Positions
from captum_norm.functional.aggregate import passed_on


@dataclass(frozen=True)
class RowMap(CallMap):
    """A call's map, and its record at the rows that logits are read off."""

    row: AttentionRecord | None = None


class LogitParts:
    """Each layer's parts of a logit at the positions of its keys, taken for the inputs there ("Logit").

    Attributes:
        maps: those of the calls that count, in order.
        gradients: of each logit, with respect to the last state of the stream at its row, (batch, row, model).
        row: which of the rows is asked for.
    """

    needs: ClassVar[Needs] = "rows"

    def __init__(self) -> None:
        self.maps: list[RowMap] = []
        self.gradients = torch.zeros(0)
        self.row = 0

    def add(self, one: CallMap) -> None:
        """Take in the next call's map."""
        assert isinstance(one, RowMap)
        if self.maps:
            check_same_keys(self.maps[0].keys, one, "sum")
        self.maps.append(one)

    def routes(self) -> list[Route]:
        """The one that there is."""
        return [one.route for one in self.maps[:1]]

    def keys(self, route: Route) -> Positions:
        """Where the keys lie."""
        return self.maps[0].keys

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        """The logit's parts of all layers together, (batch, 1, key)."""
        scores = self.tracked().sum(1, keepdim=True).to(self.maps[-1].scores.dtype)
        return CallMap(self.maps[-1].call, route, scores, self.keys(route))

    def parts(self) -> list[Tensor]:
        """What each layer's keys add to the logit, (batch, key) each."""
        return [attention_parts(one.row, self.gradients)[:, self.row] for one in self.maps if one.row is not None]

    def tracked(self) -> Tensor:
        """The same taken for the inputs at the keys, (batch, layer, key)."""
        return torch.stack(self.parts(), dim=1)


class TrackedLogitParts(LogitParts):
    """Each layer's parts of a logit, tracked down by the mixing of the layers below (ALTI-Logit)."""

    needs: ClassVar[Needs] = "all"

    def tracked(self) -> Tensor:
        """What the inputs add by way of each layer's keys, (batch, layer, key)."""
        *lower, tracked = (part[:, None] for part in self.parts())
        for one, part in zip(reversed(self.maps[:-1]), reversed(lower), strict=True):
            below = passed_on(tracked, square(one).scores.to(tracked))
            tracked = torch.cat([part, below], dim=1)
        return tracked


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
