"""How the maps of many attention calls become one: their mean, one of them, their product along the model (rollout), or
how much can pass through them all (flow).

Axes: b batch, q query, r row asked for, k key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol, SupportsIndex

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from captum_norm.attr._maps import CallMap, Needs, Route, check_same_keys, rows_of, square, with_keys_as
from captum_norm.attr._paths import Rollout
from captum_norm.capture import AttentionCall, Positions
from captum_norm.functional import flow
from captum_norm.functional.aggregate import with_identity

AggregateType = str | SupportsIndex


class Aggregate(Protocol):
    """Takes the maps in call order, keeps as little as it can, and gives one map per route."""

    needs: ClassVar[Needs]

    def add(self, one: CallMap) -> None:
        """Take in the next call's map."""

    def routes(self) -> list[Route]:
        """The routes there is a result for."""

    def keys(self, route: Route) -> Positions:
        """Where the key axis of a route's result lies, without computing the result."""

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        """The aggregated map, those ``rows`` (batch, row) of it or, unless it needs all, their sum by shares (batch,
        query); its ``call`` is the last one that went into it."""


class Mean:
    """The mean over the calls of a route."""

    needs: ClassVar[Needs] = "rows"

    def __init__(self) -> None:
        self._sums: dict[Route, CallMap] = {}
        self._counts: dict[Route, int] = {}

    def add(self, one: CallMap) -> None:
        known = self._sums.get(one.route)
        if known is not None:
            one = with_keys_as(known.keys, one)
        scores = one.scores
        if known is not None:
            _check_alike(known, one)
            scores = known.scores + scores
        self._sums[one.route] = replace(one, scores=scores, residual=None)
        self._counts[one.route] = self._counts.get(one.route, 0) + 1

    def routes(self) -> list[Route]:
        return list(self._sums)

    def keys(self, route: Route) -> Positions:
        return self._sums[route].keys

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        total = self._sums[route]
        return replace(total, scores=rows_of(total.scores, rows) / self._counts[route])


class Total(Mean):
    """The sum over the calls of a route."""

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        total = self._sums[route]
        return replace(total, scores=rows_of(total.scores, rows))


class Single:
    """The n-th call of each route; negative n counts from the last."""

    needs: ClassVar[Needs] = "rows"

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

    def of_each(self, routes: Sequence[Route | None]) -> list[int]:
        """Which calls are the n-th of their routes, of calls of these routes in their order."""
        found = list[int]()
        for route in dict.fromkeys(routes):
            of_route = [number for number, one in enumerate(routes) if one == route]
            if route is not None and -len(of_route) <= self._n < len(of_route):
                found.append(of_route[self._n])
        return found

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


class Flow:
    """How much can pass along the self-attention calls of a sequence, from each input to each output.

    Every entry of a map, or with ``residual`` of (A + I) / row sum, is the most that can pass along that edge; a score
    is the maximum flow between one input and one output, and the scores of an output are divided by their sum (Abnar
    and Zuidema 2020, https://arxiv.org/abs/2005.00928).  A flow is computed for each pair on its own, so all maps are
    kept, and a result is computed for the rows asked for alone.
    """

    needs: ClassVar[Needs] = "all"

    def __init__(self, residual: bool, show_progress: bool = False) -> None:
        self._residual, self._show_progress = residual, show_progress
        self._steps: dict[Route, list[Tensor]] = {}
        self._keys: dict[Route, Positions] = {}
        self._last: dict[Route, AttentionCall] = {}

    def add(self, one: CallMap) -> None:
        if one.route[0] != one.route[1]:
            raise ValueError(
                f"{one.title} is cross-attention, and attention flow is defined within one sequence. Use "
                'kind="self" for each sequence by itself, or AttentionRollout, which composes both.'
            )
        one = square(one)
        check_same_keys(self._keys.setdefault(one.route, one.keys), one, "flow")
        self._last[one.route] = one.call
        step = with_identity(one.scores) if self._residual else one.scores
        self._steps.setdefault(one.route, []).append(step)

    def routes(self) -> list[Route]:
        return list(self._steps)

    def keys(self, route: Route) -> Positions:
        return self._keys[route]

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        *lower, last = self._steps[route]
        last = rows_of(last, rows)
        count = len(last) * last.shape[1] * (lower or [last])[0].shape[2]
        with tqdm(total=count, desc="attention flow", unit="flow", disable=not self._show_progress) as bar:
            scores = flow([*lower, last], on_found=bar.update)
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


def _check_alike(known: CallMap, one: CallMap) -> None:
    if known.scores.shape != one.scores.shape or not torch.equal(known.keys.index, one.keys.index):
        raise ValueError(
            f"{one.title} has a map of shape {tuple(one.scores.shape)} and {known.title} one of "
            f"{tuple(known.scores.shape)}, or their keys lie at other positions: they have no mean. Choose calls with "
            "aggregate=<number> or call=, or use a Layer class."
        )
