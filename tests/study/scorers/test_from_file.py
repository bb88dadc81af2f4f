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
