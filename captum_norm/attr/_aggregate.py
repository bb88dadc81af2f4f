"""How the maps of many attention calls become one: their mean, one of them, their product along the model (rollout), or
how much can pass through them all (flow).

A *stack* is the sequence that an axis of a map counts: the index of an input, or a name where it is no input.  A map's
*route* is (stack of its queries, stack of its keys): (0, 0) in an encoder, (1, 0) in a decoder's cross-attention.

Axes: b batch, q query, r row asked for, k key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, SupportsIndex

import torch
from torch import Tensor

from captum_norm.attr._position import take_rows
from captum_norm.capture import AttentionCall, Positions
from captum_norm.functional import flow, rollout

Stack = int | str
Route = tuple[Stack, Stack]
AggregateType = str | SupportsIndex


@dataclass(frozen=True)
class CallMap:
    """A measure's map of one attention call.

    Attributes:
        call: whose map it is.
        route: the stacks of its queries and of its keys.
        scores: (batch, query, key), non-negative; zero at padding.
        keys: where the key axis lies in its stack.
        residual: what each query keeps of itself beside cross-attention, (batch, query), where the measure takes the
            block's residual in; else None.  In self-attention it is part of the query's own score.
    """

    call: AttentionCall
    route: Route
    scores: Tensor
    keys: Positions
    residual: Tensor | None = None


class Aggregate(Protocol):
    """Takes the maps in call order, keeps as little as it can, and gives one map per route."""

    by_row: bool
    """Whether a row of the result depends on the same row of each map alone, so that no other row is needed."""

    def add(self, one: CallMap) -> None:
        """Take in the next call's map."""

    def routes(self) -> list[Route]:
        """The routes there is a result for."""

    def keys(self, route: Route) -> Positions:
        """Where the key axis of a route's result lies, without computing the result."""

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        """The aggregated map, or those ``rows`` (batch, row) of it; its ``call`` is the last one that went into it."""


class Mean:
    """The mean over the calls of a route."""

    by_row = True

    def __init__(self) -> None:
        self._sums: dict[Route, CallMap] = {}
        self._counts: dict[Route, int] = {}

    def add(self, one: CallMap) -> None:
        known = self._sums.get(one.route)
        scores = one.scores
        if known is not None:
            _check_alike(known, one)
            scores = known.scores + scores
        self._sums[one.route] = CallMap(one.call, one.route, scores, one.keys)
        self._counts[one.route] = self._counts.get(one.route, 0) + 1

    def routes(self) -> list[Route]:
        return list(self._sums)

    def keys(self, route: Route) -> Positions:
        return self._sums[route].keys

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        total = self._sums[route]
        return CallMap(total.call, route, rows_of(total.scores, rows) / self._counts[route], total.keys)


class Single:
    """The n-th call of each route; negative n counts from the last."""

    by_row = True

    def __init__(self, n: int) -> None:
        self._n = n
        self._kept: dict[Route, list[CallMap]] = {}
        self._counts: dict[Route, int] = {}

    def add(self, one: CallMap) -> None:
        count = self._counts[one.route] = self._counts.get(one.route, 0) + 1
        kept = self._kept.setdefault(one.route, [])
        if self._n < 0:
            kept[:] = [*kept, one][self._n :]
        elif count == self._n + 1:
            kept.append(one)

    def routes(self) -> list[Route]:
        return list(self._counts)

    def keys(self, route: Route) -> Positions:
        return self._one(route).keys

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        one = self._one(route)
        return replace(one, scores=rows_of(one.scores, rows))

    def _one(self, route: Route) -> CallMap:
        count = self._counts[route]
        if not -count <= self._n < count:
            raise ValueError(
                f"aggregate={self._n} asks for one attention call, but there are {count}: give {-count} to "
                f'{count - 1}, or aggregate="mean".'
            )
        return self._kept[route][0]


# Numbers that are kept so that a row of a product needs no products of whole maps: 64 MB in float32.
_STEPS_KEPT = 1 << 24


