"""A study's tables, methods x metrics and methods x methods: to print, to cite, to put on a page, to compute with."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_norm.study.optional_packages import required
from captum_norm.study.report.cells import Cell
from captum_norm.study.report.typeset import Column, blocks, interval, number, side_by_side, signed, tex
from captum_norm.study.variants import ORACLE, RANDOM

ALPHA = 0.05
"""What is marked as different from the reference: a corrected p below this."""

_SPECIAL_TOKENS = {
    "mask": "Special tokens are neither ranked nor removed.",
    "keep": "Special tokens are ranked and removed like any other.",
    "report": "Special tokens are neither ranked nor removed; their share of |score| is reported.",
}
_INCOMPLETE = "n differs where a metric is not defined, has no evidence, or failed; see to_pandas()."
_MEASURE_TITLES = {
    "spearman": "Spearman's ρ",
    "kendall_tau_b": "Kendall's τ-b",
    "top_k_overlap": "Overlap of the top 5",
    "rank_biased_overlap": "Rank-biased overlap",
}


@dataclass(frozen=True)
class CostRow:
    """What a method took: seconds per example for scoring and for measuring, and bytes above what was in use before."""

    seconds: float
    metric_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class StudyTable:
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
        means = {method: row[metric].mean for method, row in self.cells.items() if method not in (RANDOM, ORACLE)}
        defined = {method: mean for method, mean in means.items() if not math.isnan(mean)}
        if not defined:
            return None
        return (max if self.metrics[metric] else min)(defined, key=defined.__getitem__)

    def differs(self, method: str, metric: str) -> bool:
        """Whether a method differs from the reference by the corrected test."""
        return self.cells[method][metric].p_holm < ALPHA

    def headings(self) -> dict[str, str]:
        """metric -> its name with an arrow to where it is better."""
        return {metric: f"{metric} {'↑' if higher else '↓'}" for metric, higher in self.metrics.items()}

    def explanation(self) -> list[str]:
        """What one must know to read it, a sentence each."""
        removals = sorted(set(self.notes.get("removals", {}).values()))
        failed = ", ".join(f"{method} on {count} examples" for method, count in self.failures.items())
        incomplete = any(cell.n != self.examples for row in self.cells.values() for cell in row.values())
        lines = [
            f"{self.examples} examples; means with {self.confidence:.0%} paired bootstrap intervals (BCa).",
            f"* differs from {self.reference}: paired permutation test, Holm's correction over the methods, "
            f"p < {ALPHA}.",
            f"Tokens are removed by: {', '.join(removals)}." if removals else "",
            _SPECIAL_TOKENS.get(self.notes.get("special", ""), ""),
            f"Failed: {failed}." if failed else "",
            _INCOMPLETE if incomplete else "",
            f"Not finished: {self.missing} scores are still to be computed." if self.missing else "",
        ]
        return [line for line in lines if line]

    def as_text(self, width: int = 100, emphasised: Callable[[str], str] = str) -> str:
        """For a terminal: blocks of metrics that fit side by side, then what each method took.

        Args:
            width: characters to fill.
            emphasised: what marks the best mean of a metric.
        """
        room = width - max(map(len, self.methods))
        columns = [self._column(metric, heading) for metric, heading in self.headings().items()]
        parts = [*blocks(columns, room), *blocks(self._cost_columns(), room)]
        shown = [side_by_side(self.methods, part, emphasised) for part in parts]
        return "\n\n".join([*shown, "\n".join(textwrap.fill(line, width) for line in self.explanation())])

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """For a page: a row per method, cells as ``mean [low, high]``; all metrics or some."""
        chosen = list(self.metrics if metrics is None else metrics)
        headings = " | ".join(self.headings()[metric] for metric in chosen)
        lines = [f"| | {headings} | s / example |", f"|---|{'---:|' * (len(chosen) + 1)}"]
        for method in self.methods:
            cells = " | ".join(self._markdown_cell(method, metric) for metric in chosen)
            cost = self.costs.get(method)
            lines.append(f"| {method} | {cells} | {'' if cost is None else f'{cost.seconds:.3g}'} |")
        return "\n".join([*lines, "", *self.explanation()])

    def to_latex(self) -> str:
        """A ``tabular`` with booktabs rules, the best mean in bold; comments above it say how to read it."""
        arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
        headings = [tex(heading[:-1]) + arrows[heading[-1]] for heading in self.headings().values()]
        lines = [f"% {line}" for line in self.explanation()]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(headings)}}}", r"\toprule"]
        lines += [rf" & {' & '.join(headings)} \\", r"\midrule"]
        for method in self.methods:
            cells = [self._latex_cell(method, metric) for metric in self.metrics]
            lines.append(rf"{tex(method)} & {' & '.join(cells)} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def to_pandas(self) -> Any:
        """A row per method and metric: mean, low, high, n, difference, p, p_holm, effect.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = required("pandas", "StudyTable.to_pandas")
        rows = [
            {"method": method, "metric": metric, **vars(cell)}
            for method, row in self.cells.items()
            for metric, cell in row.items()
        ]
        return pandas.DataFrame(rows)

    def _column(self, metric: str, heading: str) -> Column:
        cells = [self.cells[method][metric] for method in self.methods]
        stars = ["*" if self.differs(method, metric) else " " for method in self.methods]
        means = [number(cell.mean) + star for cell, star in zip(cells, stars, strict=True)]
        best = self.best(metric)
        return Column(
            heading,
            means,
            [interval(cell.low, cell.high) for cell in cells],
            None if best is None else self.methods.index(best),
        )

    def _cost_columns(self) -> list[Column]:
        def column(heading: str, cell: Callable[[CostRow], str]) -> Column:
            costs = [self.costs.get(method) for method in self.methods]
            return Column(heading, ["·" if cost is None else cell(cost) for cost in costs])

        columns = [
            column("ms / example", lambda cost: f"{1000 * cost.seconds:.1f}"),
            column("measuring", lambda cost: f"{1000 * cost.metric_seconds:.1f}"),
            column("peak MiB", lambda cost: "·" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:.0f}"),
        ]
        if self.failures:
            columns.append(Column("failed", [str(self.failures.get(method, 0)) for method in self.methods]))
        if self.special_shares:
            shares = [self.special_shares.get(method) for method in self.methods]
            columns.append(Column("special tokens", ["·" if share is None else f"{share:.1%}" for share in shares]))
        return columns

    def _markdown_cell(self, method: str, metric: str) -> str:
        cell = self.cells[method][metric]
        mean = f"**{number(cell.mean)}**" if method == self.best(metric) else number(cell.mean)
        star = r"\*" if self.differs(method, metric) else ""
        return f"{mean}{star} {interval(cell.low, cell.high)}".strip()

    def _latex_cell(self, method: str, metric: str) -> str:
        cell = self.cells[method][metric]
        if math.isnan(cell.mean):
            return "--"
        mean = rf"\textbf{{{number(cell.mean)}}}" if method == self.best(metric) else number(cell.mean)
        star = "$^{*}$" if self.differs(method, metric) else ""
        return rf"{mean}{star} {{\scriptsize {interval(cell.low, cell.high)}}}"


@dataclass(frozen=True)
class AgreementTable:
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
        measure = _MEASURE_TITLES.get(self.measure, self.measure)
        special = "left out" if self.special == "mask" else "included"
        return f"{measure} of the scores of {self.level}s, special tokens {special}, mean over examples"

    def as_text(self) -> str:
        """For a terminal: the lower half of the square, columns by number."""
        count = len(self.methods)
        names = [f"{row + 1} {method}" for row, method in enumerate(self.methods)]
        columns = []
        for column in range(count):
            below = [signed(float(self.means[row, column])) for row in range(column + 1, count)]
            columns.append(Column(str(column + 1), [*[""] * column, "1", *below]))
        return f"{self.title}\n{side_by_side(names, columns)}"

    def to_pandas(self) -> Any:
        """A square table, methods as index and columns.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = required("pandas", "AgreementTable.to_pandas")
        return pandas.DataFrame(self.means, index=list(self.methods), columns=list(self.methods))
