"""A grid shows every map in its place, on a shared scale or each on its own."""


import numpy as np
import pytest
import torch

from captum_norm.visualization import map_grid
from tests.visualization.drawn import TOKENS, bars, panels, shown, some_map


def test_a_grid_shares_its_scale_or_gives_each_panel_its_own():
    maps = torch.stack([some_map(), 5 * some_map()])
    shared = panels(map_grid(maps, ["Head 0", "Head 1"], TOKENS))
    assert {axes.images[0].norm.vmax for axes in shared} == {float(maps.double().max())}
    assert [axes.get_title(loc="left") for axes in shared] == ["Head 0", "Head 1"]
    figure = map_grid(maps, ["Head 0", "Head 1"], TOKENS, scale="each")
    assert [axes.images[0].norm.vmax for axes in panels(figure)] == [float(one.double().max()) for one in maps]
    assert not bars(figure)
    assert [axes.get_title(loc="left") for axes in panels(figure)] == [
        f"Head {i}, max {float(one.max()):.3g}" for i, one in enumerate(maps)
    ]


def test_a_grid_breaks_into_lines_of_panels_in_order():
    maps = torch.rand(7, 4, 4)
    figure = map_grid({"weights": maps, "summed_norms": 2 * maps}, [f"Layer {i}" for i in range(7)], columns=3)
    weights, norms = panels(figure)[:7], panels(figure)[7:]
    for one, axes in zip(maps, weights, strict=True):
        assert np.allclose(shown(axes), one.double().numpy())
    for one, axes in zip(maps, norms, strict=True):
        assert np.allclose(shown(axes), 2 * one.double().numpy())
    tops = [round(axes.get_position().y1, 4) for axes in weights]
    assert tops[0] == tops[2] > tops[3] == tops[5] > tops[6]
    assert len(bars(figure)) == 6
    with pytest.raises(ValueError, match="panel is 7 in the scores but titles holds 2"):
        map_grid(maps, ["a", "b"])
    with pytest.raises(ValueError, match="as many panels under each name"):
        map_grid({"weights": maps, "summed_norms": maps[:2]})
    with pytest.raises(ValueError, match="scale should be 'shared' or 'each'"):
        map_grid(maps, scale="all")
