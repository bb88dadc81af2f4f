"""Agreement of two methods: scipy's and the papers' numbers, ties shared, special tokens as one chooses."""

from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from captum_norm.study.agreement import (
    AGREEMENTS,
    agreement_matrix,
    comparable,
    kendall_tau_b,
    rank_biased_overlap,
    rank_correlation,
    spearman,
    top_k_overlap,
)
from captum_norm.tokens import Words

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=10)
DISTINCT = st.integers(1, 8).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.permutations(range(n))))


def orders(scores) -> list[list[int]]:
    """Every order of the tokens that the scores allow, the largest first."""
    allowed = permutations(range(len(scores)))
    return [list(o) for o in allowed if all(scores[a] >= scores[b] for a, b in pairwise(o))]


def memberships(scores, depth: int) -> np.ndarray:
    """In which part of the allowed orders each token is among the first ``depth``."""
    all_orders = orders(scores)
    return np.array([sum(token in o[:depth] for o in all_orders) / len(all_orders) for token in range(len(scores))])


@given(PAIRS)
def test_rank_correlations_are_scipys_and_nan_without_an_order(pairs):
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert np.isnan(spearman(a, b))
        assert np.isnan(kendall_tau_b(a, b))
    else:
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
        assert kendall_tau_b(a, b) == pytest.approx(stats.kendalltau(a, b, variant="b").statistic)


@given(DISTINCT, st.sampled_from([0.5, 0.9, 0.98]))
def test_rank_biased_overlap_is_webbers_equation_32(lists, p):
    """Their RBO_EXT for two lists of l = s items: (1-p)/p (sum X_d / d p^d) + X_l / l p^l."""
    a, b = lists
    first, second = (sorted(range(len(x)), key=lambda i: -x[i]) for x in (a, b))
    shared = [len(set(first[:d]) & set(second[:d])) for d in range(1, len(a) + 1)]
    total = sum(x / d * p**d for d, x in enumerate(shared, 1))
    expected = (1 - p) / p * total + shared[-1] / len(a) * p ** len(a)
    assert rank_biased_overlap(a, b, p) == pytest.approx(expected)


def test_rank_biased_overlap_of_a_worked_case():
    """A known list against its reverse: agreements 0, 0, 1/3 * 1 ... by hand for three tokens, p = 0.5."""
    # depths 1, 2, 3 share 0, 1, 3 tokens: 0.5 * (0 + 1/2 * 1/2 + 1 * 1/4) + 1/8
    assert rank_biased_overlap([3, 2, 1], [1, 2, 3], p=0.5) == pytest.approx(0.375)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=5))
def test_ties_share_their_places(pairs):
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    n, p, total = len(a), 0.8, 0.0
    for depth in range(1, n + 1):
        one, other = memberships(a, depth), memberships(b, depth)
        agreement = (one @ other) / np.sqrt((one @ one) * (other @ other))
        total += (1 - p) * p ** (depth - 1) * agreement
    assert rank_biased_overlap(a, b, p) == pytest.approx(total + p**n)
    for k in range(1, n + 1):
        expected = np.mean([len(set(x[:k]) & set(y[:k])) / k for x, y in product(orders(a), orders(b))])
        assert top_k_overlap(a, b, k) == pytest.approx(expected)


