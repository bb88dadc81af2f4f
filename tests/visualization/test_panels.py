"""Tokens stand beside the rows and columns they name, as many as there is room for."""

from itertools import pairwise

import pytest
import torch

from captum_norm.visualization import token_map
from tests.visualization.drawn import TOKENS, labels, panels, some_map


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


def test_tokens_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="token_map: key is 4 in the scores but tokens holds 3"):
        token_map(some_map(3, 4), TOKENS[:3])
    with pytest.raises(ValueError, match="token_map: query is 3 in the scores but query_tokens holds 4"):
        token_map(some_map(3, 4), query_tokens=TOKENS, key_tokens=TOKENS)
    with pytest.raises(ValueError, match="tokens names both axes"):
        token_map(some_map(), TOKENS, key_tokens=TOKENS)


def test_rows_that_are_no_tokens_are_called_what_they_are():
    rows = {"query_tokens": list("ABC"), "key_tokens": TOKENS}
    layers = torch.rand(3, 4)
    assert panels(token_map(layers, **rows))[0].get_ylabel() == "Attending token"
    assert panels(token_map(layers, **rows, query_axis="Layer"))[0].get_ylabel() == "Layer"
    assert panels(token_map(layers, **rows, query_axis=""))[0].get_ylabel() == ""
