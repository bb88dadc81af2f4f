"""Rows of a call's weights in the order of its record, each checked when it is asked for.

Axes: b batch, h head, q query, r row asked for, k key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from captum_norm.capture.call import AttentionCall, Certificate, InexactCaptureError, refusal
from captum_norm.capture.certificate import Check
from captum_norm.capture.held import HeadValues
from captum_norm.capture.layout import Layout
from captum_norm.capture.weights import GivenWeights, HiddenWeights, Rows, Weights

# How many queries are checked before any is asked for, the first and the last among them.
CHECKED = 8


@dataclass(frozen=True, eq=False)
class Arranged:
    """The model's weights (*lead, query, key) as (batch, head, query, key), or rows of these."""

    weights: Weights
    layout: Layout
    lead: tuple[int, ...]

    @cached_property
    def shape(self) -> torch.Size:
        """(batch, head, query, key)."""
        return torch.Size((*self.layout.shape, self.weights.shape[-1]))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.device

    def whole(self) -> Tensor:
        """(batch, head, query, key)."""
        return self.layout.weights(self.weights.whole(), self.lead)

    def at(self, rows: Rows) -> Tensor:
        """(batch, head, row, key) of a slice of the queries, or of rows (batch, row) long."""
        batch, head, query, key = self.shape
        if not self._one_to_one:  # heads in the place of queries, as a static cache leaves them to one query: few
            whole = self.whole()
            return whole[:, :, rows] if isinstance(rows, slice) else whole.gather(2, _for_heads(rows, head, key))
        if self.layout.in_order and (isinstance(rows, slice) or batch == 1 or not rows.stride(0)):  # alike in all
            found = self.weights.at(rows if isinstance(rows, slice) else rows[0].to(self.device))
            return found.expand(*self.lead, *found.shape[-2:]).reshape(batch, head, -1, key)
        if isinstance(rows, slice):
            rows = torch.arange(query, device=self.device)[rows].expand(batch, -1)
        where = self.layout.rows[:, :, 0].to(self.device)
        asked = torch.empty(math.prod(self.lead), rows.shape[1], dtype=torch.long, device=self.device)
        asked[where] = self.layout.queries.to(self.device).gather(2, rows.to(self.device)[:, None].expand(-1, head, -1))
        found = self.weights.at(asked.view(*self.lead, -1))
        return found.reshape(len(asked), -1, key)[where]

    @cached_property
    def queries_in_order(self) -> bool:
        """Whether query n of the record is query n of the model."""
        if not self._one_to_one:
            return False
        return self.layout.in_order or bool((self.layout.queries == torch.arange(self.shape[2])).all())

    @cached_property
    def _one_to_one(self) -> bool:
        """Whether each leading index of the model's weights is one head of one example."""
        batch, head, query, _ = self.shape
        return math.prod(self.lead) == batch * head and self.weights.shape[-2] == query


class Whole:
    """Weights of several products in the order of a record, which are there."""

    queries_in_order = True

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.shape, self.device = GivenWeights(weights), weights.shape, weights.device

    def whole(self) -> Tensor:
        """(batch, head, query, key)."""
        return self.weights.whole()

    def at(self, rows: Rows) -> Tensor:
        """(batch, head, row, key)."""
        return self.weights.at(rows if isinstance(rows, slice) else rows[:, None].expand(-1, self.shape[1], -1))


@dataclass(frozen=True, eq=False)
class ReadRows:
    """The weights of some queries, which were read and checked when their call was complete.

    Attributes:
        numbers: which queries, in order; the same in all examples.
        weights: (batch, head, row, key).
        query: how many queries there are.
    """

    numbers: tuple[int, ...]
    weights: Tensor
    query: int

    @property
    def whole(self) -> bool:
        """Whether they are all queries."""
        return len(self.numbers) == self.query

    def at(self, rows: Rows) -> Tensor | None:
        """(batch, head, row, key) of a slice of the queries or rows (batch, row) long; None where others are asked."""
        if isinstance(rows, slice):
            asked = list(range(self.query)[rows])
        elif not bool((rows == rows[:1]).all()):
            return None
        else:
            asked = rows[0].tolist()
        if not set(asked).issubset(self.numbers):
            return None
        where = [self.numbers.index(number) for number in asked]
        return self.weights[:, :, where[0] : where[0] + 1] if len(where) == 1 else self.weights[:, :, where]


