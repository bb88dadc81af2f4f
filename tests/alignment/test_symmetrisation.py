"""Links of two directions joined: by intersection, union and growth, from links and from two models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.alignment import (
    CrossAttentionAligner,
    GoldLinks,
    SymmetricAligner,
    symmetrise,
)
from tests.alignment.families import family

from .sentences import PAIRS

LINKS = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=10)


@given(forward=LINKS, backward=LINKS)
def test_the_grown_links_lie_between_intersection_and_union(forward, backward):
    grown = set(symmetrise(forward, backward))
    assert forward & backward <= grown <= forward | backward
    assert set(symmetrise(forward, backward, "intersection")) == forward & backward
    assert set(symmetrise(forward, backward, "union")) == forward | backward


@given(forward=LINKS, backward=LINKS)
def test_every_word_that_has_a_link_in_either_direction_keeps_one(forward, backward):
    grown = symmetrise(forward, backward)
    for side in (0, 1):
        assert {link[side] for link in grown} == {link[side] for link in forward | backward}


def test_links_grow_to_neighbours_and_the_diagonal_counts():
    forward, backward = {(0, 0), (1, 1), (5, 5)}, {(0, 0), (5, 5), (4, 3)}
    assert symmetrise(forward, backward) == [(0, 0), (1, 1), (4, 3), (5, 5)]


def test_a_diagonal_neighbour_comes_before_links_farther_away():
    forward, backward = {(0, 0), (1, 2), (2, 1)}, {(0, 0), (1, 1)}
    assert symmetrise(forward, backward) == [(0, 0), (1, 1), (1, 2), (2, 1)]  # without it, (1, 1) would come too late


def test_a_link_between_two_words_that_have_theirs_is_left_out():
    forward, backward = {(0, 0), (1, 1), (0, 1)}, {(0, 0), (1, 1)}
    assert symmetrise(forward, backward) == [(0, 0), (1, 1)]


def test_another_way_to_join_is_refused():
    with pytest.raises(ValueError, match="how should be intersection, union or grow-diag-final"):
        symmetrise([], [], "grow")


class TestTwoDirections:
    def test_links_of_both_models_are_joined_word_by_word(self):
        there = CrossAttentionAligner(*family("marian", seed=1), layer=1, setting="awo")
        back = CrossAttentionAligner(*family("t5", seed=2), layer=0, setting="awi")
        sources, targets = [s for s, _ in PAIRS], [t for _, t in PAIRS]
        for how in ("intersection", "union", "grow-diag-final"):
            both = SymmetricAligner(there, back, how)
            turned = [[(s, t) for t, s in one] for one in back.align(targets, sources)]
            expected = [symmetrise(a, b, how) for a, b in zip(there.align(sources, targets), turned, strict=True)]
            assert both.align(sources, targets) == expected
            assert both.align(*PAIRS[0]) == expected[0]
            score = both.evaluate(PAIRS, [GoldLinks(one) for one in expected[:1]] + [GoldLinks({(0, 0)})] * 2)
            assert score.links == sum(map(len, expected))

    def test_another_way_to_join_is_refused_at_once(self):
        with pytest.raises(ValueError, match="how should be intersection, union or grow-diag-final"):
            SymmetricAligner(None, None, "both")
