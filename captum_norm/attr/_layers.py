"""A product along the model of maps that hold a layer whole, residual connections included.

Axes: b batch, q query, k key.
"""

from __future__ import annotations

from torch import Tensor

from captum_norm.attr._aggregate import CallMap, Route, Stack, check_same_keys, identity, rows_of, square
from captum_norm.capture import AttentionCall, Positions


class LayerProduct:
    """What a query reaches after a layer is the sum over the layer's attention calls of

        reach(queries) <- sum_calls  map(call) reach(keys of the call)

    where the rows of all maps of a layer add up to 1, and a sequence reaches itself to begin with.  :meth:`begin` is
    called before the maps of each layer.
    """

    by_row = False  # a row of the product needs every row of the earlier maps

    def __init__(self) -> None:
        self._reach: dict[Stack, dict[Stack, Tensor]] = {}
        self._next: dict[Stack, dict[Stack, Tensor]] = {}
        self._keys: dict[Stack, Positions] = {}
        self._last: dict[Stack, AttentionCall] = {}

    def begin(self) -> None:
        """What comes next is another layer."""
        self._reach |= self._next
        self._next = {}

    def add(self, one: CallMap) -> None:
        queries, keys = one.route
        if queries == keys:
            one = square(one)
        check_same_keys(self._keys.setdefault(keys, one.keys), one, "product")
        self._last[queries] = one.call
        reached = self._next.setdefault(queries, {})
        for stack, part in self._reach.get(keys, {keys: identity(one.scores.shape[2], one.scores)}).items():
            step = one.scores @ part
            reached[stack] = reached[stack] + step if stack in reached else step

    def routes(self) -> list[Route]:
        self.begin()
        return [(queries, keys) for queries, reached in self._reach.items() for keys in reached if keys in self._keys]

    def keys(self, route: Route) -> Positions:
        return self._keys[route[1]]

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        self.begin()
        queries, keys = route
        return CallMap(self._last[queries], route, rows_of(self._reach[queries][keys], rows), self._keys[keys])
