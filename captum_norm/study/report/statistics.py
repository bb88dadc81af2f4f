"""How sure is a study of its numbers?  Intervals and tests of values paired by example.

- interval: of a mean, or of a mean difference, by resampling the examples (studentised or BCa bootstrap)
- test: of no difference, by the studentised bootstrap (does ``mean / error`` lie further out than in resamples that are
  centred, counted by its size and in its own tail?) or by flipping the signs of the differences
- equivalence: of two methods within a margin, by two one-sided tests (TOST)
- correction: Holm's, for several tests at once

Effect sizes and the number of examples that a difference needs are in `captum_norm.study.report.effects`.

What the tests assume: that the examples are independent draws from the texts one wants to speak of.  Flipping signs
assumes besides that differences are symmetric about 0 where there is none; where they are skewed or mostly 0, as those
of metrics often are, it finds too much in few examples.  The studentised bootstrap assumes no shape.  As it counts here
(`captum_norm.study.report.resampling.Pivot`) it keeps its level from 20 examples on; fewer were not tried
(`FEW_EXAMPLES`).  Over a whole table of few examples Holm's correction asks for smaller p than they can tell; what it
leaves then has to pass `captum_norm.study.report.resampling.step_down` as well.

Sources: Efron (1987), https://doi.org/10.1080/01621459.1987.10478410 (BCa); Hall (1988),
https://doi.org/10.1214/aos/1176350933 (the studentised bootstrap; the larger p of symmetric and equal tails is ours);
Schuirmann (1987), https://doi.org/10.1007/BF01068419 (TOST); Holm (1979), https://www.jstor.org/stable/4615733.

Values are one number per example, (example,); NaN says that a method failed there or the metric is undefined.  Such
examples are left out, of both methods where two are compared, and ``n`` says how many are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from captum_norm.numerals import at_least
from captum_norm.study.report.effects import Effect, cohens_d, effect_size, needed_examples
from captum_norm.study.report.paired import (
    Values,
    check_margin,
    check_share,
    defined,
    differences_of,
    paired_differences,
)
from captum_norm.study.report.resampling import Pivot, bca_limits, moments, resampled_means
from captum_norm.study.report.sign_flips import flipped_p

__all__ = [
    "FEW_EXAMPLES",
    "Effect",
    "Interval",
    "PairedTest",
    "bootstrap_interval",
    "cohens_d",
    "differences_of",
    "effect_size",
    "equivalence_test",
    "holm",
    "needed_examples",
    "paired_bootstrap_test",
    "paired_permutation_test",
    "smallest_p",
]

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
        TypeError: if ``resamples`` or ``seed`` is no whole number.
        ValueError: if a value is infinite, shapes disagree, or an argument is out of range.

    Example:
        >>> bootstrap_interval([2.0, 2.0, float("nan"), 2.0])
        Interval(mean=2.0, low=2.0, high=2.0, n=3, confidence=0.95)
    """
    caller = "bootstrap_interval"
    check_share(f"{caller}: confidence", confidence)
    _check_draws(caller, resamples, seed)
    if kind not in ("studentised", "bca"):
        raise ValueError(f"{caller}: kind should be 'studentised' or 'bca', got {kind!r}.")
    resampled = defined(caller, values) if against is None else paired_differences(caller, values, against)
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
        TypeError: if ``resamples`` or ``seed`` is no whole number.
        ValueError: if a value is infinite, shapes disagree, or an argument is out of range.

    Example:
        >>> test = paired_bootstrap_test([3.0, 4.0, 6.0, 5.0, 4.0], [1.0, 2.0, 3.0, 5.0, 3.0])
        >>> round(test.difference, 2), test.p < 0.2, test.low < test.difference < test.high
        (1.6, True, True)
    """
    _check_draws("paired_bootstrap_test", resamples, seed)
    check_share("paired_bootstrap_test: confidence", confidence)
    differences = paired_differences("paired_bootstrap_test", a, b)
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
        TypeError: if ``resamples`` or ``seed`` is no whole number.
        ValueError: if the margin is not above 0 or not finite, a value is infinite, shapes disagree, or an argument is
            out of range.

    Example:
        >>> a = np.linspace(0, 1, 30)
        >>> test = equivalence_test(a, a + np.tile([0.01, -0.01], 15), margin=0.05)
        >>> test.p < 0.05, -0.05 < test.low < test.high < 0.05
        (True, True)
    """
    check_margin("equivalence_test: margin", margin)
    _check_draws("equivalence_test", resamples, seed)
    differences = paired_differences("equivalence_test", a, b)
    mean, n = float(differences.mean()) if len(differences) else math.nan, len(differences)
    if n < 2:
        return PairedTest(mean, 1.0 if n else math.nan, n)
    pivot = _pivot(differences, resamples, seed)
    return PairedTest(mean, pivot.p_equivalent(margin), n, *pivot.limits(0.9))


def smallest_p(test: Literal["bootstrap", "permutation"], n: int, resamples: int) -> float:
    """The smallest p that a test of n examples can give: with too few, no difference can be found however large.

    Raises:
        TypeError: if ``n`` or ``resamples`` is no whole number.
        ValueError: if one of them is too small, or the test is not known.

    Example:
        >>> smallest_p("permutation", 4, 9999), smallest_p("bootstrap", 100, 9999)
        (0.125, 0.0002)
    """
    at_least(0, n, "smallest_p: n")
    at_least(1, resamples, "smallest_p: resamples")
    if test not in ("bootstrap", "permutation"):
        raise ValueError(f"smallest_p: test should be 'bootstrap' or 'permutation', got {test!r}.")
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
        TypeError: if ``resamples`` or ``seed`` is no whole number.
        ValueError: if a value is infinite, shapes disagree, or an argument is out of range.

    Example:
        >>> paired_permutation_test([3.0, 4.0, 5.0], [1.0, 2.0, 4.0])
        PairedTest(difference=1.6666666666666667, p=0.25, n=3, low=nan, high=nan)
    """
    _check_draws("paired_permutation_test", resamples, seed)
    differences = paired_differences("paired_permutation_test", a, b)
    n = len(differences)
    if not n:
        return PairedTest(math.nan, math.nan, 0)
    p = float(flipped_p(differences[:, None], resamples, seed)[0])
    return PairedTest(float(differences.mean()), p, n)


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


def _pivot(values: Values, resamples: int, seed: int) -> Pivot:
    return Pivot.of(values[None], *resampled_means(moments(values[None]), resamples, seed))


def _check_draws(caller: str, resamples: int, seed: int) -> None:
    at_least(1, resamples, f"{caller}: resamples")
    at_least(0, seed, f"{caller}: seed")
