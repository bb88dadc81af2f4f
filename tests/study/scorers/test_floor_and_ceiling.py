"""The random floor belongs to the text, and the oracle is right where there is evidence."""


import numpy as np
import pytest

from captum_norm.study import Example
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
