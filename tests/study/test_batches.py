"""Batches hold texts of like length, never change, and bear on nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.study import Example, Variant
from captum_norm.study.batches import Padding, cut, padded, tokenize
from captum_norm.study.run.finished import scores_of
from captum_norm.study.run.store import Store
from tests.study import tiny


def tokenized(examples):
    return tokenize(examples, tiny.tokenizer(), tiny.classifier())


@given(st.integers(1, 27), st.integers(1, 9))
def test_every_example_is_in_one_batch_of_like_length(count, size):
    examples = tokenized(tiny.examples(count))
    batches = cut(examples, size)
    assert sorted(one.number for batch in batches for one in batch) == list(range(count))
    assert all(len(batch) <= size for batch in batches)
    assert max(map(len, examples)) == max(map(len, batches[0]))
    spans = sorted((min(map(len, batch)), max(map(len, batch))) for batch in batches)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_results_do_not_depend_on_the_order_of_the_data(tmp_path):
    """Neither what is drawn at random nor what is padded beside a text, without any key in the data."""
    methods = ["AttentionNorm", Variant("GradientShap", arguments={"n_samples": 3})]
    metrics = ["comprehensiveness", "soft_sufficiency", "infidelity"]
    data = tiny.examples()
    forwards = tiny.run(tmp_path, methods, metrics, data, "forwards.db", batch_size=3)
    backwards = tiny.run(tmp_path, methods, metrics, data[::-1], "backwards.db", batch_size=3)
    for method in forwards.methods:
        pairs = zip(forwards.scores(method), backwards.scores(method)[::-1], strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs if a is not None or b is not None)
        for metric in metrics:
            there, back = (results.values(metric)[method] for results in (forwards, backwards))
            assert np.array_equal(there, back[::-1], equal_nan=True)


def test_padding_goes_where_the_tokenizer_puts_it_and_belongs_to_nothing():
    two = tuple(tokenized([Example("Warm.", evidence=((0, 4),)), Example("A warm film.")]))
    right, left = (padded(0, two, Padding(7, side), torch.zeros(2).long()) for side in ("right", "left"))
    assert right.inputs["input_ids"][0].tolist() == [2, 6, 14, 3, 7, 7]
    assert left.inputs["input_ids"][0].tolist() == [7, 7, 2, 6, 14, 3]
    assert left.inputs["attention_mask"][0].tolist() == [0, 0, 1, 1, 1, 1]
    assert right.removable("mask")[0].tolist() == [False, True, True, False, False, False]
    assert right.removable("keep")[0].tolist() == [True] * 4 + [False] * 2
    assert right.evidence[0].tolist() == [False, True, False, False, False, False]
    assert not right.evidence[1].any()
    assert right.single(0, Padding()).inputs["input_ids"].tolist() == [[2, 6, 14, 3]]


def test_what_the_model_cannot_take_is_refused_with_its_place():
    with pytest.raises(ValueError, match="data, example 1 has 42 tokens, but the model takes 24"):
        tokenize(
            [Example("Fine."), Example("film " * 40, where="data, example 1")], tiny.tokenizer(), tiny.classifier()
        )
    cut_short = tokenize([Example("film " * 40, evidence=((195, 199),))], tiny.tokenizer(), tiny.classifier(), 10)
    assert len(cut_short[0]) == 10
    assert cut_short[0].evidence is None  # it lay beyond the cut
    with pytest.raises(ValueError, match="no token overlaps its evidence"):
        tokenized([Example("A  film.", evidence=((1, 2),))])
    with pytest.raises(ValueError, match="makes no token of its text"):
        tokenized([Example("\u200b\x01")])


@pytest.mark.slow
def test_results_in_batches_are_those_of_one_by_one(tmp_path):
    methods = [
        "AttentionNorm",
        Variant("AttentionNorm", options={"aggregate": "rollout"}),
        "Saliency",
        Variant("IntegratedGradients", arguments={"n_steps": 4}),
        "Occlusion",
        Variant("GradientShap", arguments={"n_samples": 3}),
        Variant("KernelShap", arguments={"n_samples": 4}),
    ]
    metrics = ["comprehensiveness", "log_odds", "infidelity", "sensitivity", "leave_one_out_correlation", "auprc"]
    found = []
    for size in (1, 5):
        store = tmp_path / f"{size}.db"
        results = tiny.study(methods, metrics, batch_size=size).run(tiny.examples(5), store, progress=False)
        assert not results.failures()
        with Store(store, readonly=True) as opened:
            blobs = opened.rows("SELECT scores FROM scores WHERE scores IS NOT NULL ORDER BY method, example")
            values = opened.rows("SELECT value FROM metrics ORDER BY method, metric, example")
        scores = torch.cat([torch.from_numpy(scores_of(blob)) for (blob,) in blobs])
        found.append((scores, torch.tensor([torch.nan if v is None else v for (v,) in values])))
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5, equal_nan=True)
