"""Which tokens of an attention call are real: those that attention looks at from a real token.

What it was allowed to look at is read off in :mod:`captum_norm.capture.masks`, never off an argument's name.  A token
that one call hides is real all the same where another one looks at it (:mod:`captum_norm.capture.looked_at`).

Axes: b batch, h head, q query, k key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_norm.capture.call import Kind, Positions
from captum_norm.capture.joining import Joined
from captum_norm.capture.kind import Told, has_cache
from captum_norm.capture.looked_at import LookedAt, Sight
from captum_norm.capture.mask_origins import without_padding
from captum_norm.capture.rows import Arranged, Whole
from captum_norm.capture.weights import is_unmasked_behind
from captum_norm.operations.entries import all_true, any_true
from captum_norm.operations.places import Source

# Queries whose weights are looked at together.
_ROWS = 256


class Allowed(NamedTuple):
    """What attention was allowed to look at.

    Attributes:
        keys: which keys each query may attend to in any head, (b, q, k) bool.
        used: which of them it does attend to, where others were left out for being small; else None.
        unseen_are_padding: whether a token that sees others and that no other one sees is padding: not where a pattern
            of the model's own hides it, nor where a selection of positions tells what padding is.
    """

    keys: Tensor
    used: Tensor | None
    unseen_are_padding: bool


class RealTokens:
    """Tells the real tokens of each call, and remembers those of each sequence for what attends from it elsewhere."""

    def __init__(self) -> None:
        self._of: dict[Source, tuple[Tensor, Tensor]] = {}
        self._looked_at: dict[Source, LookedAt] = {}
        self._last: tuple[Joined, Allowed | None] | None = None  # asked for again as a rule

    def told(self, call: Joined, queries: Positions | None, keys: Positions | None) -> Told | None:
        """What the mask of self-attention says of its tokens; None where all are real, or nobody knows.

        Args:
            call: the call.
            queries, keys: where its axes lie in the input, or None.
        """
        self._last = call, _seen(call, queries, keys)
        seen = self._last[1]
        real = None if seen is None else real_keys(seen.keys, seen.unseen_are_padding)
        if seen is None or real is None:
            return None
        ours = _of_queries(real, seen.keys, queries, keys, has_cache(call.parts[0].mixture.callers))
        return None if ours is None else Told(seen.keys, ours, real)

    def read(
        self, call: Joined, kind: Kind, queries: Positions | None, keys: Positions | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which queries (batch, query) and which keys (batch, key) are real tokens; None where all are.

        Args:
            call: the call.
            kind: its kind.
            queries, keys: where its axes lie in the input, or None.
        """
        seen = self._last[1] if self._last is not None and self._last[0] is call else _seen(call, queries, keys)
        self._last = None
        real = None if seen is None else real_keys(seen.keys, seen.unseen_are_padding)
        if keys is not None:
            looked_at = self._looked_at.setdefault(keys.source, LookedAt())
            if real is None or _hides_no_input(real, keys):
                looked_at.add(self._sight(looked_at, call, seen, kind, queries, keys))
                real = None if real is None else looked_at.spread(real, keys)
            else:
                real = looked_at.add_masked(real, keys)
            real = None if real is None or bool(real.all()) else real
        if seen is None or real is None:
            return (self._known(queries) if kind == "cross" else None), None
        if kind == "cross":
            return self._known(queries), real
        cached = has_cache(call.parts[0].mixture.callers)
        ours = _of_queries(real, seen.keys, queries, keys, cached)
        if ours is not None and queries is not None:
            self._of[queries.source] = queries.index, ours
        return ours, real

    def looked_at(self, keys: Positions | None) -> LookedAt | None:
        """What is known of the tokens that a call's keys are, from call to call; None where these are not known."""
        return None if keys is None else self._looked_at.get(keys.source)

    def _sight(
        self, looked_at: LookedAt, call: Joined, seen: Allowed | None, kind: Kind, queries: Positions | None,
        keys: Positions,
    ) -> Sight | None:  # fmt: skip
        """What a call that hides no token looks at; None where it is not known which queries are tokens of padding."""
        allowed, back = None, False
        if any(part.mixture.patterned for part in call.parts):
            allowed = _with_weight(call.weights)
        elif seen is not None:
            allowed = seen.keys if seen.used is None else seen.used
        elif not all(part.mixture.unmasked for part in call.parts) or call.over_keys is not None:
            back = kind == "causal" and keys.all_inputs and queries is not None and queries.all_inputs
            back = back and all(is_unmasked_behind(part.mixture.weights) for part in call.parts)
            allowed = None if back else _with_weight(call.weights)
        if kind == "cross":
            real = self._known(queries)
            if allowed is not None and real is not None:
                allowed = allowed & real[..., None].to(allowed.device)
            return Sight(looked_at.places(keys), None, None if allowed is None else allowed.any(1, keepdim=True))
        square = call.weights.shape[2] == call.weights.shape[3]
        known = queries if queries is not None and queries.source == keys.source else keys if square else None
        if known is None and (allowed is not None or back):
            return None
        places = looked_at.places(keys)
        return Sight(places, None if known is None else looked_at.places(known), allowed, back)

    def _known(self, queries: Positions | None) -> Tensor | None:
        index, real = self._of.get(queries.source, (None, None)) if queries is not None else (None, None)
        return real if index is not None and queries is not None and torch.equal(index, queries.index) else None


