"""Figures show the numbers they were given, under the names they were given, and leave everything else alone."""

import io
import logging
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from captum_norm.visualization import class_shares, map_grid, method_strips, plot, token_map
from captum_norm.visualization.letters import font_families, printable
from captum_norm.visualization.style import (
    NORM_COLOURS,
    SHARE_COLOURS,
    SIGNED_COLOURS,
    UNSIGNED_COLOURS,
    WEIGHT_COLOURS,
)

TOKENS = ["[CLS]", "not", "bad", "[SEP]"]


def some_map(size=4, keys=None, seed=0):
    return torch.rand(size, keys or size, generator=torch.Generator().manual_seed(seed)) + 0.01


def some_maps(calls=3, heads=2, batch=2, size=4):
    """What ``attention_maps`` returns, as far as figures look at it."""
    weights = [torch.rand(batch, heads, size, size).softmax(-1) for _ in range(calls)]
    return SimpleNamespace(
        calls=[SimpleNamespace(name=f"layer.{i}.self", kind="self", call=0, heads=heads) for i in range(calls)],
        weights=weights,
        head_norms=[2 * one for one in weights],
        summed_norms=[3 * one.mean(1) for one in weights],
        tokens=[TOKENS[:size] for _ in range(batch)],
    )


def panels(figure):
    return [axes for axes in figure.axes if axes.images and axes.get_label() not in ("colour bar", "key")]


def bars(figure):
    return [axes for axes in figure.axes if axes.get_label() == "colour bar"]


def labels(ticks):
    return [label.get_text() for label in ticks]


def shown(axes):
    return np.asarray(axes.images[0].get_array())


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
    assert draw()._repr_png_().startswith(b"\x89PNG")


@every
def test_inputs_stay_as_they_are_and_later_changes_do_not_reach_the_figure(draw):
    scores = some_map()
    before = scores.clone()
    figure = token_map(scores, TOKENS)
    assert torch.equal(scores, before)
    scores.zero_()
    assert np.allclose(shown(panels(figure)[0]), before.numpy())


def test_weight_and_norm_stand_side_by_side_in_the_same_order():
    weights, norms = some_map(), some_map(seed=1)
    figure = token_map({"weights": weights, "summed_norms": norms}, TOKENS, title="Layer 3")
    left, right = panels(figure)
    assert [left.get_title(loc="left"), right.get_title(loc="left")] == [
        "Attention weight",
        "Norm of the sum over heads",
    ]
    assert np.allclose(shown(left), weights.double().numpy())
    assert np.allclose(shown(right), norms.double().numpy())
    assert labels(left.get_xticklabels()) == labels(right.get_xticklabels()) == TOKENS
    assert labels(left.get_yticklabels()) == TOKENS
    assert left.yaxis_inverted()  # the first token is on top
    assert right.yaxis_inverted()
    assert [bar.get_title(loc="left") for bar in bars(figure)] == ["α", "‖Σαf(x)‖"]
    assert figure.texts[0].get_text() == "Layer 3"


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


def test_of_long_texts_those_tokens_are_named_that_receive_most():
    scores = torch.full((128, 128), 1e-3)
    scores[:, [5, 77]] = 1.0
    figure = token_map({"weights": scores, "summed_norms": scores}, [f"t{i}" for i in range(128)])
    for axes in panels(figure):
        named = labels(axes.get_xticklabels())
        assert {"t5", "t77"} <= set(named)
        assert 20 < len(named) < 64
        assert [int(name[1:]) for name in named] == [int(tick) for tick in axes.get_xticks()]
        assert "128; those that receive most are named" in axes.get_xlabel()


def test_labels_of_neighbouring_tokens_do_not_overlap():
    for size in (3, 14, 60, 128):
        figure = token_map(some_map(size), [f"token{i}" for i in range(size)])
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in panels(figure)[0].get_xticklabels()]
        assert all(a.x1 <= b.x0 for a, b in pairwise(boxes)), size


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


NASTY = [
    "$x_1^$",
    r"\frac{",
    "a\\b",
    "映画",
    "😀👩\u200d👩",
    "é",
    "\n",
    "\t",
    "\x00",
    "",
    "<b>&amp;",
    "%d{}",
    "_",
    "\udcff",
]


