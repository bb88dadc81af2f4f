"""How sure is a study of its numbers?  Intervals, tests and effect sizes of values paired by example.

    interval      of the mean, by resampling the examples (BCa bootstrap)
    test          of no difference between two methods, by flipping the signs of their paired differences
    correction    Holm's, for the tests of several methods against one
    effect size   mean difference / its standard deviation (Cohen's d, paired), or P(a > b) - P(a < b) (Cliff's delta)
    stability     of the ranking of methods over variants: Kendall's W

Sources: Efron (1987), https://doi.org/10.1080/01621459.1987.10478410 (BCa); Holm (1979),
https://www.jstor.org/stable/4615733; Cohen (1988), "Statistical Power Analysis for the Behavioral Sciences", section
2.3 (d_z); Cliff (1993), https://doi.org/10.1037/0033-2909.114.3.494; Kendall and Babington Smith (1939),
https://doi.org/10.1214/aoms/1177732186 (W).  scipy computes intervals and tests.

Values are one number per example, (example,); NaN says that a method failed there or the metric is undefined.  Such
examples are left out, of both methods where two are compared, and ``n`` says how many are left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_norm.study.optional_packages import required

Values: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes:
        mean: over the examples.
        low: lower end of the interval; NaN for fewer than two examples.
        high: upper end.
        n: number of examples.
        confidence: how often such an interval holds the true mean.
    """

    mean: float
    low: float
    high: float
    n: int
    confidence: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same examples.

    Attributes:
        difference: mean of a - b.
        p: probability of a mean difference as large in size, if a and b were alike; NaN without examples.
        n: number of examples that both have.
    """

    difference: float
    p: float
    n: int


@dataclass(frozen=True)
class Effect:
    """The size of a difference, without a unit.

    Attributes:
        kind: ``"paired Cohen's d"`` or ``"Cliff's delta"``.
        value: positive where a is larger; NaN where it is undefined.
        n: number of examples that both have.
    """

    kind: Literal["paired Cohen's d", "Cliff's delta"]
    value: float
    n: int


@dataclass(frozen=True)
class Stability:
    """How alike the rankings of the methods are over variants.

    Attributes:
        w: Kendall's W, 0 (no agreement) to 1 (the same ranking in every variant); NaN where it is undefined.
        mean_tau: mean of Kendall's tau-b over all pairs of variants; NaN where it is undefined.
        first: in what share of the variants each method came first; ties share.
        variants: number of variants.
    """

    w: float
    mean_tau: float
    first: dict[str, float]
    variants: int


def bootstrap_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    against: ArrayLike | None = None,
) -> Interval:
    """The mean over examples and its interval, by the bias-corrected and accelerated (BCa) bootstrap.

    Args:
        values: (example,), NaN where there is none.
        confidence: of the interval, between 0 and 1.
        resamples: how often the examples are drawn anew.
        seed: of the draws.  The same seed draws the same examples for every method: intervals are paired.
        against: another method's values of the same examples; then the interval is of the mean difference.

    Returns:
        The interval; where all values are equal it is that value, and NaN for fewer than two examples.

    Raises:
        ValueError: if a value is infinite, shapes disagree, or an argument is out of range.

    Example:
        >>> bootstrap_interval([2.0, 2.0, float("nan"), 2.0])
        Interval(mean=2.0, low=2.0, high=2.0, n=3, confidence=0.95)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap_interval: confidence should be between 0 and 1, got {confidence}.")
    _check_resamples("bootstrap_interval", resamples)
    if against is None:
        known = _values("bootstrap_interval", values)
        known = known[~np.isnan(known)]
    else:
        a, b = _paired("bootstrap_interval", values, against)
        known = a - b
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n, confidence)
    if _all_equal(known):
        return Interval(mean, mean, mean, n, confidence)
    found = (
        required("scipy.stats", "bootstrap_interval")
        .bootstrap(
            (known,),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            method="BCa",
            rng=np.random.default_rng(seed),
            batch=max(1, 2_000_000 // n),  # resamples at once: memory is bounded for any number of examples
        )
        .confidence_interval
    )
    return Interval(mean, float(found.low), float(found.high), n, confidence)


def paired_permutation_test(a: ArrayLike, b: ArrayLike, seed: int = 0, *, resamples: int = 9999) -> Comparison:
    """Could the mean difference of two methods be chance?  Two-sided, exact for few examples.

    Under the null hypothesis an example's two values might as well be swapped, so the sign of each difference is a
    coin's.  All sign patterns are tried where they are no more than ``resamples``, else that many are drawn.

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        seed: of the draws.
        resamples: how many patterns are drawn; the smallest p is then 2 / (resamples + 1).

    Raises:
        ValueError: if a value is infinite or shapes disagree.

    Example:
        >>> paired_permutation_test([3.0, 4.0, 5.0], [1.0, 2.0, 4.0])
        Comparison(difference=1.6666666666666667, p=0.25, n=3)
    """
    _check_resamples("paired_permutation_test", resamples)
    first, second = _paired("paired_permutation_test", a, b)
    differences, n = first - second, len(first)
    if not n:
        return Comparison(math.nan, math.nan, 0)
    mean = float(differences.mean())
    if n == 1 or not differences.any():
        return Comparison(mean, 1.0, n)  # every pattern of signs gives a mean as large in size
    found = required("scipy.stats", "paired_permutation_test").permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),
        rng=np.random.default_rng(seed),
    )
    return Comparison(mean, float(found.pvalue), n)


