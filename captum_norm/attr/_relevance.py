"""The relevance of every sequence's positions to every other's, gathered call by call.

Axes: b batch, q query, k key.
"""

from __future__ import annotations

from torch import Tensor

from captum_norm.attr._aggregate import CallMap, Route, Stack, check_same_keys, identity, rows_of, square
from captum_norm.capture import AttentionCall, Positions
from captum_norm.functional.relevance import crossed


class Relevance:
    """R of Chefer et al. (2021), https://arxiv.org/abs/2103.15679: each call adds what it passes on.

        self-attention in s:      R_st <- R_st + A R_st for each sequence t that s has taken something from
        s attends to q:           R_sq <- R_sq + Rbar_ss^T A Rbar_qq,   R_ss <- R_ss + A R_qs

    R_ss = I to begin with, and R_st = 0 for another sequence.
    """

    by_row = False  # a row of R needs every row of the earlier maps

    def __init__(self) -> None:
        self._relevance: dict[Stack, dict[Stack, Tensor]] = {}
        self._keys: dict[Stack, Positions] = {}
        self._last: dict[Stack, AttentionCall] = {}

    def add(self, one: CallMap) -> None:
        queries, keys = one.route
        self._last[queries] = one.call
        if queries == keys:
            one = square(one)
            own = self._of(queries, one.scores.shape[1], one.scores)
            check_same_keys(self._keys.setdefault(keys, one.keys), one, "relevance")
            self._relevance[queries] = {stack: R + one.scores @ R for stack, R in own.items()}
        else:
            self._across(one)

    def routes(self) -> list[Route]:
        return [(queries, keys) for queries, found in self._relevance.items() for keys in found if keys in self._keys]

    def keys(self, route: Route) -> Positions:
        return self._keys[route[1]]

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        queries, keys = route
        return CallMap(self._last[queries], route, rows_of(self._relevance[queries][keys], rows), self._keys[keys])

    def _across(self, one: CallMap) -> None:
        queries, keys = one.route
        self._keys.setdefault(keys, one.keys)
        own = self._of(queries, one.scores.shape[1], one.scores)
        other = self._of(keys, one.scores.shape[2], one.scores)
        gained = crossed(own[queries], one.scores, other[keys])
        if queries in other:
            own = {**own, queries: own[queries] + one.scores @ other[queries]}
        self._relevance[queries] = {**own, keys: own[keys] + gained if keys in own else gained}

    def _of(self, stack: Stack, length: int, like: Tensor) -> dict[Stack, Tensor]:
        return self._relevance.get(stack, {stack: identity(length, like)})
