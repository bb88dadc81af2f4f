"""What does a user hear where SQLite cannot read or write a study's store?  What happened, and a way out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captum_norm.study.run.sums import DamagedStoreError

_DAMAGE = ("decode", "malformed", "corrupt", "no such table", "no such column", "syntax error", "has no column")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of SQLite inside, as errors that name the store."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError) as error:
        message = str(error)
        if "not a database" in message:
            raise ValueError(f"{path} is no study's store: {message}.") from error
        if isinstance(error, sqlite3.OperationalError) and not any(word in message for word in _DAMAGE):
            raise OSError(f"{path}: {message}. {_way_out(message)}") from error
        if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
            raise ValueError(f"{path} does not take what it was given: {message}.") from error
        raise damaged(path, f"something ({message})") from error


def damaged(path: Path, what: str) -> DamagedStoreError:
    """The error that something in a store is not what was written."""
    return DamagedStoreError(
        f"{path} is damaged: {what} is not what was written. Take a copy that is whole, or run the study again into "
        "another store."
    )


def _way_out(message: str) -> str:
    if "full" in message:
        return "All that was finished before is kept: make room and run the study again, it goes on from there."
    if "readonly" in message or "unable to open" in message:
        return (
            "Give a store in a folder that can be written to: what a kill left half done is undone before it is read."
        )
    if "locked" in message:
        return "Another process is writing to it: wait for it, or give another store."
    return "All that was finished before is kept."
