"""How sure is a study of its numbers?  Intervals, tests and effect sizes of values paired by example.

- interval: of a mean, or of a mean difference, by resampling the examples (studentised or BCa bootstrap)
- test: of no difference, by the studentised bootstrap (does ``mean / error`` lie further out than in resamples that are
  centred, counted by its size and in its own tail?) or by flipping the signs of the differences
- equivalence: of two methods within a margin, by two one-sided tests (TOST)
- correction: Holm's, for several tests at once
- effect size: mean difference / its standard deviation (Cohen's d, paired), or P(a > b) - P(a < b) (Cliff's delta)
- needed n: how many examples find a difference with a given power

What the tests assume: that the examples are independent draws from the texts one wants to speak of.  Flipping signs
assumes besides that differences are symmetric about 0 where there is none; where they are skewed or mostly 0, as those
of metrics often are, it finds too much in few examples.  The studentised bootstrap assumes no shape.  As it counts here
(`captum_norm.study.report.resampling.Pivot`) it keeps its level from 20 examples on; fewer were not tried
(`FEW_EXAMPLES`).

Sources: Efron (1987), https://doi.org/10.1080/01621459.1987.10478410 (BCa); Hall (1988),
https://doi.org/10.1214/aos/1176350933 (the studentised bootstrap; the larger p of symmetric and equal tails is ours);
Schuirmann (1987), https://doi.org/10.1007/BF01068419 (TOST); Holm (1979), https://www.jstor.org/stable/4615733; Cohen
(1988), "Statistical Power Analysis for the Behavioral Sciences", section 2.3 (d_z); Cliff (1993),
https://doi.org/10.1037/0033-2909.114.3.494.  scipy computes the permutation test and the power.

Values are one number per example, (example,); NaN says that a method failed there or the metric is undefined.  Such
examples are left out, of both methods where two are compared, and ``n`` says how many are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_norm.optional_packages import required
from captum_norm.study.report.resampling import Pivot, bca_limits, moments, resampled_means, rounding

Values: TypeAlias = NDArray[np.float64]

FEW_EXAMPLES = 20
"""Below so many examples nobody has tried whether tests and intervals keep what they promise."""


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
class PairedTest:
    """Two methods on the same examples.

    Attributes:
        difference: mean of a - b.
        p: probability of a mean difference as far from 0, if there were none; NaN without examples, and by the
            bootstrap where all differences are the same and not 0.
        n: number of examples that both have.
        low: lower end of the interval of the mean difference that belongs to the test; NaN where there is none.
        high: upper end.
    """

    difference: float
    p: float
    n: int
    low: float = math.nan
    high: float = math.nan


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


def bootstrap_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    against: ArrayLike | None = None,
    kind: Literal["studentised", "bca"] = "studentised",
) -> Interval:
    """The mean over examples and its interval, by the bootstrap.

    Args:
        values: (example,), NaN where there is none.
        confidence: of the interval, between 0 and 1.
        resamples: how often the examples are drawn anew.
        seed: of the draws.  The same seed draws the same examples for every method: intervals are paired.
        against: another method's values of the same examples; then the interval is of the mean difference.
        kind: ``"studentised"`` has no end (is infinite) where the examples cannot tell one; ``"bca"``, bias-corrected
            and accelerated, never leaves the range of the values and holds the true mean less often than it says below
            some 200 examples.

    Returns:
        The interval; where all values are equal it is that value, and NaN for fewer than two examples.

    Raises:
        ValueError: if a value is infinite, shapes disagree, or an argument is out of range.

    Example:
        >>> bootstrap_interval([2.0, 2.0, float("nan"), 2.0])
        Interval(mean=2.0, low=2.0, high=2.0, n=3, confidence=0.95)
    """
    caller = "bootstrap_interval"
    _check_confidence(caller, confidence)
    _check_resamples(caller, resamples)
    if kind not in ("studentised", "bca"):
        raise ValueError(f"{caller}: kind should be 'studentised' or 'bca', got {kind!r}.")
    resampled = _defined(caller, values) if against is None else _differences(caller, values, against)
    n = len(resampled)
    mean = float(resampled.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n, confidence)
    if kind == "studentised":
        limits = _pivot(resampled, resamples, seed).limits(confidence)
    else:
        limits = bca_limits(resampled_means(resampled[:, None], resamples, seed)[0][:, 0], resampled, confidence)
    return Interval(mean, *limits, n, confidence)


def paired_bootstrap_test(
    a: ArrayLike, b: ArrayLike, seed: int = 0, *, resamples: int = 9999, confidence: float = 0.95
) -> PairedTest:
    """Could the mean difference of two methods be chance?  Two-sided, by the studentised bootstrap.

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        seed: of the draws.
        resamples: how often the examples are drawn anew; the smallest p is then 2 / (resamples + 1).
        confidence: of the interval, which holds 0 where p is above 1 - confidence.

    Raises:
        ValueError: if a value is infinite, shapes disagree, or an argument is out of range.

    Example:
        >>> test = paired_bootstrap_test([3.0, 4.0, 6.0, 5.0, 4.0], [1.0, 2.0, 3.0, 5.0, 3.0])
        >>> round(test.difference, 2), test.p < 0.2, test.low < test.difference < test.high
        (1.6, True, True)
    """
    _check_resamples("paired_bootstrap_test", resamples)
    _check_confidence("paired_bootstrap_test", confidence)
    differences = _differences("paired_bootstrap_test", a, b)
    mean, n = float(differences.mean()) if len(differences) else math.nan, len(differences)
    if n < 2:
        return PairedTest(mean, 1.0 if n else math.nan, n)
    pivot = _pivot(differences, resamples, seed)
    return PairedTest(mean, pivot.p(), n, *pivot.limits(confidence))


def equivalence_test(
    a: ArrayLike, b: ArrayLike, margin: float, seed: int = 0, *, resamples: int = 9999
) -> PairedTest:
    """Are two methods level, the mean difference within a margin?  Two one-sided tests by the studentised bootstrap.

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        margin: differences up to this are of no account, in the metric's unit; to be chosen before one looks.
        seed: of the draws.
        resamples: how often the examples are drawn anew.

    Returns:
        ``p`` below 0.05 says that they are level; ``low`` and ``high`` are the 90% interval, which then lies within
        the margin.

    Raises:
        ValueError: if the margin is not above 0, a value is infinite or shapes disagree.

    Example:
        >>> a = np.linspace(0, 1, 30)
        >>> test = equivalence_test(a, a + np.tile([0.01, -0.01], 15), margin=0.05)
        >>> test.p < 0.05, -0.05 < test.low < test.high < 0.05
        (True, True)
    """
    if not margin > 0:
        raise ValueError(f"equivalence_test: margin should be above 0, got {margin}.")
    _check_resamples("equivalence_test", resamples)
    differences = _differences("equivalence_test", a, b)
    mean, n = float(differences.mean()) if len(differences) else math.nan, len(differences)
    if n < 2:
        return PairedTest(mean, 1.0 if n else math.nan, n)
    pivot = _pivot(differences, resamples, seed)
    return PairedTest(mean, pivot.p_equivalent(margin), n, *pivot.limits(0.9))


def needed_examples(a: ArrayLike, b: ArrayLike, difference: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many examples find a difference of this size, if differences vary as they do here?

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        difference: the mean difference to be found, in the metric's unit.
        power: how often it is to be found.
        alpha: level of the two-sided test; divide it by the number of tests for Bonferroni's correction.

    Returns:
        n for a paired t-test, at least 2.

    Raises:
        ValueError: if there are fewer than two examples, or an argument is out of range.

    Example:
        >>> needed_examples([0.0, 1.0, 0.0, 1.0, 2.0], [1.0, 0.0, 1.0, 0.0, 1.0], difference=0.5)
        40
    """
    if difference == 0 or not 0 < power < 1 or not 0 < alpha < 1:
        raise ValueError(
            "needed_examples: difference should not be 0, power and alpha should be between 0 and 1, got "
            f"{difference}, {power} and {alpha}."
        )
    differences = _differences("needed_examples", a, b)
    if len(differences) < 2:
        raise ValueError(f"needed_examples: two examples at least tell how differences vary, got {len(differences)}.")
    effect = abs(difference) / max(float(differences.std(ddof=1)), 1e-300)
    stats = required("scipy.stats", "needed_examples")

    def found(n: int) -> float:
        edge = stats.t.isf(alpha / 2, n - 1)
        return float(stats.nct.sf(edge, n - 1, effect * math.sqrt(n)))

    high = 2
    while found(high) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle > 1 and found(middle) >= power else (middle, high)
    return high


