"""What is read first of a study.  A table is data; it can be printed, cited, put on a page or computed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from captum_norm.study.optional_packages import required
from captum_norm.study.report.cells import Agreements, Cells
from captum_norm.study.report.typeset import agreement_as_text, table_as_latex, table_as_markdown, table_as_text


@dataclass(frozen=True)
class StudyTable(Cells):
    """Methods x metrics."""

    def as_text(self, width: int = 100, emphasised: Callable[[str], str] = str) -> str:
        """For a terminal of some width, in blocks of metrics that fit side by side."""
        return table_as_text(self, width, emphasised)

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """For a page: a row per method, cells as ``mean [low, high]``; all metrics or some."""
        return table_as_markdown(self, metrics)

    def to_latex(self) -> str:
        """A ``tabular`` with booktabs rules, the best mean of each metric in bold."""
        return table_as_latex(self)

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


@dataclass(frozen=True)
class AgreementTable(Agreements):
    """Methods x methods."""

    def as_text(self) -> str:
        """For a terminal."""
        return agreement_as_text(self)

    def to_pandas(self) -> Any:
        """A square table, methods as index and columns.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = required("pandas", "AgreementTable.to_pandas")
        names: Sequence[str] = list(self.methods)
        return pandas.DataFrame(self.means, index=names, columns=names)
