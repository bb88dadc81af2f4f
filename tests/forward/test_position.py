"""The row that a position means."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.forward import real_tokens, resolve_position

masks = st.lists(st.lists(st.booleans(), min_size=5, max_size=5).filter(any), min_size=1, max_size=4)


@given(masks, st.booleans())
def test_no_position_is_the_first_or_the_last_real_token(rows, causal):
    found = resolve_position(None, torch.tensor(rows).long(), len(rows), 5, causal)
    expected = [[i for i, real in enumerate(row) if real][-1 if causal else 0] for row in rows]
    assert found.tolist() == expected


@given(st.integers(-9, 9), st.integers(1, 6), st.integers(1, 4))
def test_an_index_counts_as_in_a_list(position, length, batch):
    try:
        expected = [range(length)[position]] * batch
    except IndexError:
        with pytest.raises(ValueError, match=f"{position} is out of range: there are {length} positions"):
            resolve_position(position, None, batch, length, causal=True)
    else:
        assert resolve_position(position, None, batch, length, causal=True).tolist() == expected


@given(masks, st.integers(1, 3))
def test_fewer_positions_than_examples_are_repeated_in_place(rows, times):
    mask = torch.tensor(rows).long()
    each = resolve_position(None, mask, len(rows), 5, causal=True)
    repeated = resolve_position(each, mask.repeat_interleave(times, 0), len(rows) * times, 5, causal=False)
    assert repeated.tolist() == [int(p) for p in each for _ in range(times)]


def test_real_tokens_are_those_of_the_mask():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert torch.equal(real_tokens(mask, 2, 3), mask.bool())
    assert real_tokens(None, 2, 3).all()
    with pytest.raises(ValueError, match=r"should be \(batch, sequence\) = \(2, 4\), got shape \(2, 3\)"):
        real_tokens(mask, 2, 4)
