"""Does the order of the methods hold?  Over other examples, over variants of a method, over choices of a metric.

    rank interval     where a method's rank lies when the examples are drawn anew
    move              how far a method's own variant moves it: its rank and its mean, before and after
    critical groups   neighbours in rank of whom no two differ, by a test of every pair
    order changes     in what share of the other rankings two methods stand the other way round than in the first

The rank of a method is 1 for the best.  A multiverse (Steegen et al. 2016, https://doi.org/10.1177/1745691616658637)
is the rankings under every combination of choices that might as well have been made.

Axes: n example, m method, u universe (one combination of choices), r resample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from captum_norm.numerals import at_least
from captum_norm.optional_packages import required
from captum_norm.study.report.paired import check_share, values_of
from captum_norm.study.report.resampling import FEW_FOR_MANY_TESTS, Pivot, moments, resampled_means, step_down
from captum_norm.study.report.statistics import differences_of, holm

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class RankInterval:
    """Where a method stands.

    Attributes:
        rank: by the mean over the examples, 1 for the best; ties share their average.
        low: the best rank that the interval holds.
        high: the worst.
        first: in what share of the resamples it is the first; ties share.
    """

    rank: float
    low: float
    high: float
    first: float


@dataclass(frozen=True)
class Move:
    """What a variant does to its own method, all other methods as they are.

    Attributes:
        variant: the variant's name.
        base: the name of the variant that is listed first.
        rank: the base's rank among the methods, 1 for the best.
        moved_to: the variant's rank in its place.
        difference: mean of variant - base.
        low: lower end of that difference's interval.
        high: upper end.
    """

    variant: str
    base: str
    rank: float
    moved_to: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class OrderChanges:
    """How often pairs of methods change order over universes.

    Attributes:
        methods: which.
        universes: what each ranking chose.
        ranks: (u, m), 1 for the best.
        shares: (m, m), in what share of the other universes the two stand the other way round than in the first; a tie
            counts half; NaN where the first ties them, and where there is no other.
    """

    methods: tuple[str, ...]
    universes: tuple[str, ...]
    ranks: Numbers
    shares: Numbers

    @property
    def largest(self) -> float:
        """The share of the pair that changes most; NaN without a pair."""
        return float(np.nanmax(self.shares)) if np.isfinite(self.shares).any() else float("nan")


def ranks_of(means: Numbers, higher_is_better: bool) -> Numbers:
    """Ranks along the last axis, 1 for the best; ties share their average.

    Example:
        >>> ranks_of(np.array([0.3, 0.1, 0.3]), higher_is_better=True)
        array([1.5, 3. , 1.5])
    """
    stats = required("scipy.stats", "ranks_of")
    ranks: Numbers = stats.rankdata(-means if higher_is_better else means, axis=-1)
    return ranks


def rank_intervals(
    values: Mapping[str, Numbers],
    higher_is_better: bool = True,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> dict[str, RankInterval]:
    """Where each method's rank lies when the examples are drawn anew.

    Args:
        values: method -> (n,) of the same examples; those that a method lacks (NaN) are left out for all.
        higher_is_better: the metric's direction.
        confidence: of the intervals.
        resamples: how often the examples are drawn.
        seed: of the draws.

    Returns:
        Empty where no example has a value of every method.

    Raises:
        TypeError: if ``resamples`` or ``seed`` is no whole number.
        ValueError: if a value is infinite, methods have other numbers of examples, or an argument is out of range.

    Example:
        >>> a = np.linspace(0, 1, 20)
        >>> intervals = rank_intervals({"a": a, "b": a - 1, "level": a + np.tile([0.1, -0.1], 10)})
        >>> [(round(one.low), round(one.high)) for one in intervals.values()]
        [(1, 2), (3, 3), (1, 2)]
    """
    check_share("rank_intervals: confidence", confidence)
    table = _complete("rank_intervals", values, resamples, seed)
    if not table.size:
        return {}
    ranks = ranks_of(table.mean(axis=0), higher_is_better)
    drawn = ranks_of(resampled_means(table, resamples, seed)[0].round(12), higher_is_better)
    best = drawn == drawn.min(axis=1, keepdims=True)
    first = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    tail = (1 - confidence) / 2
    low = np.quantile(drawn, tail, axis=0, method="lower")
    high = np.quantile(drawn, 1 - tail, axis=0, method="higher")
    limits = zip(ranks, low, high, first, strict=True)
    return {name: RankInterval(*map(float, of)) for name, of in zip(values, limits, strict=True)}


def critical_groups(
    values: Mapping[str, Numbers],
    higher_is_better: bool = True,
    *,
    alpha: float = 0.05,
    resamples: int = 9999,
    seed: int = 0,
) -> list[tuple[str, ...]]:
    """The largest groups of neighbours in rank of whom no two differ, the best first; Holm's correction over all pairs.

    Below 50 examples two methods must also stand apart by the largest of all resampled differences (`step_down`).  Two
    that differ by the same amount on every example, of which no resample has a spread, have the smallest p that so many
    examples allow, as they have with a hair of noise.

    Args:
        values: method -> (n,) of the same examples; those that a method lacks (NaN) are left out for all.
        higher_is_better: the metric's direction.
        alpha: level of the corrected tests.
        resamples: how often the examples are drawn.
        seed: of the draws.

    Returns:
        Methods of a group in the order of their means.  Empty where fewer than two examples have all values.

    Raises:
        TypeError, ValueError: as `rank_intervals`.

    Example:
        >>> a = np.linspace(0, 1, 20)
        >>> critical_groups({"a": a, "b": a - 1 + 0.1 * a**2, "level": a + np.tile([0.1, -0.1], 10)})
        [('a', 'level'), ('b',)]
    """
    check_share("critical_groups: alpha", alpha)
    table = _complete("critical_groups", values, resamples, seed)
    if len(table) < 2:
        return []
    order = np.argsort(-table.mean(axis=0) if higher_is_better else table.mean(axis=0), kind="stable")
    names, pairs = [list(values)[i] for i in order], list(combinations(range(len(order)), 2))
    differences = [differences_of(table[:, order[i]], table[:, order[j]])[None] for i, j in pairs]
    apart = set()
    if pairs:
        means, counts = resampled_means(np.concatenate([moments(of) for of in differences], axis=1), resamples, seed)
        pivots = [Pivot.of(of, means[:, 2 * k : 2 * k + 2], counts[:, 2 * k]) for k, of in enumerate(differences)]
        p_values = holm([_p(pivot) for pivot in pivots])
        if len(table) < FEW_FOR_MANY_TESTS:
            p_values = np.fmax(p_values, step_down(pivots))
        apart = {pair for pair, p in zip(pairs, p_values, strict=True) if p < alpha}
    groups: list[tuple[str, ...]] = []
    last = 0
    for start in range(len(names)):
        end = start + 1
        while end < len(names) and not any((i, end) in apart for i in range(start, end)):
            end += 1
        if end > last:
            groups.append(tuple(names[start:end]))
            last = end
    return groups


def _complete(caller: str, values: Mapping[str, Numbers], resamples: int, seed: int) -> Numbers:
    """(n, m): the examples of which every method has a value."""
    at_least(1, resamples, f"{caller}: resamples")
    at_least(0, seed, f"{caller}: seed")
    columns = {name: values_of(f"{caller}: {name}", of) for name, of in values.items()}
    other = next((name for name, of in columns.items() if len(of) != len(next(iter(columns.values())))), None)
    if other is not None:
        first, *_ = columns
        raise ValueError(
            f"{caller}: {first} has {len(columns[first])} examples but {other} has {len(columns[other])}; give one "
            "value for each example, NaN where there is none."
        )
    table = np.stack(list(columns.values()), axis=1) if columns else np.empty((0, 0))
    return table[~np.isnan(table).any(axis=1)]


def _p(pivot: Pivot) -> float:
    """Of no difference."""
    return pivot.smallest if pivot.error == 0 and pivot.mean != 0 else pivot.p()


def order_changes(
    means: Mapping[str, Mapping[str, float]], higher_is_better: bool | Mapping[str, bool] = True
) -> OrderChanges:
    """How often pairs of methods change order over universes.

    Args:
        means: universe -> method -> mean; NaN anywhere leaves the method out.
        higher_is_better: the metric's direction, or that of each universe.

    Raises:
        ValueError: if universes hold different methods, or a mean is infinite.

    Example:
        >>> changes = order_changes({"delete": {"a": 3, "b": 2}, "mask": {"a": 1, "b": 2}})
        >>> float(changes.shares[0, 1])
        1.0
    """
    universes = tuple(means)
    names = list(next(iter(means.values()), {}))
    other = next((universe for universe in universes if means[universe].keys() != set(names)), None)
    if other is not None:
        raise ValueError(f"order_changes: {other!r} has other methods than {universes[0]!r}; all should have the same.")
    table = np.array([[means[universe][name] for name in names] for universe in universes], dtype=np.float64)
    table = table.reshape(len(universes), len(names))
    if np.isinf(table).any():
        universe, name = np.argwhere(np.isinf(table))[0]
        raise ValueError(f"order_changes: the mean of {names[name]} in {universes[universe]!r} is infinite.")
    kept = np.flatnonzero(~np.isnan(table).any(axis=0))
    higher = higher_is_better if isinstance(higher_is_better, Mapping) else dict.fromkeys(universes, higher_is_better)
    table = table[:, kept] * np.array([1.0 if higher[universe] else -1.0 for universe in universes])[:, None]
    order = np.sign(table[:, :, None] - table[:, None, :])
    shares = np.full(order.shape[1:], np.nan)
    if len(universes) > 1:
        shares = np.where(order[0] == 0, np.nan, (1 - order[1:] * order[0]).mean(axis=0) / 2)
    ranks = ranks_of(table, higher_is_better=True) if table.size else table
    return OrderChanges(tuple(names[i] for i in kept), universes, ranks, shares)
