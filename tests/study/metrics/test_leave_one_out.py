"""The correlation with leaving one out is scipy's."""

import pytest
from scipy.stats import kendalltau, spearmanr

from captum_norm.study.metrics import LeaveOneOutCorrelation
from tests.study.metrics.bag import ROWS, BagOfTokens, Example, forward, probability, random_scored, single


@pytest.mark.parametrize(("rank", "by_scipy"), [("kendall", kendalltau), ("spearman", spearmanr)])
def test_leave_one_out_correlation_is_scipys(rank, by_scipy):
    model, scored = BagOfTokens(), random_scored()
    found = LeaveOneOutCorrelation(measure_of_rank=rank)(forward(model), scored)
    for row in ROWS:
        e = Example(scored, row)
        whole = probability(model, e.ids, e.target)
        drops = [whole - probability(model, e.without([place]), e.target) for place in e.removable]
        scores = single(scored, row).scores[0, e.removable]
        assert float(found[row]) == pytest.approx(by_scipy(scores.numpy(), drops).statistic)
