"""Metrics of contexts are their definitions, over sources that are ranked and removed as a whole."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from captum_norm.study.metrics import METRICS
from captum_norm.study.metrics.scored_texts import Scored
from tests.study.metrics.bag import BagOfTokens, forward, probability

IDS = torch.tensor([[1, 7, 8, 9, 10, 11, 12, 2]])
SOURCES = torch.tensor([[-1, 0, 0, 1, 1, 2, -1, -1]])


def scored(scores, evidence=(9, 10)) -> Scored:
    of = torch.zeros_like(IDS, dtype=torch.float64)
    of[0, 1:7] = torch.tensor(scores, dtype=torch.float64)
    marked = torch.isin(IDS, torch.tensor(evidence))
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    return Scored(inputs, of, torch.tensor([1]), (IDS > 4), marked, sources=SOURCES)


def by_source(name, **choices):
    return replace(METRICS[name], level="source", **choices)


def test_sources_are_sums_of_their_tokens_and_what_is_in_none_stays():
    of = scored([1.0, 2.0, -1.0, 5.0, 3.5, 9.0]).by_source()
    assert of.removable[0].tolist() == [False, True, False, True, False, True, False, False]
    assert of.scores[0, [1, 3, 5]].tolist() == [3.0, 4.0, 3.5]
    assert of.evidence[0, [1, 3, 5]].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="example 0 has no sources"):
        replace(scored([0.0] * 6), sources=None).by_source()


def test_the_drop_is_that_of_the_text_without_its_first_sources():
    model, of = BagOfTokens(), scored([1.0, 2.0, -1.0, 5.0, 3.5, 9.0])
    whole = probability(model, IDS[0].tolist(), 1)
    for k, left in ((1, [1, 7, 8, 11, 12, 2]), (2, [1, 7, 8, 12, 2]), (9, [1, 12, 2])):
        expected = torch.tensor([whole / probability(model, left, 1)]).double().log()
        torch.testing.assert_close(by_source("top_drop", k=k)(forward(model), of), expected)


def test_the_datamodelling_score_is_the_correlation_over_random_halves():
    model = BagOfTokens()
    metric, through = by_source("lds", ablations=12), forward(model)
    of = scored([1.0, 2.0, -1.0, 5.0, 3.5, 9.0])
    kept, effects = metric._ablated(through, of.by_source())
    expected, sums = [], []
    for part in kept[0][:, [1, 3, 5]].tolist():
        ids = [t for t, s in zip(IDS[0].tolist(), SOURCES[0].tolist(), strict=True) if s < 0 or part[s]]
        p = probability(model, ids, 1)
        expected.append(torch.logit(torch.tensor(p, dtype=torch.float64)))
        sums.append(sum(score for score, held in zip((3.0, 4.0, 3.5), part, strict=True) if held))
    torch.testing.assert_close(effects[0], torch.stack(expected))
    assert float(metric(through, of)) == pytest.approx(spearmanr(sums, expected).statistic)
    assert len(set(kept[0].sum(1).tolist())) > 1
    rows = model.embedding(IDS).detach()
    linear = replace(of, scores=rows[..., 1] - rows[..., 0], foil=torch.tensor([0]), memo={})  # of two, odds are a sum
    assert float(metric(through, linear)) == pytest.approx(1.0)
    assert float(metric(through, replace(linear, scores=-linear.scores))) == pytest.approx(-1.0)


def test_recovery_is_the_share_of_evidence_among_the_first():
    through = forward()
    values = {k: float(by_source("recovery", k=k)(through, scored([1, 2, 3, 5, 0, 9], (7, 9)))) for k in (1, 2, 3)}
    assert values == {1: 1.0, 2: 1.0, 3: 1.0}
    of = scored([1, 2, 0, 0, 4, 9], (7, 9))  # 3, 0, 4
    assert [float(by_source("recovery", k=k)(through, of)) for k in (1, 2, 3)] == [0.0, 0.5, 1.0]
    metric = by_source("recovery", k=2)
    draws = torch.rand(400, 1, 8, generator=torch.Generator().manual_seed(0))
    drawn = [replace(of, scores=scores, drawn=True) for scores in draws]
    mean = torch.stack([metric(through, one) for one in drawn]).mean()
    assert abs(float(mean - metric.at_random(through, of.by_source()))) < 0.05
    with pytest.raises(ValueError, match="k should be 1 or more"):
        by_source("recovery", k=0)
