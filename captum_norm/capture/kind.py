"""Is a call self-attention, causal self-attention or cross-attention?

Where queries and keys come from tells cross-attention; whether any query looks ahead tells the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_norm.capture.record import Kind, Positions
from captum_norm.capture.traces import Mixture
from captum_norm.operations.callers import Caller


class KindReader:
    """Tells the kinds of calls; what lies ahead of which query is worked out once for calls of one structure."""

    def __init__(self) -> None:
        self._ahead: dict[tuple[int, int, int, int], _Ahead] = {}

    def read(self, mixture: Mixture, weights: Tensor, queries: Positions | None, keys: Positions | None) -> Kind:
        """The kind of a call.

        Args:
            mixture: the call.
            weights: (batch, head, query, key).
            queries, keys: where its axes lie in the input, or None.
        """
        ours, theirs = mixture.weights_place, mixture.values_place
        query, key = weights.shape[-2:]
        if mixture.reach[0] != mixture.reach[1] and _cross_attends(mixture.callers):
            return "cross"
        if theirs is not None and ours is not None:
            cached = ours.anchor.source == theirs.anchor.source and has_cache(mixture.callers)
            if ours.anchor.origin is not theirs.anchor.origin and not cached:
                return "cross"
        elif ours is None and theirs is not None and key != query:
            return "cross"  # queries of the module's own, such as a pooling head's
        written = queries is not None and bool((queries.index < 0).any())  # behind the input, as generation goes on
        if queries is None or keys is None or queries.source != keys.source or written:
            queries = keys = None
            if query != key and not (query < key and has_cache(mixture.callers)):
                return "self"
        structure = (query, key, id(queries), id(keys))
        if structure not in self._ahead:
            self._ahead[structure] = _Ahead(query, key, queries, keys)
        return "causal" if self._ahead[structure].is_avoided(weights) else "self"


def _cross_attends(callers: tuple[Caller, ...]) -> bool:
    """The innermost module was given what a module around it was given to cross-attend to.

    It may be its own sequence, whatever the argument is called, where weights and values were made of the same.
    """
    if not callers:
        return False
    given = callers[-1].arguments
    if any(isinstance(given.get(name), Tensor) for name in ("key_value_states", "encoder_hidden_states")):
        return True
    memories = [caller.arguments.get(name) for caller in callers[:-1] for name in ("memory", "encoder_hidden_states")]
    return any(value is memory for value in given.values() for memory in memories if isinstance(memory, Tensor))


def has_cache(callers: tuple[Caller, ...]) -> bool:
    """The keys of earlier forward passes come before those of this one."""
    names = ("past_key_values", "past_key_value", "layer_past", "cache")
    return any(caller.arguments.get(name) is not None for caller in callers for name in names)


class _Ahead:
    """Which keys come after which queries, and so whether weights that avoid them are causal.

    Attributes:
        mask: (query, key) bool, True where the key comes after the query.
        rows: the queries that have keys after them.
    """

    def __init__(self, query: int, key: int, queries: Positions | None, keys: Positions | None) -> None:
        if queries is not None and keys is not None:
            self.mask = keys.index[None, :] > queries.index[:, None]
        else:
            self.mask = torch.ones(query, key, dtype=torch.bool, device="cpu").triu(key - query + 1)
        self.rows = self.mask.any(-1).nonzero()[:, 0]
        self._kept = (queries, keys)  # the cache is keyed by their identity

    def is_avoided(self, weights: Tensor) -> bool:
        """No query gives weight to later keys; rows without an allowed key (left padding) are uniform: no sign.

        Args:
            weights: (batch, head, query, key); one head is looked at.
        """
        query, key = self.mask.shape
        if key == 1:
            return False
        if query == 1:
            return not len(self.rows)  # one step of generation
        # The first query that could look ahead settles it for most encoders.
        return self._some_say_so(weights, self.rows[:1]) and self._some_say_so(weights, self.rows)

    def _some_say_so(self, weights: Tensor, rows: Tensor) -> bool:
        chosen = weights[:, 0, int(rows[0]) : int(rows[0]) + 1] if len(rows) == 1 else weights[:, 0, rows]
        looks = (chosen * self.mask[rows].to(chosen.device)).abs().amax(-1) > 0
        tells = chosen.amax(-1) != chosen.amin(-1)
        return bool(~(looks & tells).any() & (tells.any() | (len(rows) == 1)))
