"""Is a call self-attention, causal self-attention or cross-attention?

Where queries and keys come from tells cross-attention; whether any query looks ahead tells the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from captum_norm.capture.call import Kind, Positions
from captum_norm.capture.rows import Arranged, ReadRows, Whole
from captum_norm.capture.traces import Mixture
from captum_norm.capture.weights import Rows, Weights, version_of
from captum_norm.operations.callers import Caller
from captum_norm.operations.entries import all_true, any_true, without_repeats


class Told(NamedTuple):
    """What a mask tells of the queries and keys of a call.

    Attributes:
        seen: which keys each query may attend to in any head, (b, q, k) bool.
        queries: which of them are real tokens, (b, q) bool.
        keys: which keys are, (b, k) bool.
    """

    seen: Tensor
    queries: Tensor
    keys: Tensor


class KindReader:
    """Tells the kinds of calls; what lies ahead of which query is worked out once for calls of one structure."""

    def __init__(self) -> None:
        self._ahead: dict[tuple[int, int, int, int], _Ahead] = {}

    def read(
        self, mixture: Mixture, weights: Arranged | Whole, queries: Positions | None, keys: Positions | None,
        read: ReadRows | None, numbers: Tensor | None = None, told: Callable[[], Told | None] = lambda: None,
    ) -> Kind:  # fmt: skip
        """The kind of a call.

        Args:
            mixture: the call.
            weights: (batch, head, query, key).
            queries, keys: where its axes lie in the input, or None.
            read: the weights that were read already, or None.
            numbers: (batch, head, query), what the anchor of the keys counts the queries as, where examples differ.
            told: asked which tokens are padding where some query looks ahead; None where none is, or nobody knows.
        """
        ours, theirs = mixture.weights_place, mixture.values_place
        query, key = weights.shape[-2:]
        if mixture.reach[0] != mixture.reach[1] and _cross_attends(mixture.callers):
            return "cross"
        if theirs is not None and ours is not None:
            cached = ours.anchor.source == theirs.anchor.source and has_cache(mixture.callers)
            if ours.anchor.origin is not theirs.anchor.origin and not cached:
                return "cross"
        elif ours is None and theirs is not None and key != query and weights.shape[0] <= theirs.anchor.shape[0]:
            return "cross"  # queries of the module's own, such as a pooling head's; in more groups they are windows
        if queries is None and keys is not None and theirs is not None and numbers is not None:
            return "causal" if _looks_back(weights.whole(), numbers % theirs.anchor.length, keys) else "self"
        written = queries is not None and not queries.all_inputs  # behind the input, as generation goes on
        goes_on = written and all(one is None or one.in_order for one in (queries, keys))
        if queries is None or keys is None or queries.source != keys.source or goes_on:
            queries = keys = None
            if query != key and not (query < key and has_cache(mixture.callers)):
                return "self"
        structure = (query, key, id(queries), id(keys))
        if structure not in self._ahead:
            self._ahead[structure] = _Ahead(query, key, queries, keys)
        tells = mixture.used is None and not mixture.patterned and isinstance(weights, Arranged)
        allowed = mixture.allowed if tells else None
        if self._ahead[structure].is_avoided(weights, read, allowed):
            return "causal"
        mask = told() if query > 1 else None
        real = mask is not None and self._ahead[structure].is_avoided_by_real(weights, mask)
        return "causal" if real else "self"


def _looks_back(weights: Tensor, queries: Tensor, keys: Positions) -> bool:
    """Whether no query of (batch, head, query) gives weight to later keys, and some have any to avoid."""
    later = (keys.index > queries[..., None]).to(weights.device)
    return bool(later.any()) and not bool(((weights != 0) & later).any())


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
    for caller in callers:
        arguments = caller.arguments
        if not _CACHES.isdisjoint(arguments) and any(arguments.get(name) is not None for name in _CACHES):
            return True
    return False


_CACHES = frozenset(("past_key_values", "past_key_value", "layer_past", "cache"))

# What is added to the score of a key that is left out is less than this.
_LEAST = -1e30

# Queries whose weights or masks are looked at together, and how many weights are looked at first.
_ROWS = 256
_SOME = 8


class _Ahead:
    """Which keys come after which queries, and so whether weights that avoid them are causal.

    Attributes:
        queries, keys: a number for each, such that keys with a larger one come after a query.
        rows: the queries that have keys after them.
    """

    def __init__(self, query: int, key: int, queries: Positions | None, keys: Positions | None) -> None:
        if queries is not None and keys is not None:
            self.queries, self.keys = queries.index, keys.index
            if not queries.all_inputs and len(self.keys):  # what is no input comes behind all
                self.queries = self.queries.masked_fill(self.queries < 0, int(self.keys.amax()))
        else:
            self.queries, self.keys = (torch.arange(start, key, device="cpu") for start in (key - query, 0))
        self.rows = (self.queries < self.keys.amax()).nonzero()[:, 0] if key else self.queries[:0]
        self._kept = (queries, keys)  # the cache is keyed by their identity
        self._masks: dict[tuple[int, int], tuple[bool, Tensor]] = {}

    def is_avoided(self, weights: Arranged | Whole, read: ReadRows | None, allowed: Tensor | None) -> bool:
        """No query gives weight to later keys; rows without an allowed key (left padding) are uniform: no sign.

        Args:
            weights: (batch, head, query, key).
            read: those of some queries, which settle it for most encoders.
            allowed: which keys each query may attend to, (..., query, key) bool, where a mask tells.
        """
        if self.keys.numel() == 1:
            return False
        if self.queries.numel() == 1:
            return not self.rows.numel()  # one step of generation
        if not self.rows.numel() or (weights.queries_in_order and self._is_forbidden(weights.weights)):
            return True
        if not weights.queries_in_order or (allowed is not None and allowed.shape[-2:] != weights.shape[-2:]):
            allowed = None
        # A mask of -100 leaves what it hides a little weight.
        may_look = allowed is None or bool(any_true(allowed[..., 0, self._behind_first.to(allowed.device)]))
        if read is not None and may_look and self._first_looks(read):
            return False
        if allowed is not None:
            ahead = self._is_allowed(allowed)
            if ahead is not None:
                return not ahead
        if read is not None and self._looks(read.weights, torch.tensor(read.numbers))[0]:
            return False
        told = len(self.rows) == 1
        for rows in _split(self.rows):
            looks, tells = self._looks(weights.at(_for_all(rows, weights.shape[0])), rows)
            if looks:
                return False
            told = told or tells
        return told

    def _first_looks(self, read: ReadRows) -> bool:
        """Whether the first query gives weight to a later key in the first example, as that of an encoder does."""
        row = read.weights[0, 0, 0]
        some = row[:_SOME].tolist() if row.device.type == "cpu" and self._in_order else []
        if any(some[1:]) and min(some) != max(some):  # as a rule the first few tell
            return True
        ahead = row[self._behind_first.to(row.device)]
        return bool(ahead.any()) and bool(row.amax() != row.amin())

    def is_avoided_by_real(self, weights: Arranged | Whole, mask: Told) -> bool:
        """The same of the queries that are real tokens, where some of them have real ones to avoid.

        Args:
            weights: (batch, head, query, key).
            mask: what is told of its tokens.
        """
        ahead = self._is_allowed(mask.seen & mask.queries[..., None])
        if ahead:
            return False
        has_any = False
        for rows in _split(self.rows):
            real, keys = mask.queries[:, rows.to(mask.queries.device)], mask.keys.to(mask.queries.device)
            later = self._later(rows).to(keys.device)
            has_any = has_any or bool((real & (later & keys[:, None]).any(-1)).any())
            if ahead is None:
                given = weights.at(_for_all(rows, weights.shape[0]))
                if self._looks(given * real[:, None, :, None].to(given.device), rows)[0]:
                    return False
        return has_any

    @cached_property
    def _in_order(self) -> bool:
        """Whether every key but the first comes after the first query."""
        behind = self._behind_first
        return torch.equal(behind, torch.arange(1, len(self.keys), device=behind.device))

    @cached_property
    def _behind_first(self) -> Tensor:
        """The keys that come after the first query."""
        return (self.keys > self.queries[0]).nonzero()[:, 0]

    def _looks(self, weights: Tensor, rows: Tensor) -> tuple[bool, bool]:
        """Whether a query gives weight to a later key, and whether any tells; weights (batch, head, row, key)."""
        tells = weights.amax(-1) != weights.amin(-1)
        looks = (weights * self._later(rows).to(weights.device)).abs().amax(-1) > 0
        return bool((looks & tells).any()), bool(tells.any())

    def _is_allowed(self, allowed: Tensor) -> bool | None:
        """Whether a mask lets queries see later keys; None where only such do for which it leaves out nothing.

        A weight that is nothing may be that of a small score; and a row of padding alone may see everything.
        """
        everything, allowed = False, without_repeats(allowed).expand(*(-1,) * (allowed.ndim - 2), *allowed.shape[-2:])
        for rows in _split(self.rows):
            some = allowed[..., rows.to(allowed.device), :]
            ahead = any_true(some & self._later(rows).to(allowed.device), -1)
            if bool((ahead & ~all_true(some, -1)).any()):
                return True
            everything = everything or bool(ahead.any())
        return None if everything else False

    def _is_forbidden(self, weights: Weights) -> bool:
        """Whether a mask leaves out all later keys."""
        mask = weights.mask
        if weights.is_causal:  # query i sees keys 0 to i
            last = torch.arange(len(self.queries), device="cpu").clamp_max(len(self.keys) - 1)
            return bool((self.keys.cummax(0).values[last] <= self.queries).all())
        if mask is None or mask.shape[-1] != len(self.keys):
            return False
        known = (id(mask), version_of(mask))
        if known not in self._masks:
            self._masks[known] = (not any(self._leaves(mask, rows) for rows in _split(self.rows)), mask)
        return self._masks[known][0]

    def _leaves(self, mask: Tensor, rows: Tensor) -> bool:
        """Whether a mask leaves some later key to some of these queries."""
        chosen = mask if mask.shape[-2] == 1 else mask[..., rows.to(mask.device), :]
        allowed = chosen if chosen.dtype == torch.bool else chosen > _LEAST
        return bool(any_true(allowed & self._later(rows).to(mask.device)))

    def _later(self, rows: Tensor) -> Tensor:
        """(row, key) bool, True where the key comes after the query."""
        return self.keys > self.queries[rows, None]


def _split(rows: Tensor) -> list[Tensor]:
    return [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]


def _for_all(rows: Tensor, batch: int) -> Rows:
    """Rows of every example alike, as a slice where they are one."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows.expand(batch, -1)
