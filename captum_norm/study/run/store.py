"""Where does a study keep its results, so that nothing is lost when it is killed?  In one SQLite file.

Every finished batch of one method is one transaction: its scores, its metrics and its failures are there together or
not at all.  The journal is SQLite's rollback journal with ``synchronous=FULL``: a kill or a power cut leaves the last
commit whole, the store stays a single file that can be copied, and shared file systems, where WAL does not work, are
safe.  Scores and metrics are kept as 64-bit floats, bit for bit.

What was studied, with which model, methods, metrics and data, is written once, before the first result.  A store is
only continued by the study that it was made by.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from captum_norm.study.batches import Explained

_APPLICATION = 0x63_6E_73_74  # "cnst", by which a store differs from any other SQLite file
_FORMAT = 2

_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE examples (example INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, text_pair TEXT,
    label TEXT, tokens TEXT NOT NULL, words TEXT NOT NULL, special BLOB NOT NULL, evidence BLOB);
CREATE TABLE targets (example INTEGER PRIMARY KEY, target INTEGER NOT NULL, predicted INTEGER NOT NULL,
    probability REAL NOT NULL, label INTEGER);
CREATE TABLE scores (method INTEGER, example INTEGER, scores BLOB, error TEXT, PRIMARY KEY (method, example))
    WITHOUT ROWID;
CREATE TABLE metrics (method INTEGER, metric INTEGER, example INTEGER, value REAL, error TEXT,
    PRIMARY KEY (method, metric, example)) WITHOUT ROWID;
CREATE TABLE costs (method INTEGER, batch INTEGER, examples INTEGER, method_seconds REAL, metric_seconds REAL,
    peak_bytes INTEGER, PRIMARY KEY (method, batch)) WITHOUT ROWID;
"""
_CONTENT = ("targets", "scores", "metrics", "costs")  # what parts of a store add up to


class StoreMismatchError(ValueError):
    """The store was made by another study: another model, data, method, metric or version."""


@dataclass(frozen=True)
class Cost:
    """What one method took on one batch: wall-clock seconds, and bytes above what was in use (None: unknown)."""

    method_seconds: float
    metric_seconds: float
    peak_bytes: int | None


@dataclass
class Finished:
    """All that one method gave on one batch.

    Attributes:
        method: its number in the study.
        batch: the batch's number.
        examples: their numbers.
        cost: what it took.
        scores: example -> (token,) float64, padding left out.
        values: (metric, example) -> value; NaN where the metric is not defined.
        errors: example -> why the method failed; None where it has nothing to say (the oracle without evidence).
        metric_errors: (metric, example) -> why the metric failed.
    """

    method: int
    batch: int
    examples: Sequence[int]
    cost: Cost
    scores: dict[int, Tensor] = field(default_factory=dict)
    values: dict[tuple[int, int], float] = field(default_factory=dict)
    errors: dict[int, str | None] = field(default_factory=dict)
    metric_errors: dict[tuple[int, int], str] = field(default_factory=dict)


