"""Ranks and their correlation are scipy's, ties included."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from captum_norm.ranks import average_ranks, spearman

FEW_VALUES = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


@given(FEW_VALUES)
def test_ties_share_the_mean_of_their_ranks(scores):
    assert average_ranks(torch.tensor(scores)).tolist() == rankdata(scores).tolist()


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_spearman_is_scipys(pairs):
    a, b = zip(*pairs, strict=True)
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    assert float(spearman(torch.tensor(a), torch.tensor(b))) == pytest.approx(spearmanr(a, b).statistic)


def test_lists_are_ranked_one_by_one():
    a, b = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    rho = spearman(a, b)
    assert rho.shape == (2, 3)
    assert float(rho[1, 2]) == pytest.approx(float(spearman(a[1, 2], b[1, 2])))


@pytest.mark.parametrize("scores", [[1.0], [], [2.0, 2.0, 2.0]], ids=str)
def test_a_list_without_an_order_has_no_correlation(scores):
    assert spearman(torch.tensor(scores), torch.tensor(scores)).isnan()


def test_lists_of_different_length_are_named():
    with pytest.raises(ValueError, match=r"a is \(3,\) but b is \(4,\)"):
        spearman(torch.ones(3), torch.ones(4))


def test_entries_that_are_left_out_count_for_nothing():
    a, b = torch.randn(3, 4, 12), torch.randn(3, 4, 12).round(decimals=1)
    among = torch.rand(3, 1, 12) > 0.4
    among[2, :, 1:] = False
    found = spearman(a, b, among)
    for example in (0, 1):
        chosen = among[example, 0]
        expected = spearman(a[example][:, chosen], b[example][:, chosen])
        torch.testing.assert_close(found[example], expected)
    assert found[2].isnan().all()  # one entry has no order


def test_entries_that_are_left_out_have_no_rank():
    among = torch.tensor([[True, True, False, True, True], [False, True, True, True, True]])
    ranks = average_ranks(torch.tensor([0.2, 0.9, 0.2, 0.5, 0.5]), among)
    assert ranks.tolist() == [[1, 4, 0, 2.5, 2.5], [0, 4, 1, 2.5, 2.5]]
