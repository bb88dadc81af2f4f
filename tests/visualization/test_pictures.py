"""A picture and heat maps over it show the numbers they were given, where they were given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from captum_norm.visualization import picture_maps

PICTURE = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))


def panels(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.get_label() != "colour bar"]


def bars(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.get_label() == "colour bar"]


def pixels(axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_the_picture_stands_first_and_is_itself():
    figure = picture_maps(PICTURE, {"a": torch.rand(2, 3), "b": torch.rand(8, 12)})
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["picture", "a", "b"]
    expected = (PICTURE - PICTURE.min()) / (PICTURE.max() - PICTURE.min())
    np.testing.assert_allclose(pixels(panels(figure)[0]), expected.permute(1, 2, 0), rtol=1e-6)
    assert len(bars(figure)) == 2


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pictures_may_be_grey_or_in_colour(channels):
    figure = picture_maps(torch.rand(*channels, 4, 4), torch.eye(2))
    assert pixels(panels(figure)[0]).shape == ((4, 4, 3) if channels == (3,) else (4, 4))


def test_a_patchs_score_colours_its_pixels_and_no_others():
    scores = torch.zeros(2, 3)
    scores[1, 2] = 1.0
    heat = pixels(panels(picture_maps(torch.zeros(8, 12), scores))[1])
    coloured = (heat != heat[0, 0]).any(-1)
    assert coloured[4:, 8:].all()
    assert coloured.sum() == 16


def test_scores_of_pixels_are_summed_over_channels():
    scores = torch.rand(3, 8, 12)
    by_channel, summed = (picture_maps(PICTURE, one) for one in (scores, scores.sum(0)))
    np.testing.assert_allclose(pixels(panels(by_channel)[1]), pixels(panels(summed)[1]), rtol=1e-6)


def test_signed_scores_run_both_ways_from_zero():
    signed = picture_maps(PICTURE, torch.tensor([[-1.0, 0.0, 2.0]] * 2), unit="logit")
    assert [tick.get_text() for tick in bars(signed)[0].get_yticklabels()] == ["−2", "2"]
    assert bars(signed)[0].get_title(loc="left") == "logit"
    weights = picture_maps(PICTURE, {"weights": torch.rand(2, 3)})
    assert bars(weights)[0].get_yticklabels()[0].get_text() == "0"
    assert bars(weights)[0].get_title(loc="left") == "α"


def test_an_outline_is_drawn_over_every_panel():
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[2:5, 3:7] = True
    figure = picture_maps(PICTURE, {"a": torch.rand(2, 3)}, outline=inside)
    assert all(axes.collections for axes in panels(figure))


def test_many_panels_go_below_each_other(tmp_path):
    figure = picture_maps(PICTURE, {str(n): torch.rand(2, 3) for n in range(5)}, columns=3, title="Six")
    tops = [round(axes.get_position().y1, 6) for axes in panels(figure)]
    assert len(set(tops)) == 2
    assert tops[0] == tops[1] == tops[2] > tops[3] == tops[5]
    figure.savefig(tmp_path / "figure.png")


def test_scores_without_any_are_drawn():
    assert np.isfinite(pixels(panels(picture_maps(torch.ones(4, 4), torch.zeros(2, 2)))[1])).all()


@pytest.mark.parametrize(
    ("picture", "scores", "message"),
    [
        (torch.rand(2, 3, 4, 4), torch.eye(2), "picture should be"),
        (torch.rand(2, 4, 4), torch.eye(2), r".*with one or three channels, got shape \(2, 4, 4\)"),
        (torch.rand(4, 4), torch.eye(3), "scores are 3 x 3, which does not divide the picture of 4 x 4"),
        (torch.rand(4, 4), {"a": torch.eye(3)}, "scores 'a' are 3 x 3"),
        (torch.rand(4, 4), torch.full((2, 2), torch.nan), "scores holds nan"),
        (torch.rand(4, 4), torch.rand(1, 2, 2, 2), "scores should be"),
    ],
)
def test_what_does_not_fit_is_refused(picture, scores, message):
    with pytest.raises(ValueError, match=f"picture_maps: {message}"):
        picture_maps(picture, scores)
