"""What sequences owe to each other along the whole model: three updates of one state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captum_norm.attr._aggregate import make_aggregate
from captum_norm.attr._maps import CallMap
from captum_norm.attr._paths import LayerProduct, Paths, Relevance, Rollout
from captum_norm.capture import AttentionCall, Positions
from captum_norm.functional import relevance_encoder_decoder, rollout, rollout_encoder_decoder

from .records import record_of

close = torch.testing.assert_close
SOURCE, PREFIX = 0, 1


def self_map(sequence: int, scores: Tensor, layer: int | None = None) -> CallMap:
    call = AttentionCall("attention", "self", 0, 1, "W_O")
    positions = Positions(sequence, torch.arange(scores.shape[2]))
    return CallMap(call, (sequence, sequence), scores, positions, layer=layer)


def cross_map(
    queries: int, keys: int, scores: Tensor, residual: Tensor | None = None, layer: int | None = None
) -> CallMap:
    call = AttentionCall("attention", "cross", 0, 1, "W_O")
    positions = Positions(keys, torch.arange(scores.shape[2]))
    return CallMap(call, (queries, keys), scores, positions, residual, layer)


def drawn(*shape: int) -> Tensor:
    return torch.rand(2, *shape, dtype=torch.float64)


def filled(paths: Paths, encoder: list[Tensor], decoder: list[Tensor], cross: list[CallMap]) -> Paths:
    for scores in encoder:
        paths.add(self_map(SOURCE, scores))
    for scores, crossing in zip(decoder, cross, strict=True):
        paths.add(self_map(PREFIX, scores))
        paths.add(crossing)
    return paths


@pytest.mark.parametrize("rows", [None, torch.tensor([[2, 0], [1, 1]])])
@pytest.mark.parametrize("kept", [1 << 24, 0])
@pytest.mark.parametrize("residual", [False, True])
def test_rollout_is_the_product_of_functional(residual, kept, rows, monkeypatch):
    monkeypatch.setattr("captum_norm.attr._paths._STEPS_KEPT", kept)
    maps = [drawn(3, 3) for _ in range(3)]
    paths = filled(Rollout(residual), maps, [], [])
    whole = rollout(maps, residual=residual)
    expected = whole if rows is None else whole.gather(1, rows[..., None].expand(-1, -1, 3))
    close(paths.result((SOURCE, SOURCE), rows).scores, expected)


@pytest.mark.parametrize("residual", [False, True])
def test_rollout_composes_both_sequences_as_functional_does(residual):
    encoder, decoder, cross = [drawn(4, 4), drawn(4, 4)], [drawn(3, 3), drawn(3, 3)], [drawn(3, 4), drawn(3, 4)]
    kept = [None if residual else drawn(3) for _ in cross]
    maps = [cross_map(PREFIX, SOURCE, scores, share) for scores, share in zip(cross, kept, strict=True)]
    paths = filled(Rollout(residual), encoder, decoder, maps)
    columns = [c if r is None else torch.cat([c, r[..., None]], dim=-1) for c, r in zip(cross, kept, strict=True)]
    source, prefix = rollout_encoder_decoder(encoder, decoder, columns, residual=residual)
    close(paths.result((PREFIX, SOURCE)).scores, source)
    close(paths.result((PREFIX, PREFIX)).scores, prefix)
    close(paths.result((SOURCE, SOURCE)).scores, rollout(encoder, residual=residual))


def test_relevance_is_that_of_functional():
    encoder, decoder, cross = [drawn(4, 4), drawn(4, 4)], [drawn(3, 3), drawn(3, 3)], [drawn(3, 4), drawn(3, 4)]
    paths = filled(Relevance(), encoder, decoder, [cross_map(PREFIX, SOURCE, scores) for scores in cross])
    source, prefix = relevance_encoder_decoder(encoder, decoder, cross)
    close(paths.result((PREFIX, SOURCE)).scores, source)
    close(paths.result((PREFIX, PREFIX)).scores, prefix)


def test_a_product_of_layers_adds_up_the_calls_of_each_layer():
    encoder, own, cross = drawn(4, 4), [drawn(3, 3), drawn(3, 3)], [drawn(3, 4), drawn(3, 4)]
    paths = LayerProduct()
    paths.add(self_map(SOURCE, encoder, layer=0))
    for layer, (self_scores, cross_scores) in enumerate(zip(own, cross, strict=True), start=1):
        paths.add(self_map(PREFIX, self_scores, layer))
        paths.add(cross_map(PREFIX, SOURCE, cross_scores, layer=layer))
    assert set(paths.routes()) == {(0, 0), (1, 0), (1, 1)}
    close(paths.result((PREFIX, PREFIX)).scores, own[1] @ own[0])
    close(paths.result((PREFIX, SOURCE)).scores, own[1] @ cross[0] @ encoder + cross[1] @ encoder)


@pytest.mark.parametrize("aggregate", ["rollout", "flow"])
def test_paths_lead_through_calls_over_the_same_positions_alone(aggregate):
    call, scores = record_of(torch.rand(1, 2, 3, 3), torch.randn(1, 2, 3, 4)).call, torch.rand(1, 3, 3)
    made = make_aggregate(aggregate)
    made.add(CallMap(call, (0, 0), scores, Positions(0, torch.arange(3))))
    with pytest.raises(
        ValueError, match=r"'attention' \(self, call 0\): its keys are not those of the calls before it"
    ):
        made.add(CallMap(call, (0, 0), scores, Positions(0, torch.arange(1, 4))))
    with pytest.raises(ValueError, match="has 2 queries and 3 keys that are inputs"):
        made.add(CallMap(call, (0, 0), scores[:, :2], Positions(0, torch.arange(3))))


@pytest.mark.parametrize("paths", [Rollout(residual=True), LayerProduct(), Relevance()], ids=lambda paths: type(paths))
def test_keys_of_cross_attention_that_lie_elsewhere_are_refused(paths):
    paths.add(cross_map(PREFIX, SOURCE, drawn(3, 4)))
    moved = replace(cross_map(PREFIX, SOURCE, drawn(3, 4)), keys=Positions(SOURCE, torch.arange(1, 5)))
    with pytest.raises(ValueError, match="its keys are not those of the calls before it"):
        paths.add(moved)


def test_sequences_that_attend_to_each_other_hand_on_what_they_gathered():
    """R_ss <- R_ss + Abar R_qs: where q has taken something from s before."""

    there, back = torch.rand(2, 4, 3), torch.rand(2, 3, 4)
    found = Relevance()
    found.add(cross_map(1, 0, there))
    found.add(cross_map(0, 1, back))
    assert set(found.routes()) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    close(found.result((1, 0)).scores, there)  # Rbar = I on both sides
    close(found.result((0, 0)).scores, torch.eye(3) + back @ there)
    close(found.result((0, 1), torch.tensor([[2], [0]])).scores, back[[0, 1], [2, 0]][:, None])
