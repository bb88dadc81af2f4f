"""What is read of a study is what its store holds, in every form."""

import csv
import json
import math

import numpy as np
import pandas
import pytest

from captum_norm.study import Results, Variant
from captum_norm.study.report.cells import cells_of
from captum_norm.study.report.statistics import bootstrap_interval, holm, paired_permutation_test
from captum_norm.study.report.tables import ALPHA
from captum_norm.study.report.typeset import number
from captum_norm.tokens import Words
from captum_norm.visualization.studies import agreement_grid, metric_dots
from tests.study import tiny


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    methods = ["AttentionNorm", "Saliency", Variant("AttentionNorm", options={"aggregate": "rollout"})]
    metrics = ["comprehensiveness", "sufficiency", "auprc"]
    store = tmp_path_factory.mktemp("study") / "s.db"
    return tiny.study(methods, metrics, special="report").run(tiny.examples(), store, progress=False)


def test_a_store_is_read_without_model_or_data(results):
    again = Results(results.path)
    assert (again.methods, again.metrics, again.keys) == (results.methods, results.metrics, results.keys)
    assert len(again) == len(tiny.TEXTS)
    assert again.finished == len(again) * len(again.methods)
    assert again.config["versions"]["captum-norm"]
    assert again.config["model"]["class"] == "BertForSequenceClassification"
    assert again.about["run"]["threads"] >= 1
    assert "5 methods, 9 examples, 45 of 45 scores" in repr(again)
    with pytest.raises(KeyError, match="no metric 'accuracy'"):
        again.values("accuracy")
    with pytest.raises(KeyError, match="no method 'Lime'"):
        again.table("Lime")


def test_cells_are_means_intervals_and_corrected_tests(results):
    table = results.table("Saliency", resamples=200, permutations=99)
    values = results.values("comprehensiveness")
    others = [name for name in results.methods if name not in ("Saliency", "oracle")]
    p = [paired_permutation_test(values[name], values["Saliency"], resamples=99).p for name in others]
    for name, one, corrected in zip(others, p, holm(p), strict=True):
        cell, interval = table.cells[name]["comprehensiveness"], bootstrap_interval(values[name], resamples=200)
        assert (cell.mean, cell.low, cell.high, cell.n) == (interval.mean, interval.low, interval.high, interval.n)
        assert (cell.p, cell.p_holm) == (one, corrected)
        assert cell.difference == pytest.approx(np.nanmean(values[name] - values["Saliency"]))
        assert table.differs(name, "comprehensiveness") == (corrected < ALPHA)
    assert math.isnan(table.cells["Saliency"]["comprehensiveness"].p)
    assert math.isnan(table.cells["oracle"]["auprc"].p)


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_has_it(results):
    table = results.table(resamples=50, permutations=9)
    competing = results.methods[:3]
    for metric, choose in (("comprehensiveness", max), ("sufficiency", min), ("auprc", max)):
        assert table.best(metric) == choose(competing, key=lambda name: table.cells[name][metric].mean)
    assert table.metrics == {"comprehensiveness": True, "sufficiency": False, "auprc": True}


def test_a_clear_difference_is_marked_and_none_is_not():
    chance = np.random.default_rng(0)
    base = chance.normal(size=60)
    values = {"reference": base, "same": base.copy(), "better": base + 1 + 0.1 * chance.normal(size=60)}
    cells = cells_of(values, "reference", permutations=999)
    assert cells["better"].p_holm < 0.01
    assert cells["better"].effect > 5
    assert cells["same"].p_holm == 1.0


def test_every_form_of_the_table_holds_the_numbers(results):
    table = results.table(resamples=50, permutations=9)
    mean = number(table.cells["Saliency"]["auprc"].mean)
    text, page, paper = table.as_text(), table.to_markdown(), table.to_latex()
    assert all(mean in form and "Saliency" in form for form in (text, page, paper))
    assert "auprc ↑" in text
    assert r"sufficiency$\downarrow$" in paper.replace(" ", "")
    assert "Tokens are removed by: delete." in text
    assert max(map(len, table.as_text(width=70).splitlines())) <= 70
    frame = table.to_pandas()
    assert len(frame) == 15
    assert {"mean", "low", "high", "n", "p", "p_holm", "effect"} <= set(frame.columns)


