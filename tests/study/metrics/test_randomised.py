"""The sanity check runs a method on shuffled weights."""

from dataclasses import replace

import pytest
import torch
from captum.attr import Saliency
from scipy.stats import spearmanr
from torch import Tensor

from captum_norm import AttentionNorm, AttentionWeights, HFForward
from captum_norm.study.metrics import RandomisedWeights
from captum_norm.study.metrics.randomised import shuffled
from tests.attr.models import tiny
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
    found = RandomisedWeights()(through, replace(scored, scores=scores), attribute=again)
    other = HFForward(shuffled(BERT, 0), mode="gate")
    expected = again(other, **other.inputs(scored.inputs), target=scored.target)
    for row in ROWS:
        r = scored.removable[row]
        assert float(found[row]) == pytest.approx(spearmanr(scores[row, r].numpy(), expected[row, r].numpy()).statistic)


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
