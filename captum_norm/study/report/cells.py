"""What stands in the cells of a study's table: a method by a metric, with its interval and its test.

Axes: k repetition of a metric (most have one), n example, r resample, c column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from captum_norm.numerals import at_least
from captum_norm.study.report.paired import check_margin, check_share
from captum_norm.study.report.resampling import (
    FEW_FOR_MANY_TESTS,
    Pivot,
    moments,
    repetition_weights,
    resampled_means,
    step_down,
)
from captum_norm.study.report.sign_flips import flipped_p
from captum_norm.study.report.statistics import cohens_d, differences_of, holm
from captum_norm.study.variants import ORACLE

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One method by one metric.

    Attributes:
        mean: over its examples.
        low: lower end of the marginal interval: of this mean by itself.
        high: upper end.
        n: number of those examples.
        difference: mean difference to the reference, over the examples that both have.
        difference_low: lower end of the interval of that difference; NaN for the reference itself.
        difference_high: upper end.
        p: of the test against the reference; NaN for the reference itself.
        p_holm: the same, corrected for the tests of this metric or of the whole table.
        effect: paired Cohen's d of that difference; NaN where all differences are equal within rounding.
        p_equivalent: of the test that the difference is within the margin; NaN where no margin was given.
    """

    mean: float
    low: float
    high: float
    n: int
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    effect: float = math.nan
    p_equivalent: float = math.nan


@dataclass(frozen=True)
class Statistics:
    """How the cells of a table are computed.

    Attributes:
        cases: ``"complete"``: every method of a metric over the examples for which all of them have a value;
            ``"available"``: each over all that it has itself.
        test: ``"bootstrap"``, the studentised one of the paired differences, or ``"permutation"``, of their signs.
        correction: Holm's over the tests of one ``"metric"``, or over the whole ``"table"``; there the bootstrap asks
            of few examples that a difference stands out from the largest of all resampled ones, too (`step_down`).
        margin: differences up to this are level, in the metric's unit, or by metric; None for no test of that.
        confidence: of the intervals.
        resamples: how often examples are drawn anew; all methods and metrics see the same draws.
        permutations: how many patterns of signs are drawn.
        seed: of the draws.
    """

    cases: Literal["complete", "available"] = "complete"
    test: Literal["bootstrap", "permutation"] = "bootstrap"
    correction: Literal["metric", "table"] = "metric"
    margin: float | Mapping[str, float] | None = None
    confidence: float = 0.95
    resamples: int = 9999
    permutations: int = 9999
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("cases", ("complete", "available")),
            ("test", ("bootstrap", "permutation")),
            ("correction", ("metric", "table")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"table: {name} should be one of {choices}, got {getattr(self, name)!r}.")
        check_share("table: confidence", self.confidence)
        for name, least in (("resamples", 1), ("permutations", 1), ("seed", 0)):
            at_least(least, getattr(self, name), f"table: {name}")
        by_metric = self.margin if isinstance(self.margin, Mapping) else {"": self.margin}
        for metric, margin in by_metric.items():
            if margin is not None:
                check_margin(f"table: margin{metric and f' of {metric}'}", margin)

    def margin_of(self, metric: str) -> float | None:
        """What counts as level by this metric."""
        return self.margin.get(metric) if isinstance(self.margin, Mapping) else self.margin


def cells_of(
    values: Mapping[str, Mapping[str, Numbers]], reference: str, statistics: Statistics | None = None
) -> dict[str, dict[str, Cell]]:
    """The cells of a table.

    Args:
        values: metric -> method -> (n,) or (k, n), NaN where there is none.
        reference: the method that others are tested against.
        statistics: how; None for the usual way.

    Returns:
        metric -> method -> cell.

    Example:
        >>> values = {"auprc": {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([1.0, 2.0, np.nan])}}
        >>> cells = cells_of(values, "a")["auprc"]
        >>> cells["a"].n, cells["b"].n, cells["a"].mean
        (2, 2, 1.5)
    """
    statistics = statistics or Statistics()
    columns = [_Columns.of(metric, rows, reference, statistics.cases) for metric, rows in values.items()]
    means, counts = resampled_means(
        np.concatenate([of_metric.all for of_metric in columns], axis=1), statistics.resamples, statistics.seed
    )
    cells: dict[str, dict[str, Cell]] = {}
    differing: dict[tuple[str, str], Pivot] = {}
    start = 0
    for of_metric in columns:
        taken = slice(start, start + of_metric.all.shape[1])
        start = taken.stop
        cells[of_metric.metric] = {}
        for method, cell, pivot in of_metric.cells(means[:, taken], counts[:, taken], statistics):
            cells[of_metric.metric][method] = cell
            if pivot is not None:
                differing[of_metric.metric, method] = pivot
    return corrected_cells(cells, differing, statistics)


