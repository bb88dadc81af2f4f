"""Methods, metrics and examples are added to a store as if they had been there before, and nothing is run again."""

import pytest

from captum_norm.study import Results, StoreMismatchError
from captum_norm.study.metrics import METRICS
from captum_norm.study.run.runner import Runner
from tests.study import tiny
from tests.study.run.test_store import content

METHODS, MORE_METHODS = ["AttentionNorm"], ["Saliency", "AttentionNorm"]
METRIC, MORE_METRICS = ["comprehensiveness"], ["leave_one_out_correlation", "auprc", "comprehensiveness"]


@pytest.fixture
def runs(monkeypatch):
    """(method, metrics, how many texts, whether scores were there) of every run."""
    seen, run = [], Runner.run

    def recorded(self, method, batch, metrics=None, scores=None):
        seen.append((self.scorers[method].name, metrics, len(batch), scores is not None))
        return run(self, method, batch, metrics, scores)

    monkeypatch.setattr(Runner, "run", recorded)
    return seen


def test_what_is_added_is_all_that_runs_and_ends_as_if_it_had_been_there(tmp_path, runs):
    tiny.run(tmp_path, METHODS, METRIC, tiny.examples(5))
    runs.clear()
    grown = tiny.run(tmp_path, MORE_METHODS, MORE_METRICS, tiny.examples(9))
    assert sum(count for _, _, count, _ in runs) == 3 * 5 + 5 + 4 * 4  # metrics of three, all of one, the new texts
    assert {metrics is None for name, metrics, _, there in runs if name == "Saliency"} == {True}
    assert all(metrics == [1, 2] for name, metrics, _, there in runs if there)
    whole = tiny.run(tmp_path, MORE_METHODS, MORE_METRICS, tiny.examples(9), "whole.db")
    assert set(grown.methods) == set(whole.methods)
    assert grown.methods[-2:] == ("oracle", "random")
    for metric in MORE_METRICS:
        for method, values in whole.values(metric).items():
            assert grown.values(metric)[method] == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True)
    assert "9 examples" in grown.table(resamples=99).to_text()
    runs.clear()
    tiny.run(tmp_path, MORE_METHODS, MORE_METRICS, tiny.examples(9))
    assert not runs


def test_what_was_measured_does_not_depend_on_when_something_was_added(tmp_path):
    """The copies that an added metric asks for would run together with those of the first, were they not apart."""
    late = [*METRIC, "aopc_comprehensiveness"]
    tiny.run(tmp_path, METHODS, METRIC)
    tiny.run(tmp_path, METHODS, late)
    unfinished = tmp_path / "t.db"
    study = tiny.study(METHODS, METRIC)
    study.lock(tiny.examples(), unfinished)  # begun, and nothing is measured
    tiny.run(tmp_path, METHODS, late, name="t.db")
    assert content(tmp_path / "s.db") == content(unfinished)


def test_less_than_the_store_holds_is_another_study(tmp_path):
    tiny.run(tmp_path, MORE_METHODS, METRIC)
    with pytest.raises(StoreMismatchError, match="methods, metrics and examples may be added"):
        tiny.run(tmp_path, METHODS, METRIC)
    with pytest.raises(StoreMismatchError, match=r"data\[0\].examples was 9, now it is 8"):
        tiny.run(tmp_path, MORE_METHODS, METRIC, tiny.examples(8))


def test_what_was_planned_before_the_run_is_told_from_what_came_after(tmp_path):
    study, path = tiny.study(METHODS, METRIC), tmp_path / "s.db"
    name = study.lock(tiny.examples(), path, reference="AttentionNorm", correction="table")
    with pytest.raises(ValueError, match="a plan is locked before the run"):
        study.lock(tiny.examples(), path)
    with pytest.raises(ValueError, match="'alpha' is no choice of a table"):
        study.lock(tiny.examples(), tmp_path / "t.db", alpha=0.1)
    results = study.run(tiny.examples(), path, progress=False)
    kept = results.table(correction="table", resamples=99).explanation()
    assert any(name in line and "nothing has departed from it" in line for line in kept)
    other = results.table(resamples=99).explanation()
    assert any("judged by correction 'metric' in place of 'table'" in line for line in other)
    tiny.run(tmp_path, MORE_METHODS, METRIC)
    added = Results(path).table(correction="table", resamples=99).explanation()
    assert any("added since: Saliency" in line for line in added)


def test_costs_are_of_each_metric_and_what_all_share_is_charged_to_none(tmp_path):
    costs = tiny.run(tmp_path, MORE_METHODS, MORE_METRICS).metric_costs()
    assert set(costs) == set(MORE_METRICS)
    assert {"AttentionNorm", "Saliency", "random", "shared"} <= set(costs["leave_one_out_correlation"])
    assert costs["leave_one_out_correlation"]["shared"] > costs["leave_one_out_correlation"]["Saliency"]
    assert "shared" not in costs["auprc"]
    assert METRICS.keys() >= costs.keys()