def test_no_token_is_read_as_mathematics_or_breaks_the_figure(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    figures = [
        token_map(some_map(len(NASTY)), NASTY, title="$a^$", unit="$u_$"),
        method_strips({"$m_$": torch.rand(len(NASTY))}, NASTY, title="$t^$"),
        class_shares({"$s^$": torch.rand(2, 2)}, ["$c_", "映$"], layers=["$1^$", "2"], title="$"),
        map_grid(torch.rand(2, len(NASTY), len(NASTY)), ["$h^$", "映"], NASTY),
    ]
    for number, figure in enumerate(figures):
        for kind in ("png", "svg", "pdf"):
            figure.savefig(tmp_path / f"{number}.{kind}")  # a warning of a missing letter would be an error here
    assert "$x_1^$" in labels(panels(figures[0])[0].get_xticklabels())
    assert not caplog.records


@given(st.text(max_size=20))
def test_what_is_written_has_letters(text):
    from captum_norm.visualization.letters import _has_glyph

    assert all(map(_has_glyph, printable(text)))


def test_letters_that_no_font_has_become_boxes_and_joiners_vanish():
    assert "DejaVu Sans" in font_families()
    assert printable("a\U0010fffdb") == "a□b"
    assert printable("line\nbreak\tand\x07") == "line⏎break⇥and"
    assert printable("café ‖Σαf(x)‖") == "café ‖Σαf(x)‖"


def test_tokens_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="token_map: key is 4 in the scores but tokens holds 3"):
        token_map(some_map(3, 4), TOKENS[:3])
    with pytest.raises(ValueError, match="token_map: query is 3 in the scores but query_tokens holds 4"):
        token_map(some_map(3, 4), query_tokens=TOKENS, key_tokens=TOKENS)
    with pytest.raises(ValueError, match="tokens names both axes"):
        token_map(some_map(), TOKENS, key_tokens=TOKENS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_undefined_and_infinite_scores_are_refused_with_their_place(bad):
    scores = some_map()
    scores[1, 2] = bad
    with pytest.raises(ValueError, match=r"scores\['weights'\] holds -?(nan|inf) at \(query, key\) = \(1, 2\)"):
        token_map({"weights": scores})
    with pytest.raises(ValueError, match=r"map_grid: scores\[1\] holds"):
        map_grid([some_map(), scores])
    with pytest.raises(ValueError, match=r"scores\['A'\] holds -?(nan|inf) at \(word\) = \(2,\)"):
        method_strips({"A": scores[1]}, TOKENS)
    with pytest.raises(ValueError, match=r"shares\['weights'\] holds -?(nan|inf) at \(layer, class\)"):
        class_shares({"weights": scores}, TOKENS)


def test_scores_of_another_shape_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match=r"scores should be \(query, key\), got shape \(2, 3, 4\)"):
        token_map(torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match=r"\(query, key\) = \(0, 3\), is empty: there is nothing to draw"):
        token_map(torch.rand(0, 3))
    with pytest.raises(ValueError, match="one shape"):
        token_map({"weights": some_map(3), "summed_norms": some_map(4)})
    for draw in (lambda: token_map({}), lambda: map_grid([]), lambda: map_grid({}), lambda: method_strips({}, [])):
        with pytest.raises(ValueError, match="is empty: there is nothing to draw"):
            draw()
    with pytest.raises(ValueError, match="is empty: there is nothing to draw"):
        class_shares({}, [])
    with pytest.raises(ValueError, match="is empty: there is nothing to draw"):
        method_strips({"A": []}, [])


def test_tensors_of_every_kind_can_be_drawn():
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.long):
        scores = torch.ones(2, 2, dtype=dtype)
        assert shown(panels(token_map(scores))[0]).tolist() == [[1, 1], [1, 1]]
    token_map(torch.rand(2, 2, requires_grad=True))


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


