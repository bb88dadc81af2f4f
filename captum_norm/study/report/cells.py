"""What stands in one cell of a study's table: a method by a metric, with its interval and its test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captum_norm.study.report.statistics import bootstrap_interval, effect_size, holm, paired_permutation_test
from captum_norm.study.variants import ORACLE


@dataclass(frozen=True)
class Cell:
    """One method by one metric.

    Attributes:
        mean: over the examples where it is defined.
        low: lower end of the bootstrap interval.
        high: upper end.
        n: number of those examples.
        difference: mean difference to the reference, over the examples that both have.
        p: of the permutation test against the reference; NaN for the reference itself.
        p_holm: the same, corrected for the number of methods tested.
        effect: paired Cohen's d of that difference.
    """

    mean: float
    low: float
    high: float
    n: int
    difference: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    effect: float = math.nan


def cells_of(
    values: Mapping[str, NDArray[np.float64]],
    reference: str,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    permutations: int = 9999,
    seed: int = 0,
) -> dict[str, Cell]:
    """A metric's cells.

    Args:
        values: method -> (example,), NaN where there is none.
        reference: the method that others are tested against.
        confidence: of the intervals.
        resamples: of the bootstrap; every method sees the same draws.
        permutations: of the tests.
        seed: of both.

    Example:
        >>> cells = cells_of({"a": np.array([1.0, 2.0, 3.0]), "b": np.array([1.0, 2.0, 4.0])}, "a")
        >>> cells["b"].n, round(cells["b"].difference, 3), cells["b"].p
        (3, 0.333, 1.0)
    """
    tests = {
        method: paired_permutation_test(of_method, values[reference], seed, resamples=permutations)
        for method, of_method in values.items()
        if method not in (reference, ORACLE)  # the oracle is a bound, no method to be tested
    }
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]).tolist(), strict=True))
    cells = {}
    for method, of_method in values.items():
        interval = bootstrap_interval(of_method, confidence, resamples, seed)
        against_reference = {}
        if method in tests:
            against_reference = {
                "difference": tests[method].difference,
                "p": tests[method].p,
                "p_holm": corrected[method],
                "effect": effect_size(of_method, values[reference]).value,
            }
        cells[method] = Cell(interval.mean, interval.low, interval.high, interval.n, **against_reference)
    return cells
