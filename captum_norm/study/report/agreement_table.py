"""How far methods agree, methods x methods: to print, to compute with."""

from __future__ import annotations

from collections.abc import Sequence
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
        return self._square(self.methods, self.methods)

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
        numbers = [str(place) for place in range(1, len(self.methods) + 1)]
        names = [f"{number} {name}" for number, name in zip(numbers, self.methods, strict=True)]
        return self._square(names, numbers).to_latex(width)

    def to_pandas(self) -> Any:
        """A square table, methods as index and columns.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = required("pandas", "AgreementTable.to_pandas")
        return pandas.DataFrame(self.means, index=list(self.methods), columns=list(self.methods))

    def _square(self, rows: Sequence[str], columns: Sequence[str]) -> Table:
        entries = tuple((name, *row) for name, row in zip(rows, self.means.tolist(), strict=True))
        return Table(("method", *columns), entries, self.title, form="+.2f")
