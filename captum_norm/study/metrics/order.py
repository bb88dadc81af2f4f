"""Which tokens does a method put first?  By score, the largest first; of equal ones the one that stands first.

Axes: b batch, s sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_norm.study.metrics.scored_texts import Scored


def places(scored: Scored) -> Tensor:
    """The place of each removable token in its method's order, from 0.

    Returns:
        (b, s) long; tokens that are not removable come after all others.

    Example:
        >>> scored = Scored({}, torch.tensor([[9.0, 0.1, 0.7, 0.1]]), torch.tensor([0]),
        ...                 torch.tensor([[False, True, True, True]]))
        >>> places(scored)
        tensor([[3, 1, 0, 2]])
    """
    scores = scored.scores.masked_fill(~scored.removable, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1]).expand_as(order))


def top(scored: Scored, counts: Tensor) -> Tensor:
    """The first ``counts`` tokens of each example: (b,) -> (b, s) bool."""
    return places(scored) < counts[:, None]


def sizes(scored: Scored) -> Tensor:
    """How many tokens of each example may be removed, (b,) long."""
    return scored.removable.sum(1)


def share(count: int, fraction: float) -> int:
    """How many tokens a fraction is: rounded up, one at least.

    Example:
        >>> share(30, 0.1), share(7, 0.1), share(7, 0.5)
        (3, 1, 4)
    """
    # 0.07 * 100 is 7.000000000000001, and no eighth token.
    return max(1, math.ceil(fraction * count - 1e-9))


def check_fraction(caller: str, fraction: float) -> None:
    """Refuse what is no fraction of a text."""
    if not 0 < fraction <= 1:
        raise ValueError(f"{caller}: a fraction should be above 0 and at most 1, got {fraction}.")
