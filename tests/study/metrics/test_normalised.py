"""Normalised AOPC lies between the worst and the best of all orders, found exactly or by a beam."""

from itertools import permutations

import pytest
import torch

from captum_norm.study.metrics.normalised import NormalisedComprehensiveness, NormalisedSufficiency, beam_limit
from tests.study.metrics.bag import ROWS, BagOfTokens, Example, forward, probability, random_scored


def of_order(model, example, order):
    """The mean drop along an order."""
    whole = probability(model, example.ids, example.target)
    drops = [whole - probability(model, example.without(order[:k]), example.target) for k in range(1, len(order) + 1)]
    return sum(drops) / len(drops)


@pytest.mark.parametrize("beams", [0, 40], ids=["exact", "a wide beam"])
def test_an_order_is_placed_between_the_worst_and_the_best_of_all(beams):
    model, scored = BagOfTokens(), random_scored((4, 5, 3))
    choices = {"exact": 0, "beams": beams} if beams else {}
    removed = NormalisedComprehensiveness(**choices)(forward(model), scored)
    kept = NormalisedSufficiency(**choices)(forward(model), scored)
    for row in ROWS:
        example = Example(scored, row)
        every = [of_order(model, example, order) for order in permutations(example.removable)]
        low, high = min(every), max(every)
        first, last = (of_order(model, example, order) for order in (example.order, example.order[::-1]))
        assert float(removed[row]) == pytest.approx((first - low) / (high - low), abs=1e-6)
        assert float(kept[row]) == pytest.approx((last - low) / (high - low), abs=1e-6)


def test_a_beam_follows_the_best_way_to_each_set():
    """Of removing 0 then 1 and 1 then 0 only the better goes on, or ways to one set would crowd the others out."""
    drops = torch.zeros(16, dtype=torch.float64)  # by the set's number
    drops[[1, 2, 3, 6, 14]] = torch.tensor([5.0, 4.0, 10.0, 9.0, 100.0], dtype=torch.float64)
    assert float(beam_limit(lambda removed: drops[(removed * 2 ** torch.arange(4)).sum(1)], 4, beams=2, sign=1)) == 113
