"""Where the colours of a map begin and end, and what its bar says of that."""


import pytest
import torch

from captum_norm.visualization import token_map
from captum_norm.visualization.style import (
    NORM_COLOURS,
    SIGNED_COLOURS,
    WEIGHT_COLOURS,
)
from tests.visualization.drawn import TOKENS, bars, labels, panels, some_map


def test_each_panel_has_its_own_scale_from_zero_and_its_own_colours():
    figure = token_map({"weights": some_map(), "summed_norms": 7 * some_map(seed=1)}, TOKENS)
    left, right = (axes.images[0] for axes in panels(figure))
    assert left.norm.vmin == right.norm.vmin == 0
    assert left.norm.vmax == pytest.approx(float(some_map().max()))
    assert right.norm.vmax == pytest.approx(7 * float(some_map(seed=1).max()))
    assert (left.cmap.name, right.cmap.name) == (WEIGHT_COLOURS.name, NORM_COLOURS.name)


def test_signed_maps_run_both_ways_from_zero():
    [axes] = panels(token_map(torch.tensor([[-2.0, 1.0]]), query_tokens=["a"], key_tokens=["b", "c"]))
    image = axes.images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-2, 2)
    assert image.cmap.name == SIGNED_COLOURS.name


def test_a_logarithmic_scale_says_where_it_ends():
    figure = token_map(torch.tensor([[1.0, 0.0], [1e-7, 0.1]]), ["a", "b"], log=True)
    image = panels(figure)[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (pytest.approx(1e-4), 1)
    assert labels(bars(figure)[0].get_yticklabels()) == ["≤ 0.0001", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]
    with pytest.raises(ValueError, match="token_map: scores holds negative scores, which have no logarithm"):
        token_map(-some_map(), TOKENS, log=True)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("log", [False, True])
def test_constant_maps_can_be_drawn(value, log, tmp_path):
    token_map(torch.full((3, 3), value), log=log).savefig(tmp_path / "map.png")
