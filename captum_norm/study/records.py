"""The records of a file, or of a data set by its id: mappings, each with where it stands for error messages.

A file is JSONL (one object per line), CSV or TSV (with a header).
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from captum_norm.optional_packages import required
from captum_norm.text_files import ENCODING

FORMATS = {".jsonl": "JSONL", ".csv": "CSV", ".tsv": "TSV"}
"""The file formats by how names end."""


def records_of_file(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of a JSONL, CSV or TSV file, each with where it stands."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    reader = _jsonl if path.suffix.lower() == ".jsonl" else _separated
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}.") from error


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding=ENCODING) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where} is no JSON: {error}.") from error
            if not isinstance(record, dict):
                raise ValueError(f"{where} should be an object with fields, got {type(record).__name__}.")
            yield where, record


def _separated(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kind = path.suffix.lower()
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts are longer than the 128 KiB that csv expects
    quoting: Any = {"quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    with path.open(encoding=ENCODING, newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",", **quoting)
        try:
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
