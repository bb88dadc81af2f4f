"""Every metric is its published definition, points the right way, and does not depend on what is padded beside."""

import math
from dataclasses import replace

import pytest
import torch
from captum.attr import Saliency
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from captum_norm import AttentionNorm, AttentionWeights, HFForward
from captum_norm.forward.embedding import EmbeddingSites, gated
from captum_norm.study.metrics import (
    METRICS,
    AOPCComprehensiveness,
    Comprehensiveness,
    DeletionArea,
    Infidelity,
    InsertionArea,
    LeaveOneOutCorrelation,
    LogOdds,
    RandomisedWeights,
    Sensitivity,
    SoftComprehensiveness,
    SoftSufficiency,
    Sufficiency,
)
from captum_norm.study.metrics.randomised import shuffled
from captum_norm.study.metrics.removal import REMOVALS
from captum_norm.study.metrics.scored_texts import Scored
from captum_norm.study.metrics.seeding import generators
from captum_norm.study.metrics.soft import shares
from tests.attr.models import tiny
from tests.study.metrics.bag import BagOfTokens, Example, forward, probability, random_scored, single

BERT = tiny("Bert")
ROWS = range(3)


def saliency(forward: HFForward, inputs: Tensor, **arguments) -> Tensor:
    return Saliency(forward).attribute(inputs, **arguments)


def oracle(model: BagOfTokens, scored: Scored) -> Scored:
    """What each token of the bag does for its target against the other classes."""
    rows = model.embedding(scored.inputs["input_ids"]).detach()
    own = rows.gather(2, scored.target[:, None, None].expand(-1, rows.shape[1], 1))[..., 0]
    return replace(scored, scores=own - rows.mean(-1), memo={})


# -- every metric --


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_is(name):
    metric = METRICS[name]
    assert metric.name == name
    assert metric.formula
    assert "http" in metric.source
    assert type(metric).__doc__
    assert "max_rows" not in metric.arguments()


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
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_how_many_copies_run_at_once_changes_nothing(name):
    model, scored = forward(), random_scored()
    many = METRICS[name](model, scored, attribute=saliency)
    few = replace(METRICS[name], max_rows=2)(model, random_scored(), attribute=saliency)
    torch.testing.assert_close(few, many)


@pytest.mark.parametrize("name", [name for name in METRICS if not METRICS[name].needs_attribute])
def test_the_oracle_beats_random_scores_in_the_direction_that_is_stated(name):
    model = BagOfTokens()
    scored = oracle(model, random_scored([12] * 20))
    evidence = torch.zeros_like(scored.removable)
    for row, example in enumerate(Example(scored, row) for row in range(len(scored))):
        evidence[row, example.order[:3]] = True
    metric = METRICS[name]
    best = metric(forward(model), replace(scored, evidence=evidence)).mean()
    chance = random_scored([12] * 20, seed=5).scores
    floor = metric(forward(model), replace(scored, scores=chance, evidence=evidence)).mean()
    assert best > floor + 0.02 if metric.higher_is_better else best < floor - 0.02


@pytest.mark.parametrize("name", METRICS)
def test_scores_of_tokens_that_may_not_be_removed_are_never_looked_at(name):
    scored = random_scored()
    other = torch.where(scored.removable, scored.scores, torch.nan)
    found = METRICS[name](forward(), replace(scored, scores=other, memo={}), attribute=saliency)
    torch.testing.assert_close(found, METRICS[name](forward(), scored, attribute=saliency))


class Counting(BagOfTokens):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.rows.append(len(input_ids))
        return super().forward(input_ids, attention_mask)


def test_copies_run_in_full_batches_and_the_unperturbed_examples_once():
    model = Counting()
    scored, through = random_scored([20, 20]), forward(model)
    AOPCComprehensiveness(max_rows=4)(through, scored)
    # 20 tokens: 1 and 5 per cent are one token, so there are four copies of each of two texts.
    assert model.rows == [2, 4, 4]
    LogOdds()(through, replace(scored, scores=-scored.scores))
    assert model.rows == [2, 4, 4, 2]
    LeaveOneOutCorrelation(max_rows=64)(through, scored)
    LeaveOneOutCorrelation(measure_of_rank="spearman")(through, replace(scored, scores=-scored.scores))
    assert model.rows == [2, 4, 4, 2, 40]


def test_what_is_kept_for_the_next_metric_is_not_mistaken_for_another_target_or_text():
    scored, through = random_scored(), forward()
    metric = METRICS["leave_one_out_correlation"]
    metric(through, scored)
    others = [
        replace(scored, target=(scored.target + 1) % 3),
        replace(scored, removable=scored.removable & (scored.inputs["input_ids"] % 2 == 0)),
        replace(scored, inputs={**scored.inputs, "input_ids": scored.inputs["input_ids"].clamp(max=20)}),
    ]
    for other in others:
        assert other.memo is scored.memo
        fresh = metric(through, replace(other, memo={}))
        torch.testing.assert_close(metric(through, other), fresh, equal_nan=True)
    masking = replace(metric, removal="mask")
    torch.testing.assert_close(masking(through, scored), masking(through, replace(scored, memo={})))
    assert not torch.equal(masking(through, scored), metric(through, scored))


# -- definitions --


