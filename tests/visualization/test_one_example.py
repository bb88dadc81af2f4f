"""The maps of one example: its padding left out, its heads by their numbers, and what is not held refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from captum_norm.visualization import plot
from tests.visualization.drawn import TOKENS, block_maps, labels, panels, shown, some_maps


def test_heads_keep_the_models_numbers():
    maps = some_maps()
    maps.head_indices = (3, 0)
    for call in maps.calls:
        call.heads = 4
    assert [axes.get_title(loc="left") for axes in panels(plot(maps, call=0, heads="each"))][:2] == ["Head 3", "Head 0"]
    left, _ = panels(plot(maps, call=0, heads=3))
    assert np.allclose(shown(left), maps.weights[0][0, 0].double().numpy())
    with pytest.raises(ValueError, match="heads is 1, but call 0 holds heads 3, 0"):
        plot(maps, call=0, heads=1)


def test_padding_is_left_out():
    maps = some_maps()
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    maps.key_masks = maps.query_masks = [mask] * 3
    left, right = panels(plot(maps, call=0, example=1))
    assert np.allclose(shown(right), maps.summed_norms[0][1, :3, :3].double().numpy())
    assert labels(left.get_xticklabels()) == TOKENS[:3]


def test_beside_cross_attention_the_residual_is_the_last_column():
    masks = torch.tensor([[True, True, True, False], [True] * 4])
    figure = plot(block_maps(kind="cross", masks=masks), call=1, quantities=("weights", "res_norms"))
    weights, norms = panels(figure)
    assert labels(norms.get_xticklabels()) == [*TOKENS[:3], "residual"]
    assert shown(norms).shape == (3, 4)
    assert labels(weights.get_xticklabels()) == TOKENS[:3]  # has no residual, and stops before it
    assert shown(weights).shape == (3, 3)


def test_ratios_beside_maps_and_for_a_head_are_refused():
    with pytest.raises(ValueError, match="mixing_attn has no keys and no heads; draw mixing ratios alone"):
        plot(block_maps(), quantities=("res_norms", "mixing_attn"))
    with pytest.raises(ValueError, match="mixing_attn has no keys and no heads"):
        plot(block_maps(), quantities="mixing_attn", heads=1)
    with pytest.raises(ValueError, match="example is 7, but the batch holds 2"):
        plot(block_maps(), quantities="mixing_attn", example=7)
    uneven = block_maps()
    uneven.query_tokens = lambda call, example: [f"{call}{token}" for token in TOKENS]
    with pytest.raises(ValueError, match="different queries; say which one with call="):
        plot(uneven, quantities="mixing_attn")


def test_what_maps_do_not_hold_is_refused():
    maps = some_maps()
    with pytest.raises(ValueError, match="call is 3, but maps holds 3 attention calls"):
        plot(maps, call=3)
    with pytest.raises(ValueError, match="example is 2, but the batch holds 2"):
        plot(maps, call=0, example=2)
    with pytest.raises(ValueError, match="does not hold 'res_norms'"):
        plot(maps, call=0, quantities=["res_norms"])
    with pytest.raises(ValueError, match="say which with call="):
        plot(maps, heads="each")
    with pytest.raises(ValueError, match="summed_norms has no heads"):
        plot(maps, call=0, heads=0, quantities="summed_norms")
    maps.weights[1] = maps.weights[1][..., :3]
    with pytest.raises(ValueError, match=r"differ in \(query, key\): \(4, 3\), \(4, 4\); say which one with call="):
        plot(maps)
    with pytest.raises(ValueError, match="holds no attention call"):
        plot(SimpleNamespace(calls=[]))
