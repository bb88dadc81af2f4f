r"""Tables for papers: LaTeX ``tabular``s with booktabs rules that stay within a line and a page.

A table that is wider than the line is folded as on a terminal: several ``tabular``s below each other, each with the
columns that name a row.  One of more than ``ROWS`` rows is cut into several, so that pages may break between them.  How
wide a column is, is added up from the widths of Computer Modern's letters at 10 points, rounded up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

LINE = 345.0
"""The line of LaTeX's article class, in points."""

ROWS = 40
"""So many rows, with their head, fill a page of the article class."""

_GAP = 12.0  # twice \tabcolsep

_TEX = {
    "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "·": r"$\cdot$", "…": r"\dots{}",
}  # fmt: skip

_WIDTHS = [  # points, the widest of each kind; what fits none is as wide as the widest letter
    (re.compile(r"[ijl.,:;'|!\[\]]"), 2.8), (re.compile(r"[frst()I\- ]"), 4.0), (re.compile(r"[acegoz0-9$/*^~]"), 5.0),
    (re.compile(r"[bdhknpquvxyJS_]"), 5.6), (re.compile(r"[BCEFLPRTZ]"), 7.4), (re.compile(r"[ADGHKNOQUVXY+=<>]"), 7.9),
    (re.compile(r"[mw%&#]"), 8.4),
]  # fmt: skip


def tex(text: str) -> str:
    """Text whose special characters LaTeX prints as they are, also behind the ``\\\\`` of a row, which takes a bracket.

    Example:
        >>> tex("token_f1"), tex("[CLS]")
        ('token\\\\_f1', '{[}CLS]')
    """
    spelled = "".join(_TEX.get(character, character) for character in text)
    return f"{{{spelled[0]}}}{spelled[1:]}" if spelled.startswith(("[", "*")) else spelled


def points(spelled: str) -> float:
    r"""How wide LaTeX sets a cell, at most, at 10 points.

    Example:
        >>> points("10"), points(r"\textbf{10}"), points(r"\_")
        (10.0, 10.0, 5.6)
    """
    seen = re.sub(r"\\(?:textbf|scriptsize) *", "", spelled)
    seen = re.sub(r"\\(?=[&%_#${}])|(?<!\\)[{}$]", "", re.sub(r"\\[a-zA-Z]+", "+", seen))
    return sum(next((width for kind, width in _WIDTHS if kind.match(letter)), 10.3) for letter in seen)


def tabulars(
    headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int], keys: int = 1, width: float = LINE
) -> str:
    """A table as one ``tabular``, or as several where one would be wider than a line or longer than a page.

    Args:
        headers: one for each column, spelled for LaTeX.
        rows: the cells, likewise.
        left: the columns aligned to the left; all others to the right.
        keys: how many columns name a row: these are in each part.
        width: of a line, in points.
    """
    widths = [_GAP + max(map(points, column)) for column in zip(headers, *rows, strict=True)]
    parts = []
    for columns in folded(widths, keys, width):
        for first in range(0, max(1, len(rows)), ROWS):
            chosen = [headers, *rows[first : first + ROWS]]
            parts.append(_tabular([[row[c] for c in columns] for row in chosen], [c in left for c in columns]))
    return "\n\n\\medskip\n".join(parts)


def folded(widths: Sequence[float], keys: int, room: float) -> list[list[int]]:
    """Which columns stand in each part: the keys, then as many of the rest as there is room for, at least one.

    Example:
        >>> folded([2, 3, 3, 4], keys=1, room=8)
        [[0, 1, 2], [0, 3]]
    """
    starts, used = [keys], sum(widths[:keys])
    for column in range(keys, len(widths)):
        used += widths[column]
        if used > room and column > starts[-1]:
            starts.append(column)
            used = sum(widths[:keys]) + widths[column]
    return [[*range(keys), *range(start, stop)] for start, stop in pairwise([*starts, len(widths)])]


def _tabular(rows: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    head, *body = [rf"{' & '.join(row)} \\" for row in rows]
    begin = rf"\noindent\begin{{tabular}}{{{''.join('l' if one else 'r' for one in left)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])
