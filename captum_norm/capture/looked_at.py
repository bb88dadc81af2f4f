"""Which tokens of a sequence do its calls look at, from real ones?  These are real, whatever other calls hide.

    real <- real or seen by a real token in a call that hides none,  until nothing is added

A mask of one layer alone (tokens that it skips, keys at a stride) hides no padding: other layers look at what it hides.

Axes: b batch, q query, k key, n position of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from captum_norm.capture.call import Positions


@dataclass(frozen=True, eq=False)
class Sight:
    """What one call looks at.

    Attributes:
        keys: the place of each key among those of its sequence, (k,); -1 where it is not known.
        queries: the same of the queries, (q,); None where they are all real, or it does not matter which are.
        allowed: which keys each query looks at, (b or 1, q or 1, k) bool; None for all.
        back: whether no query looks at what comes after it.
    """

    keys: Tensor
    queries: Tensor | None
    allowed: Tensor | None = None
    back: bool = False

    def is_that_of(self, other: Sight) -> bool:
        """Whether another call looks at the same."""
        return self.back == other.back and all(
            one is two or (one is not None and two is not None and torch.equal(one, two))
            for one, two in ((self.keys, other.keys), (self.queries, other.queries), (self.allowed, other.allowed))
        )

    def of(self, real: Tensor) -> Tensor | None:
        """The places that it looks at from real ones, (b or 1, n) bool; None for other examples than these.

        Args:
            real: (b, n) bool.
        """
        keys, allowed = self.keys.to(real.device), self.allowed
        allowed = keys.new_ones(1, 1, len(keys)).bool() if allowed is None else allowed.to(real.device)
        if len(allowed) not in (1, len(real)):
            return None
        if self.queries is not None:
            queries = self.queries.to(real.device)
            if self.back:
                allowed = allowed & (keys <= queries[:, None])
            inputs = (queries >= 0) & (queries < real.shape[1]) & (queries % 2 == 0)
            rows = real[:, torch.where(inputs, queries, 0)] & inputs | (queries % 2 == 1) & (queries >= 0)
            allowed = allowed & rows[..., None]
        return _over_places(allowed.any(1), keys)


class LookedAt:
    """What is known of one sequence, from call to call.

    Its tokens have places: position n of the input 2 n, and what is no input (a class token) an odd number of its own.
    """

    def __init__(self) -> None:
        self._sights: list[Sight] = []
        self._real: Tensor | None = None
        self._others: dict[int, int] = {}

    def places(self, axis: Positions) -> Tensor:
        """The place of each entry of an axis, (n,); -1 where it is not known."""
        numbers = axis.index if axis.rows is None else axis.rows
        places, others = torch.where(numbers < 0, -1, 2 * numbers), numbers < -1
        if others.any():
            found = [2 * self._others.setdefault(n, len(self._others)) + 1 for n in numbers[others].tolist()]
            places[others] = places.new_tensor(found)
        return places

    def add(self, sight: Sight | None) -> None:
        """Take in a call that hides no token; None where it says nothing."""
        if sight is not None and not any(sight.is_that_of(other) for other in self._sights):
            self._sights.append(sight)

    def add_masked(self, real: Tensor, keys: Positions) -> Tensor:
        """Take in a call that hides some tokens: the real ones among its keys, with those that others look at.

        Args:
            real: (b, k) bool, those that it does not hide.
            keys: which they are.
        """
        found = _over_places(real, self.places(keys))
        self._real = found if self._real is None or len(self._real) != len(found) else _either(self._real, found)
        return self.spread(real, keys)

    def spread(self, real: Tensor, axis: Positions) -> Tensor:
        """Real tokens with all those that calls look at from these, (b, n) bool.

        Args:
            real: (b, n) bool.
            axis: which they are.
        """
        places = self.places(axis).to(real.device)
        found, before = _over_places(real, places), None
        if self._real is not None and len(self._real) == len(found):
            found = _either(found, self._real)
        while before is None or not torch.equal(before, found):
            before = found
            for sight in self._sights:
                looked_at = sight.of(found)
                if looked_at is not None:
                    found = _either(found, looked_at)
        known = (places >= 0) & (places < found.shape[1])
        return real | found[:, torch.where(known, places, 0)] & known if bool(known.any()) else real


def _over_places(real: Tensor, places: Tensor) -> Tensor:
    """What is told of the entries of an axis, (b, k) bool, told of all places, (b, n)."""
    places = places.to(real.device)
    known = places >= 0
    found = torch.zeros(len(real), int(places.amax()) + 1 if len(places) else 0, dtype=torch.long, device=real.device)
    return found.index_add(1, places[known], real[:, known].long()) > 0


def _either(one: Tensor, other: Tensor) -> Tensor:
    """What is true of either, of as many places as the longer has."""
    length = max(one.shape[1], other.shape[1])
    one, other = (pad(each, (0, length - each.shape[1])) for each in (one, other.to(one.device)))
    return one | other
