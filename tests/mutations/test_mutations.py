"""The mutation run says killed of a change that a test notices, survived of one that none does, and touches nothing."""

import re
from functools import partial
from pathlib import Path

import pytest

from tests.mutations.__main__ import ROOT, main
from tests.mutations.change import Change, RunError
from tests.mutations.changes import CHANGES
from tests.mutations.run import outcomes as outcomes_with

TESTS = "test_sums.py"
SOURCE = '''
def doubled(x):
    return 2 * x  # twice

def is_large(x):
    return x > 10

def down(x):
    while x > 0:
        x -= 1
    return x
'''


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository of one module with its tests, which never ask about the bound of ``is_large``."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a start in a third of a second
    root = tmp_path / "repository"
    for name, text in {
        "captum_norm/__init__.py": "",
        "captum_norm/sums.py": SOURCE,
        f"tests/{TESTS}": """
from captum_norm.sums import doubled, down, is_large

def test_doubled():
    assert doubled(3) == 6

def test_is_large():
    assert is_large(20) and not is_large(2)

def test_down():
    assert down(2) == 0
""",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


outcomes = partial(outcomes_with, imports=["pytest"])


def change(find: str, replace: str, tests: str = TESTS, unnoticed: str = "") -> Change:
    return Change("sums.py", find, replace, tests, unnoticed)


def test_a_change_that_a_test_notices_is_killed_by_that_test(root):
    [outcome] = outcomes(root, [change("2 * x", "3 * x")])
    assert (outcome.killed, outcome.is_right, outcome.by) == (True, True, f"tests/{TESTS}::test_doubled")


def test_a_change_that_no_test_notices_survives(root):
    [outcome] = outcomes(root, [change("x > 10", "x > 12")])
    assert (outcome.killed, outcome.is_right, outcome.word) == (False, False, "SURVIVED")


def test_an_explained_survivor_is_right_until_it_is_killed(root):
    survivor = change("  # twice", "  # two times", unnoticed="a comment")
    killed = change("2 * x", "3 * x", unnoticed="not so")
    assert [o.is_right for o in outcomes(root, [survivor, killed])] == [True, False]


def test_a_change_without_an_end_is_killed(root):
    [outcome] = outcomes(root, [change("x -= 1", "x -= 0")], limit=1)
    assert outcome.killed
    assert "no end" in outcome.by


def test_each_change_is_taken_back_before_the_next_and_the_original_is_never_touched(root):
    changes = [change("2 * x", "3 * x"), change("  # twice", "", unnoticed="a comment"), change("2 * x", "4 * x")]
    assert [o.killed for o in outcomes(root, changes, jobs=2)] == [True, False, True]
    assert (root / "captum_norm/sums.py").read_text() == SOURCE
    assert {path.name for path in root.iterdir()} == {"captum_norm", "tests"}


@pytest.mark.parametrize(("find", "times"), [("3 * x", "0 times"), ("return", "3 times")])
def test_a_piece_that_is_not_found_once_stops_the_run(root, find, times):
    with pytest.raises(RunError, match=times):
        list(outcomes(root, [change(find, "")]))


def test_tests_that_fail_without_a_change_stop_the_run(root):
    (root / "tests" / TESTS).write_text("def test_nothing():\n    assert False\n")
    with pytest.raises(RunError, match="must pass before anything is changed"):
        list(outcomes(root, [change("2 * x", "3 * x")]))


def test_tests_that_cannot_run_kill_nothing(root):
    with pytest.raises(RunError, match="neither passed nor failed"):
        list(outcomes(root, [change("def doubled(x)", "def doubled(x")]))


@pytest.mark.slow  # each change has a process of its own
def test_the_command_prints_a_table_and_fails_for_a_survivor(root, monkeypatch, capsys):
    killed, survivor = change("2 * x", "3 * x"), change("x > 10", "x > 12")
    monkeypatch.setattr("sys.argv", ["mutations"])
    assert main(root, [killed, survivor]) == 1
    assert "1 killed, 1 SURVIVED" in capsys.readouterr().out
    assert main(root, [killed]) == 0
    monkeypatch.setattr("sys.argv", ["mutations", "--part", "su"])
    assert main(root, [killed]) == 2
    assert "no change in 'su'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- the table itself


def test_every_part_of_the_package_has_three_changes():
    parts = [path for path in (ROOT / "captum_norm").iterdir() if path.is_dir() or "def " in path.read_text()]
    names = {path.name for path in parts if not path.name.startswith("__") and path.suffix in ("", ".py")}
    assert not {name: few for name in names if (few := sum(change.is_in(name) for change in CHANGES)) < 3}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_row_fits_the_source_and_names_tests_that_are_there(change):
    source = (ROOT / "captum_norm" / change.file).read_text(encoding="utf-8")
    assert change.applied(source) != source
    for test in change.test_ids:
        path, *names = test.split("[")[0].split("::")
        assert (ROOT / path).exists(), path
        assert all(re.search(rf"(def|class) {name}\b", (ROOT / path).read_text(encoding="utf-8")) for name in names)
