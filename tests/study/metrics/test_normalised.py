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
    """Of removing 0 then 1 and 1 then 0 only the better may go on, or copies of one set crowd the others out."""
    drops = torch.tensor([0.0, 5.0, 4.0, 9.0, 1.0, 6.0, 20.0, 21.0], dtype=torch.float64)  # by the set's number
    assert float(beam_limit(lambda removed: drops[(removed * torch.tensor([1, 2, 4])).sum(1)], 3, 2, 1)) == 45
