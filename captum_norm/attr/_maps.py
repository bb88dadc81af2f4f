"""From the record of an attention call to its map: a matrix of non-negative scores between two sequences.

A *sequence* is what an axis of a map counts: the positions of an input, called by the input's index, or of something
that is no input, called by a name.  A map's *route* is (sequence of its queries, sequence of its keys): (0, 0) in an
encoder, (1, 0) in a decoder's cross-attention.

Axes: b batch, h head, q query, r row asked for, k key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from captum_norm.attr._kept import KeptCall
from captum_norm.attr._position import take_rows
from captum_norm.capture import AttentionCall, AttentionRecord, Positions
from captum_norm.functional.gram import KeyFactors, kept_once, key_factors
from captum_norm.functional.precision import full_precision
from captum_norm.operations.precision import at_least_float32

SequenceName = int | str
Route = tuple[SequenceName, SequenceName]
MeasureFunction = Callable[[AttentionRecord], Tensor]
Needs = Literal["rows", "rows from the top", "all"]
"""What of each map a row of an aggregate needs: the same row alone; rows one after the other, without those that the
calls above leave out; or all rows at once."""

UNNAMED = "queries that are no input"


@dataclass(frozen=True)
class CallMap:
    """A measure's map of one attention call.

    Attributes:
        call: whose map it is, without its modules.
        route: the sequences of its queries and of its keys.
        scores: (batch, query, key), non-negative; zero at padding.
        keys: where the key axis lies in its sequence.
        residual: what each query keeps of itself beside cross-attention, (batch, query), where the measure takes the
            block's residual in; else None.  In self-attention it is part of the query's own score.
        layer: which layer the map holds together with others of the same number; None for a map of the call alone.
        at_once: its keys are those of before the last call of their sequence: two that attend to each other at once.
        queries: where the query axis lies, of a map of all queries; None where that is not known.
    """

    call: AttentionCall
    route: Route
    scores: Tensor
    keys: Positions
    residual: Tensor | None = None
    layer: int | None = None
    at_once: bool = False
    queries: Positions | None = None

    @property
    def length(self) -> int:
        """How many queries."""
        return self.scores.shape[1]

    @property
    def title(self) -> str:
        """The call, for errors."""
        return f"attention call {self.call.name!r} ({self.call.kind}, call {self.call.call})"


@dataclass(frozen=True, eq=False)
class LaterMap:
    """A map within one sequence whose rows are measured when the model has run, a block of queries at a time.

    Attributes:
        record: the call, kept.
        measure: the measure.
        call, route, keys: as in :class:`CallMap`.
        dtype: that of the scores.
        larger: how many times as large as others its blocks are.
    """

    record: AttentionRecord | KeptCall
    measure: MeasureFunction
    call: AttentionCall
    route: Route
    keys: Positions
    dtype: torch.dtype
    residual: None = None
    larger: int = 1

    @classmethod
    def of(
        cls, record: AttentionRecord, measure: MeasureFunction,
        keep: Callable[[AttentionRecord], AttentionRecord | KeptCall | None] = AttentionRecord.kept, larger: int = 1,
    ) -> LaterMap | None:  # fmt: skip
        """The map of a call; None where it has to be measured at once."""
        route, keys = route_of(record), record.keys
        if route is None or keys is None or route[0] != route[1] or record.shape[2] != record.shape[3]:
            return None
        if record.queries is not None and not torch.equal(*_numbers(record.queries, keys)):
            return None
        kept, call = keep(record), record.call.without_modules
        kept = kept.but(call=call) if isinstance(kept, AttentionRecord) else kept
        dtype = at_least_float32(record.values.dtype)
        return None if kept is None else cls(kept, measure, call, route, keys, dtype, larger=larger)

    @property
    def length(self) -> int:
        """How many queries."""
        return self.record.shape[2]

    @property
    def title(self) -> str:
        """The call, for errors."""
        return f"attention call {self.call.name!r} ({self.call.kind}, call {self.call.call})"

    def at(self, rows: slice | Tensor) -> Tensor:
        """(batch, row, key) of a slice of the queries or of rows (batch, row) long; zeros at padding."""
        batch, _, query, _ = self.record.shape
        real = self.record.query_mask
        if real is None or real.all():
            scores = measured(replace(self.record.at(rows), query_mask=None), self.measure)
        else:  # a real row of the example in the place of each padded one
            numbers = torch.arange(query)[rows].expand(batch, -1) if isinstance(rows, slice) else rows.cpu()
            chosen = real.cpu().gather(1, numbers)
            numbers = torch.where(chosen, numbers, real.cpu().int().argmax(1, keepdim=True))
            scores = measured(replace(self.record.at(numbers), query_mask=None), self.measure)
            scores = scores.masked_fill(~chosen[..., None].to(scores.device), 0)
        return scores.to(self.dtype)

    def blocks(self, some: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of the queries among which there are some, (query,) bool, each with its scores (batch, row, key)."""
        batch, head, query, key = self.record.shape
        size = max(1, min(query, self.larger * _BLOCK // max(1, batch * head * key)))
        kept: KeyFactors = {}
        for start in range(0, query, size):
            rows = slice(start, min(query, start + size))
            asked = some[rows].nonzero()[:, 0]
            if len(asked):
                rows = slice(start + int(asked[0]), start + int(asked[-1]) + 1)
                with key_factors(kept):
                    scores = self.at(rows)
                yield rows, scores

    def whole(self) -> CallMap:
        """The map by itself."""
        everything = torch.ones(self.record.shape[2], dtype=torch.bool)
        scores = torch.cat([scores for _, scores in self.blocks(everything)], 1)
        return CallMap(self.call, self.route, scores, self.keys)


# Weights in a block of queries that is measured at a time.
_BLOCK = 1 << 21


def sum_of_rows(record: AttentionRecord, measure: MeasureFunction, shares: Tensor) -> CallMap:
    """The rows of a call's map added up as its only row, measured a block of queries at a time.

    Args:
        record: the call, whole, its keys known.
        measure: its measure.
        shares: how much of each row, (batch, query).
    """
    route, keys = route_of(record), record.keys
    assert route is not None
    assert keys is not None
    total: Tensor | None = None
    later = LaterMap(record, measure, record.call, route, keys, at_least_float32(record.values.dtype))
    for rows, scores in later.blocks((shares != 0).any(0).cpu()):
        part = torch.einsum("bq,bqk->bk", shares[:, rows].to(scores), scores)
        total = part if total is None else total + part
    assert total is not None  # some row is real
    return call_map(record, total[:, None])


def call_map(record: AttentionRecord, scores: Tensor, layer: int | None = None) -> CallMap:
    """The map of a call whose keys are known.

    Args:
        record: the call, whole.
        scores: (batch, query, key), or those of some queries; where the measure takes the block around cross-attention
            in, with one more key, the residual.
        layer: see :class:`CallMap`.

    Raises:
        ValueError: if the record does not say which input position each key is.
    """
    route, keys = route_of(record), record.keys
    if route is None or keys is None:
        raise ValueError(f"the keys of {record.call.name!r} are not known to be input positions: {record.unknown_keys}")
    scores, residual = scores.to(at_least_float32(record.values.dtype)), None
    if scores.shape[-1] > record.shape[-1]:
        scores, residual = scores[..., :-1], scores[..., -1]
    scores, keys = one_key_for_each_position(scores, keys)
    return CallMap(record.call.without_modules, route, scores, keys, residual, layer, queries=record.queries)


def one_key_for_each_position(scores: Tensor, keys: Positions) -> tuple[Tensor, Positions]:
    """Scores (batch, query, key) and their keys, where each query reads one of several keys at a position.

    A position has two keys where some queries read values of their own from it (Longformer's global tokens).  Keys that
    one query reads at once stay apart: the norm of a sum is not the sum of the norms.
    """
    if keys.all_distinct or not keys.all_inputs:
        return scores, keys
    read, distinct = added_up((scores != 0).to(scores), keys)
    if bool((read > 1).any()):
        return scores, keys
    return added_up(scores, keys)[0], distinct


def added_up(scores: Tensor, keys: Positions) -> tuple[Tensor, Positions]:
    """Scores (..., key) of parts that add up, those of one position together, and where these lie."""
    positions, place = torch.unique(keys.index.to(scores.device), return_inverse=True)
    whole = scores.new_zeros(*scores.shape[:-1], len(positions)).index_add(-1, place, scores)
    return whole, Positions(keys.source, positions.to(keys.index.device), keys.grid)


def route_of(record: AttentionRecord) -> Route | None:
    """The sequences that a call's queries and keys belong to; None where its keys are not known."""
    if record.keys is None:
        return None
    keys: SequenceName = record.keys.source
    if record.call.kind != "cross":
        return keys, keys
    queries: SequenceName = UNNAMED if record.queries is None else record.queries.source
    return UNNAMED if queries == keys else queries, keys


def measured(record: AttentionRecord, measure: MeasureFunction) -> Tensor:
    """A measure of a record, (batch, ..., query, key), with zeros at padding."""
    # The model may be running under autocast, which would take products to half precision.
    with full_precision(record.device):
        scores = measure(without_padding(record))
    if record.block is None or record.query_mask is None:
        return scores
    return scores.masked_fill(~record.query_mask[..., None].to(scores.device), 0)


def without_padding(record: AttentionRecord) -> AttentionRecord:
    """The record with exact zeros at padding, where some models compute NaN or attend to nothing in particular.

    With a block around the call, padded queries are those of a real row instead: zeros have no spread to be normalised
    by.  What a measure says of them is to be set to zero.
    """
    queries, keys = (None if mask is None or mask.all() else mask for mask in (record.query_mask, record.key_mask))
    if queries is None and keys is None:
        return record
    if queries is not None and record.block is not None:
        return without_padding(_with_real_rows(record, queries))
    weights, values = record.weights, record.values
    if queries is not None:
        weights = weights.masked_fill(~queries[:, None, :, None].to(weights.device), 0)
    if keys is not None:
        padding = ~keys[:, None, :, None].to(weights.device)
        weights = weights.masked_fill(padding.mT, 0)
        values = kept_once(lambda: record.values.masked_fill(padding, 0), without_padding, (values, record.key_mask))
    return replace(record, weights=weights, values=values)


def _with_real_rows(record: AttentionRecord, mask: Tensor) -> AttentionRecord:
    """A real row of the example in the place of each padded one."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    rows = torch.where(mask, positions, mask.int().argmax(1, keepdim=True))
    return at_rows(record, rows)


def at_rows(record: AttentionRecord, rows: Tensor) -> AttentionRecord:
    """The record of some queries alone, none of which is padding; rows (batch, row) long."""
    return record.at(rows, placed=False)


def square(one: CallMap) -> CallMap:
    """The map over its own queries alone, in their order: keys that are no input (memory, sinks) pass nothing on.

    Raises:
        ValueError: as :func:`own_keys`.
    """
    own = own_keys(one)
    if own is None:
        return one
    keys = Positions(one.keys.source, one.keys.index[own.to(one.keys.index.device)], one.keys.grid)
    return replace(one, scores=one.scores[..., own.to(one.scores.device)], keys=keys)


def own_keys(one: CallMap) -> Tensor | None:
    """The key that is each query itself, (query,); None where keys are the queries, in their order.

    Raises:
        ValueError: if there are not as many queries as keys that are inputs, or a query is none of the keys, as where
            keys are those of the token before.
    """
    _, query, key = one.scores.shape
    if one.queries is None or one.queries.source != one.keys.source or len(one.queries.index) != query:
        own = None if query == key else (one.keys.index >= 0).nonzero()[:, 0]
    else:
        ours, theirs = _numbers(one.queries, one.keys)
        if torch.equal(ours, theirs):
            return None
        same = ours[:, None] == theirs
        own = same.int().argmax(1) if query <= key else (one.keys.index >= 0).nonzero()[:, 0]
        if query <= key and bool((same.sum(1) != 1).any()):
            lacking = one.queries.index[same.sum(1) != 1].tolist()
            raise ValueError(
                f"{one.title}: it is not known which key the queries at positions {lacking} are themselves, for keys "
                f"lie at {one.keys.index.tolist()}: rollout and flow add what a position holds already to its own "
                'key. Use aggregate="mean".'
            )
        if bool((one.keys.index >= 0).sum() > (one.queries.index >= 0).sum()):
            own = (one.keys.index >= 0).nonzero()[:, 0]
    if own is not None and len(own) != query:
        raise ValueError(
            f"{one.title} has {query} queries and {len(own)} keys that are inputs: rollout and flow need "
            'as many of one as of the other. Use aggregate="mean".'
        )
    return own


def with_keys_as(known: Positions, one: CallMap) -> CallMap:
    """The map with its keys in this order, where they are the same inputs in another one; else as it is."""
    ours, theirs = known.index, one.keys.index
    if known.source != one.keys.source or ours.shape != theirs.shape or torch.equal(ours, theirs):
        return one
    if not (known.all_inputs and known.all_distinct and torch.equal(ours.sort().values, theirs.sort().values)):
        return one
    order = (ours[:, None] == theirs).int().argmax(1)
    return replace(one, scores=one.scores[..., order.to(one.scores.device)], keys=known)


def _numbers(queries: Positions, keys: Positions) -> tuple[Tensor, Tensor]:
    """The positions of queries and keys; what is no input has numbers of its own where both have."""
    if queries.rows is not None and keys.rows is not None:
        return queries.rows, keys.rows
    return queries.index, keys.index


def check_same_keys(known: Positions, one: CallMap | LaterMap, what: str) -> None:
    """Refuse a map whose keys lie elsewhere than those of the calls before it, which then have no ``what``."""
    if known.index.shape != one.keys.index.shape or not torch.equal(known.index, one.keys.index):
        raise ValueError(f"{one.title}: its keys are not those of the calls before it; they have no {what}.")


def rows_of(scores: Tensor, rows: Tensor | None) -> Tensor:
    """Those rows (batch, row) of a map, or all; of rows as shares (batch, query), the sum as one row."""
    if rows is None:
        return scores
    if rows.is_floating_point():
        return torch.einsum("bq,bqk->bk", rows.to(scores), scores)[:, None]
    return take_rows(scores, rows)
