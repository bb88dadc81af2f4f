"""Where does a study keep its results, so that nothing is lost when it is killed?  In one SQLite file.

Every finished batch of one method is one transaction: its scores, its metrics and its failures are there together or
not at all (`captum_norm.study.run.store_file`).  Scores and metrics are kept as 64-bit floats, bit for bit.

What was studied, with which model, methods, metrics and data, is written before the first result.  A store is only
continued by the study that it was made by, or by one that adds methods, metrics or examples to it.  Checksums
(`captum_norm.study.run.sums`) tell whether what is read is what was written, and a digest of the file
(`captum_norm.study.run.seal`) whether its other bytes are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_norm.study.batches import Explained
from captum_norm.study.run import seal
from captum_norm.study.run.comparing import StoreMismatchError, differences
from captum_norm.study.run.finished import Finished, scores_of
from captum_norm.study.run.store_errors import damaged
from captum_norm.study.run.store_file import StoreFile
from captum_norm.study.run.sums import TABLES, digest_of_rows, first_difference, sums_of

_CONTENT = ("targets", "scores", "metrics", "costs", "sums")  # what parts of a store add up to


class Store(StoreFile):
    """What a study keeps in its file, and reads of it."""

    def begin(self, config: Mapping[str, Any], about: Mapping[str, Any], examples: Iterable[Sequence[Any]]) -> None:
        """Write what the study is, if the store is new; else check that it is the same study, or one that adds to it.

        Args:
            config: what may not change: it decides the results.  Lists under "methods", "metrics" and "data" may grow.
            about: what is recorded besides.
            examples: rows for the table of examples.

        Raises:
            StoreMismatchError: naming what differs.
            DamagedStoreError: if what the store holds is not what was written.
        """
        begun, asked = self.about("config"), json.loads(json.dumps(config))
        differing = [] if begun is None else list(differences(begun, asked))
        if differing:
            raise StoreMismatchError(
                f"{self.path} belongs to another study: {'; '.join(differing[:3])}"
                f"{f'; and {len(differing) - 3} more' if len(differing) > 3 else ''}. "
                "Results are not mixed: give another store, or run the study as it was; methods, metrics and examples "
                "may be added."
            )
        if begun is not None and self.check() is False:
            raise damaged(self.path, "some byte that no result is read from (captum-norm report still shows them all)")
        if begun == asked:
            return
        rows = [tuple(row) for row in examples]
        with self._transaction():
            self._write_about({"config": config, **(about if begun is None else {})})
            self._write("examples", rows)

    def about(self, name: str) -> Any:
        """What was recorded under a name (``"config"``, ``"versions"`` ...); None for nothing.

        Raises:
            DamagedStoreError: if it is not what was written.
        """
        rows = self.rows("SELECT content, digest FROM about WHERE name = ?", name)
        if not rows:
            return None
        content, digest = rows[0]
        if digest_of_rows([(name, content)]) != digest:
            raise damaged(self.path, f"what is recorded as {name!r}")
        return json.loads(content)

    def note(self, name: str, content: Any) -> None:
        """Record something under a name, over what was there."""
        with self._transaction():
            self._write_about({name: content})

    def check(self) -> bool | None:
        """Compare all that was written with its checksums, and the file with the digest that closed it.

        Returns:
            Whether every byte is as it was; None where the store was not closed since it was written to.  False where
            the bytes that are not are none that a result is read from.

        Raises:
            DamagedStoreError: naming the first batch that is not as it was written.
        """
        with self._at_once("BEGIN"):  # nobody writes meanwhile
            self._check_rows()
            return seal.holds(self._base)

    def _check_rows(self) -> None:
        problems = self.rows("PRAGMA integrity_check(1)")
        if problems != [("ok",)]:
            raise damaged(self.path, f"its structure ({problems[0][0]})")
        names = [name for (name,) in self.rows("SELECT name FROM about")]
        if any(self.about(name) is None for name in names):
            raise damaged(self.path, "what is recorded of the study")
        sums = self.rows("SELECT name, batch, method, metric, digest FROM sums")
        for table in TABLES:
            kept = {(name, *part): digest for name, *part, digest in sums if name == table}
            found = first_difference(table, self.rows(f"SELECT * FROM {table}"), kept)
            if found is not None:
                raise damaged(self.path, f"table {table}, batch {found[1]}")
        if any(name not in TABLES for name, *_ in sums) or (sums and "config" not in names):
            raise damaged(self.path, "its table of checksums")

    def finished(self) -> set[tuple[int, int, int]]:
        """(method, metric, batch) of everything that needs no second run, failures included; metric -1 is scoring."""
        rows = self.rows("SELECT method, metric, batch FROM sums WHERE name IN ('scores', 'metrics')")
        return {(method, metric, batch) for method, metric, batch in rows}

    def scores(self, method: int, batch: int) -> dict[int, Tensor]:
        """example -> (token,), what a method gave on a batch."""
        query = "SELECT example, scores FROM scores WHERE method = ? AND batch = ? AND scores IS NOT NULL"
        return {example: torch.from_numpy(scores_of(blob)) for example, blob in self.rows(query, method, batch)}

    def add(self, result: Finished) -> None:
        """Keep what a method gave on a batch, in one transaction.

        Raises:
            OSError: if it cannot be written; what was there before is there still.
        """
        with self._transaction():
            for table, rows in result.rows().items():
                self._write(table, rows)
            # A metric that has nothing to say of the batch is finished, too.
            nothing = digest_of_rows([])
            self._base.executemany(
                "INSERT OR IGNORE INTO sums VALUES ('metrics', ?, ?, ?, ?)",
                [(result.batch, result.method, metric, nothing) for metric in result.metrics],
            )

    def add_targets(self, batch: int, examples: Sequence[int], explained: Explained) -> None:
        """What is explained of a batch."""
        columns = (explained.target.tolist(), explained.predicted.tolist(), explained.probability.tolist())
        rows = [(e, batch, *rest) for e, *rest in zip(examples, *columns, explained.label, strict=True)]
        with self._transaction():
            self._write("targets", rows)

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

    def _write_about(self, content: Mapping[str, Any]) -> None:
        texts = [(name, json.dumps(value, ensure_ascii=False)) for name, value in content.items()]
        rows = [(*row, digest_of_rows([row])) for row in texts]
        self._base.executemany("INSERT OR REPLACE INTO about VALUES (?, ?, ?)", rows)

    def _write(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Rows of a table and their checksums."""
        if rows:
            places = ", ".join("?" * len(rows[0]))
            kept = [tuple(map(_as_kept, row)) for row in rows]
            self._base.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", kept)
            self._base.executemany("INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?, ?)", sums_of(table, kept))


def _as_kept(value: Any) -> Any:
    # SQLite keeps a whole REAL as an integer, whose 0 has no sign; -0.0 + 0.0 is 0.0.
    return value + 0.0 if isinstance(value, float) else value


def begun_in(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The configuration that a store was begun with and its examples' keys; nothing where it was not."""
    if not path.is_file() or not path.stat().st_size:
        return {}, []
    with Store(path, readonly=True) as whole:
        config = whole.about("config")
        keys = [key for (key,) in whole.rows("SELECT name FROM examples ORDER BY example")]
    return config or {}, keys
