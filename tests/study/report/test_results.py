"""What is read of a study is what its store holds, in every form."""

import csv
import json

import numpy as np
import pandas
import pytest

from captum_norm.study import Results
from captum_norm.tokens import Words
from captum_norm.visualization.studies import agreement_grid, metric_dots
from tests.study import tiny


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
    assert (tmp_path / "table.tex").read_text().rstrip().endswith(r"\end{minipage}")


def test_words_without_special_tokens_keep_their_order():
    from captum_norm.study.report.measured import _without

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
    assert figures["ranks"].axes[0].get_title(loc="left") == "rank by comprehensiveness"
    assert len(figures["universes"].axes[0].texts) == 2 * 3  # AttentionNorm in two forms; three methods
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
        if len([None for _, metric, _ in store.finished() if metric < 0]) >= 2:
            raise KeyboardInterrupt
        kept(store, result)

    monkeypatch.setattr(Store, "add", tired)
    study = tiny.study(["AttentionNorm"], ["comprehensiveness"])
    with pytest.raises(KeyboardInterrupt):
        study.run(tiny.examples(), tmp_path / "s.db", progress=False)
    results = Results(tmp_path / "s.db")
    left = 27 - results.finished
    assert f"Not finished: {left} scores are still to be computed." in results.table().to_text()


def test_what_is_explained_is_in_results_and_exports(results):
    for of, row in zip(results.explained, results.to_pandas().query("method == 'Saliency'").itertuples(), strict=False):
        assert (row.key, row.target, row.predicted, row.label) == (of.key, of.target, of.predicted, of.label)
        assert row.probability == of.probability
        assert of.target == of.predicted  # nothing else was asked for
        assert of.texts[0] in [text for text, _ in tiny.TEXTS]


def test_only_examples_that_are_predicted_right_or_wrong_may_count(results):
    right, wrong = (Results(results.path, which) for which in ("right", "wrong"))
    assert [of.right for of in right.explained] == [True] * len(right)
    assert len(right) + len(wrong) == len(results)
    kept = [results.keys.index(key) for key in right.keys]
    whole, some = results.values("comprehensiveness"), right.values("comprehensiveness")
    assert all(np.array_equal(some[name], of[kept], equal_nan=True) for name, of in whole.items())
    assert [scores.tolist() for scores in right.scores("Saliency")] == [
        results.scores("Saliency")[place].tolist() for place in kept
    ]
    assert right.tokens() == [results.tokens()[place] for place in kept]
    assert right.agreement().n.max() == len(right)
    assert f"{len(right)} examples that the model predicts right" in right.table(resamples=99).to_text()
    with pytest.raises(ValueError, match="predictions should be 'all', 'right' or 'wrong'"):
        Results(results.path, "good")


def test_without_labels_nothing_is_known_to_be_right(tmp_path):
    tiny.run(tmp_path, data=["A warm film."])
    with pytest.raises(ValueError, match="no example that is known to be predicted right: labels decide that"):
        Results(tmp_path / "s.db", "right")


def test_tokens_and_scores_of_every_example_are_exported(results, tmp_path):
    results.to_scores(tmp_path / "scores.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(results.keys)
    assert [tuple(line["tokens"]) for line in lines] == results.tokens()
    for place, line in enumerate(lines):
        assert line["scores"]["Saliency"] == results.scores("Saliency")[place].tolist()
        assert line["target"] == results.explained[place].target
    assert any(line["scores"]["oracle"] is None for line in lines)
