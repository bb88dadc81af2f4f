"""How large is a difference beside how much examples vary, and how many examples would find it?

- effect size: mean difference / its standard deviation (Cohen's d, paired), or P(a > b) - P(a < b) (Cliff's delta)
- needed n: how many examples find a difference with a given power, by the test that tables use or by a t-test

Sources: Cohen (1988), "Statistical Power Analysis for the Behavioral Sciences", section 2.3 (d_z); Cliff (1993),
https://doi.org/10.1037/0033-2909.114.3.494.  scipy computes the power.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from captum_norm.numerals import at_least
from captum_norm.optional_packages import required
from captum_norm.study.report.paired import Values, check_share, paired, paired_differences
from captum_norm.study.report.resampling import Pivot, moments, resampled_means, rounding

_TRIALS, _LARGEST = 300, 3000  # samples tried for each n; beyond so many examples a mean is normal enough


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


def needed_examples(
    a: ArrayLike,
    b: ArrayLike,
    difference: float,
    power: float = 0.8,
    alpha: float = 0.05,
    *,
    tests: int = 1,
    test: Literal["bootstrap", "t"] = "bootstrap",
) -> int:
    """How many examples find a difference of this size, if differences vary as they do here?

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        difference: the mean difference to be found, in the metric's unit.
        power: how often it is to be found.
        alpha: level of the two-sided tests together.
        tests: how many are corrected together; each is then made at ``alpha / tests``, the hardest step of Holm's.
        test: ``"bootstrap"``, the test that tables use, tried on differences drawn from these until it finds as many
            as asked; ``"t"``, a paired t-test of normal differences, by formula, which names too few where differences
            are skewed or mostly 0.

    Returns:
        n, at least 2; by the bootstrap to within a tenth, and beyond 3,000 by the formula.

    Raises:
        TypeError: if ``tests`` is no whole number.
        ValueError: if there are fewer than two examples, or an argument is out of range.

    Example:
        >>> needed_examples([0.0, 1.0, 0.0, 1.0, 2.0], [1.0, 0.0, 1.0, 0.0, 1.0], difference=0.5, test="t")
        40
    """
    at_least(1, tests, "needed_examples: tests")
    if test not in ("bootstrap", "t"):
        raise ValueError(f"needed_examples: test should be 'bootstrap' or 't', got {test!r}.")
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(f"needed_examples: difference should be finite and other than 0, got {difference}.")
    check_share("needed_examples: power", power)
    check_share("needed_examples: alpha", alpha)
    differences = paired_differences("needed_examples", a, b)
    if len(differences) < 2:
        raise ValueError(f"needed_examples: two examples at least tell how differences vary, got {len(differences)}.")
    n = _needed_by_t(abs(difference) / max(float(differences.std(ddof=1)), 1e-300), power, alpha / tests)
    if test == "t" or np.ptp(differences) <= rounding(differences):
        return n
    planted = differences - differences.mean() + difference
    while n <= _LARGEST and _found(planted, n, alpha / tests) < power:
        n = max(n + 1, math.ceil(1.1 * n))
    return n


def _needed_by_t(effect: float, power: float, level: float) -> int:
    """By a paired t-test of differences with this mean in units of their standard deviation."""
    stats = required("scipy.stats", "needed_examples")

    def found(n: int) -> float:
        edge = stats.t.isf(level / 2, n - 1)
        return float(stats.nct.sf(edge, n - 1, effect * math.sqrt(n)))

    high = 2
    while found(high) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle > 1 and found(middle) >= power else (middle, high)
    return high


def _found(planted: Values, n: int, level: float) -> float:
    """How often the studentised bootstrap finds differences like these in so many examples."""
    generator = np.random.default_rng([len(planted), n])
    samples = generator.choice(planted, (_TRIALS, 1, n))
    columns = np.concatenate([moments(sample) for sample in samples], axis=1)
    means, counts = resampled_means(columns, max(1999, math.ceil(8 / level)), seed=n)
    pivots = (Pivot.of(of, means[:, 2 * i : 2 * i + 2], counts[:, 2 * i]) for i, of in enumerate(samples))
    return float(np.mean([pivot.p() < level for pivot in pivots]))


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
    first, second = paired("effect_size", a, b)
    if kind == "cliff":
        return Effect("Cliff's delta", _cliffs_delta(first, second), len(first))
    return Effect("paired Cohen's d", cohens_d(paired_differences("effect_size", a, b)), len(first))


def cohens_d(differences: Values) -> float:
    """Mean / standard deviation; NaN where the deviation is 0 within rounding and the mean is not."""
    if len(differences) < 2:
        return math.nan
    if not differences.any():
        return 0.0
    all_equal = np.ptp(differences) <= rounding(differences)
    return math.nan if all_equal else float(differences.mean() / differences.std(ddof=1))


def _cliffs_delta(a: Values, b: Values) -> float:
    if not len(a):
        return math.nan
    ordered = np.sort(b)
    smaller, not_larger = np.searchsorted(ordered, a, "left"), np.searchsorted(ordered, a, "right")
    return float((smaller.sum() - (len(b) - not_larger).sum()) / (len(a) * len(b)))
