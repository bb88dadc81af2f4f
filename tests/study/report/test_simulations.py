"""Made-up tables have nothing to be found in them, whatever their differences look like."""

import numpy as np
import pytest

from captum_norm.study.report.simulations import DRAWS, METHODS, real_draw, rows


@pytest.mark.parametrize("kind", [*DRAWS, "real"])
def test_no_difference_has_a_mean_of_its_own(kind, results):
    draw = real_draw(results.path) if kind == "real" else DRAWS[kind]
    differences = draw(np.random.default_rng(0), 20_000)
    assert differences.shape == (METHODS, 20_000)
    assert np.abs(differences.mean(axis=1)).max() < 0.05
    assert differences.std(axis=1) == pytest.approx(np.ones(METHODS), abs=0.05)


def test_every_share_is_a_column_and_every_kind_a_row():
    head, rule, row = rows({"normal": DRAWS["normal"]}, [20], tables=2)
    assert len(head.split("|")) == len(rule.split("|")) == len(row.split("|"))
    columns = "test;test, table;interval;signs;BCa;level;90 %;groups;ranks;ranks, tied;power;power at n;t at n;needed n"
    for column in columns.split(";"):
        assert f"| {column} |" in head
    assert row.startswith("| 20 | normal |")


def test_rows_that_are_finished_are_not_made_again(tmp_path):
    kept, drawn = tmp_path / "rows.json", []

    def draw(generator, n):
        drawn.append(n)
        return DRAWS["normal"](generator, n)

    first = list(rows({"normal": draw}, [20], tables=1, kept=kept))
    assert drawn
    drawn.clear()
    assert list(rows({"normal": draw}, [20], tables=1, kept=kept)) == first
    assert not drawn
