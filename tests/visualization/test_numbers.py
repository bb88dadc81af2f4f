"""Numbers that cannot be drawn are refused by name and place, in every figure."""


import pytest
import torch

from captum_norm.visualization import class_shares, map_grid, method_strips, token_map
from tests.visualization.drawn import TOKENS, panels, shown, some_map


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
