"""Several models, checkpoints or seeds stand in one table."""

import numpy as np
import pytest

from captum_norm.study.report.several import several
from tests.study import tiny


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    methods = [("AttentionNorm", "Saliency"), ("Saliency", "AttentionNorm", "InputXGradient")]
    return {
        f"seed {seed}": tiny.run(folder, of, ("comprehensiveness",), name=f"{seed}.db", seed=seed)
        for seed, of in enumerate(methods)
    }


def test_each_study_has_its_means_and_all_have_one(studies):
    table = several(studies, "comprehensiveness")
    assert table.methods == ("AttentionNorm", "Saliency", "oracle", "random")
    for place, (name, of) in enumerate(studies.items()):
        own = of.table().cells
        assert table.means[place] == pytest.approx([own[method]["comprehensiveness"].mean for method in table.methods])
        assert table.cells[name]["Saliency"].low == own["Saliency"]["comprehensiveness"].low
        assert name in table.to_text()
    frame = table.to_pandas()
    assert len(frame) == 8
    assert np.array_equal(frame["mean"].to_numpy().reshape(2, 4), table.means)
    ranks = table.ranks()
    assert sorted(ranks) == ["AttentionNorm", "Saliency", "random"]
    assert sum(ranks.values()) == 6


def test_what_cannot_be_compared_is_refused(studies, tmp_path):
    with pytest.raises(KeyError, match="no metric 'auprc'"):
        several(studies, "auprc")
    other = tiny.run(tmp_path, metrics=("comprehensiveness",), removal="mask")
    with pytest.raises(ValueError, match="other measured comprehensiveness in another way than seed 0"):
        several({**studies, "other": other}, "comprehensiveness")
