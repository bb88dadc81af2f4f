"""The planted models do rest on the words they are said to rest on, and who looks at vectors finds them."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from captum.attr import InputXGradient
from torch import Tensor

from captum_norm import AttentionNorm, AttentionWeights, HFForward
from captum_norm.study import Results, Study
from captum_norm.study.metrics import METRICS, random_average_precision
from captum_norm.study.metrics.scored_texts import Scored
from captum_norm.study.planted import PLANTED, Planted, planted
from captum_norm.study.planted.texts import DECOYS, FILLERS, TRIGGERS, draw_examples

SEEDS = range(5)
HAND_BUILT = ("copy_head", "zero_value_head", "sink_head")
NAMES = [name if name in HAND_BUILT else pytest.param(name, marks=pytest.mark.slow) for name in PLANTED]


@cache
def truth(name: str, seed: int = 0) -> Planted:
    return planted(name, seed=seed, count=40)


def scored(truth: Planted, scores: Tensor | None = None) -> Scored:
    """The examples in one batch, with the scores given or those of the oracle."""
    texts = [example.text for example in truth.examples]
    encoding = truth.tokenizer(texts, return_tensors="pt", padding=True, return_special_tokens_mask=True)
    removable = ~encoding.pop("special_tokens_mask").bool()
    evidence = torch.zeros_like(removable)
    for row, example in enumerate(truth.examples):
        for start, end in example.evidence:
            evidence[row, encoding.char_to_token(row, start)] = True
            assert encoding.char_to_token(row, start) == encoding.char_to_token(row, end - 1)
    target = torch.tensor([example.label for example in truth.examples])
    scores = evidence.double() if scores is None else scores
    mask_id = truth.tokenizer.mask_token_id
    return Scored(dict(encoding), scores, target, removable, evidence, mask_id=mask_id)


def auprc(truth: Planted, method: type) -> float:
    forward, batch = HFForward(truth.model, mode="gate"), scored(truth)
    scores = method(forward).attribute(**forward.inputs(batch.inputs), target=batch.target)
    return float(METRICS["auprc"](HFForward(truth.model), replace(batch, scores=scores)).mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_norms_see_through_zero_values_and_weights_do_not(seed):
    assert auprc(truth("zero_value_head", seed), AttentionWeights) <= 0.5
    assert auprc(truth("zero_value_head", seed), AttentionNorm) >= 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_norms_see_through_sinks_and_weights_do_not(seed):
    assert auprc(truth("sink_head", seed), AttentionWeights) <= 0.5
    assert auprc(truth("sink_head", seed), AttentionNorm) >= 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_of_a_head_that_only_copies_both_find_the_evidence(seed):
    assert auprc(truth("copy_head", seed), AttentionWeights) == 1.0
    assert auprc(truth("copy_head", seed), AttentionNorm) == 1.0


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("name", HAND_BUILT)
def test_gradients_are_not_blind_to_the_hand_built_models(name):
    assert auprc(truth(name), InputXGradient) >= 0.99


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_scores_1_and_a_random_order_what_is_expected_of_it(name):
    batch = scored(truth(name))
    through = HFForward(truth(name).model)
    for metric in ("auprc", "token_f1", "iou"):
        assert (METRICS[metric](through, batch) == 1).all()
    expected = torch.tensor(
        [
            random_average_precision(int(r.sum()), int(e.sum()))
            for r, e in zip(batch.removable, batch.evidence, strict=True)
        ]
    )
    draws = torch.rand(50, *batch.scores.shape, generator=torch.Generator().manual_seed(0))
    found = torch.stack([METRICS["auprc"](through, replace(batch, scores=draw)).mean() for draw in draws])
    assert abs(float(found.mean() - expected.mean())) < 4 * float(found.std()) / 50**0.5


@pytest.mark.parametrize("removal", ["delete", "mask", "pad", "gate", "mean_embedding"])
@pytest.mark.parametrize("name", NAMES)
def test_the_answer_falls_with_the_evidence_and_stands_with_it_alone(name, removal):
    """What is said to matter matters: without it the models cannot know the class, with it alone they do."""
    batch, through = scored(truth(name)), HFForward(truth(name).model)
    share = float((batch.evidence.sum(1) / batch.removable.sum(1)).max())
    metrics = [replace(METRICS[m], fractions=(share,), removal=removal) for m in ("comprehensiveness", "sufficiency")]
    needed, enough = (metric(through, batch).mean() for metric in metrics)
    others = replace(batch, scores=-batch.scores)
    of_decoys = metrics[0](through, others).mean()
    assert needed > 0.25
    assert needed > of_decoys + 0.2
    assert enough < 0.15


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_classified_as_they_are_labelled(name):
    batch = scored(truth(name))
    with torch.no_grad():
        assert (truth(name).model(**batch.inputs).logits.argmax(-1) == batch.target).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_random_numbers_alone(name):
    state = torch.get_rng_state()
    again = planted(name, seed=0, count=40)
    assert torch.equal(state, torch.get_rng_state())
    assert again.examples == truth(name).examples
    for one, other in zip(again.model.parameters(), truth(name).model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not again.model.training


def test_texts_hold_triggers_of_their_class_decoys_and_fillers():
    for example in draw_examples(50, seed=0):
        words = example.text.split()
        marked = [example.text[start:end] for start, end in example.evidence]
        assert set(marked) <= set(TRIGGERS[example.label])
        assert sum(word in DECOYS for word in words) == 2
        assert len(marked) + 2 + sum(word in FILLERS for word in words) == len(words)


def test_decoys_and_fillers_say_nothing_of_the_class():
    examples = draw_examples(2000, seed=1)
    for word in (*DECOYS, *FILLERS):
        labels = [example.label for example in examples if word in example.text.split()]
        assert 0.4 < sum(labels) / len(labels) < 0.6


def test_what_is_not_planted_is_named():
    with pytest.raises(ValueError, match=r"there are copy_head, zero_value_head, .*, not 'two_heads'"):
        planted("two_heads")
    with pytest.raises(ValueError, match="at least one example, got 0"):
        planted("copy_head", count=0)


def test_a_model_that_has_not_learned_is_no_truth(monkeypatch):
    monkeypatch.setattr("captum_norm.study.planted.trained._STEPS", 1)
    with pytest.raises(RuntimeError, match=r"trained_encoder\(seed=0\) is wrong about \d+ of 40 texts"):
        planted("trained_encoder", count=40)


def noisy(tokenizer, spread: float, seed: int):
    """A method that scores triggers 1 and everything else 0, with noise of a text's own."""
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([*TRIGGERS[0], *TRIGGERS[1]]))

    def method(forward, inputs, target):
        rows = []
        for row in inputs["input_ids"]:
            generator = torch.Generator().manual_seed(int((row * torch.arange(1, len(row) + 1)).sum()) * 1000 + seed)
            rows.append(torch.isin(row, ids) + spread * torch.randn(len(row), generator=generator))
        return torch.stack(rows)

    return method


