"""How is a store's file opened, written and closed, so that a kill at any moment leaves it whole?

The journal is SQLite's rollback journal with ``synchronous=FULL``: a kill or a power cut leaves the last commit whole,
the store stays a single file that can be copied, and shared file systems, where WAL does not work, are safe.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

from captum_norm.study.run import seal
from captum_norm.study.run.store_errors import explained

_APPLICATION = 0x63_6E_73_74  # "cnst", by which a store differs from any other SQLite file
_FORMAT = 4

_TABLES = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, content TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE examples (example INTEGER PRIMARY KEY, batch INTEGER NOT NULL, name TEXT NOT NULL, text TEXT NOT NULL,
    text_pair TEXT, label TEXT, tokens TEXT NOT NULL, words TEXT NOT NULL, special BLOB NOT NULL, evidence BLOB);
CREATE TABLE targets (example INTEGER PRIMARY KEY, batch INTEGER NOT NULL, target INTEGER NOT NULL,
    predicted INTEGER NOT NULL, probability REAL NOT NULL, label INTEGER);
CREATE TABLE scores (method INTEGER, example INTEGER, batch INTEGER, scores BLOB, error TEXT,
    PRIMARY KEY (method, example)) WITHOUT ROWID;
CREATE TABLE metrics (method INTEGER, metric INTEGER, example INTEGER, batch INTEGER, value REAL, error TEXT,
    PRIMARY KEY (method, metric, example)) WITHOUT ROWID;
CREATE TABLE costs (method INTEGER, metric INTEGER, batch INTEGER, examples INTEGER, seconds REAL, peak_bytes INTEGER,
    PRIMARY KEY (method, metric, batch)) WITHOUT ROWID;
CREATE TABLE sums (name TEXT, batch INTEGER, method INTEGER, metric INTEGER, digest TEXT NOT NULL,
    PRIMARY KEY (name, batch, method, metric)) WITHOUT ROWID;
{seal.TABLE}
"""


class StoreFile:
    """The file of a study's store.  As a context it is sealed at the end, unless an error ends it.

    Args:
        path: the file; made if it is not there, unless ``readonly``.
        readonly: to look only.

    Raises:
        FileNotFoundError: if there is nothing to read, or no folder to write to.
        OSError: if the file cannot be read or written.
        ValueError: if it is no store.
    """

    def __init__(self, path: str | Path, *, readonly: bool = False) -> None:
        self.path, self._readonly = Path(path), readonly
        if readonly and not self.path.is_file():
            raise FileNotFoundError(f"{path}: there is no such store.")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{path} cannot be written: the folder {self.path.parent} does not exist.")
        if readonly:
            self._recover()
        with self._explained():
            self._base = self._connected("ro" if readonly else "rwc")
            try:
                self._prepare()
            except BaseException:
                self._base.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None and not self._readonly:
                with self._at_once():
                    if not seal.is_sealed(self._base):
                        seal.seal(self._base)
        finally:
            self.close()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows that a query selects."""
        with self._explained():
            return self._base.execute(query, values).fetchall()

    def _prepare(self) -> None:
        [application] = self._base.execute("PRAGMA application_id").fetchone()
        [version] = self._base.execute("PRAGMA user_version").fetchone()
        tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and (tables or self._readonly):
            what = "an SQLite file, but" if self.path.stat().st_size else "an empty file:"
            raise ValueError(f"{self.path} is {what} no study's store.")
        if application == _APPLICATION and version != _FORMAT:
            raise ValueError(
                f"{self.path} is a store of format {version}; this version reads format {_FORMAT}. Read it with the "
                f"captum-norm that made it{self._made_by()}, or run the study again into another store."
            )
        if self._readonly:
            return
        self._base.execute("PRAGMA journal_mode = DELETE")
        self._base.execute("PRAGMA synchronous = FULL")
        if application != _APPLICATION:
            with self._at_once():
                if not self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for statement in filter(str.strip, _TABLES.split(";")):
                        self._base.execute(statement)
                    self._base.execute(f"PRAGMA application_id = {_APPLICATION}")
                    self._base.execute(f"PRAGMA user_version = {_FORMAT}")

    def _made_by(self) -> str:
        """The version that made a store of another format, where it says so."""
        try:
            [(content,)] = self._base.execute("SELECT content FROM about WHERE name = 'versions'").fetchall()
            return f" ({json.loads(content)['captum-norm']})"
        except (sqlite3.Error, ValueError, KeyError, TypeError):
            return ""

    def _connected(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=600, isolation_level=None
        )

    def _recover(self) -> None:
        """Undo what a kill left half done, which who only reads may not."""
        journal = self.path.with_name(f"{self.path.name}-journal")
        if not journal.is_file():
            return
        with self._explained():
            base = self._connected("rw")
            try:
                base.execute("SELECT count(*) FROM sqlite_master").fetchone()
            finally:
                base.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """What is written inside is there together or not at all; the seal is broken before."""
        while True:
            with self._at_once():
                if not seal.is_sealed(self._base):
                    yield
                    return
                seal.break_seal(self._base)

    @contextmanager
    def _at_once(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        with self._explained():
            self._base.execute(begin)
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.path)
