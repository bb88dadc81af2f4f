"""The random floor belongs to the text, and the oracle is right where there is evidence."""

import numpy as np
import pytest

from captum_norm.study import Example
from captum_norm.study.batches import Padding, padded, tokenize
from captum_norm.study.scorers.floor_and_ceiling import RandomFloor
from tests.study import tiny


def test_the_random_floor_depends_on_the_text_and_the_seed_alone(tmp_path):
    forwards = tiny.run(tmp_path, name="a.db").scores("random")
    data = [Example(e.text, e.label, e.evidence, str(i)) for i, e in enumerate(tiny.examples())]
    backwards = tiny.run(tmp_path, data=data[::-1], batch_size=2, name="b.db").scores("random")
    other = tiny.run(tmp_path, seed=1, name="c.db").scores("random")
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards[::-1], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(forwards, other, strict=True))


def test_the_oracle_is_right_and_only_there_where_evidence_is(tmp_path):
    results = tiny.run(tmp_path, metrics=["auprc", "token_f1", "iou"])
    known = [evidence is not None for _, evidence in tiny.TEXTS]
    for metric in results.metrics:
        assert np.isnan(results.values(metric)["oracle"]).tolist() == [not k for k in known]
        assert set(results.values(metric)["oracle"][known]) == {1.0}
        assert np.isnan(results.values(metric)["AttentionNorm"]).tolist() == [not k for k in known]
    assert not results.failures()
    bare = [Example(text) for text, _ in tiny.TEXTS]
    assert "oracle" not in tiny.run(tmp_path, data=bare, name="bare.db").methods
    with pytest.raises(ValueError, match="auprc compares with evidence, and no example has any"):
        tiny.run(tmp_path, metrics=["auprc"], data=bare, name="none.db")


def test_the_floor_is_what_is_expected_of_a_random_order_where_that_is_known(tmp_path):
    """Two seeds give the same, as one lucky draw would not."""
    metrics = ["auprc", "token_f1", "iou", "leave_one_out_correlation", "leave_one_out_change_correlation"]
    floors = [tiny.run(tmp_path, metrics=metrics, seed=seed, name=f"{seed}.db") for seed in (0, 1)]
    for metric in metrics:
        first, second = (results.values(metric)["random"] for results in floors)
        assert np.array_equal(first, second, equal_nan=True)
    known = [evidence is not None for _, evidence in tiny.TEXTS]
    assert (~np.isnan(floors[0].values("auprc")["random"])).tolist() == known
    correlations = floors[0].values("leave_one_out_correlation")["random"]
    assert set(correlations[~np.isnan(correlations)]) == {0.0}


def test_elsewhere_the_floor_is_the_mean_over_many_draws(tmp_path):
    metrics = ["comprehensiveness", "soft_sufficiency"]
    many = tiny.run(tmp_path, metrics=metrics, random_draws=4, name="many.db")
    scorer = RandomFloor(0, "mask", draws=4)
    drawn = {
        f"draw {number}": lambda forward, inputs, target, number=number: scorer.draw(batch_of(inputs), number)
        for number in range(4)
    }

    def batch_of(inputs):
        texts = {tuple(text.inputs["input_ids"].tolist()): text for text in tokenized}
        rows = [row[mask.bool()] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        return padded(0, tuple(texts[tuple(row.tolist())] for row in rows), Padding())

    tokenized = tokenize(tiny.examples(), tiny.tokenizer(), tiny.classifier())
    single = tiny.run(tmp_path, drawn, metrics, name="single.db")
    for metric in metrics:
        values = single.values(metric)
        mean = np.mean([values[name] for name in drawn], axis=0)
        assert many.values(metric)["random"] == pytest.approx(mean, abs=1e-6, nan_ok=True)
        assert not np.allclose(mean, values["draw 0"])
