"""Every figure can be saved, fits its page, and leaves what it was given and everything else alone."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from captum_norm.visualization import class_shares, map_grid, method_strips, picture_maps, plot, token_map
from tests.visualization.drawn import TOKENS, block_maps, panels, shown, some_map, some_maps

EVERY = {
    "token_map": lambda: token_map({"weights": some_map(), "summed_norms": some_map(seed=1)}, TOKENS, title="A title"),
    "token_map, log": lambda: token_map(some_map(), TOKENS, log=True),
    "token_map, long": lambda: token_map(some_map(128), [f"token{i}" for i in range(128)]),
    "map_grid": lambda: map_grid({"weights": torch.rand(8, 4, 4)}, [f"Head {i}" for i in range(8)], TOKENS),
    "plot": lambda: plot(some_maps(), call=1),
    "plot, mixing ratios": lambda: plot(block_maps(), quantities=("mixing_attn", "mixing_res_ln")),
    "class_shares": lambda: class_shares({"weights": torch.tensor([[0.5, 0.5], [0.9, 0.1]])}, ["[CLS]", "other"]),
    "method_strips": lambda: method_strips({"A": [0.1, 0.4], "B": [-1.0, 2.0]}, ["great", "film"], title="A title"),
}


every = pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)


@pytest.mark.wide(5)
@every
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_every_figure_can_be_saved(draw, kind, tmp_path):
    figure = draw()
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / f"figure.{kind}")
    assert (tmp_path / f"figure.{kind}").stat().st_size > 1000


STRANGE = {
    "font.size": 40,
    "font.family": ["monospace"],
    "axes.grid": True,
    "axes.facecolor": "black",
    "axes.labelcolor": "red",
    "axes.titlelocation": "right",
    "axes.spines.top": True,
    "figure.autolayout": True,
    "figure.dpi": 20,
    "figure.facecolor": "magenta",
    "image.cmap": "jet",
    "image.origin": "lower",
    "lines.linewidth": 9,
    "path.sketch": (3.0, 2.0, 5.0),
    "text.color": "green",
    "text.parse_math": True,
    "text.usetex": True,
    "xtick.major.size": 20,
    "ytick.color": "red",
}


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="raw")
    return buffer.getvalue()


@pytest.mark.wide(3)
@every
def test_the_users_rc_params_neither_matter_nor_change(draw):
    torch.manual_seed(1)
    expected = pixels(draw())
    with matplotlib.rc_context(STRANGE):
        before = dict(matplotlib.rcParams)
        torch.manual_seed(1)
        figure = draw()
        assert dict(matplotlib.rcParams) == before
        assert pixels(figure) == expected


def test_drawing_chooses_no_backend_and_leaves_no_pyplot_figure_behind():
    code = """
import io, sys, torch
import captum_norm.visualization as v
v.token_map(torch.eye(3)).savefig(io.BytesIO())
v.method_strips({"A": [1.0]}, ["a"])
v.class_shares({"weights": torch.ones(1, 1)}, ["other"])
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@every
def test_notebooks_show_a_figure_that_ends_a_cell(draw):
    figure = draw()
    picture, shown_as = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert shown_as == {"width": round(96 * figure.get_figwidth())}


LARGE = {
    "maps of four measures": lambda: token_map({name: some_map(24) for name in "abcd"}, ["token"] * 24),
    "maps of long texts": lambda: token_map({name: some_map(128) for name in "ab"}, ["token"] * 128),
    "layers": lambda: map_grid({"weights": torch.rand(12, 19, 19)}, [f"Layer {i}" for i in range(12)]),
    "pictures": lambda: picture_maps(torch.rand(8, 8), {str(i): torch.rand(2, 2) for i in range(8)}),
    "shares": lambda: class_shares({name: torch.rand(12, 5) for name in "abc"}, ["a long class"] * 5),
    "strips": lambda: method_strips({"AMethodOfLongName": torch.randn(42)}, ["word"] * 42),
}


@pytest.mark.parametrize("draw", (EVERY | LARGE).values(), ids=EVERY | LARGE)
def test_letters_are_legible_at_the_width_of_a_page_in_a_browser(draw):
    figure = draw()
    pixels_per_point = min(96, 800 / figure.get_figwidth()) / 72
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(sizes) * pixels_per_point >= 6.5


@every
def test_inputs_stay_as_they_are_and_later_changes_do_not_reach_the_figure(draw):
    scores = some_map()
    before = scores.clone()
    figure = token_map(scores, TOKENS)
    assert torch.equal(scores, before)
    scores.zero_()
    assert np.allclose(shown(panels(figure)[0]), before.numpy())


def test_nothing_is_drawn_outside_the_page():
    words = ["word", "longer-word", "w"] * 14
    drawn = [draw() for draw in EVERY.values()]
    drawn += [token_map({"weights": some_map(size), "summed_norms": some_map(size)}) for size in (1, 5, 40)]
    drawn += [token_map(some_map(1, 9), query_tokens=["a"], key_tokens=["token"] * 9, title="A title " * 8)]
    drawn += [method_strips({"AMethodOfLongName": torch.randn(42), "B": torch.rand(42)}, words)]
    drawn += [class_shares({"weights": torch.rand(12, 5), "head_norms": torch.rand(12, 5)}, list("abcde"))]
    drawn += [map_grid(torch.rand(3, 5, 5), scale="each", title="Each"), map_grid(torch.rand(1, 30, 3))]
    for figure in drawn:
        page, inside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
        assert min(inside.x0 - page.x0, inside.y0 - page.y0, page.x1 - inside.x1, page.y1 - inside.y1) > -0.01
