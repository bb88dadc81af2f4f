"""Which rows of the map that answers was the output read from?

Axes: b batch, q query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.attr._maps import route_of
from captum_norm.attr._position import PositionType, Rows
from captum_norm.capture import AttentionRecord, Positions, RowsRead
from captum_norm.operations.places import Source


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
        if len(read.positions) not in (1, self.batch):  # logits (batch * position, class)
            return None
        index, positions = self.positions.index, read.positions.expand(self.batch, -1)
        if self.has_several_for(read) and self.positions.rows is not None:
            index = self.positions.rows
        else:
            positions = positions.clamp_min(-1)
        weights = read.weights.double().expand(self.batch, -1)
        if positions.shape[1] == self.length and torch.equal(positions, index.expand_as(positions)):
            return weights
        matches = positions[..., None] == index
        if not bool((matches.sum(-1) == 1).all()):
            return None
        nothing = torch.zeros(self.batch, self.length, dtype=torch.float64)
        return nothing.scatter_add(1, matches.int().argmax(-1), weights)

    def default_weights(self) -> Tensor:
        """All of the row that is the default."""
        row = Rows(None).chosen(self.batch, self.length, self.real, self.causal, self.text)
        return torch.zeros(self.batch, self.length, dtype=torch.float64).scatter(1, row.cpu(), 1.0)

    def leaves_out_the_default(self, records: Sequence[AttentionRecord]) -> bool:
        """Whether some positions alone are queries, and the default row is another one of them than the first position,
        or the last where attention looks back.

        Args:
            records: the calls, among them those of these queries.
        """
        if self.positions is None or not self.positions.all_inputs:
            return False
        keys = [one.keys for one in records if one.keys is not None]
        last = max((int(one.index.amax()) for one in keys if one.source == self.positions.source), default=0)
        if self.length > last:
            return False
        row = self.default_weights().argmax(1)
        return bool((self.positions.index.cpu()[row] != (last if self.causal else 0)).any())

    def default_missing(self, source: Source, given: Tensor) -> int | None:
        """The position that is explained by default, where an output has no row for it; less than 0 for a class token.

        Args:
            source: the sequence that the output's rows are positions of.
            given: which, (batch, row).
        """
        if self.positions is None or self.positions.source != source or bool((given < 0).any()):
            return None
        asked = self.positions.index.cpu()[self.default_weights().argmax(1)]
        missing = (given != asked[:, None]).all(1).nonzero().flatten()
        return int(asked[missing[0]]) if len(missing) else None

    def has_several_for(self, read: RowsRead) -> bool:
        """Whether rows that are no input were read, and there are several of these."""
        if self.positions is None:
            return False
        return bool((read.positions < 0).any()) and int((self.positions.index < 0).sum()) > 1

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


def queries_differ(records: Sequence[AttentionRecord]) -> bool:
    """Whether calls of one sequence have different queries, as where the last layer asks for the class token alone."""
    known: dict[object, AttentionRecord] = {}
    for record in records:
        if record.queries is None:
            continue
        first = known.setdefault(record.queries.source, record)
        if first.queries is None or first.queries is record.queries:
            continue
        if not torch.equal(_numbers(first.queries), _numbers(record.queries)):
            return True
    return False


def counts_of_unknown(records: Sequence[tuple[AttentionRecord, int]]) -> list[int]:
    """How many queries the calls of one sequence have, each given with its record, where it is not known of one which
    they are, and some have more, or there are more keys than it answers; else nothing."""
    of_sequence: dict[object, list[tuple[AttentionRecord, int]]] = {}
    for record, count in records:
        route = route_of(record)
        if route is not None:
            of_sequence.setdefault(route[0], []).append((record, count))
    for together in of_sequence.values():
        counts = [count for _, count in together]
        unknown = [(record, count) for record, count in together if record.queries is None]
        if (len(set(counts)) > 1 and unknown) or any(_answers_some(record, count) for record, count in unknown):
            return counts
    return []


def _answers_some(record: AttentionRecord, count: int) -> bool:
    """Whether self-attention answers fewer queries than it has keys that are inputs."""
    return record.call.kind != "cross" and record.keys is not None and count < int((record.keys.index >= 0).sum())


def same_rows(rows: Tensor, counted_in: Positions, queries: Positions) -> Tensor | None:
    """The rows of one query axis that are the same positions as rows of another; None where there are none.

    Args:
        rows: (batch, row), counted in ``counted_in``.
        counted_in, queries: where the two axes lie in one input.
    """
    numbers = _numbers(counted_in)
    if bool((rows >= len(numbers)).any()):  # rows of a call that has more of them
        return None
    matches = numbers[rows.cpu()][..., None] == _numbers(queries)
    return matches.int().argmax(-1) if bool((matches.sum(-1) == 1).all()) else None


def _numbers(positions: Positions) -> Tensor:
    return (positions.index if positions.rows is None else positions.rows).cpu()
