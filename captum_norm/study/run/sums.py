"""Are a store's rows the rows that were written?  A checksum for each batch, and one for each thing that is recorded.

A disk, a copy or a cosmic ray may turn a bit without anyone noticing; SQLite checks its structure, not its content.  So
every transaction also keeps the BLAKE2b digest of what it wrote: of a batch's examples and targets, of each method's
scores on it, of each metric of these, and of what they took.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = tuple[Any, ...]
Part = tuple[str, int, int, int]
"""table, batch, method, metric; -1 for what a table does not tell apart."""

# Where a row of each table says which part it belongs to: places of (batch, method, metric), -1 where it does not.
TABLES: dict[str, tuple[int, int, int]] = {
    "examples": (1, -1, -1),
    "targets": (1, -1, -1),
    "scores": (2, 0, -1),
    "metrics": (3, 0, 1),
    "costs": (2, 0, 1),
}


class DamagedStoreError(ValueError):
    """Something in the store is not what was written."""


def digest_of_rows(rows: Iterable[Sequence[Any]]) -> str:
    """Of rows in any order; integers, floats, texts, bytes and None.

    Example:
        >>> digest_of_rows([(1, 0.5), (0, None)]) == digest_of_rows([(0, None), (1, 0.5)])
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in sorted(repr(tuple(row)) for row in rows):
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def parts_of_rows(table: str, rows: Iterable[Sequence[Any]]) -> dict[Part, list[Row]]:
    """The rows of each part."""
    places = TABLES[table]
    parts: dict[Part, list[Row]] = defaultdict(list)
    for row in rows:
        batch, method, metric = (-1 if place < 0 else row[place] for place in places)
        parts[table, batch, method, metric].append(tuple(row))
    return parts


def sums_of(table: str, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[str, int, int, int, str]]:
    """Rows for the table of checksums."""
    for part, content in parts_of_rows(table, rows).items():
        yield *part, digest_of_rows(content)


def first_difference(table: str, rows: Iterable[Sequence[Any]], kept: dict[Part, str]) -> Part | None:
    """The first part whose rows are not those that were written; None where all are."""
    nothing = digest_of_rows([])
    found: dict[Part, str] = {part: digest_of_rows(content) for part, content in parts_of_rows(table, rows).items()}
    wrong = (part for part in sorted({*found, *kept}, key=repr) if found.get(part, nothing) != kept.get(part))
    return next(wrong, None)