def holm(p_values: ArrayLike) -> Values:
    """Holm's correction: p-values of several tests, enlarged so that one false alarm in all is as rare as promised.

    Args:
        p_values: (test,), each 0 to 1; NaN, a test that could not be made, stays NaN and does not count.

    Returns:
        (test,), in the same order.

    Raises:
        ValueError: if a p-value is out of range.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    given = np.asarray(p_values, dtype=np.float64)
    made = ~np.isnan(given)
    if given.ndim != 1 or not ((given[made] >= 0) & (given[made] <= 1)).all():
        raise ValueError("holm: p_values should be (test,), each from 0 to 1 or NaN.")
    order = np.argsort(given[made], kind="stable")
    factors = np.arange(made.sum(), 0, -1)
    enlarged = np.minimum(1, np.maximum.accumulate(given[made][order] * factors))
    corrected = np.full_like(given, np.nan)
    corrected[np.flatnonzero(made)[order]] = enlarged
    return corrected


def effect_size(a: ArrayLike, b: ArrayLike, kind: Literal["cohen", "cliff"] = "cohen") -> Effect:
    """How large is the difference, measured by how much the examples vary?

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        kind: ``"cohen"``, the paired Cohen's d_z = mean(a - b) / sd(a - b), NaN where all differences are equal and not
            0; ``"cliff"``, Cliff's delta = P(a_i > b_j) - P(a_i < b_j) over all pairs of examples, -1 to 1, which
            ignores the pairing and the scale.

    Raises:
        ValueError: if a value is infinite, shapes disagree or ``kind`` is unknown.

    Example:
        >>> effect_size([3.0, 4.0, 5.0], [1.0, 2.0, 5.0], "cliff").value
        0.4444444444444444
    """
    if kind not in ("cohen", "cliff"):
        raise ValueError(f"effect_size: kind should be 'cohen' or 'cliff', got {kind!r}.")
    first, second = _paired("effect_size", a, b)
    if kind == "cliff":
        return Effect("Cliff's delta", _cliffs_delta(first, second), len(first))
    return Effect("paired Cohen's d", _cohens_d(first - second), len(first))


def ranking_stability(values: Mapping[str, Mapping[str, float]], higher_is_better: bool = True) -> Stability:
    """Does the order of the methods depend on the variant (aggregate, residual, treatment of special tokens, seed)?

    Args:
        values: for each variant, the mean of every method; NaN leaves the method out of all variants.
        higher_is_better: the metric's direction.

    Raises:
        ValueError: if variants hold different methods.

    Example:
        >>> ranking_stability({"one": {"a": 3, "b": 2, "c": 1}, "two": {"a": 3, "b": 1, "c": 2}})
        Stability(w=0.75, mean_tau=0.33333333333333337, first={'a': 1.0, 'b': 0.0, 'c': 0.0}, variants=2)
    """
    names, table = _complete_table(values)
    variants, methods = table.shape
    if not methods or not variants:
        return Stability(math.nan, math.nan, {}, variants)
    stats = required("scipy.stats", "ranking_stability")
    ranks = stats.rankdata(-table if higher_is_better else table, axis=1)
    best = ranks == ranks.min(axis=1, keepdims=True)
    first = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    ordered = [row for row in ranks if row.min() < row.max()]
    taus = [stats.kendalltau(one, other).statistic for i, one in enumerate(ordered) for other in ordered[:i]]
    all_paired = len(ordered) == variants and variants > 1
    return Stability(
        kendalls_w(ranks),
        float(np.mean(taus)) if all_paired else math.nan,
        dict(zip(names, map(float, first), strict=True)),
        variants,
    )


def kendalls_w(ranks: ArrayLike) -> float:
    """Kendall's W, corrected for ties: how alike m rankings of n things are.

        W = 12 S / (m^2 (n^3 - n) - m T)

    with S the squared deviations of the rank sums from their mean and T the sum of t^3 - t over all ties of t things.

    Args:
        ranks: (ranking, thing), ties by their average rank.

    Returns:
        0 to 1; NaN for fewer than two rankings or things, or where every ranking is one tie.

    Example:
        >>> kendalls_w([[1, 2, 3], [1, 2, 3]])
        1.0
    """
    table = np.asarray(ranks, dtype=np.float64)
    m, n = table.shape
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(r, return_counts=True)[1] for r in table))
    room = m**2 * (n**3 - n) - m * ties
    if m < 2 or n < 2 or room == 0:
        return math.nan
    sums = table.sum(axis=0)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / room)


def _complete_table(values: Mapping[str, Mapping[str, float]]) -> tuple[list[str], Values]:
    """The methods that every variant has a number for, and the numbers: (variant, method)."""
    methods: list[str] = list(next(iter(values.values()), {}))
    for variant, row in values.items():
        if row.keys() != set(methods):
            raise ValueError(
                f"ranking_stability: variant {variant!r} has the methods {', '.join(row)}, the first one "
                f"{', '.join(methods)}; every variant should have the same."
            )
    table = np.array([[row[name] for name in methods] for row in values.values()], dtype=np.float64)
    table = table.reshape(len(values), len(methods))
    there = np.flatnonzero(~np.isnan(table).any(axis=0))
    return [methods[i] for i in there], table[:, there]


def _cohens_d(differences: Values) -> float:
    if len(differences) < 2:
        return math.nan
    if not differences.any():
        return 0.0
    return math.nan if _all_equal(differences) else float(differences.mean() / differences.std(ddof=1))


def _cliffs_delta(a: Values, b: Values) -> float:
    if not len(a):
        return math.nan
    ordered = np.sort(b)
    smaller, not_larger = np.searchsorted(ordered, a, "left"), np.searchsorted(ordered, a, "right")
    return float((smaller.sum() - (len(b) - not_larger).sum()) / (len(a) * len(b)))


def _paired(caller: str, a: ArrayLike, b: ArrayLike) -> tuple[Values, Values]:
    """The values of the examples that both have."""
    first, second = _values(caller, a), _values(caller, b)
    if first.shape != second.shape:
        raise ValueError(
            f"{caller}: a has {len(first)} examples but b has {len(second)}; give one value for each example, NaN "
            "where there is none, so that the same example is at the same place."
        )
    both = ~(np.isnan(first) | np.isnan(second))
    return first[both], second[both]


def _values(caller: str, values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{caller}: values should be (example,), got shape {array.shape}.")
    if np.isinf(array).any():
        raise ValueError(f"{caller}: value {int(np.flatnonzero(np.isinf(array))[0])} is infinite and has no mean.")
    return array


def _all_equal(values: Values) -> bool:
    return bool(values.min() == values.max())


def _check_resamples(caller: str, resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"{caller}: resamples should be at least 1, got {resamples}.")