def test_rows_go_to_pandas_csv_and_parquet_alike(results, tmp_path):
    frame = results.to_pandas()
    assert len(frame) == 5 * 3 * 9
    wanted = frame[(frame.method == "Saliency") & (frame.metric == "auprc")].value.to_numpy()
    assert np.array_equal(wanted, results.values("auprc")["Saliency"], equal_nan=True)
    results.to_csv(tmp_path / "all.csv")
    results.to_parquet(tmp_path / "all.parquet")
    results.to_latex(tmp_path / "table.tex")
    with (tmp_path / "all.csv").open(newline="") as lines:
        values = [float(row["value"] or "nan") for row in csv.DictReader(lines)]
    assert np.array_equal(values, frame.value, equal_nan=True)
    assert np.array_equal(pandas.read_parquet(tmp_path / "all.parquet").value, frame.value, equal_nan=True)
    assert (tmp_path / "table.tex").read_text().rstrip().endswith(r"\end{tabular}")


def test_agreement_is_of_tokens_or_words_with_special_tokens_or_without(results):
    table = results.agreement()
    assert table.methods == ("AttentionNorm", "Saliency", "AttentionNorm(aggregate=rollout)", "random")
    assert np.allclose(np.diag(table.means), 1)
    assert np.allclose(table.means, table.means.T)
    kept, words = results.agreement(special="keep"), results.agreement("kendall_tau_b", level="word")
    assert not np.allclose(kept.means, table.means)
    assert "Kendall's τ-b of the scores of words" in words.as_text()
    assert list(words.to_pandas().columns) == list(words.methods)
    with pytest.raises(ValueError, match="level should be"):
        results.agreement(level="letter")
    with pytest.raises(ValueError, match="measure should be one of"):
        results.agreement("pearson")


def test_words_without_special_tokens_keep_their_order():
    from captum_norm.study.report.results import _without

    words = Words(("[CLS]", "a", "film.", "[SEP]"), (0, 1, 2, 2, 3))
    assert _without(words, [True, False, False, False, True]) == Words(("a", "film."), (None, 0, 1, 1, None))


def test_figures_show_every_metric_and_method(results, tmp_path):
    figures = results.figures()
    assert [axes.get_title(loc="left") for axes in figures["metrics"].axes] == [
        "comprehensiveness ↑",
        "sufficiency ↓",
        "auprc ↑",
    ]
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
    assert len(figures["agreement"].axes[0].texts) == 16
    with pytest.raises(ValueError, match="nothing to draw"):
        metric_dots({}, {})
    with pytest.raises(ValueError, match="2 methods"):
        agreement_grid(np.eye(3), ["a", "b"], "")


def test_costs_and_tokens_are_told(results):
    costs = results.costs()
    assert set(costs) == set(results.methods)
    assert all(cost.seconds > 0 and cost.metric_seconds > 0 for cost in costs.values())
    assert results.tokens()[3] == ("[CLS]", "dull", ".", "[SEP]")
    json.dumps(results.config)


def test_an_unfinished_study_says_so(tmp_path, monkeypatch):
    from captum_norm.study.run.store import Store

    kept = Store.add

    def tired(store, result):
        if len(store.finished()) >= 8:
            raise KeyboardInterrupt
        kept(store, result)

    monkeypatch.setattr(Store, "add", tired)
    study = tiny.study(["AttentionNorm"], ["comprehensiveness"])
    with pytest.raises(KeyboardInterrupt):
        study.run(tiny.examples(), tmp_path / "s.db", progress=False)
    results = Results(tmp_path / "s.db")
    left = 27 - results.finished
    assert f"Not finished: {left} scores are still to be computed." in results.table().as_text()
