"""Soft metrics are their definition, and the hard ones where shares are 0 and 1."""

from dataclasses import replace

import pytest
import torch

from captum_norm import HFForward
from captum_norm.study.metrics import Comprehensiveness, SoftComprehensiveness, SoftSufficiency
from captum_norm.study.metrics.seeding import generators
from captum_norm.study.metrics.soft import shares
from tests.study.metrics.bag import BERT, ROWS, BagOfTokens, forward, random_scored, single


def test_scores_of_zero_and_one_drop_softly_what_the_gate_removes():
    scored = random_scored()
    binary = replace(scored, scores=scored.evidence.double(), memo={})
    keep = {"fractions": (1.0,), "removal": "gate"}
    for row in ROWS:
        one = single(binary, row)
        # The evidence is what is removable, all other tokens are given: then the gate removes all of it.
        evident = replace(one, removable=one.evidence, memo={})
        hard = Comprehensiveness(**keep)(HFForward(BERT), evident).clamp(min=0)
        soft = SoftComprehensiveness(normalise=False)(HFForward(BERT), one)
        torch.testing.assert_close(soft, hard, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [SoftComprehensiveness, SoftSufficiency])
def test_soft_metrics_are_their_definition(kind):
    metric = kind(samples=4, normalise=False)
    model, scored = BagOfTokens(), random_scored()
    found = metric(forward(model), scored)
    normal = replace(metric, normalise=True)(forward(model), scored)
    for row in ROWS:
        one = single(scored, row)
        drawing = generators(one, seed=0)[0]
        removable = one.removable[0]
        vectors = model.embedding(one.inputs["input_ids"][0]).detach()
        target = int(one.target)
        whole = float(vectors.sum(0).softmax(-1)[target])
        stay = shares(one)[0, removable]
        stay = stay if metric.keeps_top else 1 - stay
        lost = []
        for _ in range(4):
            kept = torch.rand(int(removable.sum()), 3, generator=drawing, dtype=torch.float64) < stay[:, None]
            dropped = vectors.clone()
            dropped[removable] *= kept
            lost.append(max(0.0, whole - float(dropped.sum(0).softmax(-1)[target])))
        loss = sum(lost) / 4
        assert float(found[row]) == pytest.approx(1 - loss if metric.keeps_top else loss)
        room = whole - float(vectors[~removable].sum(0).softmax(-1)[target])
        if room <= 0:
            assert normal[row].isnan()
        else:
            expected = max(0.0, (room - loss) / room) if metric.keeps_top else min(1.0, loss / room)
            assert float(normal[row]) == pytest.approx(expected)


def test_equal_scores_are_no_preference():
    scored = random_scored()
    level = replace(scored, scores=torch.full_like(scored.scores, 3.0), memo={})
    assert (shares(level) == 0.5).all()
    assert SoftComprehensiveness(normalise=False)(forward(), level).isfinite().all()
