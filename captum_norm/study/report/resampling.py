"""Examples drawn anew, many times at once: the means of all methods over each draw.

A draw of n examples with replacement is a row of counts, so the means of every column over every draw are one matrix
product.  All columns see the same draws.  Where a column has no value for an example, the example is left out of its
means and nothing else changes.

Axes: n example, c column, r resample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from captum_norm.optional_packages import required

Numbers = NDArray[np.float64]

FEW_FOR_MANY_TESTS = 50
"""Of fewer examples Holm's correction over dozens of tests asks for smaller p than they can tell: see `step_down`."""

_COUNTS_AT_ONCE = 4_000_000  # memory is bounded for any number of examples


def resampled_means(columns: Numbers, resamples: int, seed: int) -> tuple[Numbers, Numbers]:
    """Means over examples drawn with replacement.

    Args:
        columns: (n, c), NaN where there is no value.
        resamples: how many draws.
        seed: of the draws; they are those of `scipy.stats.bootstrap` with the same seed.

    Returns:
        (r, c) the means, NaN where none of the drawn examples has a value; and (r, c) over how many examples.

    Example:
        >>> means, counts = resampled_means(np.array([[1.0, 5.0], [1.0, np.nan]]), resamples=3, seed=0)
        >>> means[:, 0], counts[:, 0]
        (array([1., 1., 1.]), array([2., 2., 2.]))
    """
    defined = ~np.isnan(columns)
    filled = np.where(defined, columns, 0.0).T
    masks, place = np.unique(defined.T, axis=0, return_inverse=True)
    sums, sizes = np.empty((len(filled), resamples)), np.empty((len(masks), resamples))
    start = 0
    for counts in _counted_draws(len(columns), resamples, seed):
        drawn = slice(start, start + len(counts))
        sums[:, drawn] = filled @ counts.T
        sizes[:, drawn] = masks.astype(np.float64) @ counts.T
        start = drawn.stop
    counted = sizes[place.ravel()] if len(masks) > 1 else np.broadcast_to(sizes, sums.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(sums, counted, out=sums).T, counted.T


def _counted_draws(n: int, resamples: int, seed: int) -> Iterator[Numbers]:
    """How often each example is in each draw, (some of r, n) at a time."""
    step = max(1, _COUNTS_AT_ONCE // max(1, n))
    if step >= resamples:
        yield _few_counted_draws(n, resamples, seed)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        yield _counted(generator, min(step, resamples - start), n)


@lru_cache(maxsize=2)  # a report asks for the same ones for its table, ranks and groups
def _few_counted_draws(n: int, resamples: int, seed: int) -> Numbers:
    return _counted(np.random.default_rng(seed), resamples, n)


def _counted(generator: np.random.Generator, rows: int, n: int) -> Numbers:
    drawn = generator.integers(0, n, (rows, n)) + np.arange(0, rows * n, n)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def bca_limits(means: Numbers, values: Numbers, confidence: float) -> tuple[float, float]:
    """The limits of the bias-corrected and accelerated bootstrap interval of a mean.

    The acceleration's jackknife has a closed form for a mean: the sum of (x - mean)^3 / (6 (sum of (x - mean)^2)^1.5).

    Args:
        means: (r,) of the resamples.
        values: (n,) what was resampled, without NaN.
        confidence: of the interval.
    """
    special = required("scipy.special", "bootstrap_interval")
    mean, centred = values.mean(), values - values.mean()
    if np.ptp(values) <= rounding(values):
        return float(mean), float(mean)
    tied = np.abs(means - mean) <= rounding(values)
    bias = special.ndtri(((means < mean) & ~tied).mean() + tied.mean() / 2)
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    edge = bias + special.ndtri((1 - confidence) / 2) * np.array([1, -1])
    low, high = np.percentile(means, 100 * special.ndtr(bias + edge / (1 - acceleration * edge)))
    return float(low), float(high)


def rounding(*values: Numbers) -> float:
    """How far numbers of this size may differ by rounding alone."""
    largest = max((float(np.abs(numbers).max()) for numbers in values if len(numbers)), default=0.0)
    return 1e-12 * largest


def moments(values: Numbers) -> Numbers:
    """What `Pivot.of` needs the resampled means of: values about their mean, and squares, (k, n) -> (n, k + 1)."""
    if np.isnan(values).all():
        return np.full((values.shape[1], len(values) + 1), np.nan)
    centred = values - np.nanmean(values)
    return np.concatenate([centred, centred.mean(axis=0, keepdims=True) ** 2]).T


def repetition_weights(repetitions: int, resamples: int, seed: int) -> Numbers:
    """How often each of k repetitions of a metric is drawn, as shares: (r, k)."""
    if repetitions == 1:
        return np.ones((resamples, 1))
    generator = np.random.default_rng([seed, repetitions])
    return generator.multinomial(repetitions, [1 / repetitions] * repetitions, size=resamples) / repetitions


@dataclass(frozen=True)
class Pivot:
    """A mean, its standard error, and how far resampled means lie from it in units of their own error.

    A hypothesis is refused where two ways of counting refuse it.  By size, both tails together, finds too much where
    values are skewed; each tail by itself, with an interval that reaches further on one side, finds too much where
    values have heavy tails.  Differences of metrics are either, so p is the larger of the two, and the interval holds
    both intervals.

    Attributes:
        mean: of the values, differences of two methods or one method's own.
        error: its standard error; 0 where all values are equal.
        distances: (r,) (resampled mean - mean) / the resample's standard error; NaN where a resample has none, because
            all its values are equal or missing, which counts as infinitely far on either side.
        n: number of the values.
    """

    mean: float
    error: float
    distances: Numbers
    n: int

    @classmethod
    def of(cls, values: Numbers, means: Numbers, counts: Numbers, weights: Numbers | None = None) -> Pivot:
        """From values without NaN.

        Args:
            values: (k, n), k repetitions of the metric (most have one).
            means: (r, k + 1), the resampled means of their `moments`.
            counts: (r,) or (r, k + 1), of the examples in each resample.
            weights: (r, k), the shares of the repetitions in each resample; None where there is one.
        """
        k, n = values.shape
        deviation = means[:, 0] if weights is None else (means[:, :k] * weights).sum(axis=1)
        variance = means[:, k] - (means[:, 0] if k == 1 else means[:, :k].mean(axis=1)) ** 2
        spread = variance > 1e-12 * means[:, k]
        variance = np.where(spread, variance, np.nan) / np.maximum(counts.reshape(len(means), -1)[:, 0] - 1, 1)
        if k > 1 and weights is not None:
            variance += ((means[:, :k] - deviation[:, None]) ** 2 * weights).sum(axis=1) / (k - 1)
        return cls(float(values.mean()), _standard_error(values), deviation / np.sqrt(variance), n)

    @property
    def smallest(self) -> float:
        """The smallest p that so many examples allow."""
        # A resample that holds one example n times has no spread and says nothing: n of n^n do.
        return min(1.0, 2 * max(1 / (len(self.distances) + 1), float(self.n) ** (1 - self.n)))

    @property
    def without_spread(self) -> int:
        """How many resamples have no distance."""
        return int(np.isnan(self.distances).sum())

    def p(self, hypothesis: float = 0.0) -> float:
        """Of a mean as far from the hypothesis in either direction; NaN where values without spread lie off it."""
        if self.error == 0:
            return 1.0 if self.mean == hypothesis else math.nan
        by_tail = 2 * min(self._as_high(hypothesis), self._as_low(hypothesis))
        return min(1.0, max(by_tail, self._as_far(hypothesis)))

    def limits(self, confidence: float) -> tuple[float, float]:
        """The interval of the hypotheses that are not refused; infinite where too many resamples have no spread."""
        if self.error == 0:
            return self.mean, self.mean
        without = self.without_spread
        finite = len(self.distances) - without
        tail, both = (
            math.floor(share * (len(self.distances) + 1) + 1e-9) - 1 - without
            for share in ((1 - confidence) / 2, 1 - confidence)
        )
        if not 0 <= tail <= both < finite:
            return -math.inf, math.inf
        # NaN are sorted to the end
        reach = float(np.partition(np.abs(self.distances), finite - 1 - both)[finite - 1 - both])
        edges = np.partition(self.distances, [tail, finite - 1 - tail])
        high, low = max(reach, -float(edges[tail])), max(reach, float(edges[finite - 1 - tail]))
        return self.mean - self.error * low, self.mean + self.error * high

    def p_equivalent(self, margin: float) -> float:
        """Of a mean as well inside -margin to margin, if it were at its nearer edge: the larger of two one-sided p."""
        if self.error == 0:
            return self.smallest / 2 if self.mean == 0 else math.nan
        far = self._as_far(math.copysign(margin, self.mean)) / 2
        return max(self._as_low(margin), self._as_high(-margin), far if abs(self.mean) < margin else 1 - far)

    def _as_far(self, hypothesis: float) -> float:
        """How often a mean lies as far from the hypothesis, on either side, or further."""
        distance = abs(self.mean - hypothesis) / self.error * (1 - 1e-12)
        return self._share(np.abs(self.distances) >= distance)

    def _as_high(self, hypothesis: float) -> float:
        """How often a mean lies as far above the hypothesis, or further."""
        distance = (self.mean - hypothesis) / self.error
        return self._share(self.distances >= distance - 1e-12 * abs(distance))

    def _as_low(self, hypothesis: float) -> float:
        distance = (self.mean - hypothesis) / self.error
        return self._share(self.distances <= distance + 1e-12 * abs(distance))

    def _share(self, further: NDArray[np.bool_]) -> float:
        return float(np.count_nonzero(further) + self.without_spread + 1) / (len(further) + 1)


def step_down(pivots: Sequence[Pivot]) -> Numbers:
    """p of several means of 0, corrected together: does each stand out from the largest of all resampled distances?

    The largest distance of a resample takes the place of each mean's own, so one that lies far out because its examples
    hold none of the rare large values is judged by those whose examples do; Holm's correction takes each by itself.
    From the furthest mean to the nearest, those before it leave the comparison (Romano & Wolf 2005,
    https://doi.org/10.1198/016214504000000539).  Resamples without spread have no distance and are left to Holm's.

    Args:
        pivots: from the same draws.

    Returns:
        (test,), NaN where values have no spread.

    Example:
        >>> columns = np.array([[5.0, 6.0, 7.0, 5.5, 6.5, 8.0], [1.0, -1.0, 2.0, -2.0, 0.5, -0.5]])
        >>> drawn = [resampled_means(moments(row[None]), 999, seed=0) for row in columns]
        >>> p_values = step_down([Pivot.of(row[None], *of) for row, of in zip(columns, drawn, strict=True)])
        >>> bool(p_values[0] < 0.1 < p_values[1])
        True
    """
    corrected = np.full(len(pivots), np.nan)
    spread = [place for place, pivot in enumerate(pivots) if pivot.error]
    order = sorted(spread, key=lambda place: -abs(pivots[place].mean / pivots[place].error))
    largest, resamples = np.zeros(1), 0
    for place in reversed(order):  # from the nearest, so that each is compared with itself and those nearer
        sizes = np.abs(pivots[place].distances)
        largest, resamples = np.fmax(largest, sizes), len(sizes)
        distance = abs(pivots[place].mean / pivots[place].error) * (1 - 1e-12)
        corrected[place] = (np.count_nonzero(largest >= distance) + 1) / (resamples + 1)
    corrected[order] = np.maximum.accumulate(corrected[order])
    return corrected


def _standard_error(values: Numbers) -> float:
    """Of the mean of (k, n), over examples and over repetitions; 0 where all are equal within rounding."""
    k, n = values.shape
    of_examples, of_repetitions = values.mean(axis=0), values.mean(axis=1)
    if np.ptp(of_examples) <= rounding(values):
        return 0.0
    between = of_repetitions.var(ddof=1) / k if k > 1 else 0.0
    return math.sqrt(of_examples.var(ddof=1) / n + between)
