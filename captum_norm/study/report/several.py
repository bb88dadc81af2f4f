"""Do methods stand alike on several models, checkpoints or seeds?  One metric of several studies in one table.

Texts are the unit within a study, models between studies: what holds of every text of one model may not hold of the
next.  So each study has its own mean with its interval, and beside them stand the mean over studies and how far studies
lie apart (their standard deviation).  Differences of probabilities are no common scale for models that are not equally
sure of themselves; ranks are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from captum_norm.study.report.cells import Cell, cells_of
from captum_norm.study.report.measured import Numbers
from captum_norm.study.report.results import Results
from captum_norm.study.report.stability import ranks_of
from captum_norm.study.report.typeset import Column, blocks, interval, number, side_by_side
from captum_norm.study.variants import ORACLE
from captum_norm.tables import Table, Tabular


@dataclass(frozen=True)
class SeveralStudies(Tabular):
    """One metric of several studies.

    Attributes:
        metric: which.
        higher_is_better: its direction.
        methods: those that all studies have, in the order of the first.
        cells: study -> method -> mean, interval and n.
    """

    metric: str
    higher_is_better: bool
    methods: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]

    @property
    def title(self) -> str:
        """What was measured, on how many studies."""
        return f"{self.metric} {'↑' if self.higher_is_better else '↓'}, {len(self.cells)} studies"

    @property
    def means(self) -> Numbers:
        """(study, method)"""
        return np.array([[row[method].mean for method in self.methods] for row in self.cells.values()])

    def ranks(self) -> dict[str, float]:
        """Each method's mean rank over the studies, 1 for the best; the oracle takes no part."""
        competing = [place for place, method in enumerate(self.methods) if method != ORACLE]
        ranks = ranks_of(self.means[:, competing], self.higher_is_better).mean(axis=0)
        return {self.methods[place]: float(rank) for place, rank in zip(competing, ranks, strict=True)}

    def to_text(self, width: int | None = 100) -> str:
        """For a terminal: a column for each study, then the mean over studies, their spread and the mean rank."""
        columns = [
            Column(
                f"{name} n={max(of.n for of in row.values())}",
                [number(row[method].mean) for method in self.methods],
                [interval(row[method].low, row[method].high) for method in self.methods],
            )
            for name, row in self.cells.items()
        ]
        ranks = self.ranks()
        spread = self.means.std(axis=0, ddof=1) if len(self.cells) > 1 else np.full(len(self.methods), math.nan)
        columns += [
            Column("mean", [number(float(of)) for of in self.means.mean(axis=0)]),
            Column("sd", [number(float(of)) for of in spread]),
            Column("rank", [f"{ranks[method]:.1f}" if method in ranks else "" for method in self.methods]),
        ]
        parts = blocks(columns, width and width - max(map(len, self.methods)))
        return "\n\n".join([self.title, *(side_by_side(self.methods, part) for part in parts)])

    def as_table(self) -> Table:
        """A row per study and method: mean, interval and over how many examples."""
        rows = tuple(
            (name, method, row[method].mean, row[method].low, row[method].high, row[method].n)
            for name, row in self.cells.items()
            for method in self.methods
        )
        return Table(("study", "method", "mean", "low", "high", "n"), rows, self.title, keys=2)


def several(results: Mapping[str, Results], metric: str) -> SeveralStudies:
    """One metric of several studies: of other models, checkpoints or seeds.

    Args:
        results: name -> results; the methods need not be the same, those that all have are taken.
        metric: which; all studies should have measured it in the same way.

    Raises:
        KeyError: for a metric that a study does not have.
        ValueError: without studies, if they share no method, or measured the metric in different ways.

    Example:
        >>> several({}, "auprc")
        Traceback (most recent call last):
        ValueError: several: there are no studies.
    """
    if not results:
        raise ValueError("several: there are no studies.")
    first = next(iter(results.values()))
    for of in results.values():
        of.higher_is_better(metric)  # refuses what the study does not have
    ways = {name: of.config["metrics"][of.metrics.index(metric)]["arguments"] for name, of in results.items()}
    other = next((name for name, way in ways.items() if way != next(iter(ways.values()))), None)
    if other is not None:
        raise ValueError(f"several: {other} measured {metric} in another way than {next(iter(ways))}.")
    methods = tuple(name for name in first.methods if all(name in of.methods for of in results.values()))
    if not methods:
        raise ValueError("several: the studies share no method.")
    found = {name: cells_of({metric: of.repetitions(metric)}, of.reference)[metric] for name, of in results.items()}
    cells = {name: {method: row[method] for method in methods} for name, row in found.items()}
    return SeveralStudies(metric, first.higher_is_better(metric), methods, cells)
