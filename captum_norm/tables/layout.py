"""Columns that line up on a terminal: aligned by what is seen, wide characters counting two."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

_ESCAPE = re.compile(r"\033\[[0-9;]*m")


def width_of(text: str) -> int:
    """How many columns a text takes up.

    Example:
        >>> width_of("naïve"), width_of("日本"), width_of("\\033[1mbold\\033[0m")
        (5, 4, 4)
    """
    seen = _ESCAPE.sub("", text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in seen)
    return len(seen) + wide - sum(bool(unicodedata.combining(character)) for character in seen)


def cut(text: str, width: int, keep_end: bool = False) -> str:
    """A text in at most ``width`` columns, with an ellipsis where something is missing.

    Example:
        >>> cut("unbelievable", 6), cut("encoder.layer.0.attention", 12, keep_end=True)
        ('unbel…', '…0.attention')
    """
    if width_of(text) <= width:
        return text
    kept, room = 0, width - 1
    for character in reversed(text) if keep_end else text:
        room -= width_of(character)
        if room < 0:
            break
        kept += 1
    return f"…{text[len(text) - kept :]}" if keep_end else f"{text[:kept]}…"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,),
    groups: Sequence[tuple[str, int]] = (), width: int | None = None, keys: int = 1,
) -> str:  # fmt: skip
    """Columns that line up; where they are wider than ``width``, several tables below each other.

    Args:
        headers: one per column; a newline makes it two lines.
        rows: the cells; a row of none draws a rule.
        left: the columns aligned to the left; all others to the right.
        groups: titles over columns: (title, how many columns), from the first column on; ``""`` for no title.
        width: how wide a table may be; None: as wide as it is.
        keys: how many columns name a row; they are in each part.

    Example:
        >>> print(table(["word", "norm"], [["film", "0.5"], ["warm", "12.0"]]))
        word  norm
        film   0.5
        warm  12.0
        >>> print(table(["word", "a", "b"], [["film", "0.5", "0.25"]], width=12))
        word    a
        film  0.5
        <BLANKLINE>
        word     b
        film  0.25
    """
    if width is None:
        return _lines(headers, rows, left, groups)
    titles = [title for title, count in groups for _ in range(count)]
    parts, start = [], keys
    while start < len(headers):
        stop = len(headers)
        while stop > start + 1 and _width(_part(headers, rows, left, titles, keys, start, stop)) > width:
            stop -= 1
        parts.append(_part(headers, rows, left, titles, keys, start, stop))
        start = stop
    return "\n\n".join(parts) or _lines(headers, rows, left, groups)


def _width(text: str) -> int:
    return max(map(width_of, text.split("\n")))


def _part(
    headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int], titles: Sequence[str], keys: int,
    start: int, stop: int,
) -> str:  # fmt: skip
    """The columns that name a row beside those from ``start`` to ``stop``."""
    kept = [*range(keys), *range(start, stop)]
    groups = [(title, len(list(same))) for title, same in groupby(titles[c] for c in kept)] if titles else []
    cells = [[row[c] for c in kept] if row else [] for row in rows]
    return _lines([headers[c] for c in kept], cells, [i for i, c in enumerate(kept) if c in left], groups)


def _lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int], groups: Sequence[tuple[str, int]]
) -> str:
    """One table."""
    heads = [header.split("\n") for header in headers]
    tall = max(map(len, heads))
    head_rows = [[(([""] * (tall - len(h))) + h)[line] for h in heads] for line in range(tall)]
    body = [row for row in rows if row]
    widths = [max(width_of(row[c]) for row in [*head_rows, *body]) for c in range(len(headers))]
    starts = [0]
    for _, count in groups:
        starts.append(starts[-1] + count)
    _widen(widths, groups)
    gaps = ["   " if c in starts[1:] else "  " for c in range(len(widths))]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for c, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            space = " " * (width - width_of(cell))
            padded.append((gaps[c] if c else "") + (cell + space if c in left else space + cell))
        return "".join(padded).rstrip()

    lines = [*_titles(widths, gaps, groups), *map(line, head_rows)]
    rule = "─" * max(map(width_of, [*lines, *map(line, body)]))
    return "\n".join([*lines, *(line(row) if row else rule for row in rows)])


def _widen(widths: list[int], groups: Sequence[tuple[str, int]]) -> None:
    """Give the last column of a group the room that its title needs."""
    start = 0
    for title, count in groups:
        room = sum(widths[start : start + count]) + 2 * (count - 1)
        widths[start + count - 1] += max(0, width_of(title) - room)
        start += count


def _titles(widths: Sequence[int], gaps: Sequence[str], groups: Sequence[tuple[str, int]]) -> list[str]:
    if not groups:
        return []
    text, start = "", 0
    for title, count in groups:
        room = sum(widths[start : start + count]) + 2 * (count - 1)
        text += (gaps[start] if start else "") + title.center(room - width_of(title) + len(title))
        start += count
    return [text.rstrip()]
