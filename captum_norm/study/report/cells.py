"""What stands in a study's tables: methods x metrics with intervals and tests, methods x methods with agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_norm.study.report.statistics import bootstrap_interval, effect_size, holm, paired_permutation_test
from captum_norm.study.variants import ORACLE, RANDOM

ALPHA = 0.05
"""What is marked as different from the reference: a corrected p below this."""


_MEASURES = {
    "spearman": "Spearman's ρ",
    "kendall_tau_b": "Kendall's τ-b",
    "top_k_overlap": "Overlap of the top 5",
    "rank_biased_overlap": "Rank-biased overlap",
}


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


@dataclass(frozen=True)
class CostRow:
    """What a method took: seconds per example for scoring and for measuring, and bytes above what was in use before."""

    seconds: float
    metric_seconds: float
    peak_bytes: int | None


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
    tests = {}
    for name, found in values.items():
        if name not in (reference, ORACLE):  # the oracle is a bound, no method to be tested
            tests[name] = paired_permutation_test(found, values[reference], seed, resamples=permutations)
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]).tolist(), strict=True))
    cells = {}
    for name, found in values.items():
        interval = bootstrap_interval(found, confidence, resamples, seed)
        against = {}
        if name in tests:
            effect = effect_size(found, values[reference]).value
            test = tests[name]
            against = {"difference": test.difference, "p": test.p, "p_holm": corrected[name], "effect": effect}
        cells[name] = Cell(interval.mean, interval.low, interval.high, interval.n, **against)
    return cells


@dataclass(frozen=True)
class Cells:
    """Methods x metrics.

    Attributes:
        methods: in the study's order.
        metrics: metric -> whether higher is better.
        cells: method -> metric -> cell.
        reference: the method that others are tested against.
        confidence: of the intervals.
        costs: method -> what it took.
        failures: method -> on how many examples it failed.
        special_shares: method -> share of |score| at special tokens, where it is reported.
        examples: how many the study has.
        missing: how many (example, method)s are still to be computed.
        notes: model, target, special tokens, and how each metric removes tokens.
    """

    methods: tuple[str, ...]
    metrics: dict[str, bool]
    cells: dict[str, dict[str, Cell]]
    reference: str
    confidence: float
    costs: dict[str, CostRow]
    failures: dict[str, int]
    special_shares: dict[str, float]
    examples: int
    missing: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def best(self, metric: str) -> str | None:
        """The method with the best mean; floor and ceiling do not compete."""
        means = {name: row[metric].mean for name, row in self.cells.items() if name not in (RANDOM, ORACLE)}
        known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        if not known:
            return None
        return (max if self.metrics[metric] else min)(known, key=known.__getitem__)

    def differs(self, method: str, metric: str) -> bool:
        """Whether a method differs from the reference by the corrected test."""
        return self.cells[method][metric].p_holm < ALPHA

    def headers(self) -> list[str]:
        """The metrics with an arrow to where they are better."""
        return [f"{name} {'↑' if up else '↓'}" for name, up in self.metrics.items()]

    def explanation(self) -> list[str]:
        """What one must know to read it, a sentence each."""
        removals = sorted(set(self.notes.get("removals", {}).values()))
        lines = [
            f"{self.examples} examples; means with {self.confidence:.0%} paired bootstrap intervals (BCa).",
            f"* differs from {self.reference}: paired permutation test, Holm's correction over the methods, "
            f"p < {ALPHA}.",
        ]
        if removals:
            lines.append(f"Tokens are removed by: {', '.join(removals)}.")
        special = {
            "mask": "Special tokens are neither ranked nor removed.",
            "keep": "Special tokens are ranked and removed like any other.",
            "report": "Special tokens are neither ranked nor removed; their share of |score| is reported.",
        }
        lines.append(special.get(self.notes.get("special", ""), ""))
        if self.failures:
            lines.append(
                "Failed: " + ", ".join(f"{name} on {count} examples" for name, count in self.failures.items()) + "."
            )
        short = sorted({cell.n for row in self.cells.values() for cell in row.values()} - {self.examples})
        if short:
            lines.append("n differs where a metric is not defined, has no evidence, or failed; see to_pandas().")
        if self.missing:
            lines.append(f"Not finished: {self.missing} scores are still to be computed.")
        return [line for line in lines if line]


@dataclass(frozen=True)
class Agreements:
    """Methods x methods.

    Attributes:
        methods: which.
        means: (method, method), mean over the examples where the measure is defined; NaN where it is nowhere.
        n: (method, method), number of those examples.
        measure: of `captum_norm.study.agreement.AGREEMENTS`.
        level: ``"token"`` or ``"word"``.
        special: ``"mask"`` or ``"keep"``.
    """

    methods: tuple[str, ...]
    means: NDArray[np.float64]
    n: NDArray[np.int64]
    measure: str
    level: str
    special: str

    @property
    def title(self) -> str:
        """What was measured."""
        marks = "special tokens left out" if self.special == "mask" else "special tokens included"
        return (
            f"{_MEASURES.get(self.measure, self.measure)} of the scores of {self.level}s, {marks}, mean over examples"
        )
