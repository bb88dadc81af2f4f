"""Tokens stand in the order of their scores, equal ones as in the text; a fraction of them is rounded up."""

import pytest
import torch

from captum_norm.study.metrics.order import places, share, top
from captum_norm.study.metrics.scored_texts import Scored


def scored(*scores, removable=None):
    ones = torch.ones(1, len(scores), dtype=torch.bool)
    removable = ones if removable is None else torch.tensor([removable])
    return Scored({}, torch.tensor([scores]), torch.tensor([0]), removable)


def test_the_largest_score_is_first_and_equal_ones_keep_the_order_of_the_text():
    assert places(scored(0.1, 0.7, -2.0, 0.7, 0.1)).tolist() == [[2, 0, 4, 1, 3]]
    assert places(scored(*[0.5] * 40)).tolist() == [list(range(40))]


def test_tokens_that_are_not_removable_come_last_whatever_their_score():
    one = scored(9.0, 0.1, 0.7, removable=[False, True, True])
    assert places(one).tolist() == [[2, 1, 0]]
    assert top(one, torch.tensor([1])).tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(30, 0.1, 3), (7, 0.1, 1), (7, 0.5, 4), (3, 0.01, 1), (5, 1.0, 5), (100, 0.07, 7)],
)
def test_a_fraction_is_rounded_up_but_not_for_the_last_digit_of_a_float(count, fraction, expected):
    assert share(count, fraction) == expected
