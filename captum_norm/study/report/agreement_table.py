"""How far methods agree, methods x methods: to print, to compute with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_norm.optional_packages import required
from captum_norm.study.report.typeset import Column, blocks, side_by_side, signed
from captum_norm.tables import LINE, Table, Tabular

_MEASURE_TITLES = {
    "spearman": "Spearman's ρ",
    "kendall_tau_b": "Kendall's τ-b",
    "top_k_overlap": "Overlap of the top 5",
    "rank_biased_overlap": "Rank-biased overlap",
}


@dataclass(frozen=True)
class AgreementTable(Tabular):
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

    def as_table(self) -> Table:
        """The square, a row and a column for each method."""
        rows = tuple((name, *map(float, row)) for name, row in zip(self.methods, self.means, strict=True))
        return Table(("method", *self.methods), rows, self.title, form="+.2f")

    def to_text(self, width: int | None = 100) -> str:
        """For a terminal: the lower half of the square, columns by number."""
        count = len(self.methods)
        names = [f"{row + 1} {method}" for row, method in enumerate(self.methods)]
        columns = []
        for column in range(count):
            below = [signed(float(self.means[row, column])) for row in range(column + 1, count)]
            columns.append(Column(str(column + 1), [*[""] * column, "1", *below]))
        parts = blocks(columns, width and width - max(map(len, names)))
        return "\n\n".join([self.title, *(side_by_side(names, part) for part in parts)])

    def to_latex(self, width: float = LINE) -> str:
        """For a paper: the square, columns by number."""
        rows = [(f"{i + 1} {row[0]}", *row[1:]) for i, row in enumerate(self.as_table().rows)]
        numbers = map(str, range(1, len(rows) + 1))
        return Table(("", *numbers), tuple(rows), self.title, form="+.2f").to_latex(width)

    def to_pandas(self) -> Any:
        """A square table, methods as index and columns.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = required("pandas", "AgreementTable.to_pandas")
        return pandas.DataFrame(self.means, index=list(self.methods), columns=list(self.methods))
