"""Numbers and columns as text: for a terminal, for a page, for a paper."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from captum_norm.tables import tex

_SIGNS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "ρ": r"$\rho$", "τ": r"$\tau$", "∞": r"$\infty$", "−": "$-$"}


@dataclass(frozen=True)
class Column:
    """One heading over a cell for each row, and over intervals beside the cells where there are any.

    Attributes:
        heading: what stands above.
        cells: a text for each row.
        intervals: a text for each row; empty for none.
        best: the row to emphasise; None for none.
    """

    heading: str
    cells: Sequence[str]
    intervals: Sequence[str] = ()
    best: int | None = None

    @property
    def width(self) -> int:
        """How many characters the column takes."""
        return max(len(self.heading), self._cell_width + self._interval_width)

    def lines(self, emphasised: Callable[[str], str]) -> list[str]:
        """The heading and the rows, each ``width`` wide before emphasis."""
        texts = [cell.rjust(self.width - self._interval_width) for cell in self.cells]
        shown = [emphasised(text) if row == self.best else text for row, text in enumerate(texts)]
        intervals = self.intervals or [""] * len(shown)
        rows = [cell + interval.rjust(self._interval_width) for cell, interval in zip(shown, intervals, strict=True)]
        return [self.heading.rjust(self.width), *rows]

    @property
    def _cell_width(self) -> int:
        return max(map(len, self.cells))

    @property
    def _interval_width(self) -> int:
        """With the space before it."""
        return 1 + max(map(len, self.intervals)) if any(self.intervals) else 0


def side_by_side(rows: Sequence[str], columns: Sequence[Column], emphasised: Callable[[str], str] = str) -> str:
    """Columns beside the names of their rows.

    Example:
        >>> print(side_by_side(["norm", "weights"], [Column("auprc", ["0.5", "0.25"], ["[0, 1]", ""])]))
                       auprc
        norm      0.5 [0, 1]
        weights  0.25
    """
    width = max(map(len, rows))
    lines = [name.ljust(width) for name in ["", *rows]]
    for column in columns:
        lines = [f"{line}  {cell}" for line, cell in zip(lines, column.lines(emphasised), strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def blocks(columns: Sequence[Column], width: int | None) -> list[list[Column]]:
    """Columns in blocks that fit into a width; None: all in one."""
    if width is None:
        return [list(columns)]
    fitting: list[list[Column]] = []
    left = 0
    for column in columns:
        needed = 2 + column.width
        if not fitting or needed > left:
            fitting.append([])
            left = width
        fitting[-1].append(column)
        left -= needed
    return fitting


def number(value: float) -> str:
    """Three digits after the point, or as many as tell small numbers from 0.

    Example:
        >>> number(0.25), number(-0.00012), number(float("nan"))
        ('0.250', '-1.2e-04', '·')
    """
    if math.isnan(value):
        return "·"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.1e}"


def interval(low: float, high: float) -> str:
    """An interval between brackets; nothing where it is not known.

    Example:
        >>> interval(0.25, 0.5)
        '[0.250, 0.500]'
    """
    return "" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def signed(value: float) -> str:
    """Two digits after the point, with the sign.

    Example:
        >>> signed(0.5)
        '+0.50'
    """
    return "·" if math.isnan(value) else f"{value:+.2f}"


def in_tex(text: str) -> str:
    r"""Text as LaTeX prints it, with minus signs that are no hyphens.

    Example:
        >>> print(in_tex("token_f1"), in_tex("-0.5 [-∞, 2]"))
        token\_f1 $-$0.5 [$-$$\infty$, 2]
    """
    signs = re.sub(r"(?<!\w)-(?=[\d∞])|(?<=\de)-(?=\d)", "−", text)
    return "".join(_SIGNS.get(character, character) for character in tex(signs))