def smallest_p(test: Literal["bootstrap", "permutation"], n: int, resamples: int) -> float:
    """The smallest p that a test of n examples can give: with too few, no difference can be found however large.

    Example:
        >>> smallest_p("permutation", 4, 9999), smallest_p("bootstrap", 100, 9999)
        (0.125, 0.0002)
    """
    if n < 2:
        return 1.0
    if test == "bootstrap":
        return min(1.0, 2 * max(1 / (resamples + 1), float(n) ** (1 - n)))
    return 2.0 ** (1 - n) if 2.0**n <= resamples else 2 / (resamples + 1)


def paired_permutation_test(a: ArrayLike, b: ArrayLike, seed: int = 0, *, resamples: int = 9999) -> PairedTest:
    """Could the mean difference of two methods be chance?  Two-sided, exact for few examples of symmetric differences.

    If an example's two values might as well be swapped, the sign of each difference is a coin's.  The test tries all
    patterns of signs where they are no more than ``resamples``, and draws that many otherwise.

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        seed: of the draws.
        resamples: how many patterns are drawn; the smallest p is then 2 / (resamples + 1).

    Raises:
        ValueError: if a value is infinite or shapes disagree.

    Example:
        >>> paired_permutation_test([3.0, 4.0, 5.0], [1.0, 2.0, 4.0])
        PairedTest(difference=1.6666666666666667, p=0.25, n=3, low=nan, high=nan)
    """
    _check_resamples("paired_permutation_test", resamples)
    differences = _differences("paired_permutation_test", a, b)
    n = len(differences)
    if not n:
        return PairedTest(math.nan, math.nan, 0)
    mean = float(differences.mean())
    if n == 1 or not differences.any():
        return PairedTest(mean, 1.0, n)  # every pattern of signs gives a mean as large in size
    test = required("scipy.stats", "paired_permutation_test").permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),
        rng=np.random.default_rng(seed),
    )
    return PairedTest(mean, float(test.pvalue), n)


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
    single = np.asarray(p_values, dtype=np.float64)
    made = ~np.isnan(single)
    if single.ndim != 1 or not ((single[made] >= 0) & (single[made] <= 1)).all():
        raise ValueError("holm: p_values should be (test,), each from 0 to 1 or NaN.")
    order = np.argsort(single[made], kind="stable")
    factors = np.arange(made.sum(), 0, -1)
    enlarged = np.minimum(1, np.maximum.accumulate(single[made][order] * factors))
    corrected = np.full_like(single, np.nan)
    corrected[np.flatnonzero(made)[order]] = enlarged
    return corrected