class Rollout:
    """The product of the maps along the model, cross-attention composed with the encoder that it reads.

    Each call rewrites its queries as a mixture of its keys, so what a query reaches through the model so far is

        self-attention:   reach(queries) <- S reach(queries),  S = A, or with ``residual`` (A + I) / row sum
        cross-attention:  reach(queries) <- (A reach(keys) + reach(queries)) / (1 + row sum of A)
                          or, for measures that take the residual in, A reach(keys) + r reach(queries), r their share

    in each of the model's inputs, and a sequence reaches itself to begin with (Abnar and Zuidema 2020,
    https://arxiv.org/abs/2005.00928; the composition with an encoder as in ALTI+, Ferrando et al. 2022,
    https://arxiv.org/abs/2205.11631).
    """

    by_row = False  # a row of the product needs every row of the earlier maps

    def __init__(self, residual: bool) -> None:
        self._residual = residual
        self._reach: dict[Stack, dict[Stack, Tensor]] = {}
        self._steps: dict[Stack, list[Tensor]] = {}  # of self-attention, not yet multiplied: a row may be all it takes
        self._keys: dict[Stack, Positions] = {}
        self._last: dict[Stack, AttentionCall] = {}

    def add(self, one: CallMap) -> None:
        queries, keys = one.route
        self._last[queries] = one.call
        if queries == keys:
            self._through_itself(one)
        else:
            self._through_another(one)

    def routes(self) -> list[Route]:
        return [(queries, keys) for queries in self._last for keys in self._stacks_of(queries) if keys in self._keys]

    def keys(self, route: Route) -> Positions:
        return self._keys[route[1]]

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        queries, keys = route
        known = self._steps.get(queries) or list(self._reach[queries].values())
        # attribute() may stand in an autocast region, which would take products to half precision.
        with torch.autocast(known[0].device.type, enabled=False):
            scores = self._rows(queries, keys, rows)
        return CallMap(self._last[queries], route, scores, self._keys[keys])

    def _rows(self, queries: Stack, keys: Stack, rows: Tensor | None) -> Tensor:
        steps = self._steps.get(queries)
        if rows is None or not steps:
            return rows_of(self._multiplied(queries)[keys], rows)
        scores = rows_of(steps[-1], rows)
        for step in reversed(steps[:-1]):
            scores = scores @ step
        return scores @ self._reach[queries][keys] if queries in self._reach else scores

    def _stacks_of(self, queries: Stack) -> list[Stack]:
        """What a sequence reaches so far."""
        return list(self._reach.get(queries, [queries]))

    def _multiplied(self, stack: Stack) -> dict[Stack, Tensor]:
        """How a sequence reaches each of those, all steps multiplied; empty for one that attended to nothing yet."""
        for step in self._steps.pop(stack, []):
            reached = self._reach.get(stack)
            self._reach[stack] = {stack: step} if reached is None else {s: step @ r for s, r in reached.items()}
        return self._reach.get(stack, {})

    def _through_itself(self, one: CallMap) -> None:
        stack = one.route[0]
        one = square(one)
        check_same_keys(self._keys.setdefault(stack, one.keys), one, "product")
        steps = self._steps.setdefault(stack, [])
        steps.append(rollout([one.scores], residual=self._residual))
        if sum(step.numel() for step in steps) > _STEPS_KEPT:
            self._multiplied(stack)

    def _through_another(self, one: CallMap) -> None:
        queries, keys = one.route
        if one.residual is None and not self._residual:
            raise ValueError(
                f"{_title(one.call)} is cross-attention, and a product without the residual stream ends there: what "
                'the queries themselves carried on is lost. Use residual=True, or kind="self" for the encoder alone.'
            )
        self._keys.setdefault(keys, one.keys)
        source = self._multiplied(keys) or {keys: identity(one.scores.shape[2], one.scores)}
        own = self._multiplied(queries) or {queries: identity(one.scores.shape[1], one.scores)}
        scores = one.scores
        if one.residual is None:
            row_sum = 1 + scores.sum(-1, keepdim=True)
            scores, kept = scores / row_sum, 1 / row_sum
        else:
            kept = one.residual[..., None]
        reached = {stack: own_part * kept for stack, own_part in own.items()}
        for stack, source_part in source.items():
            reached[stack] = reached.get(stack, 0) + scores @ source_part
        self._reach[queries] = reached


