"""A table of results, spelled for a terminal, a page, a paper, a spreadsheet or a notebook.

Every result of the package that has rows offers the same five: ``to_text``, ``to_markdown``, ``to_latex``, ``to_csv``
and ``to_pandas``; a notebook shows it by itself.  Numbers are rounded where people read them, and whole in CSV and
pandas.
"""

from __future__ import annotations

import csv
import html
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from captum_norm.files import replacing
from captum_norm.optional_packages import required
from captum_norm.tables.layout import table
from captum_norm.tables.paper import LINE, tabulars, tex

Entry: TypeAlias = "str | int | float | bool | None"

_CELL = "padding:.2em .7em .2em 0;border:none;border-bottom:1px solid rgba(128,128,128,.25);white-space:nowrap"


class Tabular:
    """What is shown as a table: a subclass gives :meth:`as_table`, and has every spelling of it."""

    def as_table(self) -> Table:
        """The rows to show."""
        raise NotImplementedError(f"{type(self).__name__} has no rows.")

    def to_text(self, width: int | None = 100) -> str:
        """For a terminal: columns that line up, folded where they are wider than ``width``; None never folds."""
        return self.as_table()._text(width)

    def to_markdown(self) -> str:
        """For a page: a Markdown table."""
        return self.as_table()._markdown()

    def to_latex(self, width: float = LINE) -> str:
        """For a paper: a ``tabular`` with booktabs rules; several where one is wider than a line or longer than a page.

        Args:
            width: of the line, in points: 345 in LaTeX's article class, ``\\the\\linewidth`` says it of another.
        """
        return self.as_table()._latex(width)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Comma-separated, numbers unrounded.

        Args:
            path: a file to write it to as well, whole or not at all.
        """
        text = self.as_table()._csv()
        if path is not None:
            with replacing(path) as unfinished:
                unfinished.write_bytes(text.encode("utf-8"))
        return text

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with the table's columns, numbers unrounded.

        Raises:
            ImportError: if pandas is not installed.
        """
        one = self.as_table()
        pandas = required("pandas", f"{type(self).__name__}.to_pandas")
        return pandas.DataFrame([list(row) for row in one.rows], columns=list(one.columns))

    def _repr_html_(self) -> str:
        return self.as_table()._html()


@dataclass(frozen=True, repr=False)
class Table(Tabular):
    """Rows under named columns.

    Attributes:
        columns: their names.
        rows: the entries; None and NaN are shown as ``·``, and empty in CSV.
        title: what stands above; ``""`` for nothing.
        notes: what one must know to read it, a sentence each.
        form: how numbers with a point are rounded, as for ``format``.
        keys: how many columns name a row; they stand in each part of a table that is folded.

    Raises:
        ValueError: for a row that does not fit the columns.

    Example:
        >>> one = Table(("word", "score"), (("warm", 0.4), ("film_", None)))
        >>> one
        word   score
        warm     0.4
        film_      ·
        >>> print(one.to_markdown())
        | word | score |
        |---|---:|
        | warm | 0.4 |
        | film_ | · |
        >>> one.to_csv()
        'word,score\\r\\nwarm,0.4\\r\\nfilm_,\\r\\n'
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    form: str = ".3g"
    keys: int = 1

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"Table: row {number} has {len(row)} entries under {len(self.columns)} columns.")

    def __repr__(self) -> str:
        return self.to_text()

    def as_table(self) -> Table:
        """Itself."""
        return self

    def told(self, column: str, of: str) -> Table:
        """Without a column that another decides: what it has for each entry of that is said in a note.

        Example:
            >>> one = Table(("call", "name", "share"), ((0, "layer.0", 0.5), (1, "layer.1", 0.25)), keys=2)
            >>> one.told("name", of="call")
            call  share
               0    0.5
               1   0.25
            call 0: layer.0
            call 1: layer.1
        """
        gone, key = self.columns.index(column), self.columns.index(of)
        said = dict.fromkeys(f"{of} {row[key]}: {row[gone]}" for row in self.rows)
        columns, keys = (*self.columns[:gone], *self.columns[gone + 1 :]), self.keys - (gone < self.keys)
        rows = tuple((*row[:gone], *row[gone + 1 :]) for row in self.rows)
        return replace(self, columns=columns, rows=rows, notes=(*self.notes, *said), keys=keys)

    def _text(self, width: int | None) -> str:
        body = table(self.columns, self._shown(), left=self._left(), width=width, keys=self.keys)
        return "\n".join([*([self.title] if self.title else []), body, *self.notes])

    def _markdown(self) -> str:
        left = self._left()
        rule = "".join(f"{'---' if i in left else '---:'}|" for i in range(len(self.columns)))
        lines = [_bars(self.columns), f"|{rule}", *map(_bars, self._shown())]
        title, notes = [f"**{self.title}**", ""] if self.title else [], ["", *self.notes] if self.notes else []
        return "\n".join([*title, *lines, *notes])

    def _latex(self, width: float) -> str:
        headers, rows = [tex(name) for name in self.columns], [[tex(cell) for cell in row] for row in self._shown()]
        said = [f"% {line}" for line in (self.title, *self.notes) if line]
        return "\n".join([*said, tabulars(headers, rows, self._left(), self.keys, width)])

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(self.columns)
        writer.writerows(["" if _unknown(entry) else entry for entry in row] for row in self.rows)
        return text.getvalue()

    def _html(self) -> str:
        left = self._left()

        def line(cells: Sequence[str], kind: str) -> str:
            side = ["left" if i in left else "right" for i in range(len(cells))]
            parts = (
                f'<{kind} style="{_CELL};text-align:{s}">{html.escape(cell)}</{kind}>'
                for cell, s in zip(cells, side, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        title = f"<p><b>{html.escape(self.title)}</b></p>" if self.title else ""
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        body = "".join(line(row, "td") for row in self._shown())
        return (
            f'{title}<div style="overflow-x:auto"><table style="border-collapse:collapse">'
            f"<thead>{line(self.columns, 'th')}</thead><tbody>{body}</tbody></table></div>{notes}"
        )

    def _shown(self) -> list[list[str]]:
        return [[_entry(entry, self.form) for entry in row] for row in self.rows]

    def _left(self) -> list[int]:
        """The columns of words, which are aligned to the left."""
        return [i for i in range(len(self.columns)) if any(isinstance(row[i], str) for row in self.rows)] or [0]


def _unknown(entry: Entry) -> bool:
    return entry is None or (isinstance(entry, float) and math.isnan(entry))


def _entry(entry: Entry, form: str) -> str:
    if _unknown(entry):
        return "·"
    if isinstance(entry, float):
        return format(entry, form)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(entry))


def _bars(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
