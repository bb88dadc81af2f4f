"""Which rows of each call an answer needs, and which rows of the aggregated map it is.

The rows of a call are wanted while the model runs, when which tokens are real may not be known yet: candidates are kept
then, and looked at again when the answer is made.

Axes: b batch, q query, r row asked for, k key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_norm.attr._aggregate import Aggregate, Single
from captum_norm.attr._maps import Route, SequenceName, at_rows, route_of
from captum_norm.attr._position import Rows
from captum_norm.attr._read_out import QueryAxis, same_rows
from captum_norm.attr._sequences import Sequences
from captum_norm.attr._unread import asks_nothing, different_queries
from captum_norm.capture import AttentionCall, AttentionRecord, Positions
from captum_norm.forward.position import resolve_rows


class RowsAsked:
    """The rows asked for, of each sequence.

    Args:
        title: the method's name, for errors.
        rows: which rows are asked for.
        aggregate: how the calls' maps become one, and what it needs of them.
        sequences: what is known of the sequences.

    Attributes:
        texts: the inputs that are (batch, position), whose positions count even where the model has more rows, each
            with how many it has.
        of_input: whether ``rows`` count positions of the input, as a user's do, also where some of them alone are
            queries; rows that an output was seen to read count queries.
        counted_in: the query axis that ``rows`` count in, where calls differ in their queries; else None.
    """

    def __init__(self, title: str, rows: Rows, aggregate: Aggregate, sequences: Sequences) -> None:
        self._title, self._rows, self._aggregate, self._sequences = title, rows, aggregate, sequences
        self._shapes: dict[SequenceName, tuple[int, int]] = {}
        self._queries: dict[SequenceName, Positions] = {}
        self._candidates: dict[SequenceName, tuple[Tensor, bool]] = {}
        self._summed: dict[SequenceName, Tensor] = {}
        self._calls: dict[SequenceName, AttentionCall] = {}
        self.texts: Mapping[int, int] = {}
        self.of_input = True
        self.counted_in: Positions | None = None

    def needed(self, record: AttentionRecord, queries: SequenceName) -> AttentionRecord:
        """A call of these queries with the rows asked for alone, where the others do not matter."""
        if record.queries is not None:
            self._queries[queries] = record.queries
        self._calls[queries] = record.call.without_modules
        batch, _, length, _ = record.shape
        self._shapes[queries] = (batch, length)
        counted_in = self.counted_in
        if counted_in is not None and record.queries is not None and record.queries.source != counted_in.source:
            counted_in = None  # another sequence, whose rows count for themselves
        length = length if counted_in is None else len(counted_in.index)
        if not (self._rows.few and self._aggregate.needs == "rows"):
            return record
        # One call that looks ahead settles the default row; while all are causal, both ends may be the answer.
        known = self._candidates.get(queries)
        settled = self._sequences.causal.get(queries) is False if known is None else known[1]
        try:
            real = self._sequences.real(queries)
            real = None if real is None or real.shape[1] != length else real  # of other calls of the sequence
            among = self._among(queries, record.queries, batch)
            rows = (
                self._rows.candidates(batch, length, real, looks_ahead=settled, text=self._text(queries))
                if among is None else among.chosen(batch, length, None, causal=False)
            )  # fmt: skip
        except ValueError:  # a position that this sequence does not have: an error only if this sequence is asked for
            return record
        self._candidates.setdefault(queries, (rows, settled))
        return at_rows(record, rows if counted_in is None else self._same(record, rows, counted_in))

    def rest_on(self, records: Sequence[tuple[AttentionRecord, int]]) -> None:
        """The calls that the answer rests on, each with how many queries it has: others of a sequence may have more."""
        for record, length in records:
            route = route_of(record)
            if route is not None and route[0] in self._shapes:
                self._shapes[route[0]] = self._shapes[route[0]][0], length
                self._calls[route[0]] = record.call
                if record.queries is not None:
                    self._queries[route[0]] = record.queries

    def shares(self, queries: SequenceName) -> Tensor | None:
        """How much of each row of these queries is asked for, (batch, query), where a sum of rows is enough."""
        if self._rows.few or self._rows.all or self._aggregate.needs != "rows":
            return None
        axis, known = self.axis(queries), self._summed.get(queries)
        if known is None:
            try:
                known = self._rows.shares(axis.batch, axis.length, axis.real, axis.text)
            except ValueError:  # no real row: an error only if this sequence is asked for
                return None
        return self._summed.setdefault(queries, known) if known.shape == (axis.batch, axis.length) else None

    def of(self, route: Route, device: torch.device) -> Tensor:
        """What is asked for of the aggregated map: (batch, key), or (batch, row, key) for several rows.

        Raises:
            ValueError: if a row does not exist, or which tokens are real was known too late.
        """
        axis = self.axis(route[0])
        batch, length, real, causal, text = axis.batch, axis.length, axis.real, axis.causal, axis.text
        if self._rows.all or (not self._rows.few and self._aggregate.needs == "all"):
            return self._rows.pick(self._aggregate.result(route).scores, real, text)
        if not self._rows.few:
            shares, summed = self._rows.shares(batch, length, real, text), self._summed.get(route[0])
            if summed is not None and not torch.equal(summed, shares):
                raise ValueError(self._late())
            return self._aggregate.result(route, shares if summed is None else None).scores[:, 0].to(device)
        among = self._among_of(route, axis)
        if among is not None:
            rows = None if route[0] in self._candidates else among.chosen(batch, length, None, causal)
            scores = self._aggregate.result(route, rows).scores.to(device)
            return scores if self._rows.several else scores[:, 0]
        if route[0] not in self._candidates:
            rows = self._rows.chosen(batch, length, real, causal, text)
            scores = self._aggregate.result(route, rows).scores.to(device)
            return scores if self._rows.several else scores[:, 0]
        if self._is_late(route[0], axis):
            raise ValueError(self._late())
        return self._rows.pick_from_candidates(self._aggregate.result(route).scores, length, real, causal, text)

    def default_row(self, queries: SequenceName) -> Tensor | None:
        """The default row of each example, (batch,), where others were kept before it was known which tokens are real,
        as where a text attends to a picture first and to itself then; else None."""
        axis = self.axis(queries)
        if queries not in self._candidates or not self._is_late(queries, axis):
            return None
        row = self._rows.chosen(axis.batch, axis.length, axis.real, axis.causal, axis.text)[:, 0].cpu()
        return row if axis.text is None else (row[:, None] == axis.text).int().argmax(1)

    def _is_late(self, queries: SequenceName, axis: QueryAxis) -> bool:
        """Whether the rows that were kept are not those that are asked for, now that it is known what is real."""
        rows, settled = self._candidates[queries]
        asked = self._rows.candidates(axis.batch, axis.length, axis.real, settled, axis.text)
        return not torch.equal(rows.cpu(), asked.cpu())

    def axis_of(self, queries: SequenceName) -> QueryAxis | None:
        """What is known of the queries of a map; None of a sequence that asks nothing."""
        return self.axis(queries) if queries in self._shapes else None

    def axis(self, queries: SequenceName) -> QueryAxis:
        """What is known of the queries of a map."""
        batch, length = self._shapes[queries]
        real = self._sequences.real(queries)
        real = None if real is None or real.shape != (batch, length) else real.cpu()
        causal, text = self._sequences.looks_back(queries), self._text(queries)
        return QueryAxis(self.positions(queries), batch, length, real, causal, text)

    def positions(self, queries: SequenceName) -> Positions | None:
        """Where the queries lie in the input; None where that is not known."""
        return self._queries.get(queries)

    def _same(self, record: AttentionRecord, rows: Tensor, counted_in: Positions) -> Tensor:
        """The rows of a call that are the same positions as these, which are counted in another call's queries."""
        found = None if record.queries is None else same_rows(rows, counted_in, record.queries)
        if found is None:
            raise ValueError(different_queries(self._title, [len(counted_in.index), record.shape[2]]))
        return found

    def _among_of(self, route: Route, axis: QueryAxis) -> Rows | None:
        """As ``_among``, of the call that the answer is of."""
        if not isinstance(self._aggregate, Single):
            return self._among(route[0], axis.positions, axis.batch, axis.real)
        one = self._aggregate.result(route)
        self._calls[route[0]] = one.call
        same = axis.positions is not None and one.queries is not None and axis.length == len(one.queries.index)
        return self._among(route[0], one.queries, axis.batch, axis.real if same else None)

    def _among(
        self, queries: SequenceName, known: Positions | None, batch: int, real: Tensor | None = None
    ) -> Rows | None:  # fmt: skip
        """The rows of a call that are the positions asked for, where some positions of the input alone are its queries.

        None where no positions are asked for by their numbers, or all positions are queries, or it is not known which.

        Args:
            queries: the sequence.
            known: where the call's queries lie.
            batch: size of the batch.
            real: (batch, query) bool, True at real tokens; None where all are real.

        Raises:
            ValueError: if a position is no query, is out of range or padding.
        """
        numbers = self._rows.numbers
        size = self.texts.get(queries) if isinstance(queries, int) else None
        if not self.of_input or numbers is None or known is None or (size is None and not known.all_inputs):
            return None
        rows = (known.index.cpu() >= 0).nonzero()[:, 0]
        index = known.index.cpu()[rows]
        if len(index) == 0 or len(set(index.tolist())) < len(index):
            return None
        length = max(int(index.max()) + 1, size or 0)
        if len(index) == length:
            return None
        inside = (numbers >= -length) & (numbers < length) if size is not None else torch.ones_like(numbers).bool()
        counted = numbers if size is None else numbers % length
        lacking = numbers[inside & (counted[..., None] != index).all(-1)]
        if len(lacking):
            raise ValueError(asks_nothing(self._title, self._calls[queries], int(lacking[0]), index.tolist()))
        of_input = None
        if real is not None:
            of_input = torch.zeros(batch, length, dtype=torch.bool)
            of_input[:, index] = real.cpu()[:, rows]
        positions = resolve_rows(numbers, of_input, batch, length)
        return self._rows.with_numbers(rows[(positions[..., None] == index).int().argmax(-1)])

    def some_ask_for_no_token(self, records: Sequence[AttentionRecord]) -> bool:
        """Whether one of these calls is of a text's sequence, and none of its queries is a token of it.

        So it is where learned rows beside a text ask by themselves: no position is a row there.
        """
        of_texts = [one.queries for one in records if one.queries is not None and one.queries.source in self.texts]
        return any(not bool((queries.index >= 0).any()) for queries in of_texts)

    def _text(self, queries: SequenceName) -> Tensor | None:
        """The row of each position of the input, where a model takes them in another order, or has put others beside
        those of a text: virtual tokens, a picture's.

        None where all rows are positions in their order, or the sequence is no text and has rows beside its positions,
        such as a picture with its class token.
        """
        return rows_of_text(self._queries.get(queries), queries in self.texts)

    def _late(self) -> str:
        return (
            f"{self._title}: which rows are asked for became known only after the first attention calls: which tokens "
            'are real, or in which order they are. Give position="all", which has a row of each, and take what you ask '
            "for of these."
        )


def rows_of_text(known: Positions | None, is_text: bool) -> Tensor | None:
    """The row of each position of an input among the queries of a call, (position,).

    Args:
        known: where the queries lie.
        is_text: whether the input is (batch, position), so that its positions count beside rows that are none.

    Returns:
        None where all rows are positions in their order, or some positions are no rows, or rows count for themselves.
    """
    if known is None or known.count_themselves or not (is_text or known.all_inputs):
        return None
    index = known.index.cpu()
    rows = (index >= 0).nonzero()[:, 0]
    rows = rows[index[rows].argsort()]
    of_each = torch.arange(len(rows), device="cpu")
    is_whole = len(rows) > 0 and torch.equal(index[rows], of_each)
    return rows if is_whole and not (len(rows) == len(index) and torch.equal(rows, of_each)) else None
