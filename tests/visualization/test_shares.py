"""Bars are as long as the shares of the classes they stand for."""


import pytest
import torch

from captum_norm.visualization import class_shares
from tests.visualization.drawn import labels


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