def _for_heads(rows: Tensor, head: int, last: int) -> Tensor:
    """Rows (batch, row) as an index of (batch, head, query, last)."""
    return rows[:, None, :, None].expand(-1, head, -1, last)


@dataclass(eq=False)
class CheckedRows:
    """Weights on demand: what is handed out has reproduced what the model wrote.

    Attributes:
        arranged: the weights.
        check: what their values must reproduce.
        call: whose weights, for errors.
        unchanged: whether nothing they are computed from was written to since.
        certificate: what was checked so far.
        read: the weights that were checked beforehand: a sample of the queries, or all where they are few.
    """

    arranged: Arranged
    check: Check
    call: AttentionCall
    unchanged: Callable[[], bool]
    certificate: Certificate
    read: ReadRows | None = None

    @property
    def shape(self) -> torch.Size:
        """(batch, head, query, key)."""
        return self.arranged.shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.arranged.device

    def whole(self) -> tuple[Tensor, Certificate]:
        """All weights, (batch, head, query, key), and the check of all.

        Raises:
            InexactCaptureError: as ``at``.
        """
        read = self.read
        if read is not None and read.whole:
            return self._read(lambda: read.weights), self.certificate
        weights = self._read(self.arranged.whole)
        self.certificate = self._checked(weights, slice(None))
        return weights, self.certificate

    def at(self, rows: Rows) -> tuple[Tensor, Certificate]:
        """The weights of some queries, (batch, head, row, key), and the check of these and of those before.

        Args:
            rows: a slice of the queries, or (batch, row) long.

        Raises:
            InexactCaptureError: if they do not reproduce what the model wrote, or if what they are computed from was
                overwritten.
        """
        known = None if self.read is None else self.read.at(rows)
        if known is not None:
            return self._read(lambda: known), self.certificate
        weights = self._read(lambda: self.arranged.at(rows))
        found = self.certificate.joined(self._checked(weights, rows))
        if found.rows is not None and all(len(checked) == self.shape[2] for checked in found.rows):
            found = replace(found, rows=None)
        self.certificate = found
        return weights, found

    def kept(self, values: HeadValues) -> CheckedRows | None:
        """The same beside copies of what the model may overwrite, of which values are one; None where weights are no
        smaller than what they would be computed from."""
        hidden = self.arranged.weights
        if not isinstance(hidden, HiddenWeights):
            return None
        copied = hidden.copied()
        check = replace(self.check, values=values)
        return replace(
            self, arranged=replace(self.arranged, weights=copied), check=check, unchanged=lambda: copied.unchanged,
            read=self.read if self.read is not None and self.read.whole else None,
        )  # fmt: skip

    @property
    def kept_bytes(self) -> int | None:
        """What ``kept`` copies beside the values, in bytes."""
        hidden = self.arranged.weights
        return hidden.nbytes if isinstance(hidden, HiddenWeights) else None

    @property
    def written(self) -> Tensor:
        """What the call wrote, along the check's random direction, (batch, query)."""
        return self.check.actual

    def _read(self, weights: Callable[[], Tensor]) -> Tensor:
        if not self.unchanged():
            raise self._refused(
                "its queries, keys or values were overwritten after they were read (a static cache does so): read its "
                "weights while the model runs, inside on_record"
            )
        return weights()

    def _checked(self, weights: Tensor, rows: Rows) -> Certificate:
        try:
            return self.check.certificate(weights, rows)
        except InexactCaptureError as error:
            raise self._refused(str(error)) from None

    def _refused(self, why: str) -> InexactCaptureError:
        return refusal(self.call, why)


def sample(query: int, random: Random) -> tuple[int, ...]:
    """The queries to be checked before any is asked for: the first, the last and some at random; all where few."""
    if query <= CHECKED:
        return tuple(range(query))
    chosen: set[int] = set()
    while len(chosen) < CHECKED - 2:
        chosen.add(1 + int(random.random() * (query - 2)))
    return 0, *sorted(chosen), query - 1
