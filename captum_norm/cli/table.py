"""The screen that tables are printed on: how wide it is, what moves its cursor, whether anybody watches."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TextIO

from captum_norm.tables.layout import cut, table, width_of

__all__ = ["cut", "emphasised", "screen_width", "shown", "table", "width_of", "wrap"]


def screen_width(stream: TextIO | None = None) -> int:
    """Columns to fill: the terminal's between 60 and 120, or 100 where output goes to a file or a pipe."""
    stream = sys.stdout if stream is None else stream
    if not stream.isatty() and "COLUMNS" not in os.environ:
        return 100
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def shown(text: str) -> str:
    """A text on one line, with characters that would move the cursor written out.

    Example:
        >>> shown("a\\tb\\x1b[2J")
        'a\\\\tb\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def wrap(text: str, width: int | None = None) -> str:
    """A text in lines of the screen's width."""
    return textwrap.fill(text, screen_width() if width is None else width, break_long_words=True)


def emphasised(text: str, stream: TextIO | None = None) -> str:
    """Bold on a terminal, as it is elsewhere or where NO_COLOR is set."""
    stream = sys.stdout if stream is None else stream
    return f"\033[1m{text}\033[0m" if stream.isatty() and not os.environ.get("NO_COLOR") else text
