"""What is kept of a pass while it runs, and which of it is the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from captum_norm.attr import AttentionNorm
from captum_norm.attr._maps import without_padding

from .records import record_of, recording_of

close = torch.testing.assert_close


def drawn() -> Any:
    return record_of(torch.rand(2, 2, 3, 3), torch.randn(2, 2, 3, 4))


@pytest.mark.parametrize("aggregate", ["mean", "rollout"])
def test_keys_that_are_not_known_are_refused_with_the_reason(aggregate, monkeypatch):
    record = replace(drawn(), keys=None, unknown_keys="they are windows")
    monkeypatch.setattr("captum_norm.attr._base.recording", recording_of(record))
    with pytest.raises(ValueError, match=r"inputs\[0\] cannot be scored.*'attention'.*they are windows.*Layer class"):
        AttentionNorm(nn.Identity(), aggregate=aggregate).attribute(torch.ones(2, 3))


def test_rows_that_were_cut_out_before_their_mask_was_known_are_asked_for_again(monkeypatch):
    """As where a text attends to a picture first, and its padding is seen where it attends to itself."""
    first, second = drawn(), drawn()
    real = torch.tensor([[True, True, True], [False, True, True]])
    late = replace(second, query_mask=real, key_mask=real)
    monkeypatch.setattr("captum_norm.attr._base.recording", recording_of(first, late))
    method = AttentionNorm(nn.Identity())
    clean = [replace(record, query_mask=real, key_mask=real) for record in (first, second)]
    norms = [AttentionNorm(nn.Identity()).measure(without_padding(record)) for record in clean]
    mean = (norms[0] + norms[1]) / 2
    close(method.attribute(torch.ones(2, 3)), torch.stack([mean[0, 0], mean[1, 1]]))
    # A row that is named is the same row before and after; a mean would be of different tokens' rows.
    close(method.attribute(torch.ones(2, 3), position=2)[1], mean[1, 2])
    with pytest.raises(ValueError, match=r'known only after the first attention calls: which tokens are real.*"all"'):
        method.attribute(torch.ones(2, 3), position="mean")
    assert method.attribute(torch.ones(2, 3), position="all").shape == (2, 3, 3)  # the way out


def test_a_mask_that_becomes_known_late_is_no_matter_where_the_row_stays(monkeypatch):
    first, second = drawn(), drawn()
    real = torch.tensor([[True, True, True], [True, True, False]])
    expected = AttentionNorm(nn.Identity()).measure(first)[:, 0]
    monkeypatch.setattr(
        "captum_norm.attr._base.recording", recording_of(first, replace(second, query_mask=real, key_mask=real))
    )
    looking_ahead = AttentionNorm(nn.Identity(), aggregate=0).attribute(torch.ones(2, 3))
    close(looking_ahead, expected.masked_fill(~real, 0))


def test_padding_that_holds_nan_reaches_no_score():
    """Some models compute NaN for queries that may attend to nothing, and carry it into the next layer's values."""
    clean = record_of(torch.rand(1, 2, 3, 3), torch.randn(1, 2, 3, 4))
    weights, values = clean.weights.clone(), clean.values.clone()
    weights[:, :, 2], values[:, :, 2] = float("nan"), float("nan")
    real = torch.tensor([[True, True, False]])
    stained = replace(clean, weights=weights, values=values, query_mask=real, key_mask=real)
    expected = AttentionNorm(nn.Identity()).measure(without_padding(replace(clean, query_mask=real, key_mask=real)))
    close(AttentionNorm(nn.Identity()).measure(without_padding(stained)), expected)
    assert (expected[:, 2] == 0).all()
    assert (expected[:, :, 2] == 0).all()
