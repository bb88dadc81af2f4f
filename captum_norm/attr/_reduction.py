"""One pass over a model: takes each attention record as it is complete and keeps no more than the answer needs.

Axes: b batch, h head, q query, r row asked for, k key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from captum_norm.attr._aggregate import Aggregate, CallMap, Route, Stack
from captum_norm.attr._placing import count_positions, place, share_left_out
from captum_norm.attr._position import Rows, take_rows
from captum_norm.capture import AttentionBlock, AttentionCall, AttentionRecord, Certificate, InexactCaptureError

KindType = Literal["self", "cross"] | None
Measure = Callable[[AttentionRecord], Tensor]

_UNNAMED = "queries that are no input"


@dataclass(frozen=True)
class AttributionReport:
    """What a call of ``attribute`` read, and how exactly.

    Attributes:
        certificates: each attention call that was read (its ``modules`` left out) with its certificate, in call order.
        left_out: per input, the share of the row's total that went to keys that are no input (a class token, memory,
            sinks) and is in no score: (batch,), or (batch, query) for ``position="all"``; dimensionless.  Empty for
            layer classes, whose maps hold every key.
    """

    certificates: tuple[tuple[AttentionCall, Certificate], ...] = ()
    left_out: tuple[Tensor, ...] = ()


@dataclass
class Stacks:
    """What the records tell about each sequence: its real tokens, whether it only looks back.

    ``doubled`` are those that feed an encoder and a decoder alike, so that their self-attention calls cannot be told
    apart.
    """

    real: dict[Stack, Tensor] = field(default_factory=dict)
    causal: dict[Stack, bool] = field(default_factory=dict)
    doubled: set[Stack] = field(default_factory=set)

    def note(self, record: AttentionRecord) -> Route | None:
        """Take in a record; the route of its map, or None where its keys are not known."""
        if record.keys is None:
            return None
        keys: Stack = record.keys.source
        queries: Stack = keys
        if record.call.kind == "cross":
            queries = _UNNAMED if record.queries is None else record.queries.source
            if queries == keys:
                self.doubled.add(keys)
                queries = _UNNAMED
        else:
            self.causal[keys] = self.causal.get(keys, True) and record.call.kind == "causal"
        for stack, mask in ((queries, record.query_mask), (keys, record.key_mask)):
            if mask is not None:
                self.real.setdefault(stack, mask)
        return queries, keys

    def looks_back(self, stack: Stack) -> bool:
        """Whether every self-attention call of these queries is causal; of the whole model where they have none."""
        if stack in self.causal:
            return self.causal[stack]
        return bool(self.causal) and all(self.causal.values())


class Reduction:
    """Turns records into the scores of each input, one call at a time.

    Args:
        title: the method's name, for errors.
        measure: (batch, query, key) of a record.
        aggregate: how the calls' maps become one.
        rows: which rows are asked for.
        kind: which attention calls count; None for the model's last stack and whatever it reads.
        call: which call of each module counts; None for all.
        device: where the scores are wanted.

    Attributes:
        aggregate: as given.
        certificates: each call seen with its certificate, in call order.
    """

    def __init__(
        self,
        title: str,
        measure: Measure,
        aggregate: Aggregate,
        rows: Rows,
        kind: KindType,
        call: int | None,
        device: torch.device,
    ) -> None:
        self._title, self._measure, self.aggregate, self._rows = title, measure, aggregate, rows
        self._kind, self._call, self._device = kind, call, device
        self._stacks = Stacks()
        self._shapes: dict[Stack, tuple[int, int]] = {}
        self._cut: dict[Stack, tuple[Tensor, bool]] = {}
        self._unknown: list[tuple[AttentionCall, str]] = []
        self.certificates: list[tuple[AttentionCall, Certificate]] = []

    def add(self, record: AttentionRecord) -> None:
        """Take in the next record."""
        self.certificates.append((replace(record.call, modules=()), record.certificate))
        route = self._stacks.note(record)
        if not self.counts(record.call):
            return
        keys = record.keys
        if route is None or keys is None:
            self._unknown.append((replace(record.call, modules=()), record.unknown_keys))
            return
        self._shapes[route[0]] = (record.weights.shape[0], record.weights.shape[2])
        # The model may be running under autocast, which would take products of maps to half precision.
        with torch.autocast(record.weights.device.type, enabled=False):
            needed = self._needed_rows(record, route[0])
            scores = without_padded_rows(self._measure(without_padding(needed)), needed)
            scores = scores.to(self._device, score_dtype(record))
            residual = None
            if scores.shape[-1] > record.weights.shape[-1]:  # of a block around cross-attention
                scores, residual = scores[..., :-1], scores[..., -1]
            self.aggregate.add(CallMap(replace(record.call, modules=()), route, scores, keys, residual))

    def skip(self, error: InexactCaptureError) -> None:
        """Let a call that could not be read pass if its number is not asked for (its kind is not known)."""
        if error.call is None or self._call in (None, error.call.call):
            raise error

    def scores(self, number: int, like: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
        """The scores of one input.

        Args:
            number: which input.
            like: the input.

        Returns:
            Scores, (batch, position) or, for ``"all"``, (batch, query, position); the share of the row that went to
            keys that are no input, (batch,) or (batch, query); the grid of the positions.
        """
        route = self._route(number, like)
        keys = self.aggregate.keys(route)
        row = self._row(route)
        real = self._stacks.real.get(route[1])
        if real is not None and real.shape[1] == row.shape[-1]:
            row = row.masked_fill(~_between(real, row).to(row.device), 0)
        if len(row) != len(like):
            raise ValueError(
                f"{self._title}: inputs[{number}] is a batch of {len(like)}, but the model attended over a batch of "
                f"{len(row)}: its maps cannot be told apart by example. Use attention_maps or a Layer class."
            )
        placed = place(row, keys, count_positions(like, keys))
        if not torch.isfinite(placed).all():
            raise ValueError(f"{self._title}: inputs[{number}] has scores that are not finite: the model computes NaN.")
        return placed, share_left_out(row, placed), keys.grid

    def counts(self, call: AttentionCall) -> bool:
        """Whether a call is asked for."""
        return matches(call, self._kind) and self._call in (None, call.call)

    def _needed_rows(self, record: AttentionRecord, stack: Stack) -> AttentionRecord:
        """The record with the rows asked for alone, where the others do not matter."""
        batch, _, queries, _ = record.weights.shape
        if not (self._rows.few and self.aggregate.by_row):
            return record
        # One call that looks ahead settles the default row; while all are causal, both ends may be the answer.
        known = self._cut.get(stack)
        settled = self._stacks.causal.get(stack) is False if known is None else known[1]
        try:
            rows = self._rows.candidates(batch, queries, self._stacks.real.get(stack), looks_ahead=settled)
        except ValueError:  # a position that this sequence does not have: an error only if this sequence is asked for
            return record
        self._cut.setdefault(stack, (rows, settled))
        gate = None if record.gate is None else take_rows(record.gate, rows)
        block = record.block and record.block.at(rows)
        weights = take_rows(record.weights, rows)
        return replace(record, weights=weights, gate=gate, block=block, queries=None, query_mask=None)

    def _row(self, route: Route) -> Tensor:
        """What is asked for of an aggregated map: (batch, key), or (batch, query, key) for ``"all"``."""
        stack = route[0]
        real = self._stacks.real.get(stack)
        batch, length = self._shapes[stack]
        if real is not None and real.shape != (batch, length):
            real = None
        causal = self._stacks.looks_back(stack)
        if not self._rows.few:
            return self._rows.pick(self.aggregate.result(route).scores, real)
        if stack not in self._cut:
            rows = self._rows.chosen(batch, length, real, causal)
            scores = self.aggregate.result(route, rows).scores
            return scores if self._rows.several else scores[:, 0]
        rows, settled = self._cut[stack]
        if not torch.equal(rows.cpu(), self._rows.candidates(batch, length, real, looks_ahead=settled).cpu()):
            raise ValueError(
                f"{self._title}: which tokens are real became known only after their first attention call. Give "
                "position= explicitly."
            )
        return self._rows.pick_from_candidates(self.aggregate.result(route).scores, length, real, causal)

    def _route(self, number: int, like: Tensor) -> Route:
        """Which map answers for an input: what the last stack reads from it, or its own self-attention."""
        stack = self._stack(number, like)
        routes = [route for route in self.aggregate.routes() if route[1] == stack]
        crossing = [route for route in routes if route[0] != stack]
        own = (stack, stack)
        if len(crossing) > 1:
            raise ValueError(
                f"{self._title}: inputs[{number}] is read by several sequences, {crossing}: choose kind= or call=."
            )
        if not crossing and own not in routes:
            raise ValueError(self._nothing_for(number, like))
        if stack in self._stacks.doubled and not (crossing and self.aggregate.by_row):
            raise ValueError(
                f"{self._title}: inputs[{number}] is read by an encoder and by a decoder, whose self-attention calls "
                "cannot be told apart. Give the decoder an input of its own: inputs=(source, prefix)."
            )
        self._refuse_unknown(number, crossing=bool(crossing))
        return crossing[0] if crossing else own

    def _stack(self, number: int, like: Tensor) -> Stack:
        routes = self.aggregate.routes()
        if any(number in route for route in routes):
            return number
        # A gate or vectors made inside forward_func: tokens were embedded that are no input by themselves, but as many
        # and in the same order.  One such sequence is the input; of two, neither can be told to be.
        named = {route[1] for route in routes if isinstance(route[1], str) and self._covers(route, like)}
        return named.pop() if len(named) == 1 else number

    def _covers(self, route: Route, like: Tensor) -> bool:
        index = self.aggregate.keys(route).index
        return like.ndim > 1 and like.shape[1] == len(index) and bool((index.cpu() == torch.arange(len(index))).all())

    def _refuse_unknown(self, number: int, crossing: bool) -> None:
        """Refuse where a call that may belong to the answer has keys that are not known to be input positions."""
        all_matter = not self.aggregate.by_row
        matter = [(call, why) for call, why in self._unknown if all_matter or not crossing or call.kind == "cross"]
        if matter:
            raise ValueError(self._no_keys(f"inputs[{number}]", matter))

    def _no_keys(self, what: str, unknown: list[tuple[AttentionCall, str]]) -> str:
        call, why = unknown[0]
        others = f" (and {len(unknown) - 1} more calls)" if len(unknown) > 1 else ""
        return (
            f"{self._title}: {what} cannot be scored, because the keys of attention call {call.name!r} "
            f"({call.kind}){others} are not known to be input positions: {why or 'no reason was given'}. Its map "
            'itself is exact: use a Layer class or attention_maps, or leave the call out with kind="self" or "cross".'
        )

    def _nothing_for(self, number: int, like: Tensor) -> str:
        if self._unknown:
            return self._no_keys(f"inputs[{number}]", self._unknown)
        if not self.certificates:
            return nothing_seen(self._title)
        seen = sorted({f"{call.kind} attention in {call.name!r}" for call, _ in self.certificates})
        asked = f" with kind={self._kind!r}, call={self._call!r}" if (self._kind, self._call) != (None, None) else ""
        routes = ", ".join(f"{queries!r} over {keys!r}" for queries, keys in self.aggregate.routes()) or "none"
        return (
            f"{self._title}: inputs[{number}], {like.dtype} {tuple(like.shape)}, is read by no attention call{asked}. "
            f"Seen: {'; '.join(seen[:4])}{' ...' if len(seen) > 4 else ''}; sequences attended to, by input number "
            f"or name: {routes}. Masks and types belong into additional_forward_args; an encoder-decoder takes its "
            "decoder_input_ids by name (HFForward, or a function that names them)."
        )


def nothing_seen(title: str) -> str:
    """What to say where no attention call was seen at all."""
    return (
        f"{title}: no softmax attention was seen while forward_func ran. Either the model has none, or it ran out of "
        "sight: in a fused kernel (load it with attn_implementation='sdpa' or 'eager'), in replicas in other threads "
        "(pass the module inside DataParallel), or before attribute() was called."
    )


def matches(call: AttentionCall, kind: KindType) -> bool:
    """Whether a call is of the kind asked for; "self" includes causal self-attention."""
    return kind is None or (call.kind == "cross") == (kind == "cross")


def check_kind(kind: KindType) -> KindType:
    """Refuse a kind that does not exist."""
    if kind not in (None, "self", "cross"):
        raise ValueError(f'kind should be "self" (causal included), "cross" or None for all, got {kind!r}.')
    return kind


def without_padding(record: AttentionRecord) -> AttentionRecord:
    """The record with exact zeros at padding, where some models compute NaN or attend to nothing in particular."""
    weights, values = record.weights, record.values
    if record.query_mask is not None and not record.query_mask.all():
        if record.block is not None:
            return without_padding(_with_real_rows(record, record.block, record.query_mask))
        weights = weights.masked_fill(~record.query_mask[:, None, :, None].to(weights.device), 0)
    if record.key_mask is not None and not record.key_mask.all():
        padding = ~record.key_mask[:, None, :, None].to(weights.device)
        weights, values = weights.masked_fill(padding.mT, 0), values.masked_fill(padding, 0)
    return replace(record, weights=weights, values=values)


def _with_real_rows(record: AttentionRecord, block: AttentionBlock, mask: Tensor) -> AttentionRecord:
    """A real row of the example in the place of each padded one: zeros would have no spread to be normalised by."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    rows = torch.where(mask, positions, mask.int().argmax(1, keepdim=True)).to(record.weights.device)
    gate = None if record.gate is None else take_rows(record.gate, rows)
    return replace(record, weights=take_rows(record.weights, rows), gate=gate, block=block.at(rows), query_mask=None)


def without_padded_rows(scores: Tensor, record: AttentionRecord) -> Tensor:
    """Scores (batch, ..., query, key) with zeros in padded rows."""
    if record.block is None or record.query_mask is None:
        return scores
    return scores.masked_fill(~record.query_mask[..., None].to(scores.device), 0)


def score_dtype(record: AttentionRecord) -> torch.dtype:
    """float64 for models in float64, else float32."""
    return torch.float64 if record.values.dtype is torch.float64 else torch.float32


def _between(real: Tensor, row: Tensor) -> Tensor:
    """real (batch, key) against row (batch, key) or (batch, query, key)."""
    return real if row.ndim == 2 else real[:, None]