class Flow:
    """How much can pass along the self-attention calls of a sequence, from each input to each output.

    Every entry of a map, or with ``residual`` of (A + I) / row sum, is the most that can pass along that edge; a score
    is the maximum flow between one input and one output, and the scores of an output are divided by their sum (Abnar
    and Zuidema 2020, https://arxiv.org/abs/2005.00928).  A flow is computed for each pair on its own, so all maps are
    kept, and a result is computed for the rows asked for alone.
    """

    by_row = False  # a row of the result needs every row of the earlier maps

    def __init__(self, residual: bool) -> None:
        self._residual = residual
        self._steps: dict[Route, list[Tensor]] = {}
        self._keys: dict[Route, Positions] = {}
        self._last: dict[Route, AttentionCall] = {}

    def add(self, one: CallMap) -> None:
        if one.route[0] != one.route[1]:
            raise ValueError(
                f"{_title(one.call)} is cross-attention, and attention flow is defined within one sequence. Use "
                'kind="self" for each sequence by itself, or AttentionRollout, which composes both.'
            )
        one = square(one)
        check_same_keys(self._keys.setdefault(one.route, one.keys), one, "flow")
        self._last[one.route] = one.call
        self._steps.setdefault(one.route, []).append(rollout([one.scores], residual=self._residual))

    def routes(self) -> list[Route]:
        return list(self._steps)

    def keys(self, route: Route) -> Positions:
        return self._keys[route]

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        *lower, last = self._steps[route]
        scores = flow([*lower, rows_of(last, rows)])
        return CallMap(self._last[route], route, scores, self._keys[route])


_BY_NAME: dict[str, Callable[[bool], Aggregate]] = {
    "mean": lambda residual: Mean(),
    "rollout": Rollout,
    "flow": Flow,
}
_WITH_RESIDUAL = ("rollout", "flow")


def make_aggregate(aggregate: AggregateType, residual: bool = False) -> Aggregate:
    """A fresh aggregate for one pass over a model.

    Args:
        aggregate: ``"mean"`` over calls, ``"rollout"``, ``"flow"``, or the number of one call (negative from the last).
        residual: rollout and flow only: give the residual stream the same share as attention, (A + I) / row sum.

    Raises:
        ValueError: if there is no such aggregate, or ``residual`` is asked of one that has none.

    Example:
        >>> type(make_aggregate(-1)).__name__
        'Single'
    """
    if residual and aggregate not in _WITH_RESIDUAL:
        raise ValueError(
            f'residual=True belongs to aggregate="rollout" or "flow", not to {aggregate!r}: only these follow paths '
            "through the model."
        )
    if isinstance(aggregate, str) and aggregate in _BY_NAME:
        return _BY_NAME[aggregate](residual)
    if isinstance(aggregate, SupportsIndex) and not isinstance(aggregate, bool):
        return Single(aggregate.__index__())
    known = ", ".join(f'"{name}"' for name in _BY_NAME)
    raise ValueError(f"aggregate={aggregate!r} is not known: use {known}, or an integer for one attention call.")


def rows_of(scores: Tensor, rows: Tensor | None) -> Tensor:
    """Those rows (batch, row) of a map, or all."""
    return scores if rows is None else take_rows(scores, rows)


def check_same_keys(known: Positions, one: CallMap, what: str) -> None:
    """Refuse a map whose keys lie elsewhere than those of the calls before it."""
    if known.index.shape != one.keys.index.shape or not torch.equal(known.index, one.keys.index):
        raise ValueError(f"{_title(one.call)}: its keys are not those of the calls before it; they have no {what}.")


def _check_alike(known: CallMap, one: CallMap) -> None:
    if known.scores.shape != one.scores.shape or not torch.equal(known.keys.index, one.keys.index):
        raise ValueError(
            f"{_title(one.call)} has a map of shape {tuple(one.scores.shape)} and {_title(known.call)} one of "
            f"{tuple(known.scores.shape)}, or their keys lie at other positions: they have no mean. Choose calls with "
            "aggregate=<number> or call=, or use a Layer class."
        )


def square(one: CallMap) -> CallMap:
    """The map over its own queries alone: keys that are no input (memory, sinks) pass nothing on."""
    if one.scores.shape[1] == one.scores.shape[2]:
        return one
    own = (one.keys.index >= 0).nonzero().flatten().to(one.scores.device)
    if len(own) != one.scores.shape[1]:
        raise ValueError(
            f"{_title(one.call)} has {one.scores.shape[1]} queries and {len(own)} keys that are inputs: rollout "
            'and flow need as many of one as of the other. Use aggregate="mean".'
        )
    keys = Positions(one.keys.source, one.keys.index[one.keys.index >= 0], one.keys.grid)
    return CallMap(one.call, one.route, one.scores[..., own], keys)


def identity(size: int, like: Tensor) -> Tensor:
    """I for each example of ``like``, (batch, size, size)."""
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(len(like), size, size)


def _title(call: AttentionCall) -> str:
    return f"attention call {call.name!r} ({call.kind}, call {call.call})"
