"""The sanity check runs a method on shuffled weights."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from scipy.stats import spearmanr
from torch import Tensor

from captum_norm import AttentionNorm, AttentionWeights, HFForward
from captum_norm.study.metrics import RandomisedWeights
from captum_norm.study.metrics.randomised import mean_of_random_orders, shuffled
from tests.attr.models import tiny
from tests.study import tiny as tiny_study
from tests.study.metrics.bag import BERT, ROWS, random_scored


def position_of_the_gate(forward: HFForward, inputs: Tensor, **arguments) -> Tensor:
    return torch.arange(inputs.shape[1]).expand_as(inputs).to(inputs)


def test_a_method_that_does_not_look_at_the_model_is_found_out():
    scored = random_scored([9, 9])
    blind = torch.arange(11).expand(2, 11)
    found = RandomisedWeights()(HFForward(BERT), replace(scored, scores=blind), attribute=position_of_the_gate)
    torch.testing.assert_close(found, torch.ones(2, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("method", [AttentionNorm, AttentionWeights, Saliency])
def test_the_sanity_check_runs_any_method_on_shuffled_weights(method):
    again = lambda forward, inputs, **arguments: method(forward).attribute(inputs, **arguments)  # noqa: E731
    through, scored = HFForward(BERT), random_scored()
    gate = HFForward(BERT, mode="gate")
    scores = again(gate, **gate.inputs(scored.inputs), target=scored.target)
    found = RandomisedWeights(shuffles=2)(through, replace(scored, scores=scores), attribute=again)
    others = [HFForward(shuffled(BERT, seed), mode="gate") for seed in range(2)]
    expected = [again(other, **other.inputs(scored.inputs), target=scored.target) for other in others]
    for row in ROWS:
        r = scored.removable[row]
        correlations = [spearmanr(scores[row, r].numpy(), of[row, r].numpy()).statistic for of in expected]
        assert float(found[row]) == pytest.approx(sum(map(abs, correlations)) / 2)


def test_a_method_that_says_the_opposite_on_shuffled_weights_does_not_pass():
    """Its mean rho over two shuffles is 0, which would be the best there is."""
    scored = random_scored([9, 9])
    scores = torch.arange(11).expand(2, 11)
    calls = iter([1, -1])

    def turning(forward: HFForward, inputs: Tensor, **arguments) -> Tensor:
        return next(calls) * position_of_the_gate(forward, inputs)

    found = RandomisedWeights(shuffles=2)(HFForward(BERT), replace(scored, scores=scores), attribute=turning)
    torch.testing.assert_close(found, torch.ones(2, dtype=torch.float64))


def test_what_two_random_orders_reach_is_the_mean_over_all_pairs():
    every = [abs(spearmanr(range(5), order).statistic) for order in permutations(range(5))]
    assert mean_of_random_orders(5) == pytest.approx(np.mean(every), abs=0.01)
    assert math.isnan(mean_of_random_orders(1))


def test_a_study_keeps_every_shuffle_and_resamples_them(tmp_path):
    """Each shuffle by itself is sure of its own answer; what they differ by belongs into the interval."""
    several = RandomisedWeights(shuffles=4)
    results = tiny_study.run(tmp_path, ["Saliency"], [several])
    repeated = results.repetitions("randomised_weights")["Saliency"]
    assert repeated.shape == (4, len(tiny_study.TEXTS))
    assert results.values("randomised_weights")["Saliency"] == pytest.approx(repeated.mean(axis=0), nan_ok=True)
    one = tiny_study.run(tmp_path, ["Saliency"], [RandomisedWeights(shuffles=1, seed=2)], name="one.db")
    assert one.values("randomised_weights")["Saliency"] == pytest.approx(repeated[2], nan_ok=True)
    floor = results.values("randomised_weights")["random"]
    assert np.isfinite(floor).all()
    assert len(results.to_pandas()) == 3 * len(tiny_study.TEXTS)
    assert "randomised_weights" in results.table(resamples=99).to_text()


def test_shuffling_leaves_the_model_alone_and_keeps_every_parameters_values():
    before = {name: p.clone() for name, p in BERT.named_parameters()}
    other = shuffled(BERT, seed=3)
    for name, parameter in other.named_parameters():
        assert torch.equal(dict(BERT.named_parameters())[name], before[name])
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)
    weight = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(other.get_parameter(weight), before[weight])
    assert shuffled(BERT, seed=3) is other


def test_a_model_that_was_trained_on_is_shuffled_anew():
    model = tiny("Bert")
    first = shuffled(model, 0)
    with torch.no_grad():
        model.classifier.weight += 1
    assert shuffled(model, 0) is not first
