"""How large is a difference beside how much examples vary, and how many examples would find it?

- effect size: mean difference / its standard deviation (Cohen's d, paired), or P(a > b) - P(a < b) (Cliff's delta)
- needed n: how many examples find a difference with a given power, by a paired t-test

Sources: Cohen (1988), "Statistical Power Analysis for the Behavioral Sciences", section 2.3 (d_z); Cliff (1993),
https://doi.org/10.1037/0033-2909.114.3.494.  scipy computes the power.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from captum_norm.optional_packages import required
from captum_norm.study.report.paired import Values, paired, paired_differences
from captum_norm.study.report.resampling import rounding


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
    a: ArrayLike, b: ArrayLike, difference: float, power: float = 0.8, alpha: float = 0.05, *, tests: int = 1
) -> int:
    """How many examples find a difference of this size, if differences vary as they do here?

    Args:
        a: (example,), NaN where there is none.
        b: the same examples by another method.
        difference: the mean difference to be found, in the metric's unit.
        power: how often it is to be found.
        alpha: level of the two-sided tests together.
        tests: how many are corrected together; each is then made at ``alpha / tests``, the hardest step of Holm's.

    Returns:
        n for a paired t-test, at least 2.

    Raises:
        ValueError: if there are fewer than two examples, or an argument is out of range.

    Example:
        >>> needed_examples([0.0, 1.0, 0.0, 1.0, 2.0], [1.0, 0.0, 1.0, 0.0, 1.0], difference=0.5)
        40
    """
    if tests < 1:
        raise ValueError(f"needed_examples: tests should be at least 1, got {tests}.")
    if difference == 0 or not 0 < power < 1 or not 0 < alpha < 1:
        raise ValueError(
            "needed_examples: difference should not be 0, power and alpha should be between 0 and 1, got "
            f"{difference}, {power} and {alpha}."
        )
    differences = paired_differences("needed_examples", a, b)
    if len(differences) < 2:
        raise ValueError(f"needed_examples: two examples at least tell how differences vary, got {len(differences)}.")
    effect = abs(difference) / max(float(differences.std(ddof=1)), 1e-300)
    stats = required("scipy.stats", "needed_examples")

    def found(n: int) -> float:
        edge = stats.t.isf(alpha / tests / 2, n - 1)
        return float(stats.nct.sf(edge, n - 1, effect * math.sqrt(n)))

    high = 2
    while found(high) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle > 1 and found(middle) >= power else (middle, high)
    return high


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