def test_rows_that_are_no_tokens_are_called_what_they_are():
    rows = {"query_tokens": list("ABC"), "key_tokens": TOKENS}
    layers = torch.rand(3, 4)
    assert panels(token_map(layers, **rows))[0].get_ylabel() == "Attending token"
    assert panels(token_map(layers, **rows, query_axis="Layer"))[0].get_ylabel() == "Layer"
    assert panels(token_map(layers, **rows, query_axis=""))[0].get_ylabel() == ""


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


def block_maps(calls=3, batch=2, size=4, kind="self", masks=None):
    """Quantities of blocks: in cross-attention the residual is one more key."""
    keys = size + (kind == "cross")
    return SimpleNamespace(
        calls=[SimpleNamespace(name=f"layer.{i}.self", kind=kind, call=0, heads=2) for i in range(calls)],
        weights=[torch.rand(batch, 2, size, size).softmax(-1) for _ in range(calls)],
        res_norms=[torch.rand(batch, size, keys) for _ in range(calls)],
        alti=[torch.rand(batch, size, keys).softmax(-1) for _ in range(calls)],
        mixing_attn=[0.5 + torch.rand(batch, size) / 2 for _ in range(calls)],
        mixing_res_ln=[torch.rand(batch, size) / 2 for _ in range(calls)],
        key_masks=[masks] * calls,
        query_masks=[masks] * calls,
        query_tokens=lambda call, example: TOKENS[:size],
        key_tokens=lambda call, example: TOKENS[:size],
    )


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


def test_beside_cross_attention_the_residual_is_the_last_column():
    masks = torch.tensor([[True, True, True, False], [True] * 4])
    figure = plot(block_maps(kind="cross", masks=masks), call=1, quantities=("weights", "res_norms"))
    weights, norms = panels(figure)
    assert labels(norms.get_xticklabels()) == [*TOKENS[:3], "residual"]
    assert shown(norms).shape == (3, 4)
    assert labels(weights.get_xticklabels()) == TOKENS[:3]  # has no residual, and stops before it
    assert shown(weights).shape == (3, 3)


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


def test_attention_maps_of_a_model_can_be_drawn():
    from captum_norm import attention_maps

    layer = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    maps = attention_maps(model, torch.randn(1, 3, 8))
    assert np.allclose(shown(panels(plot(maps, call=-1))[1]), maps.summed_norms[1][0].numpy())
    assert len(panels(plot(maps))) == 4


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


def test_bars_are_as_long_as_the_shares_with_their_mean_below():
    shares = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.1, 0.7]])
    figure = class_shares({"weights": shares, "summed_norms": shares.flip(1)}, ["[CLS]", "punctuation", "other"])
    left, right = figure.axes
    widths = torch.tensor([bar.get_width() for bar in left.patches]).reshape(3, 3)
    torch.testing.assert_close(widths, torch.vstack([shares, shares.mean(0)]))
    assert labels(left.get_yticklabels()) == ["0", "1", "mean"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first layer is on top
    assert left.get_xlabel() == "Share, %"
    assert [text.get_text() for text in left.texts] == ["60", "10", "30", "20", "10", "70", "40", "10", "50"]
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == (
        "Attention weight",
        "Norm of the sum over heads",
    )
    assert [text.get_text() for text in figure.texts] == ["[CLS]", "punctuation", "other"]


def test_sums_that_are_no_shares_keep_their_unit():
    figure = class_shares({"head_norms": torch.tensor([[2.0, 3.0], [1.0, 1.0]])}, ["[CLS]", "other"], layers=["a", "b"])
    [axes] = figure.axes
    assert axes.get_xlabel() == "Sum over the class of ‖αf(x)‖"
    assert axes.get_xlim() == (0, 5)
    assert labels(axes.get_yticklabels()) == ["a", "b", "mean"]


def test_classes_have_colours_of_their_own():
    names = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "punctuation", "other", "no token"]
    figure = class_shares({"weights": torch.rand(1, 7)}, names)
    assert len({bar.get_facecolor() for bar in figure.axes[0].patches}) == len(names)