def complete_cases(values: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """The values of the examples for which every method has one, NaN elsewhere.

    A method without any value takes no part.  Nor does the oracle: it has values where there is evidence only, and is
    a bound, not a method that others are compared with.
    """
    taking_part = [of for name, of in values.items() if name != ORACLE and not np.isnan(of).all()]
    if not taking_part:
        return dict(values)
    complete = np.logical_and.reduce([~np.isnan(of) for of in taking_part])
    return {name: np.where(complete, of, np.nan) for name, of in values.items()}


@dataclass(frozen=True)
class _Columns:
    """What is resampled for the cells of one metric: each method's values and its differences, (k, n)."""

    metric: str
    reference: str
    values: dict[str, Numbers]
    differences: dict[str, Numbers]

    @classmethod
    def of(cls, metric: str, values: Mapping[str, Numbers], reference: str, cases: str) -> _Columns:
        repeated = {name: np.atleast_2d(of) for name, of in values.items()}
        # one repetition that is missing makes the example missing
        repeated = {name: np.where(np.isnan(of).any(axis=0), np.nan, of) for name, of in repeated.items()}
        if cases == "complete":
            repeated = complete_cases(repeated)
        differences = {
            name: differences_of(of, repeated[reference])
            for name, of in repeated.items()
            if name not in (reference, ORACLE)  # the oracle is a bound, no method to be tested
        }
        return cls(metric, reference, repeated, differences)

    @property
    def all(self) -> Numbers:
        """(n, c): the moments of values, then those of differences, (k + 1) columns for each."""
        return np.concatenate([moments(of) for of in (*self.values.values(), *self.differences.values())], axis=1)

    def cells(
        self, means: Numbers, counts: Numbers, statistics: Statistics
    ) -> Iterator[tuple[str, Cell, Pivot | None]]:
        """Each method's cell, and the pivot of its differences, from the resampled means of `all`."""
        k = len(next(iter(self.values.values())))
        weights = repetition_weights(k, len(means), statistics.seed)

        def pivot(place: int, values: Numbers) -> Pivot:
            taken = slice(place * (k + 1), (place + 1) * (k + 1))
            return Pivot.of(values, means[:, taken], counts[:, taken], weights)

        differing = {name: len(self.values) + place for place, name in enumerate(self.differences)}
        flipped = self._flipped(statistics) if statistics.test == "permutation" else {}
        for place, (name, of_method) in enumerate(self.values.items()):
            values = of_method[:, ~np.isnan(of_method[0])]
            n = values.shape[1]
            cell = Cell(float(values.mean()) if n else math.nan, math.nan, math.nan, n)
            if n > 1:
                low, high = pivot(place, values).limits(statistics.confidence)
                cell = replace(cell, low=low, high=high)
            of_differences = None
            if name in differing:
                differences = self.differences[name][:, ~np.isnan(self.differences[name][0])]
                of_differences = pivot(differing[name], differences) if differences.shape[1] > 1 else None
                cell = self._tested(cell, differences, of_differences, flipped.get(name), statistics)
            yield name, cell, of_differences

    def _flipped(self, statistics: Statistics) -> dict[str, float]:
        """Each method's p by flipped signs; those over the same examples see the same flips."""
        over: dict[bytes, list[str]] = {}
        for name, of in self.differences.items():
            over.setdefault(np.isnan(of[0]).tobytes(), []).append(name)
        found: dict[str, float] = {}
        for names in over.values():
            columns = np.stack([self.differences[name].mean(axis=0) for name in names], axis=1)
            p_values = flipped_p(columns[~np.isnan(columns[:, 0])], statistics.permutations, statistics.seed)
            found |= dict(zip(names, p_values.tolist(), strict=True))
        return found

    def _tested(
        self, cell: Cell, differences: Numbers, pivot: Pivot | None, flipped: float | None, statistics: Statistics
    ) -> Cell:
        """The cell with its comparison to the reference."""
        of_examples = differences.mean(axis=0)
        if pivot is None:
            mean = float(of_examples.mean()) if len(of_examples) else math.nan
            return replace(cell, difference=mean, p=1.0 if len(of_examples) else math.nan)
        low, high = pivot.limits(statistics.confidence)
        margin = statistics.margin_of(self.metric)
        return replace(
            cell,
            difference=pivot.mean,
            difference_low=low,
            difference_high=high,
            p=pivot.p() if flipped is None else flipped,
            effect=cohens_d(of_examples),
            p_equivalent=math.nan if margin is None else pivot.p_equivalent(margin),
        )


def corrected_cells(
    cells: dict[str, dict[str, Cell]], differing: Mapping[tuple[str, str], Pivot], statistics: Statistics
) -> dict[str, dict[str, Cell]]:
    """The cells with their p-values corrected over the tests of each metric, or over all."""
    families = [[(metric, method) for method in row] for metric, row in cells.items()]
    if statistics.correction == "table":
        families = [[place for family in families for place in family]]
    corrected = {metric: dict(row) for metric, row in cells.items()}
    for family in families:
        p_values = dict(zip(family, holm([cells[metric][method].p for metric, method in family]).tolist(), strict=True))
        if statistics.correction == "table" and statistics.test == "bootstrap":
            tested = [place for place in family if place in differing]
            for place, p in zip(tested, step_down([differing[place] for place in tested]).tolist(), strict=True):
                if differing[place].n < FEW_FOR_MANY_TESTS:
                    p_values[place] = max(p_values[place], p)
        for (metric, method), p in p_values.items():
            corrected[metric][method] = replace(cells[metric][method], p_holm=p)
    return corrected
