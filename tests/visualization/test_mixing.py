"""Mixing ratios are calls × tokens, below each other on one scale."""


import numpy as np
import torch

from captum_norm.visualization import plot
from tests.visualization.drawn import TOKENS, block_maps, labels, panels, shown


def test_mixing_ratios_are_calls_by_tokens_on_one_scale_with_the_mean_of_each_call():
    maps = block_maps()
    figure = plot(maps, example=1, quantities=("mixing_attn", "mixing_res_ln"))
    attention, block = panels(figure)
    assert np.allclose(shown(block), torch.stack([one[1] for one in maps.mixing_res_ln]).double().numpy())
    assert labels(block.get_xticklabels()) == TOKENS
    assert labels(block.get_yticklabels()) == labels(attention.get_yticklabels()) == ["Layer 0", "Layer 1", "Layer 2"]
    assert (
        block.images[0].norm.vmax == attention.images[0].norm.vmax == float(torch.stack(maps.mixing_attn)[:, 1].max())
    )
    assert [text.get_text() for text in block.texts] == [
        "mean",
        *(f"{one[1].mean():.2f}" for one in maps.mixing_res_ln),
    ]
    apart = plot(maps, quantities=("mixing_attn", "mixing_res_ln"), scale="each")
    assert len({axes.images[0].norm.vmax for axes in panels(apart)}) == 2
    assert [shown(axes).shape for axes in panels(plot(maps, call=-1, quantities="mixing_attn"))] == [(1, 4)]


def test_ratios_of_padding_are_left_out():
    masks = torch.tensor([[True, True, False, False], [True] * 4])
    [axes] = panels(plot(block_maps(masks=masks), quantities="mixing_attn"))
    assert labels(axes.get_xticklabels()) == TOKENS[:2]