def noisy_study(folder, seed: int, count: int):
    """Two methods that are the same but for their noise, and one with a little more of it."""
    truth = planted("copy_head", seed=seed, count=count)
    spreads = {"first": (0.5, 1), "twin": (0.5, 2), "worse": (0.6, 3)}
    methods = {name: noisy(truth.tokenizer, *of) for name, of in spreads.items()}
    study = Study(truth.model, truth.tokenizer, methods, ["auprc"], batch_size=100)
    return study.run(truth.examples, folder / f"{seed}-{count}.db", progress=False)


@pytest.mark.slow
def test_a_planted_null_is_found_level_and_a_planted_difference_at_the_n_that_is_named(tmp_path):
    pilot = noisy_study(tmp_path, seed=0, count=400).table("first", resamples=999)
    difference = -pilot.cells["worse"]["auprc"].difference
    needed = Results(tmp_path / "0-400.db").needed_examples("auprc", difference, "first")["worse"]
    assert 20 < needed < 400
    tables = [noisy_study(tmp_path, seed, needed).table("first", margin=0.1) for seed in range(1, 31)]
    found = [table.differs("worse", "auprc") for table in tables]
    level = [table.is_level("twin", "auprc") for table in tables]
    alarms = [table.differs("twin", "auprc") for table in tables]
    print(needed, difference, sum(found), sum(level), sum(alarms))
    assert sum(found) >= 18  # 24 of 30 are promised, and fewer than 18 come by chance in 1 of 100 such tests
    assert sum(level) >= 27
    assert sum(alarms) <= 3
