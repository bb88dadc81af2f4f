"""Copies run in full batches, nothing runs twice, and outputs that are no probabilities are refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from captum_norm.study.metrics import METRICS, AOPCComprehensiveness, LeaveOneOutCorrelation, LogOdds
from captum_norm.study.metrics.perturbed import intact, perturbed
from tests.study.metrics.bag import BagOfTokens, forward, random_scored, saliency


class OneNumber(BagOfTokens):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(input_ids, attention_mask)[:, :1]


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
    LogOdds()(through, scored)  # what comprehensiveness asked at 20 per cent is known
    assert model.rows == [2, 4, 4]
    LogOdds()(through, replace(scored, scores=-scored.scores))
    assert model.rows == [2, 4, 4, 2]
    LeaveOneOutCorrelation(max_rows=64)(through, scored)
    LeaveOneOutCorrelation(measure_of_rank="spearman")(through, replace(scored, scores=-scored.scores))
    assert model.rows == [2, 4, 4, 2, 40]


@pytest.mark.parametrize("max_rows", [2, 100])
def test_copies_are_told_apart_however_they_are_run_together(max_rows):
    scored, through = random_scored(), forward()
    examples = torch.tensor([1, 0, 2, 2, 1, 0, 2])
    keep = torch.rand(len(examples), scored.removable.shape[1]) < torch.linspace(0, 1, len(examples))[:, None]
    together = perturbed(through, scored, examples, keep, "delete", max_rows)
    alone = [perturbed(through, scored, examples[[i]], keep[[i]], "delete", 1) for i in range(len(examples))]
    torch.testing.assert_close(together, torch.cat(alone))


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


def test_scores_of_another_length_than_the_ids_are_refused():
    scored = random_scored()
    short = replace(scored, scores=scored.scores[:, :-1], removable=scored.removable[:, :-1], evidence=None, memo={})
    with pytest.raises(ValueError, match="one score per token, padding included"):
        METRICS["comprehensiveness"](forward(), short)


def test_outputs_that_are_no_probabilities_are_refused():
    class NoNumber(BagOfTokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids, attention_mask) * torch.nan

    sole = OneNumber()
    sole.config = SimpleNamespace(problem_type="single_label_classification")
    with pytest.raises(ValueError, match="one class has a probability of 1"):
        METRICS["comprehensiveness"](forward(sole), replace(random_scored(), target=torch.zeros(3).long()))
    with pytest.raises(ValueError, match="returned NaN or infinity"):
        METRICS["comprehensiveness"](forward(NoNumber()), random_scored())
    with pytest.raises(ValueError, match="target 3 is no class of BagOfTokens, which has 3"):
        METRICS["comprehensiveness"](forward(), replace(random_scored(), target=torch.full((3,), 3)))


def test_a_regression_answers_with_its_value_and_labels_with_their_own_probabilities():
    scored = replace(random_scored(), target=torch.zeros(3).long())
    model, row = OneNumber(), 1
    vectors = model.embedding(scored.inputs["input_ids"][row]).detach()[:, 0] * scored.inputs["attention_mask"][row]
    first = scored.scores[row].masked_fill(~scored.removable[row], -torch.inf).argmax()
    one_of_four = replace(METRICS["comprehensiveness"], fractions=(0.2,))
    assert float(one_of_four(forward(model), scored)[row]) == pytest.approx(float(vectors[first]))
    with pytest.raises(ValueError, match="answers with a value, which has no probability and no odds"):
        METRICS["log_odds"](forward(model), scored)
    labels = BagOfTokens()
    labels.config = SimpleNamespace(problem_type="multi_label_classification")
    found = float(METRICS["log_odds"](forward(labels), scored)[row])
    assert found == pytest.approx(-float(vectors[first]))  # the odds of a label are its own logit


def test_words_are_ranked_removed_and_judged_as_a_whole():
    """The middle of a text is two words of three and two tokens; one token of the first is the best there is."""
    scored = random_scored([5])
    words = torch.tensor([[0, 1, 1, 1, 2, 2, 3]])
    scores = torch.tensor([[0.0, 3.0, -1.0, -1.0, 0.9, 0.9, 0.0]])
    evidence = torch.tensor([[False, False, False, False, True, False, False]])
    scored = replace(scored, scores=scores, words=words, evidence=evidence, memo={})
    whole = scored.by_word()
    assert whole.removable.nonzero()[:, 1].tolist() == [1, 4]
    assert whole.scores[0, [1, 4]].tolist() == pytest.approx([1.0, 1.8])
    assert replace(scored, drawn=True).by_word().scores[0, [1, 4]].tolist() == pytest.approx([3.0, 0.9])
    by_word = replace(METRICS["comprehensiveness"], level="word", fractions=(0.5,))
    keep = torch.tensor([[True, True, True, True, False, False, True]])
    without = perturbed(forward(), scored, torch.tensor([0]), keep, "delete", 64)
    assert by_word(forward(), scored) == pytest.approx(intact(forward(), scored) - without)
    assert float(replace(METRICS["token_f1"], level="word")(forward(), scored)) == 1.0
    assert float(METRICS["token_f1"](forward(), scored)) == 0.0
    with pytest.raises(ValueError, match=r"the words of these texts are not known. Give Scored\(words="):
        by_word(forward(), replace(scored, words=None))


@pytest.mark.parametrize("name", METRICS)
def test_words_of_one_token_each_are_tokens(name):
    scored = random_scored()
    words = torch.arange(scored.scores.shape[1]).expand_as(scored.scores)
    scored = replace(scored, words=words)
    by_word = replace(METRICS[name], level="word")(forward(), scored, attribute=saliency)
    torch.testing.assert_close(by_word, METRICS[name](forward(), scored, attribute=saliency), equal_nan=True)
