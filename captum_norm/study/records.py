"""The records of a file, or of a data set by its id: mappings, each with where it stands for error messages.

A file is JSONL (one object per line), CSV or TSV (with a header).
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from captum_norm.optional_packages import required
from captum_norm.text_files import ENCODING

FORMATS = {".jsonl": "JSONL", ".csv": "CSV", ".tsv": "TSV"}
"""The file formats by how names end."""


def records_of_file(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of a JSONL, CSV or TSV file, each with where it stands."""
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return records_of_lines(path)
    if kind == ".tsv":
        return records_of_table(path, "\t", quoting=csv.QUOTE_NONE)
    return records_of_table(path, strict=True)


def records_of_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with where it stands.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no object, or that has a field twice.
    """
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, json_object(line, where)


def json_object(text: str, where: str) -> dict[str, Any]:
    """The object that a text holds as JSON.

    Raises:
        ValueError: if it holds none, or one that has a field twice, of which JSON would keep the last.

    Example:
        >>> json_object('{"text": "A warm film."}', "line 1")
        {'text': 'A warm film.'}
    """
    try:
        record = json.loads(text, object_pairs_hook=_fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} should be an object with fields, got {type(record).__name__}.")
    return record


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"has the field {_twice(name for name, _ in pairs)!r} twice. Leave one of them out.")
    return fields


def _twice(names: Iterable[str]) -> str | None:
    """The first name that stands there more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


@contextmanager
def _opened(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """A file of text, whose faults are said with its name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    with path.open(encoding=ENCODING, newline=newline) as lines:
        try:
            yield lines
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}.") from error


def records_of_table(path: Path, separator: str = ",", **how: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a file with a header, each by the names of its columns and with where it stands.

    Args:
        path: the file.
        separator: between columns.
        **how: cells are quoted, as `csv.reader` takes it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a row that has more or fewer columns than the header, for a header that has one name twice, and
            for what is no such table.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts are longer than the 128 KiB that csv expects
    with _opened(path, newline="") as lines:
        rows = csv.DictReader(lines, delimiter=separator, **how)
        try:
            twice = _twice(filter(None, rows.fieldnames or ()))
            if twice is not None:
                raise ValueError(f"{path}, line 1 has two columns {twice!r}. Give one of them another name.")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where} should have {len(rows.fieldnames or ())} columns, as its header.")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}.") from error


def records_of_dataset(source: str, split: str | None, subset: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of a data set by its id, each with where it stands."""
    if Path(source).exists() or source.startswith((".", "/", "~")):
        raise ValueError(
            f"{source}: data should be a file that ends in {', '.join(FORMATS)}, or the id of a data set."
        )
    if split is None:
        raise ValueError(f"{source} is taken for the id of a data set, which has splits: say which (split = ...).")
    datasets = required("datasets", f"data {source!r}")
    loaded = datasets.load_dataset(source, subset, split=split)
    for number, record in enumerate(loaded):
        yield f"{source} ({split}), example {number}", record
