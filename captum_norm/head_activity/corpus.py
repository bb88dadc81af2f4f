"""How is a corpus counted that takes days, or many processes?  In parts, each kept as it is finished.

A store is one SQLite file with the counts of each part.  Parts are told by their number, whoever counted them, and are
added up in that order: a count that was killed, or shared by processes, ends with the same numbers, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from captum_norm.capture import AttentionCall
from captum_norm.head_activity.counting import HeadCounts

_TABLES = (
    "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, content TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS parts (part INTEGER PRIMARY KEY, counts TEXT NOT NULL, digest TEXT NOT NULL)",
)

_TENSORS = ("sums", "squares", "counted")


class HeadStore:
    """The counts of a corpus' parts in a file.

    Args:
        path: the file, made if it is not there; ``":memory:"`` keeps nothing.
        config: what decides the counts: model, text, cut.  A store is continued by the same alone.

    Raises:
        ValueError: if the file is no such store, or belongs to another count.
        OSError: if it cannot be written.

    Example:
        >>> store = HeadStore(":memory:", {"model": "tiny"})
        >>> store.add(3, HeadCounts(sequences=2, tokens=9))
        >>> store.finished(), store.total().tokens
        ({3}, 9)
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        self.path = str(path)
        folder = Path(path).parent
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} cannot be written: the folder {folder} does not exist.")
        self._base = sqlite3.connect(self.path, timeout=60)
        try:
            self._begin(config)
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise ValueError(f"{path} is no store of head counts, or cannot be written: {error}.") from error
        except ValueError:
            self._base.close()
            raise

    def __enter__(self) -> HeadStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def finished(self) -> set[int]:
        """The numbers of the parts that are there."""
        return {part for (part,) in self._base.execute("SELECT part FROM parts")}

    def add(self, part: int, counts: HeadCounts) -> None:
        """Keep a part; it is there whole, or not at all."""
        text = json.dumps({**vars(counts), "calls": [_named(call) for call in counts.calls], **{
            name: [of.tolist() for of in getattr(counts, name)] for name in _TENSORS
        }})  # fmt: skip
        with self._base:
            self._base.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (part, text, _digest(part, text)))

    def total(self) -> HeadCounts:
        """All parts added up, in the order of their numbers.

        Raises:
            ValueError: if a part is not what was written.
        """
        total = HeadCounts()
        for part, text, digest in self._base.execute("SELECT part, counts, digest FROM parts ORDER BY part"):
            if _digest(part, text) != digest:
                raise ValueError(f"{self.path} is damaged: part {part} is not what was written. Count anew.")
            total += _counts(json.loads(text))
        return total

    def take_in(self, other: Path) -> None:
        """The parts that another process has counted; its file is deleted.

        Raises:
            ValueError: as for a store.
        """
        with HeadStore(other, self._config()) as theirs:
            rows = theirs._base.execute("SELECT part, counts, digest FROM parts").fetchall()
        with self._base:
            self._base.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", rows)
        other.unlink()

    def _begin(self, config: Mapping[str, Any]) -> None:
        with self._base:
            self._base.execute("PRAGMA synchronous = FULL")
            for statement in _TABLES:
                self._base.execute(statement)
            self._base.execute("INSERT OR IGNORE INTO about VALUES ('config', ?)", (json.dumps(config),))
        before, now = self._config(), json.loads(json.dumps(config))
        other = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
        if other:
            raise ValueError(
                f"{self.path} belongs to another count: {other[0]} was {before.get(other[0])}, now it is "
                f"{now.get(other[0])}. Give another store, or count as before."
            )

    def _config(self) -> dict[str, Any]:
        [(text,)] = self._base.execute("SELECT content FROM about WHERE name = 'config'")
        config: dict[str, Any] = json.loads(text)
        return config


def _named(call: AttentionCall) -> dict[str, Any]:
    return {of.name: getattr(call, of.name) for of in fields(call) if of.name != "modules"}


def _counts(kept: Mapping[str, Any]) -> HeadCounts:
    calls = tuple(AttentionCall(**call) for call in kept["calls"])
    tensors = {name: tuple(torch.tensor(of, dtype=torch.float64) for of in kept.get(name, ())) for name in _TENSORS}
    if "counted" not in kept:  # a store of before, which added every sequence, defined or not
        tensors["counted"] = tuple(torch.full_like(of, kept["sequences"]) for of in tensors["sums"])
    return HeadCounts(**{**kept, "calls": calls, **tensors})


def _digest(part: int, text: str) -> str:
    return hashlib.blake2b(f"{part}:{text}".encode(), digest_size=16).hexdigest()