def effect_size(a: ArrayLike, b: ArrayLike, kind: Literal["cohen", "cliff"] = "cohen") -> Effect:
    """How large is the difference, measured by how much the examples vary?

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        kind: ``"cohen"``, the paired Cohen's d_z = mean(a - b) / sd(a - b), NaN where all differences are equal within
            rounding and not 0; ``"cliff"``, Cliff's delta = P(a_i > b_j) - P(a_i < b_j) over all pairs of examples, -1
            to 1, which ignores the pairing and the scale.

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
    return Effect("paired Cohen's d", cohens_d(_differences("effect_size", a, b)), len(first))


def cohens_d(differences: Values) -> float:
    """Mean / standard deviation; NaN where the deviation is 0 within rounding and the mean is not."""
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


def _defined(caller: str, values: ArrayLike) -> Values:
    array = _values(caller, values)
    return array[~np.isnan(array)]


def _differences(caller: str, a: ArrayLike, b: ArrayLike) -> Values:
    """a - b of the examples that both have; 0 where the two are equal within rounding."""
    first, second = _paired(caller, a, b)
    return differences_of(first, second)


def differences_of(a: Values, b: Values) -> Values:
    """a - b; 0 where the two are equal within rounding, which differences must not be taken for."""
    differences = a - b
    noise = 1e-12 * np.maximum(np.abs(a), np.abs(b))
    return np.where(np.abs(differences) <= noise, 0.0, differences)


def _pivot(values: Values, resamples: int, seed: int) -> Pivot:
    return Pivot.of(values[None], *resampled_means(moments(values[None]), resamples, seed))


def _all_equal(values: Values) -> bool:
    return bool(np.ptp(values) <= rounding(values))


def _check_confidence(caller: str, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"{caller}: confidence should be between 0 and 1, got {confidence}.")


def _check_resamples(caller: str, resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"{caller}: resamples should be at least 1, got {resamples}.")
