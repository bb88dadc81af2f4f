"""Scores that were computed elsewhere are read as JSON writes them, and what is wrong with a line is said."""

import json

import pytest

from captum_norm.study import StoredScores
from captum_norm.study.scorers.from_file import StoredScorer


@pytest.mark.parametrize("other", ["\u2028", "\u2029", "\x85", "\ufeff"])
def test_a_line_of_scores_may_hold_any_character(tmp_path, other):
    records = [{"id": f"a{other}", "tokens": ["x", f"y{other}"], "scores": [1, 2]}, {"id": "b", "scores": [3]}]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "s.jsonl").write_text(f"\ufeff{lines}\n", encoding="utf-8")
    stored = StoredScorer(StoredScores("theirs", tmp_path / "s.jsonl"), special="keep")
    assert stored.by_key == {f"a{other}": [1.0, 2.0], "b": [3.0]}


def test_a_line_that_holds_no_scores_is_named(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"id": "a", "scores": [1]}\n\n{"id": "b"}\n')
    with pytest.raises(ValueError, match=r's.jsonl, line 3 should be \{"id": ..., "scores": \[...\]\}'):
        StoredScorer(StoredScores("theirs", tmp_path / "s.jsonl"), special="keep")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "a", "scores": [2]}', "line 3 has scores of 'a', as .*s.jsonl, line 1 has: leave one of them out"),
        ('{"id": 1, "id": 2, "scores": [2]}', "line 3 has the field 'id' twice"),
        ('{"id": "b", "scores": "123"}', r'line 3 should be .*, got \{"id": "b", "scores": "123"\}'),
        ('{"id": "b", "scores": ["1", 2]}', "line 3 should be"),
        ('{"id": "b", "scores": [true]}', "line 3 should be"),
        ('{"id": "b", "scores": {"1": 2}}', "line 3 should be"),
        ('{"id": null, "scores": [1]}', "line 3 should be"),
        ('["b", [1]]', "line 3 should be an object"),
        ("{", "line 3 is no JSON"),
    ],
)
def test_scores_that_say_nothing_or_two_things_are_refused(tmp_path, line, says):
    (tmp_path / "s.jsonl").write_text(f'{{"id": "a", "scores": [1]}}\n\n{line}\n')
    with pytest.raises(ValueError, match=says):
        StoredScorer(StoredScores("theirs", tmp_path / "s.jsonl"), special="keep")
