"""Captum's two metrics are their definitions, on the gate."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captum_norm import HFForward
from captum_norm.forward.embedding import EmbeddingSites, gated
from captum_norm.study.metrics import Infidelity, Sensitivity
from captum_norm.study.metrics.seeding import generators
from tests.study.metrics.bag import BERT, ROWS, random_scored, saliency, single


@pytest.mark.parametrize("normalise", [False, True])
def test_infidelity_is_the_mean_squared_error_of_the_scores(normalise):
    metric = Infidelity(samples=6, normalise=normalise)
    scored, through = random_scored(), HFForward(BERT)
    found = metric(through, scored)
    for row in ROWS:
        one = single(scored, row)
        removable = one.removable[0]
        drawn = torch.rand(6, int(removable.sum()), generator=generators(one, 0)[0], dtype=torch.float64)
        ids, target = one.inputs["input_ids"], int(one.target)
        whole = BERT(ids).logits[0, target]
        predicted, happened = [], []
        for draw in drawn:
            removed = torch.zeros(ids.shape)
            removed[0, removable] = (draw < 0.3).float()
            copy = ids.clone()
            with EmbeddingSites(BERT, "input_ids", None).changed(copy, gated(1 - removed)):
                happened.append(whole - BERT(copy).logits[0, target])
            predicted.append((removed[0] * one.scores[0]).sum())
        a, b = torch.stack(predicted).detach().double(), torch.stack(happened).detach().double()
        factor = (a @ b) / (a @ a) if normalise else 1.0
        assert float(found[row]) == pytest.approx(float(((factor * a - b) ** 2).mean()), rel=1e-3, abs=1e-6)


def test_the_model_is_asked_about_random_sets_once_for_all_methods():
    metric, through, scored = Infidelity(samples=6), HFForward(BERT), random_scored()
    calls = []
    handle = BERT.register_forward_hook(lambda *_: calls.append(1))
    try:
        first = metric(through, scored)
        asked = len(calls)
        other = metric(through, replace(scored, scores=scored.scores**2))
    finally:
        handle.remove()
    assert asked == len(calls) > 0
    assert (first != other).all()
    assert torch.equal(other, metric(through, replace(scored, scores=scored.scores**2, memo={})))


def test_sensitivity_is_the_largest_relative_change_of_the_scores():
    scored = random_scored()
    found = Sensitivity(samples=5)(HFForward(BERT), scored, attribute=saliency)
    through = HFForward(BERT, mode="gate")
    for row in ROWS:
        one = single(scored, row)
        removable = one.removable[0]
        drawn = torch.rand(5, int(removable.sum()), generator=generators(one, 0)[0], dtype=torch.float64)
        given = through.inputs(one.inputs)
        extras, target = given["additional_forward_args"], one.target

        def score(gate: Tensor, extras=extras, target=target, removable=removable) -> Tensor:
            found = saliency(through, gate.requires_grad_(), additional_forward_args=extras, target=target)
            return found[0, removable]

        plain = score(given["inputs"].clone())
        changes = []
        for draw in drawn:
            gate = given["inputs"].clone()
            gate[0, removable] += (0.02 * (2 * draw - 1)).float()
            changes.append(float((score(gate) - plain).norm() / plain.norm()))
        assert float(found[row]) == pytest.approx(max(changes), rel=1e-3)


def test_sensitivity_tells_a_method_that_wavers_from_one_that_does_not():
    scored, through = random_scored(), HFForward(BERT)
    steady = Sensitivity()(through, scored, attribute=lambda forward, inputs, **_: torch.ones_like(inputs))
    wavering = Sensitivity()(through, scored, attribute=lambda forward, inputs, **_: torch.rand_like(inputs))
    assert (steady == 0).all()
    assert (wavering > 0.1).all()
