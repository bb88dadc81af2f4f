"""A study's table, methods x metrics: to print, to cite, to put on a page, to compute with."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from captum_norm.study.report import legend
from captum_norm.study.report.agreement_table import AgreementTable
from captum_norm.study.report.cells import Cell, Statistics
from captum_norm.study.report.legend import ALPHA
from captum_norm.study.report.typeset import Column, blocks, in_tex, interval, number, side_by_side
from captum_norm.study.variants import ORACLE, RANDOM
from captum_norm.tables import LINE, Table, Tabular, tabulars

__all__ = ["ALPHA", "AgreementTable", "CostRow", "StudyTable"]


@dataclass(frozen=True)
class CostRow:
    """What a method took: seconds per example for scoring and for measuring, and bytes above what was in use before."""

    seconds: float
    metric_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class StudyTable(Tabular):
    """Methods x metrics.

    Attributes:
        methods: in the study's order.
        metrics: metric -> whether higher is better.
        cells: method -> metric -> cell.
        reference: the method that others are tested against.
        statistics: how intervals and tests were computed.
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
    statistics: Statistics
    costs: dict[str, CostRow]
    failures: dict[str, int]
    special_shares: dict[str, float]
    examples: int
    missing: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def best(self, metric: str) -> str | None:
        """The method with the best mean, floor and ceiling aside; None where means are over different examples."""
        cells = {method: row[metric] for method, row in self.cells.items() if method not in (RANDOM, ORACLE)}
        means = {method: cell.mean for method, cell in cells.items() if not math.isnan(cell.mean)}
        if len({cells[method].n for method in means}) != 1:
            return None
        return (max if self.metrics[metric] else min)(means, key=means.__getitem__)

    def differs(self, method: str, metric: str) -> bool:
        """Whether a method differs from the reference by the corrected test, both over the same examples."""
        return self._same_examples(method, metric) and self.cells[method][metric].p_holm < ALPHA

    def is_level(self, method: str, metric: str) -> bool:
        """Whether a method's difference to the reference lies within the margin, by two one-sided tests."""
        return self._same_examples(method, metric) and self.cells[method][metric].p_equivalent < ALPHA

    def headings(self) -> dict[str, str]:
        """metric -> its name, an arrow to where it is better, and n where all means are over the same examples."""
        return {
            metric: f"{metric} {'↑' if higher else '↓'}{'' if self._n(metric) is None else f' n={self._n(metric)}'}"
            for metric, higher in self.metrics.items()
        }

    def explanation(self) -> list[str]:
        """What one must know to read it, a sentence each."""
        how = self.statistics
        fewest = min((row[metric].n for row in self.cells.values() for metric in row if row[metric].n), default=0)
        tests = sum(not math.isnan(cell.p) for row in self.cells.values() for cell in row.values())
        together = tests if how.correction == "table" else math.ceil(tests / max(1, len(self.metrics)))
        lines = legend.of_study(self.examples, self.notes) + legend.of_statistics(how, self.reference)
        lines += legend.of_few(how, fewest, together)
        failed = ", ".join(f"{method} on {count} examples" for method, count in self.failures.items())
        lines += [f"Failed: {failed}."] if failed else []
        return lines + ([f"Not finished: {self.missing} scores are still to be computed."] if self.missing else [])

    def as_table(self) -> Table:
        """A row per method and metric, with all that its cell holds: mean, low, high, n, difference, p, effect ..."""
        rows = tuple(
            (method, metric, *vars(cell).values()) for method, row in self.cells.items() for metric, cell in row.items()
        )
        return Table(("method", "metric", *(of.name for of in fields(Cell))), rows, keys=2)

    def to_text(self, width: int | None = 100, emphasised: Callable[[str], str] = str) -> str:
        """For a terminal: blocks of metrics that fit side by side, differences, then what each method took.

        Args:
            width: characters to fill; None never folds.
            emphasised: what marks the best mean of a metric.
        """
        room = width and width - max(map(len, self.methods))
        means = [self._column(metric, heading) for metric, heading in self.headings().items()]
        parts = [*blocks(means, room), *blocks(self._cost_columns(), room)]
        shown = [side_by_side(self.methods, part, emphasised) for part in parts]
        legend_lines = [textwrap.fill(line, width or sys.maxsize) for line in self.explanation()]
        return "\n\n".join([*shown, "\n".join(legend_lines)])

    def differences_as_text(self, width: int = 100) -> str:
        """For a terminal: the mean difference of each method to the reference, with its interval."""
        others = [method for method in self.methods if method not in (self.reference, ORACLE)]
        columns = [self._difference_column(metric, others) for metric in self.metrics]
        room = width - max(map(len, others))
        title = f"mean differences to {self.reference}, with {self.statistics.confidence:.0%} intervals"
        return "\n\n".join([title, *(side_by_side(others, part) for part in blocks(columns, room))])

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

    def to_latex(self, width: float = LINE, document: bool = False) -> str:
        """A ``tabular`` with booktabs rules, the best mean in bold, and a legend below that says how to read it.

        Args:
            width: of the line, in points; metrics that do not fit beside each other stand below each other.
            document: a whole document, wide enough for all metrics, which compiles by itself; otherwise for
                ``\\input``, with ``booktabs`` loaded.
        """
        headers = ["", *(in_tex(heading) for heading in self.headings().values())]
        rows = [[in_tex(name), *(self._latex_cell(name, metric) for metric in self.metrics)] for name in self.methods]
        lines = [tabulars(headers, rows, left=[0], width=math.inf if document else width), r"\par\smallskip\noindent"]
        lines += [r"\begin{minipage}{\linewidth}\footnotesize"]
        said = [*self.explanation(), legend.of_draws(self.statistics, self.metrics)]
        lines += [*(in_tex(line) for line in said), r"\end{minipage}"]
        if not document:
            return "\n".join([r"% needs \usepackage{booktabs}", *lines])
        wide = 24 + 2 * max(map(len, self.methods)) + sum(max(42, 2 * len(of)) for of in self.headings().values())
        head = [r"\documentclass{article}", rf"\usepackage[paperwidth={wide}mm,margin=10mm]{{geometry}}"]
        head += [r"\usepackage{booktabs}", r"\pagestyle{empty}", r"\begin{document}"]
        return "\n".join([*head, *lines, r"\end{document}"])

    def _repr_html_(self) -> str:
        rows = tuple((name, *(self._plain_cell(name, metric) for metric in self.metrics)) for name in self.methods)
        shown = Table(("method", *self.headings().values()), rows, notes=tuple(self.explanation()))
        return shown._repr_html_()

    def _same_examples(self, method: str, metric: str) -> bool:
        return self.cells[method][metric].n == self.cells[self.reference][metric].n

    def _n(self, metric: str) -> int | None:
        """Over how many examples the methods' means are, the oracle's aside; None where they differ."""
        counts = {row[metric].n for method, row in self.cells.items() if method != ORACLE and row[metric].n}
        return counts.pop() if len(counts) == 1 else None

    def _mark(self, method: str, metric: str, star: str = "*", level: str = "=") -> str:
        return star if self.differs(method, metric) else level if self.is_level(method, metric) else ""

    def _column(self, metric: str, heading: str) -> Column:
        cells = [self.cells[method][metric] for method in self.methods]
        marks = [self._mark(method, metric) or " " for method in self.methods]
        means = [number(cell.mean) + mark for cell, mark in zip(cells, marks, strict=True)]
        best = self.best(metric)
        return Column(
            heading,
            means,
            [self._interval(cell, metric) for cell in cells],
            None if best is None else self.methods.index(best),
        )

    def _difference_column(self, metric: str, others: Sequence[str]) -> Column:
        cells = [self.cells[method][metric] for method in others]
        marks = [self._mark(method, metric) or " " for method in others]
        return Column(
            metric,
            [number(cell.difference) + mark for cell, mark in zip(cells, marks, strict=True)],
            [interval(cell.difference_low, cell.difference_high) for cell in cells],
        )

    def _interval(self, cell: Cell, metric: str) -> str:
        """The marginal interval, and n where the heading has none or another."""
        n = f"n={cell.n}" if cell.n not in (0, self._n(metric)) else ""
        return f"{interval(cell.low, cell.high)} {n}".strip()

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

    def _plain_cell(self, method: str, metric: str) -> str:
        cell = self.cells[method][metric]
        return f"{number(cell.mean)}{self._mark(method, metric)} {self._interval(cell, metric)}".strip()

    def _markdown_cell(self, method: str, metric: str) -> str:
        cell = self.cells[method][metric]
        mean = f"**{number(cell.mean)}**" if method == self.best(metric) else number(cell.mean)
        mark = self._mark(method, metric, star=r"\*")
        return f"{mean}{mark} {self._interval(cell, metric)}".strip()

    def _latex_cell(self, method: str, metric: str) -> str:
        cell = self.cells[method][metric]
        if math.isnan(cell.mean):
            return "--"
        mean = in_tex(number(cell.mean))
        mean = rf"\textbf{{{mean}}}" if method == self.best(metric) else mean
        mark = self._mark(method, metric, star="$^{*}$", level="$^{=}$")
        return rf"{mean}{mark} {{\scriptsize {in_tex(self._interval(cell, metric))}}}"