def _seen(call: Joined, queries: Positions | None, keys: Positions | None) -> Allowed | None:
    """What a call was allowed to look at; None where that is everything, or nobody knows."""
    mixtures = [part.mixture for part in call.parts]
    allowed, used = [mixture.allowed for mixture in mixtures], [mixture.used for mixture in mixtures]
    some_left_out = any(one is not None for one in used)
    if not some_left_out and all(one is None for one in allowed):
        return None
    seen = _in_any_head(call, allowed)
    if seen is None:
        return None
    selections = [one for mixture in mixtures for one in mixture.selections]
    kept = _in_any_head(call, used) if some_left_out else None
    own = _own_keys(queries, keys) if seen.shape[1] < seen.shape[2] else None
    seen, told = without_padding(seen, selections, kept, own)
    return Allowed(seen, kept, not told and any(mixture.given for mixture in mixtures))


def _hides_no_input(real: Tensor, keys: Positions) -> bool:
    """Whether what is not real among the keys is no input: spare slots of a cache, learned vectors."""
    return bool((real | (keys.index < 0).to(real.device)).all())


def _with_weight(weights: Arranged | Whole) -> Tensor:
    """Which keys each query gives weight to in any head, (b, q, k) bool, some queries at a time."""
    batch, query = weights.shape[0], weights.shape[2]
    every = torch.arange(query).expand(batch, -1)
    blocks = (weights.at(every[:, start : start + _ROWS]) for start in range(0, query, _ROWS))
    return torch.cat([any_true(rows != 0, 1) for rows in blocks], 1)


def _own_keys(queries: Positions | None, keys: Positions | None) -> Tensor | None:
    """Which key each query is itself, (q,), where all others are no input (spare slots of a cache); else None."""
    if queries is None or keys is None or queries.source != keys.source or not queries.all_inputs:
        return None
    matches = queries.index[:, None] == keys.index
    each = bool((matches.sum(-1) == 1).all()) and bool((matches.any(0) == (keys.index >= 0)).all())
    return matches.int().argmax(-1) if each else None


def _in_any_head(call: Joined, of_parts: Sequence[Tensor | None]) -> Tensor | None:
    """What is told of the weights of each part, all True where None, for the call as a whole, (b, q, k) bool."""
    parts = []
    for part, told in zip(call.parts, of_parts, strict=True):
        mixture = part.mixture
        if told is None:
            told = torch.ones(mixture.weights.shape[-2:], dtype=torch.bool, device=mixture.weights.device)
        parts.append(part.layout.weights(told, mixture.lead))
    try:
        found = any_true((call.over_keys or call.arrange)(parts), 1)
    except RuntimeError:  # parts with keys of their own
        return None
    return found if found.shape[1:] == call.weights.shape[2:] else None


def real_keys(seen: Tensor, unseen_are_padding: bool = True) -> Tensor | None:
    """Which keys are real tokens.

    Where a row of nothing but padding would have no key at all, some models let it attend to everything, and some let
    every token attend to itself; such rows say nothing.

    Args:
        seen: (b, q, k) bool, which keys each query may attend to.
        unseen_are_padding: whether tokens that see others, and that no other one sees, are padding.

    Returns:
        (b, k) bool; None where all are real.

    Example:
        >>> padded_on_the_left = torch.tensor([[[1, 1, 1], [0, 1, 0], [0, 1, 1]]]).bool()
        >>> real_keys(padded_on_the_left)
        tensor([[False,  True,  True]])
    """
    query, key = seen.shape[1:]
    everything = all_true(seen, -1)
    partly = seen & ~everything[..., None]
    real = any_true(partly, 1)
    if query <= key:
        backwards = ~any_true(partly.triu(key - query + 1).flatten(1), -1)
        # Where all others look back, a row that looks ahead is one of padding alone; the last sees the whole text.
        tells = everything & (real[:, key - query :] | ~backwards[:, None] | torch.tensor(query < 3))
        tells[:, -1] |= everything[:, -1]
    else:
        tells = everything
    if query == key and unseen_are_padding:
        real &= ~_only_by_themselves(partly, real & ~backwards[:, None])
    real = real | (tells.any(-1) | ~any_true(partly.flatten(1), -1) & everything.any(-1))[:, None]
    return None if bool(all_true(real)) else real


def _only_by_themselves(seen: Tensor, among: Tensor) -> Tensor:
    """Tokens that see others and are seen by none; one alone behind all others may be the last of a text."""
    others = seen & ~torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
    alone = among & ~any_true(others, 1) & any_true(others, -1)
    behind = torch.arange(seen.shape[1], device=seen.device) > (among & ~alone).int().cumsum(-1).argmax(-1)[:, None]
    return alone & ~((alone.sum(-1) == 1)[:, None] & behind)


def _of_queries(
    real: Tensor, seen: Tensor, queries: Positions | None, keys: Positions | None, cached: bool
) -> Tensor | None:
    """Which queries are real, of self-attention: those whose own key is."""
    query, key = seen.shape[1:]
    known = queries is not None and keys is not None and queries.source == keys.source
    if query == key and not (known and not torch.equal(queries.index, keys.index)):  # type: ignore[union-attr]
        # No token sees itself: whether another one does says nothing of the last.
        return real if bool((seen.diagonal(dim1=1, dim2=2)).any()) else None
    if queries is not None and keys is not None and known:
        matches = (queries.index[:, None] == keys.index) & (queries.index >= 0)[:, None]
        place = matches.int().argmax(-1).to(real.device)
        return real[:, place] | ~matches.any(-1).to(real.device)
    return real[:, -query:] if cached and query < key and bool(real[:, -query:].any()) else seen.any(-1)
