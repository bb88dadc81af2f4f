"""What each sequence owes to each along the whole model, by all paths: one state, and three ways in which a call's map
changes it (rollout, a product of whole layers, relevance).

The state is a matrix for each pair of sequences, R(queries, keys), (batch, query, key): what queries owe to keys
through the calls so far.  A sequence owes itself to itself to begin with, R(s, s) = I, and nothing to any other.

Axes: b batch, q query, k key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_norm.attr._maps import CallMap, LaterMap, Needs, Route, SequenceName, check_same_keys, rows_of, square
from captum_norm.capture import AttentionCall, Positions
from captum_norm.functional.aggregate import cross_shares, passed_on, with_identity
from captum_norm.functional.precision import full_precision
from captum_norm.functional.relevance import crossed
from captum_norm.functional.stacks import identity

Reach = Mapping[SequenceName, Tensor]
"""What one sequence owes to each."""


class Paths:
    """The state; a subclass says what the map of a call changes in it."""

    needs: ClassVar[Needs] = "all"  # a row of R needs every row of the earlier maps at once
    result_name: ClassVar[str] = "product"

    def __init__(self) -> None:
        self._reach: dict[SequenceName, Reach] = {}
        self._before: dict[SequenceName, Reach] = {}  # its last call that attended to another sequence
        self._keys: dict[SequenceName, Positions] = {}
        self._lengths: dict[SequenceName, int] = {}
        self._last: dict[SequenceName, AttentionCall] = {}

    def add(self, one: CallMap | LaterMap) -> None:
        """Take in the next call's map."""
        queries, keys = one.route
        if queries == keys and isinstance(one, CallMap):
            one = square(one)
        check_same_keys(self._keys.setdefault(keys, one.keys), one, self.result_name)
        before = self._lengths.setdefault(queries, one.length)
        if before != one.length:
            raise ValueError(
                f"{one.title} has {one.length} queries, and the calls before it had {before}: they are "
                f"other rows, and have no {self.result_name} together. Choose calls with kind= or call=, or use a "
                "Layer class."
            )
        self._last[queries] = one.call
        self._advance(one)

    def routes(self) -> list[Route]:
        """The pairs of sequences there is a result for."""
        return [(queries, keys) for queries in self._last for keys in self._reached(queries) if keys in self._keys]

    def keys(self, route: Route) -> Positions:
        """Where the key axis of a route's result lies."""
        return self._keys[route[1]]

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        """R of a route, those ``rows`` (batch, row) of it, or the sum of its rows by shares (batch, query)."""
        queries, keys = route
        return CallMap(self._last[queries], route, self._rows(queries, keys, rows), self._keys[keys])

    def _advance(self, one: Any) -> None:
        """What a map changes in the state."""
        raise NotImplementedError

    def _reached(self, queries: SequenceName) -> Iterable[SequenceName]:
        """The sequences that one owes to so far."""
        return self._reach[queries]

    def _rows(self, queries: SequenceName, keys: SequenceName, rows: Tensor | None) -> Tensor:
        return rows_of(self._reach[queries][keys], rows)

    def _of_queries(self, one: CallMap) -> Reach:
        """What the queries of a map owe to each; to themselves if they have taken in nothing yet."""
        return self._reach.get(one.route[0]) or {one.route[0]: identity(one.scores, one.scores.dtype)}

    def _of_keys(self, one: CallMap) -> Reach:
        reach = self._before if one.at_once else self._reach
        return reach.get(one.route[1]) or {one.route[1]: identity(one.scores.mT, one.scores.dtype)}

    def _crosses(self, queries: SequenceName) -> None:
        """Keep the state of a sequence before it attends to another one, which may attend to it at once."""
        self._before[queries] = self._reach.get(queries, {})


