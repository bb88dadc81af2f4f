"""The page of metrics lists what there is, with the direction it really has."""

import re
from pathlib import Path

from captum_norm.study.metrics import METRICS
from captum_norm.study.metrics.removal import REMOVALS
from captum_norm.study.planted import PLANTED

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = {
    row[0]: row for row in ([c.strip() for c in line.split("|")[1:-1]] for line in PAGE.splitlines() if "|" in line)
}


def test_every_metric_is_on_the_page_with_its_direction_and_sources():
    for name, metric in METRICS.items():
        _, _, better, _, source = ROWS[f"`{name}`"]
        assert better == ("higher" if metric.higher_is_better else "lower")
        assert set(re.findall(r"https://[^\s,;)]+", metric.source)) <= set(re.findall(r"https://[^\s)]+", source))


def test_the_page_lists_no_metric_that_there_is_not():
    listed = {name.strip("`") for name, *cells in ROWS.values() if len(cells) == 4 and name.startswith("`")}
    assert listed == set(METRICS)


def test_every_way_of_removing_a_token_is_on_the_page():
    for name, removal in REMOVALS.items():
        assert ROWS[f"`{name}`"][1] == removal.meaning


def test_every_planted_truth_is_on_the_page():
    assert all(f"`{name}`" in ROWS for name in PLANTED)
