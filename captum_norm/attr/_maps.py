"""From the record of an attention call to its map: a matrix of non-negative scores between two sequences.

A *sequence* is what an axis of a map counts: the positions of an input, called by the input's index, or of something
that is no input, called by a name.  A map's *route* is (sequence of its queries, sequence of its keys): (0, 0) in an
encoder, (1, 0) in a decoder's cross-attention.

Axes: b batch, h head, q query, r row asked for, k key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from captum_norm.attr._position import take_rows
from captum_norm.capture import AttentionCall, AttentionRecord, Positions
from captum_norm.operations.precision import at_least_float32

SequenceName = int | str
Route = tuple[SequenceName, SequenceName]
MeasureFunction = Callable[[AttentionRecord], Tensor]
Needs = Literal["rows", "all"]
"""What of each map a row of an aggregate needs: the same row alone, or all rows."""

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
    """

    call: AttentionCall
    route: Route
    scores: Tensor
    keys: Positions
    residual: Tensor | None = None
    layer: int | None = None

    @property
    def title(self) -> str:
        """The call, for errors."""
        return f"attention call {self.call.name!r} ({self.call.kind}, call {self.call.call})"


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
    if scores.shape[-1] > record.weights.shape[-1]:
        scores, residual = scores[..., :-1], scores[..., -1]
    return CallMap(without_modules(record.call), route, scores, keys, residual, layer)


def route_of(record: AttentionRecord) -> Route | None:
    """The sequences that a call's queries and keys belong to; None where its keys are not known."""
    if record.keys is None:
        return None
    keys: SequenceName = record.keys.source
    if record.call.kind != "cross":
        return keys, keys
    queries: SequenceName = UNNAMED if record.queries is None else record.queries.source
    return UNNAMED if queries == keys else queries, keys


def without_modules(call: AttentionCall) -> AttentionCall:
    """The call as it is kept: without the modules, which would keep the model alive."""
    return replace(call, modules=())


def measured(record: AttentionRecord, measure: MeasureFunction) -> Tensor:
    """A measure of a record, (batch, ..., query, key), with zeros at padding."""
    # The model may be running under autocast, which would take products to half precision.
    with torch.autocast(record.weights.device.type, enabled=False):
        scores = measure(without_padding(record))
    if record.block is None or record.query_mask is None:
        return scores
    return scores.masked_fill(~record.query_mask[..., None].to(scores.device), 0)


def without_padding(record: AttentionRecord) -> AttentionRecord:
    """The record with exact zeros at padding, where some models compute NaN or attend to nothing in particular.

    With a block around the call, padded queries are those of a real row instead: zeros have no spread to be normalised
    by.  What a measure says of them is to be set to zero.
    """
    weights, values = record.weights, record.values
    if record.query_mask is not None and not record.query_mask.all():
        if record.block is not None:
            return without_padding(_with_real_rows(record, record.query_mask))
        weights = weights.masked_fill(~record.query_mask[:, None, :, None].to(weights.device), 0)
    if record.key_mask is not None and not record.key_mask.all():
        padding = ~record.key_mask[:, None, :, None].to(weights.device)
        weights, values = weights.masked_fill(padding.mT, 0), values.masked_fill(padding, 0)
    return replace(record, weights=weights, values=values)


def _with_real_rows(record: AttentionRecord, mask: Tensor) -> AttentionRecord:
    """A real row of the example in the place of each padded one."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    rows = torch.where(mask, positions, mask.int().argmax(1, keepdim=True)).to(record.weights.device)
    return at_rows(record, rows)


def at_rows(record: AttentionRecord, rows: Tensor) -> AttentionRecord:
    """The record of some queries alone; rows (batch, row) long."""
    gate = None if record.gate is None else take_rows(record.gate, rows)
    block = record.block and record.block.at(rows)
    weights = take_rows(record.weights, rows)
    return replace(record, weights=weights, gate=gate, block=block, queries=None, query_mask=None)


def square(one: CallMap) -> CallMap:
    """The map over its own queries alone: keys that are no input (memory, sinks) pass nothing on.

    Raises:
        ValueError: if there are not as many queries as keys that are inputs.
    """
    if one.scores.shape[1] == one.scores.shape[2]:
        return one
    own = (one.keys.index >= 0).nonzero().flatten().to(one.scores.device)
    if len(own) != one.scores.shape[1]:
        raise ValueError(
            f"{one.title} has {one.scores.shape[1]} queries and {len(own)} keys that are inputs: rollout and flow need "
            'as many of one as of the other. Use aggregate="mean".'
        )
    keys = Positions(one.keys.source, one.keys.index[one.keys.index >= 0], one.keys.grid)
    return replace(one, scores=one.scores[..., own], keys=keys)


def check_same_keys(known: Positions, one: CallMap, what: str) -> None:
    """Refuse a map whose keys lie elsewhere than those of the calls before it, which then have no ``what``."""
    if known.index.shape != one.keys.index.shape or not torch.equal(known.index, one.keys.index):
        raise ValueError(f"{one.title}: its keys are not those of the calls before it; they have no {what}.")


def rows_of(scores: Tensor, rows: Tensor | None) -> Tensor:
    """Those rows (batch, row) of a map, or all."""
    return scores if rows is None else take_rows(scores, rows)
