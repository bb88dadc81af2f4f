"""``plot`` draws what ``attention_maps`` holds: a call, a head, all calls, mixing ratios."""


import numpy as np
import pytest
import torch

from captum_norm.visualization import plot
from captum_norm.visualization.style import (
    NORM_COLOURS,
    SHARE_COLOURS,
)
from tests.visualization.drawn import TOKENS, bars, block_maps, labels, panels, shown, some_maps


def test_a_call_is_drawn_as_the_mean_weight_beside_the_summed_norm():
    maps = some_maps()
    figure = plot(maps, call=1, example=1)
    left, right = panels(figure)
    assert np.allclose(shown(left), maps.weights[1][1].double().mean(0).numpy())
    assert np.allclose(shown(right), maps.summed_norms[1][1].double().numpy())
    assert left.get_title(loc="left") == "Attention weight, mean of 2 heads"
    assert labels(left.get_xticklabels()) == TOKENS
    assert figure.texts[0].get_text() == "Attention call 1: layer.1.self (self)"


def test_one_head_all_heads_and_all_calls_can_be_drawn():
    maps = some_maps()
    left, right = panels(plot(maps, call=0, heads=1))
    assert np.allclose(shown(left), maps.weights[0][0, 1].double().numpy())
    assert np.allclose(shown(right), maps.head_norms[0][0, 1].double().numpy())
    each = panels(plot(maps, call=0, heads="each"))
    assert [axes.get_title(loc="left") for axes in each] == ["Head 0", "Head 1", "", ""]
    assert np.allclose(shown(each[3]), maps.head_norms[0][0, 1].double().numpy())
    calls = panels(plot(maps))
    assert [axes.get_title(loc="left") for axes in calls[:3]] == ["Layer 0", "Layer 1", "Layer 2"]
    assert np.allclose(shown(calls[4]), maps.summed_norms[1][0].double().numpy())


def test_transformed_norms_are_drawn_with_a_row_per_head():
    maps = some_maps()
    maps.transformed_norms = [torch.rand(2, 2, 4) for _ in range(3)]
    maps.key_masks = [torch.tensor([[True] * 4, [True, True, True, False]])] * 3
    [axes] = panels(plot(maps, call=1, quantities="transformed_norms", example=1))
    assert np.allclose(shown(axes), maps.transformed_norms[1][1, :, :3].double().numpy())
    assert labels(axes.get_yticklabels()) == ["head 0", "head 1"]
    assert labels(axes.get_xticklabels()) == TOKENS[:3]
    assert axes.get_ylabel() == ""
    grid = panels(plot(maps, quantities="transformed_norms", columns=2))
    assert [axes.get_title(loc="left") for axes in grid] == ["Layer 0", "Layer 1", "Layer 2"]
    assert grid[2].get_position().x0 == grid[0].get_position().x0
    with pytest.raises(ValueError, match="a row per head, not per query; draw it alone"):
        plot(maps, call=0, quantities=("weights", "transformed_norms"))


def test_norms_of_a_block_and_shares_have_titles_units_and_colours_of_their_own():
    maps = block_maps()
    figure = plot(maps, call=1, quantities=("res_norms", "alti"))
    norms, shares = panels(figure)
    assert np.allclose(shown(norms), maps.res_norms[1][0].double().numpy())
    assert [axes.get_title(loc="left") for axes in (norms, shares)] == [
        "Norm with the residual",
        "ALTI: share of output",
    ]
    assert [bar.get_title(loc="left") for bar in bars(figure)] == ["‖Σαf(x) + x‖", "share"]
    assert [axes.images[0].cmap.name for axes in (norms, shares)] == [NORM_COLOURS.name, SHARE_COLOURS.name]


def test_attention_maps_of_a_model_can_be_drawn():
    from captum_norm import attention_maps

    layer = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    maps = attention_maps(model, torch.randn(1, 3, 8))
    assert np.allclose(shown(panels(plot(maps, call=-1))[1]), maps.summed_norms[1][0].numpy())
    assert len(panels(plot(maps))) == 4