class Store:
    """A study's file.

    Args:
        path: the file; made if it is not there, unless ``readonly``.
        readonly: to look only.

    Raises:
        FileNotFoundError: if there is nothing to read, or no folder to write to.
        OSError: if the file cannot be read or written.
        ValueError: if it is no store.
    """

    def __init__(self, path: str | Path, *, readonly: bool = False) -> None:
        self.path = Path(path)
        if readonly and not self.path.is_file():
            raise FileNotFoundError(f"{path}: there is no such store.")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{path} cannot be written: the folder {self.path.parent} does not exist.")
        with self._explained():
            mode = "ro" if readonly else "rwc"
            self._base = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=60, isolation_level=None
            )
            try:
                self._prepare(readonly)
            except BaseException:
                self._base.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, config: Mapping[str, Any], about: Mapping[str, Any], examples: Iterable[Sequence[Any]]) -> None:
        """Write what the study is, if the store is new; else check that it is the same study.

        Args:
            config: what may not change: it decides the results.
            about: what is recorded besides.
            examples: rows for the table of examples.

        Raises:
            StoreMismatchError: naming what differs.
        """
        with self._transaction():
            begun = self.about("config")
            if begun is None:
                self._write_about({"config": config, **about})
                self._base.executemany("INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", examples)
                return
        differing = list(_differences(begun, json.loads(json.dumps(config))))
        if differing:
            raise StoreMismatchError(
                f"{self.path} belongs to another study: {'; '.join(differing[:3])}"
                f"{f'; and {len(differing) - 3} more' if len(differing) > 3 else ''}. "
                "Results are not mixed: give another store, or run the study as it was."
            )

    def about(self, name: str) -> Any:
        """What was recorded under a name (``"config"``, ``"versions"`` ...); None for nothing."""
        rows = self.rows("SELECT content FROM about WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def note(self, name: str, content: Any) -> None:
        """Record something under a name, over what was there."""
        with self._transaction():
            self._write_about({name: content})

    def finished(self) -> set[tuple[int, int]]:
        """(method, example) of everything that needs no second run, failures included."""
        return {(method, example) for method, example in self.rows("SELECT method, example FROM scores")}

    def add(self, result: Finished) -> None:
        """Keep what a method gave on a batch, in one transaction.

        Raises:
            OSError: if it cannot be written; what was there before is there still.
        """
        scores: list[tuple[Any, ...]] = [(result.method, e, _blob(s), None) for e, s in result.scores.items()]
        scores += [(result.method, e, None, error) for e, error in result.errors.items()]
        values: list[tuple[Any, ...]] = [(result.method, m, e, _number(v), None) for (m, e), v in result.values.items()]
        values += [(result.method, m, e, None, error) for (m, e), error in result.metric_errors.items()]
        cost = result.cost
        row = (result.method, result.batch, len(result.examples))
        with self._transaction():
            self._base.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", scores)
            self._base.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?)", values)
            self._base.execute(
                "INSERT OR REPLACE INTO costs VALUES (?, ?, ?, ?, ?, ?)",
                (*row, cost.method_seconds, cost.metric_seconds, cost.peak_bytes),
            )

    def add_targets(self, examples: Sequence[int], explained: Explained) -> None:
        """What is explained of a batch."""
        columns = (explained.target.tolist(), explained.predicted.tolist(), explained.probability.tolist())
        with self._transaction():
            self._base.executemany(
                "INSERT OR REPLACE INTO targets VALUES (?, ?, ?, ?, ?)",
                zip(examples, *columns, explained.label, strict=True),
            )

    def take_in(self, part: Path) -> None:
        """Everything that another store of the same study holds, in one transaction."""
        with self._explained():
            self._base.execute("ATTACH DATABASE ? AS part", (str(part),))
            try:
                with self._transaction():
                    for table in _CONTENT:
                        self._base.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM part.{table}")
            finally:
                self._base.execute("DETACH DATABASE part")

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows that a query selects."""
        with self._explained():
            return self._base.execute(query, values).fetchall()

    def _prepare(self, readonly: bool) -> None:
        [application] = self._base.execute("PRAGMA application_id").fetchone()
        [version] = self._base.execute("PRAGMA user_version").fetchone()
        tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and (tables or readonly):
            raise ValueError(f"{self.path} is an SQLite file, but no study's store.")
        if application == _APPLICATION and version != _FORMAT:
            raise ValueError(f"{self.path} is a store of format {version}; this version reads format {_FORMAT}.")
        if readonly:
            return
        self._base.execute("PRAGMA journal_mode = DELETE")
        self._base.execute("PRAGMA synchronous = FULL")
        if application != _APPLICATION:
            with self._transaction():
                if not self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for statement in filter(str.strip, _TABLES.split(";")):
                        self._base.execute(statement)
                    self._base.execute(f"PRAGMA application_id = {_APPLICATION}")
                    self._base.execute(f"PRAGMA user_version = {_FORMAT}")

    def _write_about(self, content: Mapping[str, Any]) -> None:
        rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in content.items()]
        self._base.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}. {_way_out(str(error))}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is no study's store: {error}.") from error


def scores_of(blob: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(token,) float64, as `Store.add` was given it."""
    return np.frombuffer(blob, dtype="<f8").astype(np.float64)


def flags_of(blob: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(token,) bool, from a blob of one byte per token."""
    return np.frombuffer(blob, dtype=np.uint8).astype(bool)


def _blob(scores: Tensor) -> bytes:
    return scores.detach().cpu().double().numpy().astype("<f8").tobytes()


def _number(value: float) -> float | None:
    return None if value != value else value  # SQLite has no NaN


def _way_out(message: str) -> str:
    if "full" in message:
        return "All that was finished before is kept: make room and run the study again, it goes on from there."
    if "readonly" in message or "unable to open" in message:
        return "Give a store in a folder that can be written to."
    if "locked" in message:
        return "Another process is writing to it: wait for it, or give another store."
    return "All that was finished before is kept."


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two configurations differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, entries in enumerate(zip(before, now, strict=True)):
            yield from _differences(*entries, f"{name}[{place}]")
    elif before != now:
        yield f"{name} was {_short(before)}, now it is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else f"{text[:79]}…"
