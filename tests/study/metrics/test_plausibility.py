"""Scores against evidence: equal to scikit-learn, and to what a random order is worth."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.study.metrics import AUPRC, IOU, METRICS, SpanIOU, TokenF1, average_precision, random_average_precision
from captum_norm.study.metrics.scored_texts import Scored
from tests.study.metrics.bag import Example, forward, random_scored, single

metrics = pytest.importorskip("sklearn.metrics")

LISTS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12).filter(
    lambda pairs: any(marked for _, marked in pairs)
)


@given(LISTS)
def test_auprc_is_scikit_learns_average_precision_ties_included(pairs):
    scores, evidence = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = metrics.average_precision_score(evidence.numpy(), scores.numpy())
    assert average_precision(scores, evidence) == pytest.approx(expected)


@given(LISTS)
def test_the_trapezoid_is_scikit_learns_area_under_the_curve(pairs):
    scores, evidence = (torch.tensor(column) for column in zip(*pairs, strict=True))
    precision, recall, _ = metrics.precision_recall_curve(evidence.numpy(), scores.numpy())
    assert average_precision(scores, evidence, "trapezoid") == pytest.approx(metrics.auc(recall, precision))


@pytest.mark.parametrize("evidence", range(1, 6))
def test_the_expectation_of_a_random_order_is_exact(evidence):
    marked = torch.tensor([True] * evidence + [False] * (5 - evidence))
    every = [average_precision(torch.tensor(order), marked) for order in permutations(range(5))]
    assert np.mean(every) == pytest.approx(random_average_precision(5, evidence))


def test_there_is_nothing_to_expect_without_evidence():
    assert random_average_precision(1, 1) == 1.0
    with pytest.raises(ValueError, match="evidence should be 1 to tokens = 4, got 0"):
        random_average_precision(4, 0)
    with pytest.raises(ValueError, match="got 5"):
        random_average_precision(4, 5)


def test_random_scores_get_what_is_expected_of_them():
    scored = random_scored([14] * 400)
    chance = torch.rand(scored.scores.shape, generator=torch.Generator().manual_seed(0))
    found = METRICS["auprc"](forward(), replace(scored, scores=chance))
    counts = [(int(r.sum()), int(e.sum())) for r, e in zip(scored.removable, scored.evidence, strict=True)]
    expected = np.array([random_average_precision(n, e) for n, e in counts])
    error = (found.numpy() - expected).std() / len(found) ** 0.5
    assert abs(float(found.mean()) - expected.mean()) < 3 * error


def test_the_oracle_gets_1_of_every_metric():
    scored = random_scored()
    ideal = replace(scored, scores=scored.evidence.double())
    for name in ("auprc", "token_f1", "iou"):
        assert METRICS[name](forward(), ideal).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("fraction", [None, 0.3])
def test_f1_and_iou_are_scikit_learns(fraction):
    scored = random_scored()
    f1, iou = TokenF1(fraction=fraction)(forward(), scored), IOU(fraction=fraction)(forward(), scored)
    for row in range(3):
        e, one = Example(scored, row), single(scored, row)
        known = one.evidence[0]
        first = int(known.sum()) if fraction is None else int(np.ceil(fraction * len(e.order)))
        chosen = torch.zeros_like(known)
        chosen[e.order[:first]] = True
        assert float(f1[row]) == pytest.approx(metrics.f1_score(known.numpy(), chosen.numpy()))
        assert float(iou[row]) == pytest.approx(metrics.jaccard_score(known.numpy(), chosen.numpy()))


@pytest.mark.parametrize("metric", [AUPRC(), AUPRC(area="trapezoid"), TokenF1(), TokenF1(fraction=0.5), IOU()])
def test_without_evidence_in_an_example_it_is_undefined_and_the_others_are_not(metric):
    scored = random_scored()
    evidence = scored.evidence & torch.tensor([[True], [False], [True]])
    evidence[1, 0] = True  # a special token is no evidence that could be found
    found = metric(forward(), replace(scored, evidence=evidence))
    assert found.isnan().tolist() == [False, True, False]
    assert "evidence" in metric.undefined


def test_tokens_of_equal_score_pass_together():
    """A constant method has found nothing: the precision is the share of evidence, in whatever order tokens stand."""
    one = torch.ones(1, 4, dtype=torch.bool)
    evidence = torch.tensor([[True, False, False, False]])
    scored = Scored({"input_ids": torch.ones(1, 4).long()}, torch.ones(1, 4), torch.tensor([0]), one, evidence)
    assert float(AUPRC()(forward(), scored)) == 0.25


@pytest.mark.parametrize("metric", [AUPRC(), TokenF1(), IOU(), TokenF1(fraction=0.3), IOU(fraction=0.3)], ids=str)
def test_what_is_expected_of_a_random_order_is_the_mean_over_all_orders(metric):
    scored = random_scored([5, 4])
    evidence = torch.zeros_like(scored.removable)
    evidence[0, 2:4] = evidence[1, 1] = True
    scored = replace(scored, evidence=evidence)
    expected = metric.at_random(forward(), scored)
    for row, tokens in enumerate((5, 4)):
        one = single(scored, row)
        orders = []
        for order in permutations(range(tokens)):
            scores = one.scores.clone()
            scores[0, one.removable[0]] = torch.tensor(order).double()
            orders.append(float(metric(forward(), replace(one, scores=scores))))
        assert float(expected[row]) == pytest.approx(np.mean(orders))


def test_what_is_expected_of_a_trapezoid_is_not_known():
    assert AUPRC(area="trapezoid").at_random(forward(), random_scored()) is None


def test_spans_are_right_where_half_of_what_both_cover_is_shared():
    """Two runs of first tokens, {0, 1} and {4}; evidence {0, 1, 2} is met (2 of 3), {6} is not."""
    scores = torch.tensor([[9.0, 8.0, 0.0, 0.0, 7.0, 0.0, 0.1]])
    evidence = torch.tensor([[1, 1, 1, 0, 0, 0, 1]]).bool()
    scored = Scored({}, scores, torch.zeros(1).long(), torch.ones(1, 7).bool(), evidence)
    assert float(SpanIOU(fraction=0.4).measure(None, scored, None)) == pytest.approx(2 * 1 / (2 + 2))
    assert float(SpanIOU(fraction=0.4, threshold=0.7).measure(None, scored, None)) == 0.0
    own = Scored({}, evidence.double(), torch.zeros(1).long(), torch.ones(1, 7).bool(), evidence)
    assert float(SpanIOU().measure(None, own, None)) == 1.0
