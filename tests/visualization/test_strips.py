"""Each word stands on the colour of its score, every method on its own scale."""


import pytest
import torch

from captum_norm.visualization import method_strips
from captum_norm.visualization.style import (
    SIGNED_COLOURS,
    UNSIGNED_COLOURS,
)
from tests.visualization.drawn import cells


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
