"""Which rows of the map that answers was the output read from?

Axes: b batch, q query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.attr._position import PositionType, Rows
from captum_norm.capture import Positions, RowsRead


@dataclass(frozen=True)
class QueryAxis:
    """The query axis of a map.

    Attributes:
        positions: where it lies in the input; None where that is not known.
        batch, length: the size of the batch, and how many queries.
        real: (batch, query) bool, True at real tokens; None where all are real.
        causal: whether every self-attention call of these queries looks back alone.
        text: the rows that are positions of a text, where others (virtual tokens, a picture's) are not.
    """

    positions: Positions | None
    batch: int
    length: int
    real: Tensor | None
    causal: bool
    text: Tensor | None

    def weights(self, read: RowsRead) -> Tensor | None:
        """How much of each row the output read, (batch, query); None where the rows are not among the queries."""
        if self.positions is None or len(self.positions.index) != self.length:
            return None
        index = self.positions.index
        positions = read.positions.clamp_min(-1).expand(self.batch, -1)
        weights = read.weights.double().expand(self.batch, -1)
        if positions.shape[1] == self.length and torch.equal(positions, index.expand_as(positions)):
            return weights
        matches = positions[..., None] == index
        if not bool((matches.sum(-1) == 1).all()):
            return None
        nothing = torch.zeros(self.batch, self.length, dtype=torch.float64)
        return nothing.scatter_add(1, matches.int().argmax(-1), weights)

    def has_several_for(self, read: RowsRead) -> bool:
        """Whether rows that are no input were read, and there are several of these."""
        if self.positions is None:
            return False
        return bool((read.positions < 0).any()) and int((self.positions.index < 0).sum()) > 1

    def on_padding(self, weights: Tensor) -> bool:
        """Whether rows were read that are padding, which explains nothing."""
        return self.real is not None and bool(weights[~self.real].any())

    def position(self, weights: Tensor) -> PositionType:
        """The rows that were read, weights (batch, query), as a ``position``; None where they are the default."""
        if not bool((weights.max(1).values == 1).all()):
            mean = torch.ones(self.batch, self.length) if self.real is None else self.real
            mean = mean.double() / mean.double().sum(1, keepdim=True)
            return "mean" if torch.allclose(weights, mean) else weights
        row = weights.argmax(1)
        default = Rows(None).chosen(self.batch, self.length, self.real, self.causal, self.text)[:, 0]
        if torch.equal(row, default.cpu()):
            return None
        if self.text is None or self.positions is None:
            return row
        of_input = self.positions.index.cpu()[row]
        return weights if bool((of_input < 0).any()) else of_input
