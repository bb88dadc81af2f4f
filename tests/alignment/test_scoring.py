"""Error rates are those of Och and Ney, pooled over sentences; two directions are joined as Koehn et al. do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.alignment import (
    GoldLinks,
    alignment_error_rate,
    alignment_score,
    diagonal,
    error_rate_difference,
)

LINKS = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=10)


def test_sure_links_found_and_nothing_else_is_no_error():
    assert alignment_error_rate([[(0, 0), (1, 1)]], [GoldLinks({(0, 0), (1, 1)})]) == 0


def test_a_possible_link_costs_nothing_and_is_not_asked_for():
    gold = [GoldLinks({(0, 0)}, {(1, 1)})]
    assert alignment_error_rate([[(0, 0)]], gold) == alignment_error_rate([[(0, 0), (1, 1)]], gold) == 0


def test_the_rate_is_the_formula():
    # |A| = 3, |A and P| = 2, |S| = 2, |A and S| = 1
    gold = [GoldLinks({(0, 0), (1, 1)}, {(2, 2)})]
    score = alignment_score([[(0, 0), (2, 2), (3, 3)]], gold)
    assert score.error_rate == pytest.approx(1 - 3 / 5)
    assert (score.precision, score.recall, score.links) == (pytest.approx(2 / 3), 0.5, 3)


def test_counts_are_pooled_not_averaged_over_sentences():
    gold = [GoldLinks({(0, 0)}), GoldLinks({(i, i) for i in range(9)})]
    assert alignment_error_rate([[(0, 0)], []], gold) == pytest.approx(1 - 2 / 11)


def test_no_links_at_all_have_no_precision_and_a_rate_of_one():
    score = alignment_score([[]], [GoldLinks({(0, 0)})])
    assert (score.error_rate, score.precision, score.recall) == (1, 0, 0)


@given(found=st.lists(LINKS, min_size=2, max_size=4), data=st.data())
def test_the_interval_holds_between_the_best_and_the_worst_sentence(found, data):
    gold = [GoldLinks(data.draw(LINKS) | {(0, 0)}) for _ in found]
    score = alignment_score(found, gold, resamples=50)
    each = [alignment_error_rate([one], [right]) for one, right in zip(found, gold, strict=True)]
    assert min(each) - 1e-9 <= score.low <= score.high <= max(each) + 1e-9
    assert score.error_rate == pytest.approx(alignment_error_rate(found, gold))


def test_the_interval_narrows_with_more_sentences():
    few = alignment_score([[(0, 0)], [(0, 1)]] * 5, [GoldLinks({(0, 0)})] * 10)
    many = alignment_score([[(0, 0)], [(0, 1)]] * 500, [GoldLinks({(0, 0)})] * 1000)
    assert 0 < many.high - many.low < 0.2 * (few.high - few.low)
    assert many.low < 0.5 < many.high


def test_the_interval_holds_95_in_100_resamplings():
    # one right link or one wrong link per sentence: the rate of a resampling is a binomial share
    score = alignment_score([[(0, 0)], [(0, 1)]] * 100, [GoldLinks({(0, 0)})] * 200, resamples=4000)
    deviation = (0.5 * 0.5 / 200) ** 0.5
    assert score.low == pytest.approx(0.5 - 1.96 * deviation, abs=0.006)
    assert score.high == pytest.approx(0.5 + 1.96 * deviation, abs=0.006)


def test_a_difference_is_taken_on_the_same_sentences():
    gold = [GoldLinks({(0, 0)})] * 20
    right, wrong = [[(0, 0)]] * 20, [[(0, 1)]] * 20
    mixed = [one if i % 2 else other for i, (one, other) in enumerate(zip(right, wrong, strict=True))]
    difference, low, high = error_rate_difference(right, mixed, gold)
    assert difference == -0.5
    assert -1 < low < -0.5 < high < 0
    assert error_rate_difference(mixed, mixed, gold) == (0, 0, 0)


def test_unequal_numbers_and_nothing_to_count_are_refused():
    with pytest.raises(ValueError, match="links of 1 sentences, but gold links of 2"):
        alignment_error_rate([[]], [GoldLinks(()), GoldLinks(())])
    with pytest.raises(ValueError, match="there is nothing to count"):
        alignment_error_rate([[]], [GoldLinks((), {(0, 0)})])


@given(sources=st.integers(1, 30), targets=st.integers(1, 30))
def test_the_diagonal_goes_from_corner_to_corner_and_never_back(sources, targets):
    links = diagonal(sources, targets)
    assert [t for _, t in links] == list(range(targets))
    assert sorted(links) == links
    assert all(0 <= s < sources for s, _ in links)
    assert diagonal(sources, sources) == [(i, i) for i in range(sources)]


def test_a_resample_with_nothing_to_count_has_no_rate():
    gold = [GoldLinks({(0, 0)}), GoldLinks((), {(0, 0)})]  # the second sentence has a possible link alone
    right, other = [[(0, 0)], []], [[(0, 0)], [(0, 0)]]
    for links, others in ((right, other), (other, right), (right, right)):
        assert error_rate_difference(links, others, gold) == (0, 0, 0)
    score = alignment_score(right, gold)
    assert (score.error_rate, score.low, score.high) == (0, 0, 0)


def test_where_no_resample_has_anything_to_count_there_is_no_interval():
    gold = [GoldLinks({(0, 0)})] + [GoldLinks(())] * 9
    links = [[(0, 0)]] + [[]] * 9
    seed = next(
        seed for seed in range(20) if 0 not in np.random.default_rng(seed).integers(10, size=(1, 10))
    )
    score = alignment_score(links, gold, resamples=1, seed=seed)
    assert score.error_rate == 0
    assert np.isnan([score.low, score.high]).all()
    difference, *limits = error_rate_difference(links, links, gold, resamples=1, seed=seed)
    assert difference == 0
    assert np.isnan(limits).all()


def test_without_resamples_an_interval_is_the_figure_itself():
    gold = [GoldLinks({(0, 0)}), GoldLinks({(0, 0)})]
    links, others = [[(0, 0)], [(0, 1)]], [[(0, 1)], [(0, 1)]]
    score = alignment_score(links, gold, resamples=0)
    assert (score.error_rate, score.low, score.high) == (0.5, 0.5, 0.5)
    assert error_rate_difference(links, others, gold, resamples=0) == (-0.5, -0.5, -0.5)


@pytest.mark.parametrize("score", [alignment_score, lambda *of, **how: error_rate_difference(of[0], *of, **how)])
@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"resamples": -1}, ValueError, "resamples should be at least 0, got -1"),
        ({"resamples": 100.0}, TypeError, "resamples should be a whole number, got 100.0"),
        ({"seed": -1}, ValueError, "seed should be at least 0, got -1"),
    ],
)
def test_draws_that_cannot_be_made_are_refused(score, how, error, says):
    with pytest.raises(error, match=says):
        score([[(0, 0)]], [GoldLinks({(0, 0)})], **how)


def test_what_cannot_be_counted_is_refused_by_its_name():
    with pytest.raises(TypeError, match=r"alignment_score: links should be a list, got generator. list\(links\)"):
        alignment_score((one for one in [[(0, 0)]]), [GoldLinks({(0, 0)})])
    with pytest.raises(TypeError, match="alignment_error_rate: gold should be a list, got generator"):
        alignment_error_rate([[(0, 0)]], (one for one in [GoldLinks({(0, 0)})]))
