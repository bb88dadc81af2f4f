"""Comprehensiveness, sufficiency and log-odds are their definitions."""

import math

import pytest
import torch

from captum_norm.study.metrics import Comprehensiveness, LogOdds, LogPChange, Sufficiency
from captum_norm.study.metrics.scored_texts import Scored
from tests.study.metrics.bag import ROWS, BagOfTokens, Example, forward, probability, random_scored


def test_comprehensiveness_sufficiency_and_log_odds_are_their_definitions():
    model, scored = BagOfTokens(), random_scored()
    c = Comprehensiveness(fractions=(0.1, 0.5))(forward(model), scored)
    s = Sufficiency(fractions=(0.1, 0.5))(forward(model), scored)
    o = LogOdds(fractions=(0.1, 0.5))(forward(model), scored)
    log = LogPChange(fractions=(0.1, 0.5))(forward(model), scored)
    for row in ROWS:
        example = Example(scored, row)
        whole = probability(model, example.ids, example.target)
        tops = [example.order[: math.ceil(f * len(example.order))] for f in (0.1, 0.5)]
        lacking = [probability(model, example.without(top), example.target) for top in tops]
        alone = [
            probability(model, example.without([r for r in example.removable if r not in top]), example.target)
            for top in tops
        ]
        assert float(c[row]) == pytest.approx(whole - sum(lacking) / 2)
        assert float(s[row]) == pytest.approx(whole - sum(alone) / 2)
        assert float(log[row]) == pytest.approx(sum(math.log(p / whole) for p in lacking) / 2)
        odds = [math.log(p / (1 - p)) for p in (whole, *lacking)]
        assert float(o[row]) == pytest.approx(sum(odds[1:]) / 2 - odds[0])


def test_comprehensiveness_by_hand():
    """Two classes; a token worth log 3 leaves: p falls from 3/4 to 1/2."""
    model = BagOfTokens()
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[:, 2] = -1e9 / 2
        model.embedding.weight[7, 1] = math.log(3)
    inputs = {"input_ids": torch.tensor([[7, 8]]), "attention_mask": torch.ones(1, 2).long()}
    scored = Scored(inputs, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), torch.tensor([[True, True]]))
    assert float(Comprehensiveness(fractions=(0.5,))(forward(model), scored)) == pytest.approx(0.25)
    assert float(Sufficiency(fractions=(0.5,))(forward(model), scored)) == pytest.approx(0.0)
    assert float(LogPChange(fractions=(0.5,))(forward(model), scored)) == pytest.approx(math.log(2 / 3))
    assert float(LogOdds(fractions=(0.5,))(forward(model), scored)) == pytest.approx(-math.log(3))
