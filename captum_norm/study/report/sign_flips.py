"""Could mean differences be chance?  The signs of all of them flipped at once.

If an example's two values might as well be swapped, the sign of each difference is a coin's.  Means over flipped signs
are one matrix product for all methods and metrics, which see the same flips.

Axes: n example, c column of differences, r pattern of signs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_SIGNS_AT_ONCE = 4_000_000  # memory is bounded for any number of examples


def flipped_p(columns: Numbers, resamples: int, seed: int) -> Numbers:
    """Two-sided p of each column's mean, against its means under flipped signs.

    Args:
        columns: (n, c), differences without NaN.
        resamples: how many patterns are drawn; where there are no more in all, each is taken once and p is exact.
        seed: of the draws.

    Returns:
        (c,); 1 where no pattern can give another mean.

    Example:
        >>> flipped_p(np.array([[2.0, 1.0], [2.0, -1.0], [1.0, 0.0]]), resamples=99, seed=0)
        array([0.25, 1.  ])
    """
    n = len(columns)
    exact = n < 40 and 2**n <= resamples
    observed, noise = columns.sum(axis=0), 1e-12 * np.abs(columns).sum(axis=0)
    above, below = (np.zeros(columns.shape[1]) if exact else np.ones(columns.shape[1]) for _ in range(2))
    for signs in _patterns(n) if exact else _drawn(n, resamples, seed):
        sums = signs @ columns
        above += (sums >= observed - noise).sum(axis=0)
        below += (sums <= observed + noise).sum(axis=0)
    return np.minimum(1.0, 2 * np.minimum(above, below) / (2**n if exact else resamples + 1))


def _patterns(n: int) -> Iterator[Numbers]:
    """All 2^n patterns of signs."""
    yield (1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)).astype(np.float64)


def _drawn(n: int, resamples: int, seed: int) -> Iterator[Numbers]:
    generator = np.random.default_rng(seed)
    step = max(1, _SIGNS_AT_ONCE // max(1, n))
    for start in range(0, resamples, step):
        yield (1 - 2 * generator.integers(0, 2, (min(step, resamples - start), n), dtype=np.int8)).astype(np.float64)
