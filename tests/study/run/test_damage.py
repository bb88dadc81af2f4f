"""What is read of a store is what was written, or its damage is said; no raw error of SQLite or JSON is seen."""

import os
import random
import shutil
import signal
import sqlite3
import warnings

import numpy as np
import pytest

from captum_norm.study import Results
from captum_norm.study.run.store import Store
from captum_norm.study.run.sums import DamagedStoreError, digest_of_rows
from tests.study import tiny

UNREAD = 8 * 1000  # a bit in the empty middle of the file's first page


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


def turned_bits(store, folder, count: int) -> int:
    """How many flips are found: by an error, or where no result is read from that byte by a warning."""
    whole, before = store.read_bytes(), repr(everything(store))
    chance, path, found = random.Random(count), folder / "flipped.db", 0
    for _ in range(count):
        flipped(path, whole, chance.randrange(8 * len(whole)))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                assert repr(everything(path)) == before
                said = " ".join(str(warning.message) for warning in told)
            except (ValueError, OSError) as error:
                said = str(error)
        found += str(path) in said
    return found


def test_every_bit_that_was_turned_is_found(store, tmp_path):
    assert turned_bits(store, tmp_path, 20) == 20


@pytest.mark.slow
def test_three_hundred_bits_that_were_turned_are_all_found(store, tmp_path):
    assert turned_bits(store, tmp_path, 300) == 300


def test_a_bit_that_nothing_is_read_from_changes_no_result_and_is_told(store, tmp_path):
    path = tmp_path / "s.db"
    flipped(path, store.read_bytes(), UNREAD)
    with pytest.warns(UserWarning, match=r"s\.db: The store holds bytes that are not as they were written"):
        results = Results(path)
    assert results.unchanged is False
    assert any("look for a copy that is whole" in line for line in results.table(resamples=99).explanation())
    assert repr(results.table(resamples=99).cells) == repr(Results(store).table(resamples=99).cells)
    before = path.read_bytes()
    with pytest.raises(DamagedStoreError, match=r"no result is read from \(captum-norm report still shows them"):
        tiny.run(tmp_path, ("AttentionNorm", "Saliency", "GlobEnc"), ("comprehensiveness", "auprc"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("writes", "unchanged"), [(True, None), (False, True)])
def test_a_kill_before_a_store_is_closed_is_told_and_is_no_damage(store, tmp_path, writes, unchanged):
    path = tmp_path / "s.db"
    shutil.copy(store, path)
    child = os.fork()
    if not child:
        with Store(path) as killed:
            if writes:
                killed.note("killed", [0] * 5000)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    results = Results(path)
    assert results.unchanged is unchanged
    told = [line for line in results.table(resamples=99).explanation() if "has not been closed" in line]
    assert bool(told) is writes
    tiny.run(tmp_path, ("AttentionNorm", "Saliency"), ("comprehensiveness", "auprc"))
    assert Results(path).unchanged


def test_nobody_writes_while_a_store_is_compared(store, tmp_path, monkeypatch):
    path = tmp_path / "s.db"
    shutil.copy(store, path)
    digest, tried = digest_of_rows, []

    def disturbed(rows):
        if not tried:
            other = sqlite3.connect(path, timeout=0, isolation_level=None)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                tried.append(other.execute("DELETE FROM metrics WHERE batch = 1"))
            tried.append("refused")
            other.close()
        return digest(rows)

    monkeypatch.setattr("captum_norm.study.run.sums.digest_of_rows", disturbed)
    assert Results(path).finished
    assert tried == ["refused"]


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
    with pytest.raises(ValueError, match=r"format 1; this version reads format 4\. Read it with the captum-norm"):
        Results(path)


def test_the_digest_is_of_what_rows_hold_and_not_of_their_order():
    rows = [(0, 0.1, None), (1, -0.0, "a"), (2, float("inf"), b"b")]
    assert digest_of_rows(rows) == digest_of_rows(rows[::-1])
    assert digest_of_rows(rows) != digest_of_rows([(0, 0.1, None), (1, 0.0, "a"), (2, float("inf"), b"b")])
