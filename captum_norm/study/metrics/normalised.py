"""Where does an order lie between the worst and the best there is?  What removal does, made comparable over models.

    A(order) = mean over k = 1 ... n of p(x) - p(x without the first k of n tokens)
    normalised = (A - lowest) / (highest - lowest),   over all orders of the tokens

How far a probability can fall, and how soon, is the model's affair: a mean of 0.3 may be all that one model allows, and
little of what another does.  So differences of probabilities are no common scale for models; this share is.  The sum
goes along a chain of sets, so the limits of few tokens follow from all 2^n sets, exactly; of more from a beam, and
a method that finds a better order than the beam lies above 1.  Texts and targets decide the limits, not scores, so all
methods share them.

Source: Edin et al. (2024), "Normalized AOPC", https://arxiv.org/abs/2408.08137.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.order import places, sizes
from captum_norm.study.metrics.perturbed import all_quantities, intact, perturbed, remembered
from captum_norm.study.metrics.removal import removal_named
from captum_norm.study.metrics.scored_texts import Scored

Drops = Callable[[Tensor], Tensor]
"""Removed tokens, (r, n) bool, to p(x) - p(x without them), (r,)."""


@dataclass(frozen=True)
class _Normalised(Metric):
    """Where a method's order lies between the worst and the best.

    Args:
        exact: texts of up to so many tokens have exact limits, by the model on 2^n copies.
        beams: how many sets of removed tokens are followed in longer texts, towards either limit; the model runs on
            some ``beams * n**2`` copies.
        removal: how tokens are removed, see `captum_norm.study.metrics.removal.REMOVALS`.
    """

    exact: int = 8
    beams: int = 5
    removal: str = "delete"

    source = "Edin et al. (2024), https://arxiv.org/abs/2408.08137"
    undefined = "where all orders are alike"
    first_first: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        removal_named(self.removal)
        if self.beams < 1 or not 0 <= self.exact <= 16:
            raise ValueError(f"{self.name}: beams should be at least 1, exact 0 to 16, got {self.beams}, {self.exact}.")

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        n = sizes(scored)
        place = places(scored) if self.first_first else n[:, None] - 1 - places(scored)
        examples = torch.arange(len(scored)).repeat_interleave(n)
        counts = torch.cat([torch.arange(1, int(of) + 1) for of in n])
        p = perturbed(forward, scored, examples, place[examples] >= counts[:, None], self.removal, self.max_rows)
        drops = intact(forward, scored)[examples] - p
        means = torch.zeros(len(scored), dtype=torch.float64).index_add(0, examples, drops) / n
        low, high = limits_of_orders(forward, scored, self).unbind(1)
        spread = high - low
        return torch.where(spread > 1e-12, (means - low) / spread, torch.nan)


@dataclass(frozen=True)
class NormalisedComprehensiveness(_Normalised):
    """1 for the order in which probability falls as soon as it can, 0 for that in which it falls as late."""

    name = "normalised_comprehensiveness"
    formula = "(A - lowest) / (highest - lowest), A the mean over k of p(x) - p(x without the first k tokens)"
    first_first = True


@dataclass(frozen=True)
class NormalisedSufficiency(_Normalised):
    """0 for the order whose last tokens can go without probability falling, 1 for the one in which it falls at once."""

    name = "normalised_sufficiency"
    formula = "(A - lowest) / (highest - lowest), A the mean over k of p(x) - p(x without the last k tokens)"
    higher_is_better = False
    first_first = False


def limits_of_orders(forward: HFForward, scored: Scored, metric: _Normalised) -> Tensor:
    """The lowest and the highest mean drop over all orders, (b, 2); computed once for each batch."""

    def run() -> Tensor:
        return torch.stack([_of_example(forward, scored, example, metric) for example in range(len(scored))])

    key = (forward, "limits of orders", metric.removal, metric.exact, metric.beams)
    limits: Tensor = remembered(scored, key, run)
    return limits


def _of_example(forward: HFForward, scored: Scored, example: int, metric: _Normalised) -> Tensor:
    [tokens] = scored.removable[example].nonzero(as_tuple=True)
    known: dict[bytes, Tensor] = {}
    before = intact(forward, scored)[example]

    def drops(removed: Tensor) -> Tensor:
        keep = torch.ones(len(removed), scored.removable.shape[1], dtype=torch.bool)
        keep[:, tokens] = ~removed
        examples = torch.full((len(removed),), example)
        return before - all_quantities(forward, scored, examples, keep, metric.removal, metric.max_rows, known)[:, 0]

    n = len(tokens)
    if n <= metric.exact:
        return exact_limits(drops, n) / n
    return torch.stack([beam_limit(drops, n, metric.beams, sign) for sign in (-1, 1)]) / n


def exact_limits(drops: Drops, n: int) -> Tensor:
    """The least and the largest sum of drops along a chain of sets from none to all, (2,), by all 2^n sets.

    Example:
        >>> exact_limits(lambda removed: removed.float() @ torch.tensor([1.0, 3.0]), 2)  # 1 + 4 and 3 + 4
        tensor([5., 7.])
    """
    numbers = torch.arange(2**n)
    removed = (numbers[:, None] >> torch.arange(n)) % 2 == 1
    of_sets = drops(removed)
    low, high = torch.zeros_like(of_sets), torch.zeros_like(of_sets)
    for number in range(1, 2**n):  # what a set is reached from has a smaller number
        before = number ^ (1 << removed[number].nonzero()[:, 0])
        low[number] = of_sets[number] + low[before].min()
        high[number] = of_sets[number] + high[before].max()
    return torch.stack([low[-1], high[-1]])


def beam_limit(drops: Drops, n: int, beams: int, sign: int) -> Tensor:
    """The largest sum of drops that a beam finds (the least with ``sign`` -1).

    Example:
        >>> beam_limit(lambda removed: removed.float() @ torch.tensor([1.0, 3.0]), 2, beams=1, sign=1)
        tensor(7., dtype=torch.float64)
    """
    removed, totals = torch.zeros(1, n, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    for _ in range(n):
        beam, token = (~removed).nonzero(as_tuple=True)
        longer = removed[beam]
        longer[torch.arange(len(token)), token] = True
        sums = totals[beam] + drops(longer)
        order = (sign * sums).argsort(descending=True, stable=True)
        # of the ways to one set only the best goes on
        sets, place = torch.unique(longer[order], dim=0, return_inverse=True)
        first = torch.full((len(sets),), len(order)).scatter_reduce(0, place, torch.arange(len(order)), "amin")
        kept = order[first.sort().values[:beams]]
        removed, totals = longer[kept], sums[kept]
    return totals[0]