@given(PAIRS, st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", AGREEMENTS)
def test_agreement_is_symmetric_and_does_not_depend_on_the_order_of_the_tokens(name, pairs, random):
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    shuffled = random.sample(range(len(a)), len(a))
    found = AGREEMENTS[name](a, b)
    assert AGREEMENTS[name](b, a) == pytest.approx(found, nan_ok=True)
    assert AGREEMENTS[name](a[shuffled], b[shuffled]) == pytest.approx(found, nan_ok=True)
    assert AGREEMENTS[name](2 * a + 1, b) == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize("name", AGREEMENTS)
def test_the_same_order_agrees_wholly_and_the_reverse_least(name):
    scores = np.array([0.1, 0.9, 0.4, 0.7, 0.2, 0.3, 0.8])
    assert AGREEMENTS[name](scores, scores**3) == pytest.approx(1.0)
    assert AGREEMENTS[name](scores, -scores) < AGREEMENTS[name](scores, np.roll(np.sort(scores), 3)) + 1e-9


def test_a_list_overlaps_wholly_with_itself_ties_and_all():
    assert rank_biased_overlap([2, 1, 1, 1], [2, 1, 1, 1]) == pytest.approx(1.0)
    assert rank_biased_overlap([1, 1, 1], [1, 1, 1]) == pytest.approx(1.0)


def test_k_may_be_more_than_there_are_tokens():
    assert top_k_overlap([1, 2], [2, 1], k=10) == 1.0


# -- many methods --


def test_the_matrix_holds_every_pair_on_every_example():
    random = np.random.default_rng(0)
    scores = {name: [random.normal(size=n) for n in (5, 8)] for name in "abc"}
    found = agreement_matrix(scores, "kendall_tau_b")
    assert found.shape == (3, 3, 2)
    assert found[0, 2, 1] == found[2, 0, 1] == pytest.approx(stats.kendalltau(scores["a"][1], scores["c"][1]).statistic)
    np.testing.assert_allclose(np.diagonal(found).T, 1.0)


def test_an_example_that_a_method_failed_on_is_nan_for_its_pairs_alone():
    found = agreement_matrix({"a": [[1, 2], None], "b": [[1, 2], [1, 2]], "c": [[2, 1], [2, 1]]}, spearman)
    assert np.isnan(found[0, :, 1]).all()
    assert found[1, 2].tolist() == [-1.0, -1.0]
    assert found[0, 1, 0] == 1.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"every method should score the same examples, got \{'a': 1, 'b': 2\}"):
        agreement_matrix({"a": [[1]], "b": [[1], [2]]})
    with pytest.raises(ValueError, match="measure should be one of spearman, kendall_tau_b"):
        agreement_matrix({"a": [[1]]}, "pearson")
    with pytest.raises(ValueError, match=r"spearman: a is \(2,\) but b is \(3,\)"):
        spearman([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="a score is NaN or infinite and has no rank"):
        kendall_tau_b([1, np.nan], [1, 2])
    with pytest.raises(ValueError, match="no tokens to compare"):
        rank_biased_overlap([], [])
    with pytest.raises(ValueError, match="k should be at least 1"):
        top_k_overlap([1], [1], k=0)
    with pytest.raises(ValueError, match="p should be between 0 and 1"):
        rank_biased_overlap([1], [1], p=1.0)
    with pytest.raises(ValueError, match="'kendall', 'spearman', got 'pearson'"):
        rank_correlation("pearson")


# -- which tokens are compared --

SCORES = [0.4, 0.1, 0.2, 0.2, 0.1, 9.0]
REAL, SPECIAL = [1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1]


def test_special_tokens_are_kept_masked_or_reported():
    assert comparable(SCORES, real=REAL, special=SPECIAL, specials="keep").scores.tolist() == SCORES[:5]
    masked = comparable(SCORES, real=REAL, special=SPECIAL, specials="mask")
    assert (masked.scores.tolist(), masked.special_share) == ([0.1, 0.2, 0.2], None)
    reported = comparable(SCORES, real=REAL, special=SPECIAL, specials="report")
    assert reported.scores.tolist() == [0.1, 0.2, 0.2]
    assert reported.special_share == pytest.approx(0.5)


def test_words_are_the_sums_of_their_tokens():
    dropped = Words(("unbelievable", "film"), (None, 0, 0, 1, None, None))
    found = comparable(SCORES, real=REAL, special=SPECIAL, words=dropped).scores
    assert found == pytest.approx([0.3, 0.2])
    kept = Words(("[CLS]", "unbelievable", "film", "[SEP]"), (0, 1, 1, 2, 3, None))
    assert comparable(SCORES, real=REAL, special=SPECIAL, specials="keep", words=kept).scores == pytest.approx(
        [0.4, 0.3, 0.2, 0.1]
    )


def test_words_that_treat_special_tokens_otherwise_are_refused():
    kept = Words(("[CLS]", "unbelievable", "film", "[SEP]"), (0, 1, 1, 2, 3, None))
    with pytest.raises(ValueError, match="token 0 is part of a word, which the choice of special tokens contradicts"):
        comparable(SCORES, real=REAL, special=SPECIAL, specials="mask", words=kept)
    with pytest.raises(ValueError, match="words were read from 6 tokens, but there are 5"):
        comparable(SCORES[:5], real=REAL[:5], special=SPECIAL[:5], words=kept)


def test_nothing_left_to_compare_is_an_error():
    with pytest.raises(ValueError, match="with specials='mask' no token is left"):
        comparable([1.0, 2.0], real=[1, 1], special=[1, 1])
    with pytest.raises(ValueError, match="specials should be 'keep', 'mask' or 'report'"):
        comparable([1.0], real=[1], special=[0], specials="drop")
    with pytest.raises(ValueError, match=r"should be \(token,\) alike"):
        comparable([1.0, 2.0], real=[1], special=[0, 0])


@pytest.mark.parametrize("name", AGREEMENTS)
def test_all_pairs_at_once_are_each_pair_by_itself(name, monkeypatch):
    """Lengths are mixed, one method failed on one text, some lists are constant, and not all fit at once."""
    monkeypatch.setattr("captum_norm.study.all_pairs._AT_ONCE", 3 * 5**2)
    random, of_pair = np.random.default_rng(0), AGREEMENTS[name]
    lengths = [5, 3, 5, 1, 8]
    lists = {name: [random.integers(0, 3, n).astype(float) for n in lengths] for name in "abc"}
    lists["b"][2], lists["c"][0] = None, np.ones(5)
    at_once = agreement_matrix(lists, name)
    assert at_once == pytest.approx(agreement_matrix(lists, lambda a, b: of_pair(a, b)), nan_ok=True)
    lists["a"][1] = np.ones(4)
    with pytest.raises(ValueError, match=r"the methods score \[3, 4\] tokens of example 1"):
        agreement_matrix(lists, name)