def test_shares_that_do_not_fit_are_named():
    good = torch.rand(2, 2)
    with pytest.raises(ValueError, match="class_shares: class is 2 in the scores but classes holds 1"):
        class_shares({"weights": good}, ["other"])
    with pytest.raises(ValueError, match="layer is 2 in the scores but layers holds 1"):
        class_shares({"weights": good}, ["[CLS]", "other"], layers=["1"])
    with pytest.raises(ValueError, match="as many layers, got"):
        class_shares({"weights": good, "summed_norms": good[:1]}, ["[CLS]", "other"])
    with pytest.raises(ValueError, match="holds negative numbers"):
        class_shares({"weights": -good}, ["[CLS]", "other"])


def cells(figure):
    return [tuple(patch.get_facecolor()) for patch in figure.axes[0].patches]


def test_each_method_is_scaled_to_its_own_maximum_signed_or_not():
    figure = method_strips({"A": [0.0, 0.2, 0.4], "B": [-4.0, 0.0, 2.0]}, ["a", "b", "c"])
    unsigned, signed = cells(figure)[:3], cells(figure)[3:]
    assert unsigned == [UNSIGNED_COLOURS(part) for part in (0.0, 0.5, 1.0)]
    assert signed == [SIGNED_COLOURS(part) for part in (0.0, 0.5, 0.75)]
    written = [text.get_text() for text in figure.axes[0].texts]
    assert "max 0.4" in written
    assert "max 4" in written
    assert "scaled to each row's maximum" in written


def test_whether_a_method_is_signed_can_be_said():
    figure = method_strips({"A": [0.0, 1.0]}, ["a", "b"], signed=["A"])
    assert cells(figure) == [SIGNED_COLOURS(0.5), SIGNED_COLOURS(1.0)]
    with pytest.raises(ValueError, match=r"scores\['A'\] holds negative numbers but is not among signed"):
        method_strips({"A": [-1.0]}, ["a"], signed=[])
    with pytest.raises(ValueError, match="signed names 'B', which is no method of scores"):
        method_strips({"A": [-1.0]}, ["a"], signed=["B"])


def test_a_method_that_says_nothing_is_said_to():
    figure = method_strips({"A": [0.0, 0.0], "B": [0.0, 1.0]}, ["a", "b"])
    assert cells(figure)[:2] == [UNSIGNED_COLOURS(0.0)] * 2
    assert "all 0" in [text.get_text() for text in figure.axes[0].texts]


def test_long_texts_are_wrapped_and_every_word_keeps_its_place():
    words = [f"word{i}" for i in range(40)]
    figure = method_strips({"A": torch.arange(40.0), "B": torch.rand(40)}, words, width=6)
    strips = figure.axes[0]
    written = [text for text in strips.texts if text.get_text().startswith("word")]
    places = {}
    for text in written:
        places.setdefault(text.get_text(), []).append(text.get_position())
    assert list(places) == words
    assert all(len(found) == 2 and found[0][0] == found[1][0] for found in places.values())  # one above the other
    assert len({y for found in places.values() for _, y in found}) >= 8
    assert figure.get_figwidth() <= 6.01
    assert [text.get_text() for text in strips.texts].count("max 39") == 1


def test_words_that_repeat_have_cells_of_their_own():
    figure = method_strips({"A": [1.0, 0.0, 0.5]}, ["the", "the", "the"])
    assert len(set(cells(figure))) == 3


def test_words_that_do_not_fit_the_scores_are_named():
    with pytest.raises(ValueError, match="method_strips: word is 3 in the scores but words holds 2"):
        method_strips({"A": [1.0, 2.0, 3.0]}, ["a", "b"])
    with pytest.raises(ValueError, match=r"scores\['A'\] should be \(word\), got shape \(1, 2\)"):
        method_strips({"A": [[1.0, 2.0]]}, ["a", "b"])


@pytest.mark.parametrize("colours", [WEIGHT_COLOURS, NORM_COLOURS, SHARE_COLOURS, UNSIGNED_COLOURS])
def test_colours_darken_steadily_so_that_they_read_without_hue(colours):
    light = [float(np.dot(to_rgb(colours(step)), [0.2126, 0.7152, 0.0722])) for step in np.linspace(0, 1, 33)]
    assert all(a > b for a, b in pairwise(light))
