"""What is read of a store is what was written, or its damage is said; no raw error of SQLite or JSON is seen."""

import os
import random
import shutil
import signal
import sqlite3

import numpy as np
import pytest

from captum_norm.study import Results
from captum_norm.study.run.store import Store
from captum_norm.study.run.sums import DamagedStoreError, digest_of_rows
from tests.study import tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny.run(folder, ("AttentionNorm", "Saliency"), ("comprehensiveness", "auprc"))
    return folder / "s.db"


def everything(path) -> list[object]:
    """All that a store says, to be compared."""
    results = Results(path)
    read = [results.methods, results.metrics, results.keys, results.tokens(), results.explained, results.config]
    read += [results.failures(), results.costs(), results.metric_costs(), results.about, results._marks]
    read += [[None if s is None else s.tolist() for s in results.scores(name)] for name in results.methods]
    read += [np.array(list(results.repetitions(metric).values())).tolist() for metric in results.metrics]
    return read


def flipped(path, whole: bytes, bit: int) -> None:
    turned = bytearray(whole)
    turned[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(turned))


def turned_bits(store, folder, count: int) -> tuple[int, int]:
    """How many flips are found, and how many turn what nothing is read from."""
    whole, before = store.read_bytes(), repr(everything(store))
    chance, found, unread = random.Random(count), 0, 0
    for _ in range(count):
        path = folder / "flipped.db"
        flipped(path, whole, chance.randrange(8 * len(whole)))
        said = ""
        try:
            after = repr(everything(path))
        except (ValueError, OSError) as error:
            said = str(error)
        assert str(path) in said if said else after == before
        found, unread = found + bool(said), unread + (not said)
    return found, unread


def test_a_bit_that_was_turned_is_found_or_is_none_that_anything_is_read_from(store, tmp_path):
    found, _ = turned_bits(store, tmp_path, 20)
    assert found


@pytest.mark.slow
def test_three_hundred_bits_that_were_turned_are_all_found(store, tmp_path):
    found, unread = turned_bits(store, tmp_path, 300)
    assert found + unread == 300
    assert found > 30


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE metrics SET value = value + 1e-15 WHERE method = 0 AND value > 0.001",
        "UPDATE scores SET error = 'none' WHERE method = 0 AND example = 3",
        "DELETE FROM metrics WHERE method = 1 AND example = 2",
        "UPDATE examples SET tokens = '[' WHERE example = 1",
        "UPDATE targets SET probability = 0.5 WHERE example = 1",
        "UPDATE costs SET seconds = seconds / 2 WHERE method = 0",
        "UPDATE about SET content = '{' WHERE name = 'config'",
        "DELETE FROM about WHERE name = 'config'",
        "DELETE FROM sums WHERE method = 1",
        "DROP TABLE metrics",
    ],
)
def test_what_was_changed_is_said_to_be_damaged(store, tmp_path, change):
    path = tmp_path / "s.db"
    shutil.copy(store, path)
    base = sqlite3.connect(path)
    base.execute(change)
    base.commit()
    base.close()
    with pytest.raises(DamagedStoreError, match=r"is damaged: .* Take a copy that is whole"):
        Results(path)


def test_what_a_kill_left_half_done_is_undone_before_it_is_read(store, tmp_path):
    path = tmp_path / "s.db"
    shutil.copy(store, path)
    child = os.fork()
    if not child:
        with Store(path) as killed:
            killed._base.execute("PRAGMA cache_size = 1")
            killed._base.execute("BEGIN IMMEDIATE")
            killed._base.execute("UPDATE scores SET scores = zeroblob(5000)")  # more than is held in memory
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "s.db-journal").stat().st_size
    assert repr(everything(path)) == repr(everything(store))
    assert not (tmp_path / "s.db-journal").exists()


def test_a_store_of_before_names_the_version_that_reads_it(store, tmp_path):
    path = tmp_path / "s.db"
    shutil.copy(store, path)
    base = sqlite3.connect(path)
    base.execute("PRAGMA user_version = 1")
    base.close()
    with pytest.raises(ValueError, match=r"format 1; this version reads format 3\. Read it with the captum-norm"):
        Results(path)


def test_the_digest_is_of_what_rows_hold_and_not_of_their_order():
    rows = [(0, 0.1, None), (1, -0.0, "a"), (2, float("inf"), b"b")]
    assert digest_of_rows(rows) == digest_of_rows(rows[::-1])
    assert digest_of_rows(rows) != digest_of_rows([(0, 0.1, None), (1, 0.0, "a"), (2, float("inf"), b"b")])
