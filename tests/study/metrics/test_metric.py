"""Every metric points the right way, does not depend on what is padded beside, and refuses what it cannot measure."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from captum_norm import HFForward
from captum_norm.study.metrics import (
    METRICS,
    Comprehensiveness,
    DeletionArea,
    Infidelity,
    LeaveOneOutCorrelation,
    RandomisedWeights,
    Sensitivity,
    SoftSufficiency,
)
from captum_norm.study.metrics.removal import REMOVALS
from captum_norm.study.metrics.scored_texts import Scored
from tests.attr.models import tiny
from tests.study.metrics.bag import (
    BERT,
    ROWS,
    BagOfTokens,
    Example,
    forward,
    random_scored,
    saliency,
    single,
)


def oracle(model: BagOfTokens, scored: Scored) -> Scored:
    """What each token of the bag does for its target against the other classes."""
    rows = model.embedding(scored.inputs["input_ids"]).detach()
    own = rows.gather(2, scored.target[:, None, None].expand(-1, rows.shape[1], 1))[..., 0]
    return replace(scored, scores=own - rows.mean(-1), memo={})


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_is(name):
    metric = METRICS[name]
    assert metric.name == name
    assert metric.formula
    assert "http" in metric.source
    assert type(metric).__doc__
    assert "max_rows" not in metric.arguments()


@pytest.mark.wide(3)
@pytest.mark.parametrize(
    "metric",
    [
        replace(metric, removal=removal) if removal else metric
        for metric in METRICS.values()
        for removal in (REMOVALS if "removal" in metric.arguments() else [None])
    ],
    ids=str,
)
def test_a_padded_batch_gives_what_its_examples_give_one_by_one(metric):
    model, scored = HFForward(BERT), random_scored()
    together = metric(model, scored, attribute=saliency)
    alone = torch.cat([metric(model, single(scored, row), attribute=saliency) for row in ROWS])
    assert together.shape == (3,)
    assert together.dtype is torch.float64
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", METRICS)
def test_how_many_copies_run_at_once_changes_nothing(name):
    model, scored = forward(), random_scored()
    many = METRICS[name](model, scored, attribute=saliency)
    few = replace(METRICS[name], max_rows=2)(model, random_scored(), attribute=saliency)
    torch.testing.assert_close(few, many, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in METRICS if not METRICS[name].needs_attribute])
def test_the_oracle_beats_random_scores_in_the_direction_that_is_stated(name):
    model = BagOfTokens()
    scored = oracle(model, random_scored([12] * 20))
    evidence = torch.zeros_like(scored.removable)
    for row, example in enumerate(Example(scored, row) for row in range(len(scored))):
        evidence[row, example.order[:3]] = True
    metric = METRICS[name]
    best = metric(forward(model), replace(scored, evidence=evidence)).nanmean()
    chance = random_scored([12] * 20, seed=5).scores
    floor = metric(forward(model), replace(scored, scores=chance, evidence=evidence)).nanmean()
    assert best > floor + 0.02 if metric.higher_is_better else best < floor - 0.02


@pytest.mark.parametrize("name", METRICS)
def test_scores_of_tokens_that_may_not_be_removed_are_never_looked_at(name):
    scored = random_scored()
    other = torch.where(scored.removable, scored.scores, torch.nan)
    found = METRICS[name](forward(), replace(scored, scores=other, memo={}), attribute=saliency)
    torch.testing.assert_close(found, METRICS[name](forward(), scored, attribute=saliency), equal_nan=True)


def test_without_an_order_there_is_no_correlation():
    scored = random_scored([1, 5, 5])
    scores = scored.scores.clone()
    scores[1] = 0.5
    found = LeaveOneOutCorrelation()(forward(), replace(scored, scores=scores))
    assert found.isnan().tolist() == [True, True, False]
    constant = lambda forward, inputs, **_: torch.ones_like(inputs)  # noqa: E731
    assert RandomisedWeights()(HFForward(BERT), scored, attribute=constant).isnan().all()


def test_one_token_is_enough_for_what_removes_tokens():
    scored = random_scored([1])
    for name in ("comprehensiveness", "sufficiency", "log_odds", "insertion_area", "deletion_area"):
        assert METRICS[name](forward(), scored).isfinite().all()


def test_what_a_metric_needs_is_asked_for():
    scored = replace(random_scored(), evidence=None)
    with pytest.raises(ValueError, match="auprc compares with evidence"):
        METRICS["auprc"](forward(), scored)
    with pytest.raises(ValueError, match=r"sensitivity runs the method again.*attribute="):
        METRICS["sensitivity"](forward(), scored)
    with pytest.raises(ValueError, match=r"in training mode, so its outputs are random. Call model.eval\(\)"):
        METRICS["comprehensiveness"](forward(BagOfTokens().train()), scored)
    with pytest.raises(ValueError, match="in mode 'ids', not 'gate'"):
        METRICS["comprehensiveness"](HFForward(BERT, mode="gate"), scored)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Comprehensiveness(fractions=(0.0,)), "a fraction should be above 0"),
        (lambda: Comprehensiveness(fractions=()), "fractions are empty"),
        (lambda: Comprehensiveness(removal="burn"), "removal should be one of 'delete', 'mask'"),
        (lambda: Comprehensiveness(max_rows=0), "max_rows should be at least 1"),
        (lambda: DeletionArea(steps=0), "steps should be at least 1"),
        (lambda: SoftSufficiency(samples=0), "samples should be at least 1"),
        (lambda: Infidelity(probability=1.0), "probability should be between 0 and 1"),
        (lambda: Sensitivity(radius=0.0), "radius should be above 0"),
        (lambda: LeaveOneOutCorrelation(measure_of_rank="pearson"), "a rank correlation is one of"),
        (lambda: replace(METRICS["auprc"], area="spline"), "area should be 'step' or 'trapezoid'"),
        (lambda: replace(METRICS["iou"], fraction=2.0), "a fraction should be above 0"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_method_that_returns_something_else_is_named():
    scored = random_scored()
    with pytest.raises(ValueError, match=r"attribute returned scores of shape \(3,\) for a gate of \(3, 11\)"):
        RandomisedWeights()(HFForward(BERT), scored, attribute=lambda forward, inputs, **_: inputs[:, 0])
    with pytest.raises(ValueError, match="attribute returned NaN"):
        RandomisedWeights()(HFForward(BERT), scored, attribute=lambda forward, inputs, **_: inputs * torch.nan)


def test_no_hook_or_gradient_is_left_on_the_model():
    model = tiny("Bert")
    for metric in METRICS.values():
        metric(HFForward(model), random_scored(), attribute=saliency)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert isinstance(model, nn.Module)
