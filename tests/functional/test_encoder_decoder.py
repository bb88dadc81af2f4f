"""Rollout through an encoder-decoder follows all paths, those of the decoder's residual included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_norm.functional import rollout_encoder_decoder


def draw(batch: int, source: int, target: int, depths: tuple[int, int], residual: bool = False) -> list[list[Tensor]]:
    """Random maps of encoder, decoder and cross-attention."""
    encoder, decoder = depths
    shapes = [(encoder, source, source), (decoder, target, target), (decoder, target, source + (not residual))]
    return [
        [torch.randn(batch, query, key, dtype=torch.float64).softmax(-1) for _ in range(depth)]
        for depth, query, key in shapes
    ]


def by_definition(encoder: list[Tensor], decoder: list[Tensor], cross: list[Tensor]) -> Tensor:
    """From the first layer up, as in the paper: all scores of one example, (target, source + target)."""
    source = torch.eye(cross[0].shape[1] - 1, dtype=torch.float64)
    for layer in encoder:
        source = layer @ source
    target = torch.eye(len(decoder[0]), dtype=torch.float64)
    below = torch.cat([torch.zeros(len(target), len(source), dtype=torch.float64), target], dim=1)
    for self_map, cross_map in zip(decoder, cross, strict=True):
        from_source = torch.cat([cross_map[:, :-1] @ source, torch.zeros_like(target)], dim=1)
        below = from_source + cross_map[:, -1:] * (self_map @ below)
    return below


@given(
    batch=st.integers(1, 2), source=st.integers(1, 5), target=st.integers(1, 4),
    depths=st.tuples(st.integers(0, 3), st.integers(1, 3)),
)  # fmt: skip
def test_scores_are_the_definition_and_rows_add_up_to_one(batch, source, target, depths):
    maps = draw(batch, source, target, depths)
    expected = torch.stack([by_definition(*[[a[b] for a in kind] for kind in maps]) for b in range(batch)])
    found = rollout_encoder_decoder(*maps)
    torch.testing.assert_close(torch.cat(found, dim=-1), expected)
    torch.testing.assert_close(torch.cat(found, dim=-1).sum(-1), torch.ones(batch, target, dtype=torch.float64))
    for i in range(target):
        row = rollout_encoder_decoder(*maps, position=i)
        torch.testing.assert_close(torch.cat(row, dim=-1), expected[:, i])
    mean = rollout_encoder_decoder(*maps, position=torch.full((batch, target), 1 / target, dtype=torch.float64))
    torch.testing.assert_close(torch.cat(mean, dim=-1), expected.mean(dim=1))


def test_maps_without_residuals_get_them():
    encoder, decoder, cross = draw(2, 4, 3, (2, 2), residual=True)
    mixed = [(a + torch.eye(4)) / 2 for a in encoder], [(a + torch.eye(3)) / 2 for a in decoder]
    with_column = [torch.cat([a, torch.ones(2, 3, 1)], dim=-1) / 2 for a in cross]
    found = rollout_encoder_decoder(encoder, decoder, cross, residual=True)
    torch.testing.assert_close(found, rollout_encoder_decoder(*mixed, with_column))


def test_by_hand_half_of_a_decoder_without_self_attention_comes_from_its_own_token():
    cross = torch.tensor([[[0.25, 0.25, 0.5], [0.5, 0.0, 0.5]]])
    source, prefix = rollout_encoder_decoder([], [torch.eye(2)[None]] * 2, [cross] * 2)
    assert source.tolist() == [[[0.375, 0.375], [0.75, 0.0]]]
    assert prefix.tolist() == [[[0.25, 0.0], [0.0, 0.25]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_goes_in_but_not_on(dtype):
    maps = [[a.to(dtype) for a in kind] for kind in draw(2, 4, 3, (2, 2))]
    exact = rollout_encoder_decoder(*[[a.double() for a in kind] for kind in maps])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rollout_encoder_decoder(*maps)
    for scores, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(scores, expected.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, d, c: (e, [], []), "there are 0 in decoder and 0 in cross"),
        (lambda e, d, c: (e, d, c[:1]), "there are 2 in decoder and 1 in cross"),
        (lambda e, d, c: (e, d, [a[..., :-1] for a in c]), "for each of 4 source positions and a last one .* has 4"),
        (lambda e, d, c: (e, [a[:, :2] for a in d], c), r"target is 2 in decoder\[0\] but 3 in decoder\[0\]"),
        (lambda e, d, c: (e, d, [c[0], c[1] / 0]), r"cross\[1\] is not finite"),
        (lambda e, d, c: ([e[0] / 0, e[1]], d, c), r"encoder\[0\] is not finite"),
    ],
)
def test_bad_maps_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"rollout_encoder_decoder: .*{message}"):
        rollout_encoder_decoder(*change(*draw(1, 4, 3, (2, 2))))
