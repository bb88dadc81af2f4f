"""Figures for papers: letters stay letters, widths are kept, and the papers' own figures show what was given."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from captum_norm.visualization import (
    alignment_matrix,
    class_lengths,
    map_grid,
    method_strips,
    plot,
    token_map,
    weights_against_lengths,
    written_tokens,
)
from tests.tokenizers_of_every_kind import TOKENIZERS
from tests.visualization.drawn import TOKENS, bars, labels, panels, shown, some_map, some_maps


def test_letters_stay_letters(tmp_path):
    figure = token_map(some_map(), TOKENS, title="A title to search for")
    figure.savefig(tmp_path / "one.svg")
    assert ">A title to search for</text>" in (tmp_path / "one.svg").read_text("utf-8")
    figure.savefig(tmp_path / "one.pdf")
    content = (tmp_path / "one.pdf").read_bytes()
    assert b"/Type3" not in content
    assert b"/FontFile2" in content or b"/CIDFontType2" in content


@pytest.mark.parametrize("draw", [
    lambda: token_map({"weights": some_map(), "summed_norms": some_map(seed=1)}, TOKENS, title="A title"),
    lambda: method_strips({"A": [0.1, 0.4], "B": [-1.0, 2.0]}, ["great", "film"], title="A title"),
    lambda: map_grid(torch.rand(8, 4, 4), [f"Head {i}" for i in range(8)], TOKENS),
])  # fmt: skip
def test_a_column_width_is_kept_and_everything_stays_inside(draw):
    figure = draw().fit(width=3.25)
    assert figure.get_figwidth() == pytest.approx(3.25)
    page, inside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert min(inside.x0 - page.x0, inside.y0 - page.y0, page.x1 - inside.x1, page.y1 - inside.y1) > -0.01


def test_letters_come_to_the_size_asked_for():
    figure = token_map(some_map(), TOKENS).fit(font_size=7).fit(font_size=5)
    assert figure.axes[0].get_xticklabels()[0].get_fontsize() == pytest.approx(5)
    for wrong in ({}, {"width": 3, "font_size": 8}, {"width": -1}):
        with pytest.raises(ValueError, match="fit: give width or font_size"):
            figure.fit(**wrong)


def test_a_map_is_drawn_into_axes_of_the_callers():
    figure = Figure()
    ax = figure.subplots()
    assert token_map({"weights": some_map()}, TOKENS, ax=ax) is figure
    assert labels(ax.get_xticklabels()) == TOKENS
    with pytest.raises(ValueError, match="ax holds one map, but scores has 2"):
        token_map({"a": some_map(), "b": some_map()}, TOKENS, ax=ax)


def test_special_tokens_do_not_flatten_the_rest_where_asked_and_it_is_said():
    scores = some_map()
    scores[:, 0] = 50
    figure = token_map(scores, TOKENS, scale_without=("[CLS]",))
    assert panels(figure)[0].images[0].norm.vmax == pytest.approx(float(scores[:, 1:].max()))
    assert "scaled without [CLS]" in panels(figure)[0].get_xlabel()
    assert labels(bars(figure)[0].get_yticklabels())[-1].startswith("≥")
    grid = map_grid([scores, scores], tokens=TOKENS, scale_without=("[CLS]",))
    assert any("scaled without [CLS]" in text.get_text() for text in grid.texts)
    assert panels(grid)[0].images[0].norm.vmax == pytest.approx(float(scores[:, 1:].max()))


def test_every_layer_and_head_is_on_one_page():
    maps = some_maps(calls=3, heads=2)
    figure = plot(maps, heads="all")
    assert len(panels(figure)) == 2 * 3 * 2  # weights above norms
    assert np.allclose(shown(panels(figure)[3]), maps.weights[1][0, 1].numpy())
    assert len(bars(figure)) == 2
    with pytest.raises(ValueError, match="draws every call"):
        plot(maps, call=1, heads="all")


def test_lengths_leave_out_what_is_not_known():
    figure = class_lengths(torch.tensor([[1.0, float("nan")], [2.0, 3.0]]), ["[SEP]", "other"])
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1.0, 2.0]
    assert figure.axes[0].lines[1].get_ydata().tolist() == [3.0]


def test_weights_stand_against_lengths_by_class():
    maps = some_maps(calls=1)
    maps.transformed_norms = [torch.rand(2, 2, 4)]
    figure = weights_against_lengths(maps, 0, classes=["[CLS]", "other", "other", "[SEP]"])
    clouds = {cloud.get_label(): cloud.get_offsets() for cloud in figure.axes[0].collections}
    assert {name: len(points) for name, points in clouds.items()} == {"[CLS]": 2, "other": 4, "[SEP]": 2}
    assert clouds["[CLS]"][:, 0].tolist() == pytest.approx(maps.weights[0][0, :, :, 0].mean(-1).tolist())
    with pytest.raises(ValueError, match="key is 4 in the scores but classes holds 3"):
        weights_against_lengths(maps, 0, classes=["a", "b", "c"])


def test_links_and_gold_stand_on_the_scores():
    gold = SimpleNamespace(sure={(0, 0)}, possible={(0, 0), (1, 1)})
    figure = alignment_matrix(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), ["das", "haus"], ["the", "house"], links=[(1, 1)],
                              gold=gold)  # fmt: skip
    assert np.allclose(shown(figure.axes[0]), [[0.75, 0.25], [0.5, 0.5]])
    assert len(figure.axes[0].patches) == 2
    with pytest.raises(ValueError, match=r"link \(5, 0\)"):
        alignment_matrix(torch.eye(2), ["a", "b"], ["c", "d"], links=[(5, 0)])


def test_written_tokens_are_shown_as_they_are_or_as_their_tokenizer_reads_them():
    tokens = {"input_tokens": ["Ġurnata", "a"], "output_tokens": ["Ġ", " film"]}
    result = SimpleNamespace(token_attr=torch.ones(2, 2), **tokens)
    for tokenizer, rows, columns in (
        (None, ["Ġ", "film"], ["Ġurnata", "a"]),
        (TOKENIZERS["byte-level BPE"], ["␣", "film"], ["urnata", "a"]),
    ):
        axes = written_tokens(result, tokenizer=tokenizer).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == rows
        assert [label.get_text() for label in axes.get_xticklabels()] == columns


def test_written_tokens_are_rows_with_their_probability_and_colours_know_signs():
    result = SimpleNamespace(
        token_attr=torch.tensor([[1.0, 3.0], [2.0, 0.0]]), input_tokens=["ĠA", "Ġfilm"], output_tokens=["is", "\n"],
        output_probs=torch.tensor([0.5, 0.25]),
    )  # fmt: skip
    figure = written_tokens(result)
    assert np.allclose(shown(figure.axes[0]), [[0.25, 0.75], [1, 0]])
    assert "50%" in [text.get_text() for text in figure.texts]
    assert not any("blue" in text.get_text() for text in figure.texts)
    result.token_attr = -result.token_attr
    assert any("blue against" in text.get_text() for text in written_tokens(result).texts)
    with pytest.raises(ValueError, match="no token_attr"):
        written_tokens(SimpleNamespace(token_attr=None))