class Rollout(Paths):
    """The product of the maps along the model, cross-attention composed with the encoder that it reads.

    Each call rewrites its queries as a mixture of its keys:

        self-attention:   R(s, .) <- S R(s, .),  S = A, or with ``residual`` (A + I) / row sum
        cross-attention:  R(s, .) <- (A R(q, .) + R(s, .)) / (1 + row sum of A)
                          or, for measures that take the residual in, A R(q, .) + r R(s, .), r their share

    (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928; the composition with an encoder as in ALTI+, Ferrando et
    al. 2022, https://arxiv.org/abs/2205.11631).
    """

    needs: ClassVar[Needs] = "rows from the top"

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self._residual = residual
        # S of calls not multiplied yet, as a row may be all it takes; of some not even measured yet.
        self._steps: dict[SequenceName, list[Tensor | LaterMap]] = {}

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        """As for all paths; rows of steps that are not multiplied yet cost a product of vector and matrix each."""
        step = next(iter(self._steps.get(route[0]) or self._reach[route[0]].values()))
        device = step.record.device if isinstance(step, LaterMap) else step.device
        # attribute() may stand in an autocast region, which would take products to half precision.
        with full_precision(device):
            return super().result(route, rows)

    def _advance(self, one: CallMap | LaterMap) -> None:
        if isinstance(one, CallMap) and one.route[0] != one.route[1]:
            self._across(one)
            return
        steps = self._steps.setdefault(one.route[0], [])
        steps.append(one if isinstance(one, LaterMap) else self._step(one.scores))
        if sum(step.numel() for step in steps if isinstance(step, Tensor)) > _STEPS_KEPT:
            self._multiply(one.route[0])

    def _step(self, scores: Tensor, rows: slice | None = None) -> Tensor:
        """S of a map, or of some rows of it."""
        return with_identity(scores, rows) if self._residual else scores

    def _across(self, one: CallMap) -> None:
        if one.residual is None and not self._residual:
            raise ValueError(
                f"{one.title} is cross-attention, and a product without the residual stream ends there: what the "
                'queries themselves carried on is lost. Use residual=True, or kind="self" for the encoder alone.'
            )
        for sequence in one.route:
            self._multiply(sequence)
        shares, kept = cross_shares(one.scores) if one.residual is None else (one.scores, one.residual[..., None])
        own = {sequence: part * kept for sequence, part in self._of_queries(one).items()}
        self._crosses(one.route[0])
        self._reach[one.route[0]] = _passed_on(shares, self._of_keys(one), own)

    def _reached(self, queries: SequenceName) -> Iterable[SequenceName]:
        return self._reach.get(queries, [queries])

    def _rows(self, queries: SequenceName, keys: SequenceName, rows: Tensor | None) -> Tensor:
        steps = self._steps.get(queries)
        if rows is None or not steps:
            self._multiply(queries)
            return super()._rows(queries, keys, rows)
        scores = self._rows_of(steps[-1], rows)
        for step in reversed(steps[:-1]):
            scores = passed_on(scores, step) if isinstance(step, Tensor) else self._passed_later(scores, step)
        return passed_on(scores, self._reach[queries][keys]) if queries in self._reach else scores

    def _rows_of(self, step: Tensor | LaterMap, rows: Tensor) -> Tensor:
        """Rows (batch, row) of a step, or the sum of its rows by shares (batch, query)."""
        if isinstance(step, Tensor):
            return rows_of(step, rows)
        if rows.is_floating_point():
            return self._passed_later(rows[:, None].to(step.dtype), step)
        scores = step.at(rows)
        if not self._residual:
            return scores
        own = torch.zeros_like(scores).scatter_(2, rows[..., None].to(scores.device), 1)
        return (scores + own) / (1 + scores.sum(-1, keepdim=True))

    def _passed_later(self, scores: Tensor, later: LaterMap) -> Tensor:
        """scores (batch, row, query) @ S, without the blocks of queries that scores leave out."""
        device = later.record.device
        total = torch.zeros_like(scores, device=device)
        for rows, part in later.blocks((scores != 0).any(1).any(0).cpu()):
            total = passed_on(scores[..., rows].to(device), self._step(part, rows), own=total)
        return total

    def _multiply(self, sequence: SequenceName) -> None:
        """Multiply the steps of a sequence into its R."""
        for step in self._steps.pop(sequence, []):
            step = step if isinstance(step, Tensor) else self._step(step.whole().scores)
            reach = self._reach.get(sequence)
            self._reach[sequence] = {sequence: step} if reach is None else _passed_on(step, reach)


# Numbers that are kept so that a row of a product needs no products of whole maps: 64 MB in float32.
_STEPS_KEPT = 1 << 24


class LayerProduct(Paths):
    """The product of maps that hold a layer whole, residual connections included.

        R(s, .) <- sum over the layer's calls of s  A R(keys of the call, .)

    where the rows of all maps of a layer, those of one ``CallMap.layer``, add up to 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self._layer: int | None = None
        self._next: dict[SequenceName, Reach] = {}

    def routes(self) -> list[Route]:
        """As for all paths."""
        self._finish()
        return super().routes()

    def _advance(self, one: CallMap) -> None:
        if one.layer != self._layer:
            self._finish()
            if one.at_once:
                raise ValueError(
                    f"{one.title} attends to what its keys were before another layer: the product of layers has no "
                    "such state. Take AttentionRelevance, or AttentionNorm for each call by itself."
                )
        self._layer = one.layer
        queries = one.route[0]
        self._next[queries] = _passed_on(one.scores, self._of_keys(one), self._next.get(queries))

    def _rows(self, queries: SequenceName, keys: SequenceName, rows: Tensor | None) -> Tensor:
        self._finish()
        return super()._rows(queries, keys, rows)

    def _finish(self) -> None:
        """What comes next is another layer."""
        self._reach |= self._next
        self._next = {}


class Relevance(Paths):
    """R of Chefer et al. (2021), https://arxiv.org/abs/2103.15679: each call adds what it passes on.

        self-attention in s:      R(s, .) <- R(s, .) + A R(s, .)
        s attends to q:           R(s, q) <- R(s, q) + Rbar(s, s)^T A Rbar(q, q),   R(s, s) <- R(s, s) + A R(q, s)
    """

    result_name = "relevance"

    def _advance(self, one: CallMap) -> None:
        queries, keys = one.route
        own = self._of_queries(one)
        if queries == keys:
            self._reach[queries] = _passed_on(one.scores, own, own)
            return
        other = self._of_keys(one)
        gained = {keys: crossed(own[queries], one.scores, other[keys], own.get(keys))}
        if queries in other:
            gained[queries] = passed_on(one.scores, other[queries], own[queries])
        self._crosses(queries)
        self._reach[queries] = {**own, **gained}


def _passed_on(weights: Tensor, reach: Reach, own: Reach | None = None) -> Reach:
    """``passed_on`` in each sequence that the keys owe to; in the others, what the queries owe already."""
    own = own or {}
    return {**own, **{sequence: passed_on(weights, part, own.get(sequence)) for sequence, part in reach.items()}}
