"""Calls that are complete, and are read together with others where that costs less.

Between two operations of a model its numbers push Python's own out of the processor's caches: what reads a call takes
up to twice as long there as right behind another call.  So a call may wait for others, while all that wait hold little,
and until something is written that they may be read from.  Where torch counts no writes, or a tensor lives no longer
than what it is wrapped in (``torch.vmap``), a call does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from captum_norm.capture.traces import Mixture, Projection
from captum_norm.functional.precision import full_precision

# Calls wait while all that they hold is no larger, in bytes.
_MOST_HELD = 1 << 24


class _Complete(NamedTuple):
    """What went through one projection, and what was known of it when it was complete."""

    mixtures: tuple[Mixture, ...]
    projection: Projection | None
    problems: tuple[str, ...]


class CompleteCalls:
    """Hands over calls that are complete: one by one, or as many together as hold little.

    Args:
        finish: reads what went through one projection.
        together: whether calls may wait for others.
    """

    def __init__(self, finish: Callable[[tuple[Mixture, ...]], None], together: bool = False) -> None:
        self._finish, self._together = finish, together
        self._waiting: list[_Complete] = []
        self._held = 0

    def add(self, mixtures: tuple[Mixture, ...]) -> None:
        """Take in what went through one projection; whatever the model does from now on changes nothing of it."""
        projection = mixtures[0].projection
        self._waiting.append(_Complete(mixtures, projection, tuple(mixture.problem for mixture in mixtures)))
        for mixture in mixtures:
            mixture.is_read = True
            mixture.projection = None  # they hold each other, and all that they read, until the collector comes
        self._held += sum(mixture.nbytes for mixture in mixtures) + (0 if projection is None else projection.nbytes)
        if not self._together or self._held > _MOST_HELD or not all(map(_may_wait, mixtures)):
            self.hand_over()

    def hand_over(self) -> None:
        """Read all that wait, in the order in which they came."""
        waiting, self._waiting, self._held = self._waiting, [], 0
        for mixtures, projection, problems in waiting:
            for mixture, problem in zip(mixtures, problems, strict=True):
                mixture.projection, mixture.problem = projection, problem
            with full_precision(mixtures[0].values.given.device):  # the model may be under autocast where they are read
                self._finish(mixtures)
            for mixture in mixtures:
                mixture.projection = None

    def clear(self) -> None:
        """Forget all that wait."""
        self._waiting.clear()
        self._held = 0


def _may_wait(mixture: Mixture) -> bool:
    return not (mixture.values.given.is_inference() or is_wrapped(mixture.values.given))
