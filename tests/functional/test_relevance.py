"""Relevance of Chefer et al. (2021), written out: one update after the other, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.functional import gradient_weights, relevance, relevance_encoder_decoder

close = torch.testing.assert_close


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slowly_normalized(R: np.ndarray) -> np.ndarray:
    rest = R - np.eye(len(R))
    rows = [row / row.sum() if row.sum() else np.zeros_like(row) for row in rest]
    return np.stack(rows) + np.eye(len(R))


def slow_encoder_decoder(encoder, decoder, cross):
    """(R_ts, R_tt) of one example, as equations 5 to 10 have it."""
    source, target = cross[0].shape[1], cross[0].shape[0]
    R_ss, R_tt, R_ts = np.eye(source), np.eye(target), np.zeros((target, source))
    for A in encoder:
        R_ss = R_ss + A @ R_ss
    for A, C in zip(decoder, cross, strict=True):
        R_tt, R_ts = R_tt + A @ R_tt, R_ts + A @ R_ts
        R_ts = R_ts + slowly_normalized(R_tt).T @ C @ slowly_normalized(R_ss)
    return R_ts, R_tt


def test_only_weights_whose_increase_would_raise_the_output_count():
    weights, gradients = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1) - 0.5
    expected = np.maximum(0, weights.numpy() * gradients.numpy()).mean(1)
    close(gradient_weights(weights, gradients), torch.from_numpy(expected))
    close(gradient_weights(weights, -gradients.abs()), torch.zeros(2, 4, 4, dtype=torch.float64))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_relevance_is_gathered_layer_by_layer(batch, length, layers):
    maps = [drawn(batch, length, length, seed=n) for n in range(layers)]
    found = relevance(maps)
    for example in range(batch):
        R = np.eye(length)
        for layer in maps:
            R = R + layer[example].numpy() @ R
        close(found[example], torch.from_numpy(R))
    close(relevance(maps, position=-1), found[:, -1])
    close(relevance(maps, position=torch.full((batch, length), 1 / length).double()), found.mean(1))


@given(st.integers(0, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_a_decoder_gathers_from_its_source_as_well(encoders, decoders, source, target, silent):
    """A first decoder layer without any relevance leaves R_tt = I, whose rows of R - I are zero."""
    encoder = [drawn(2, source, source, seed=n) for n in range(encoders)]
    decoder = [drawn(2, target, target, seed=10 + n) * (not silent or n > 0) for n in range(decoders)]
    cross = [drawn(2, target, source, seed=20 + n) for n in range(decoders)]
    from_source, prefix = relevance_encoder_decoder(encoder, decoder, cross)
    for example in range(2):
        slow = slow_encoder_decoder(*([m[example].numpy() for m in maps] for maps in (encoder, decoder, cross)))
        close(from_source[example], torch.from_numpy(slow[0]))
        close(prefix[example], torch.from_numpy(slow[1]))
    rows = relevance_encoder_decoder(encoder, decoder, cross, position=0)
    close(rows, (from_source[:, 0], prefix[:, 0]))


def test_half_precision_gives_float32_and_autocast_changes_nothing():
    weights, gradients = drawn(1, 2, 3, 3).bfloat16(), drawn(1, 2, 3, 3, seed=1).bfloat16()
    expected = gradient_weights(weights.float(), gradients.float())
    twice = torch.eye(3) + 2 * expected + expected @ expected
    with torch.autocast("cpu", torch.bfloat16):
        close(gradient_weights(weights, gradients), expected, rtol=0, atol=0)
        close(relevance([expected, expected]), twice)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_weights(drawn(1, 2, 3, 3), drawn(1, 2, 3, 4)), "key is 3 in weights but 4 in gradients"),
        (lambda: gradient_weights(drawn(1, 1, 2, 2) * torch.nan, drawn(1, 1, 2, 2)), "weights is not finite"),
        (lambda: relevance([]), "maps is empty"),
        (lambda: relevance([drawn(1, 2, 3)]), "position is 2 in maps.0. but 3"),
        (lambda: relevance([drawn(1, 2, 2), drawn(1, 3, 3)]), "position is 2 in maps.0. but 3 in maps.1."),
        (lambda: relevance([drawn(1, 2, 2)], position=2), "position 2 is out of range"),
        (lambda: relevance([drawn(1, 2, 2) * torch.inf]), r"maps\[0\] is not finite"),
        (lambda: relevance_encoder_decoder([], [drawn(1, 2, 2)], []), "1 in decoder and 0 in cross"),
        (
            lambda: relevance_encoder_decoder([drawn(1, 4, 4)], [drawn(1, 2, 2)], [drawn(1, 2, 3)]),
            r"source is 4 in encoder\[0\] but 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
