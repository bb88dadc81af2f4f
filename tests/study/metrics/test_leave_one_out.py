"""Correlations with leaving one out are scipy's, with the sign and as Jain and Wallace have them."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from captum_norm.study.metrics import LeaveOneOutChangeCorrelation, LeaveOneOutCorrelation
from tests.study.metrics.bag import ROWS, BagOfTokens, Example, forward, probability, random_scored, single

RANKS = pytest.mark.parametrize(("rank", "by_scipy"), [("kendall", kendalltau), ("spearman", spearmanr)])


def probabilities(model: BagOfTokens, ids: list[int]) -> list[float]:
    return [probability(model, ids, target) for target in range(3)]


@RANKS
def test_leave_one_out_correlation_is_scipys(rank, by_scipy):
    model, scored = BagOfTokens(), random_scored()
    found = LeaveOneOutCorrelation(measure_of_rank=rank)(forward(model), scored)
    for row in ROWS:
        e = Example(scored, row)
        whole = probability(model, e.ids, e.target)
        drops = [whole - probability(model, e.without([place]), e.target) for place in e.removable]
        scores = single(scored, row).scores[0, e.removable]
        assert float(found[row]) == pytest.approx(by_scipy(scores.numpy(), drops).statistic)


@RANKS
def test_jain_and_wallace_correlate_with_the_mean_absolute_change_of_all_probabilities(rank, by_scipy):
    model, scored = BagOfTokens(), random_scored()
    measured = LeaveOneOutChangeCorrelation(measure_of_rank=rank)(forward(model), scored)
    for row in ROWS:
        e = Example(scored, row)
        whole = probabilities(model, e.ids)
        lacking = [probabilities(model, e.without([place])) for place in e.removable]
        changes = [sum(abs(p - q) for p, q in zip(whole, other, strict=True)) / 3 for other in lacking]
        sizes = single(scored, row).scores[0, e.removable].abs()
        assert float(measured[row]) == pytest.approx(by_scipy(sizes.numpy(), changes).statistic)


def test_a_method_without_a_sign_is_judged_by_the_change_and_not_by_the_drop():
    """Scores that are the size of each token's true effect: right by size, and not by sign."""
    model, scored = BagOfTokens(), random_scored([15] * 6)
    effects = torch.zeros_like(scored.scores)
    for row in range(len(scored)):
        e = Example(scored, row)
        whole = torch.tensor(probabilities(model, e.ids), dtype=torch.float64)
        for place in e.removable:
            lacking = torch.tensor(probabilities(model, e.without([place])), dtype=torch.float64)
            effects[row, place] = (whole - lacking).abs().sum()
    unsigned = replace(scored, scores=effects)
    assert LeaveOneOutChangeCorrelation()(forward(model), unsigned).min() > 0.98
    assert LeaveOneOutCorrelation()(forward(model), unsigned).max() < 0.9


def test_the_sign_of_the_scores_does_not_matter_to_the_change():
    scored = random_scored()
    metric = LeaveOneOutChangeCorrelation()
    turned = replace(scored, scores=-scored.scores)
    assert torch.equal(metric(forward(), scored), metric(forward(), turned))
    assert torch.allclose(LeaveOneOutCorrelation()(forward(), scored), -LeaveOneOutCorrelation()(forward(), turned))
