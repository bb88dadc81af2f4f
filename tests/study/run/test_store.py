"""A store keeps every bit, is whole at any moment, and belongs to one study."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from captum_norm.study import Results, StoreMismatchError
from captum_norm.study.run.finished import Cost, Finished, scores_of
from captum_norm.study.run.store import Store
from tests.study import tiny

ROOT = Path(__file__).resolve().parents[3]


def content(path, *tables):
    """All rows of a store but those that hold times."""
    base = sqlite3.connect(path)
    found = {t: base.execute(f"SELECT * FROM {t}").fetchall() for t in tables or ("targets", "scores", "metrics")}
    base.close()
    return found


def finished(method=0, **fields):
    return Finished(method, 0, (0, 1), {(method, -1): Cost(0.1)}, **fields)


def test_every_bit_of_a_score_is_kept(tmp_path):
    numbers = torch.tensor([0.1, -0.0, 1e-310, torch.finfo(torch.float64).max, 1 / 3], dtype=torch.float64)
    with Store(tmp_path / "s.db") as store:
        values = dict(enumerate([1 / 3, float("nan"), float("inf"), 0.0]))
        store.add(finished(scores={0: numbers}, values={(metric, 0): value for metric, value in values.items()}))
    with Store(tmp_path / "s.db", readonly=True) as store:
        [(blob,)] = store.rows("SELECT scores FROM scores")
        values = [value for (value,) in store.rows("SELECT value FROM metrics ORDER BY metric")]
    assert scores_of(blob).tobytes() == numbers.numpy().tobytes()
    assert values == [1 / 3, None, float("inf"), 0.0]


def test_a_study_keeps_a_value_of_minus_zero(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.begin({"methods": []}, {}, [])
        store.add(finished(scores={0: torch.ones(2)}, values={(0, 0): -0.0, (0, 1): -0.5}))
    with Store(tmp_path / "s.db", readonly=True) as store:
        assert store.check()
        assert store.rows("SELECT value FROM metrics ORDER BY example") == [(0.0,), (-0.5,)]


def test_a_batch_is_there_whole_or_not_at_all(tmp_path):
    with Store(tmp_path / "s.db") as store:
        with pytest.raises(ValueError, match="not supported"):
            store.add(finished(scores={0: torch.ones(2), 1: torch.ones(2)}, values={(0, 0): 0.5, (0, 1): object()}))
        assert store.finished() == set()
        assert store.rows("SELECT * FROM metrics") == []
        store.add(finished(scores={0: torch.ones(2)}, errors={1: "ValueError: no"}, metrics=(0,)))
        assert store.finished() == {(0, -1, 0), (0, 0, 0)}


@pytest.mark.slow
def test_a_study_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.study.run.disturbed", str(tmp_path), "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "disturbed.db") == content(tmp_path / "undisturbed.db")
    assert len(content(tmp_path / "disturbed.db")["scores"]) == 6 * 12
    assert Results(tmp_path / "disturbed.db").unchanged  # a digest that no kill has made wrong
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disturbed.db", "undisturbed.db"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_find_what_one_finds(tmp_path, count):
    launch = f"accelerate.commands.launch --cpu --num_processes {count} --num_machines 1 --mixed_precision no"
    program = ["--dynamo_backend", "no", "-m", "tests.study.run.several", str(tmp_path / "all.db"), "6"]
    command = [*launch.split(), *program]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tiny.study().run(tiny.examples(6), tmp_path / "one.db", progress=False)
    assert content(tmp_path / "one.db") == content(tmp_path / "all.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.db", "one.db"]
    together = Results(tmp_path / "all.db")
    assert (together.finished, together.unchanged) == (7 * 6, True)


def test_a_study_that_is_finished_runs_nothing_again(tmp_path):
    study = tiny.study(["AttentionNorm"], ["comprehensiveness"])
    study.run(tiny.examples(), tmp_path / "s.db", progress=False)
    before = content(tmp_path / "s.db", "costs")
    study.run(tiny.examples(), tmp_path / "s.db", progress=False)
    assert content(tmp_path / "s.db", "costs") == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: tiny.study(["AttentionNorm"], ["comprehensiveness"], seed=1), "seed was 0, now it is 1"),
        (lambda s: tiny.study(["AttentionWeights"], ["comprehensiveness"]), r"methods\[0\].name was \"AttentionNorm\""),
        (lambda s: tiny.study(["AttentionNorm"], ["comprehensiveness"], removal="mask"), "arguments.removal was"),
        (lambda s: tiny.study(["AttentionNorm"], ["comprehensiveness"], batch_size=3), "batch_size was 4, now it is 3"),
    ],
)
def test_another_study_is_not_mixed_in(tmp_path, change, says):
    study = tiny.study(["AttentionNorm"], ["comprehensiveness"])
    study.run(tiny.examples(), tmp_path / "s.db", progress=False)
    before = content(tmp_path / "s.db", "about", "scores")
    with pytest.raises(StoreMismatchError, match=says):
        change(study).run(tiny.examples(), tmp_path / "s.db", progress=False)
    assert content(tmp_path / "s.db", "about", "scores") == before


def test_another_model_or_other_data_are_not_mixed_in(tmp_path):
    study = tiny.study(["AttentionNorm"], ["comprehensiveness"])
    study.run(tiny.examples(), tmp_path / "s.db", progress=False)
    with pytest.raises(StoreMismatchError, match=r"data\[0\].examples was 9, now it is 8"):
        study.run(tiny.examples(8), tmp_path / "s.db", progress=False)
    with torch.no_grad():
        study.forward.model.classifier.bias += 1e-6
    with pytest.raises(StoreMismatchError, match=r"model.blake2b was"):
        study.run(tiny.examples(), tmp_path / "s.db", progress=False)


def test_a_store_of_another_format_is_refused(tmp_path):
    Store(tmp_path / "s.db").close()
    base = sqlite3.connect(tmp_path / "s.db")
    base.execute("PRAGMA user_version = 99")
    base.close()
    with pytest.raises(ValueError, match="a store of format 99; this version reads format 4"):
        Store(tmp_path / "s.db")


def test_what_is_no_store_is_refused_and_left_alone(tmp_path):
    other = tmp_path / "other.db"
    base = sqlite3.connect(other)
    base.execute("CREATE TABLE mine (x)")
    base.commit()
    base.close()
    (tmp_path / "text.db").write_text("this is no data base, but long enough to be looked at as one" * 20)
    (tmp_path / "empty.db").touch()
    for name, says in (("other.db", "no study's store"), ("text.db", "file is not a database")):
        with pytest.raises(ValueError, match=says):
            Store(tmp_path / name)
    assert content(other, "mine") == {"mine": []}
    with pytest.raises(ValueError, match=r"empty.db is an empty file: no study's store"):
        Results(tmp_path / "empty.db")
    with pytest.raises(ValueError, match=r"other.db is an SQLite file, but no study's store"):
        Results(other)
    with pytest.raises(FileNotFoundError, match="no such store"):
        Results(tmp_path / "missing.db")
    with pytest.raises(FileNotFoundError, match=r"folder .* does not exist"):
        Store(tmp_path / "nowhere" / "s.db")


def test_a_full_disk_ends_a_study_and_loses_nothing(tmp_path, monkeypatch):
    study, path = tiny.study(["AttentionNorm"], ["comprehensiveness"], batch_size=1), tmp_path / "s.db"
    written = Store.add

    def on_a_small_disk(store, result):
        pages = store.rows("PRAGMA page_count")[0][0]
        if len([None for _, metric, _ in store.finished() if metric < 0]) >= 4:
            store.rows(f"PRAGMA max_page_count = {pages}")
            result.scores[next(iter(result.scores))] = torch.zeros(100_000)
        written(store, result)

    monkeypatch.setattr(Store, "add", on_a_small_disk)
    with pytest.raises(OSError, match=r"disk is full\. All that was finished before is kept: make room"):
        study.run(tiny.examples(), path, progress=False)
    assert Results(path).finished == 4
    monkeypatch.undo()
    resumed = study.run(tiny.examples(), path, progress=False)
    study.run(tiny.examples(), tmp_path / "whole.db", progress=False)
    assert resumed.finished == 27
    assert content(path) == content(tmp_path / "whole.db")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_said_at_once():
    with pytest.raises(OSError, match="Give a store in a folder that can be written to"):
        tiny.study(["AttentionNorm"], ["comprehensiveness"]).run(["Fine."], "/proc/study.db", progress=False)