def test_comprehensiveness_sufficiency_and_log_odds_are_their_definitions():
    model, scored = BagOfTokens(), random_scored()
    c = Comprehensiveness(fractions=(0.1, 0.5))(forward(model), scored)
    s = Sufficiency(fractions=(0.1, 0.5))(forward(model), scored)
    o = LogOdds(fractions=(0.1, 0.5))(forward(model), scored)
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
        assert float(o[row]) == pytest.approx(sum(math.log(p / whole) for p in lacking) / 2)


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
    assert float(LogOdds(fractions=(0.5,))(forward(model), scored)) == pytest.approx(math.log(2 / 3))


@pytest.mark.parametrize("steps", [3, 20])
def test_areas_are_trapezoids_under_the_curve(steps):
    model, scored = BagOfTokens(), random_scored()
    falling = DeletionArea(steps=steps)(forward(model), scored)
    rising = InsertionArea(steps=steps)(forward(model), scored)
    for row in ROWS:
        e = Example(scored, row)
        n = len(e.order)
        counts = list(range(n + 1)) if steps >= n else [round(i * n / steps) for i in range(steps + 1)]
        down = [probability(model, e.without(e.order[:k]), e.target) for k in counts]
        up = [probability(model, e.without(e.order[k:]), e.target) for k in counts]
        for found, curve in ((falling, down), (rising, up)):
            area = sum((counts[i + 1] - counts[i]) / n * (curve[i] + curve[i + 1]) / 2 for i in range(len(counts) - 1))
            assert float(found[row]) == pytest.approx(area)


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


def test_scores_of_zero_and_one_drop_softly_what_the_gate_removes():
    scored = random_scored()
    binary = replace(scored, scores=scored.evidence.double(), memo={})
    keep = {"fractions": (1.0,), "removal": "gate"}
    for row in ROWS:
        one = single(binary, row)
        # The evidence is what is removable, all other tokens are given: then the gate removes all of it.
        evident = replace(one, removable=one.evidence, memo={})
        hard = Comprehensiveness(**keep)(HFForward(BERT), evident).clamp(min=0)
        torch.testing.assert_close(SoftComprehensiveness()(HFForward(BERT), one), hard, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("metric", [SoftComprehensiveness(samples=4), SoftSufficiency(samples=4)])
def test_soft_metrics_are_their_definition(metric):
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
            expected = max(0.0, (room - loss) / room) if metric.keeps_top else loss / room
            assert float(normal[row]) == pytest.approx(expected)


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


# -- the sanity check --


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


# -- undefined, never silently something --


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


def test_equal_scores_are_no_preference():
    scored = random_scored()
    level = replace(scored, scores=torch.full_like(scored.scores, 3.0), memo={})
    assert (shares(level) == 0.5).all()
    assert SoftComprehensiveness()(forward(), level).isfinite().all()


# -- refusals --


def test_scores_must_fit_and_be_numbers():
    scored = random_scored()
    with pytest.raises(ValueError, match="the score of token 2 of example 1 is nan"):
        replace(
            scored, scores=scored.scores.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan).double())
        )
    with pytest.raises(ValueError, match="the score of token 2 of example 1 is inf"):
        replace(
            scored, scores=scored.scores.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.inf).double())
        )
    with pytest.raises(ValueError, match=r"scores should be \(batch, token\), got shape \(11,\)"):
        replace(scored, scores=scored.scores[0])
    with pytest.raises(ValueError, match=r"evidence should be bool of the scores' shape \(3, 11\), got .* \(3, 10\)"):
        replace(scored, evidence=scored.evidence[:, :-1])
    with pytest.raises(ValueError, match="removable should be bool"):
        replace(scored, removable=scored.removable.long())
    with pytest.raises(ValueError, match="example 2 has no token that may be removed"):
        replace(scored, removable=scored.removable & torch.tensor([[True], [True], [False]]))
    with pytest.raises(ValueError, match=r"target should be one class per example, \(3,\) long"):
        replace(scored, target=scored.target[:2])
    with pytest.raises(ValueError, match=r"input_ids is .* but scores hold 3 examples"):
        replace(scored, inputs={"input_ids": scored.inputs["input_ids"][:2]})


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


def test_scores_of_another_length_than_the_ids_are_refused():
    scored = random_scored()
    short = replace(scored, scores=scored.scores[:, :-1], removable=scored.removable[:, :-1], evidence=None, memo={})
    with pytest.raises(ValueError, match="one score per token, padding included"):
        METRICS["comprehensiveness"](forward(), short)


def test_outputs_that_are_no_probabilities_are_refused():
    class OneNumber(BagOfTokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids, attention_mask)[:, :1]

    class NoNumber(BagOfTokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids, attention_mask) * torch.nan

    with pytest.raises(ValueError, match="at least two classes"):
        METRICS["comprehensiveness"](forward(OneNumber()), replace(random_scored(), target=torch.zeros(3).long()))
    with pytest.raises(ValueError, match="returned NaN or infinity"):
        METRICS["comprehensiveness"](forward(NoNumber()), random_scored())
    with pytest.raises(ValueError, match="target 3 is no class of BagOfTokens, which has 3"):
        METRICS["comprehensiveness"](forward(), replace(random_scored(), target=torch.full((3,), 3)))


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
