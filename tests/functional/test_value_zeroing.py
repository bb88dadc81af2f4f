"""Value zeroing's distances and shares against 1 - cos and its sums."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from captum_norm.functional import value_zeroing, value_zeroing_shares

close = torch.testing.assert_close


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_distances_are_one_minus_the_cosine(key, batch, query, model):
    changed, output = drawn(key, batch, query, model), drawn(batch, query, model, seed=1)
    expected = 1 - cosine_similarity(changed, output, dim=-1)
    close(value_zeroing(changed, output), expected.permute(1, 2, 0), rtol=1e-12, atol=1e-12)


def test_small_turns_are_not_lost_in_rounding():
    """1 - cos in float32 knows nothing below 1e-7."""
    output, turn = drawn(1, 1, 8), 1e-5
    changed = output + turn * drawn(1, 1, 8, seed=1)
    expected = value_zeroing(changed[None], output)
    close(value_zeroing(changed[None].float(), output.float()).double(), expected, rtol=0.05, atol=0)
    assert 1e-12 < float(expected) < 1e-9
    assert float(value_zeroing(output[None].float(), output.float())) == 0


def test_a_zero_vector_stands_at_right_angles():
    zero, some = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    assert float(value_zeroing(zero, some[0])) == pytest.approx(1)
    assert float(value_zeroing(some, zero[0])) == pytest.approx(1)
    assert float(value_zeroing(zero, zero[0])) == 0


def test_rows_of_a_layers_maps_add_up_to_one_together():
    own, other = drawn(2, 3, 3).abs(), drawn(2, 3, 5, seed=1).abs()
    shares = value_zeroing_shares([own, other])
    close(sum(share.sum(-1) for share in shares), torch.ones(2, 3, dtype=torch.float64))
    close(shares[0] / shares[0].sum(-1, keepdim=True), value_zeroing_shares([own])[0])


def test_a_row_of_zeros_stays_and_is_told_unless_it_is_padding():
    scores = torch.ones(1, 2, 2)
    scores[0, 1] = 0
    with pytest.warns(UserWarning, match=r"1 rows are zero, the first at \(batch, query\) = \(0, 1\)"):
        [found] = value_zeroing_shares([scores])
    assert found.tolist() == [[[0.5, 0.5], [0.0, 0.0]]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(value_zeroing_shares([scores], torch.tensor([[True, False]]))[0], found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: value_zeroing(drawn(2, 1, 3, 4), drawn(1, 3, 5)), "model is 4 in changed but 5 in output"),
        (lambda: value_zeroing(drawn(1, 1, 1, 2) * torch.nan, drawn(1, 1, 2)), "changed is not finite"),
        (lambda: value_zeroing_shares([]), "maps is empty"),
        (lambda: value_zeroing_shares([drawn(1, 2, 2).abs(), drawn(1, 3, 2).abs()]), "query is 2"),
        (lambda: value_zeroing_shares([-torch.ones(1, 1, 1)]), r"maps\[0\] holds negative numbers, the least -1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
