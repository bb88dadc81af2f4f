"""Which entry is whose is measured by sending numbers through the model's own steps; what cannot be told is refused."""

import pytest
import torch

from captum_norm.capture.layout import LayoutError, measure
from captum_norm.operations.steps import Step

BATCH, HEADS, QUERIES, SIZE = 2, 3, 4, 5


def layout_after(*moves, lead=(BATCH, HEADS), width=HEADS * SIZE):
    """The layout of mixed values (*lead, query, head_dim) that a model moves so before its projection."""
    return measure(lead, QUERIES, SIZE, [Step(object(), move) for move in moves], width)


def joined(t):
    return t.transpose(1, 2).flatten(2)


def test_heads_beside_each_other_are_in_order():
    layout = layout_after(joined)
    assert layout.shape == (BATCH, HEADS, QUERIES)
    assert (layout.in_order, layout.columns_in_order, layout.values_in_order) == (True, True, True)


def test_time_first_values_are_brought_into_order():
    values = torch.randn(HEADS, BATCH, 7, SIZE)
    layout = layout_after(lambda t: t.movedim(0, 2).flatten(2), lead=(HEADS, BATCH))
    assert not layout.values_in_order
    assert torch.equal(layout.values(values, (HEADS, BATCH)), values.transpose(0, 1))


def test_weights_that_all_heads_share_are_given_to_each():
    weights = torch.randn(1, 1, QUERIES, 7)
    assert torch.equal(layout_after(joined).weights(weights, (BATCH, HEADS)), weights.expand(BATCH, HEADS, QUERIES, 7))


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([joined, lambda t: t.flatten(0, 1)[:-1]], r"different numbers of queries, \[4, 3\]"),
        ([lambda t: t.flatten(2).roll(1, -1)], "rows of 15, mixed values come in rows of 20"),
        ([joined, lambda t: torch.cat([t[:, :1].roll(1, -1), t[:, 1:]], dim=1)], "not one value vector in every row"),
        ([joined, lambda t: t.expand(3, 3, -1, -1)], "cannot be repeated"),
    ],
    ids=["unlike examples", "another width", "heads torn apart", "no such step"],
)
def test_what_is_no_layout_of_heads_is_refused(moves, message):
    with pytest.raises(LayoutError, match=message):
        layout_after(*moves)


def test_a_vector_whose_entries_change_places_in_some_rows_is_refused():
    columns = [0, 2, 1, *range(3, HEADS * SIZE)]
    with pytest.raises(LayoutError, match="not one value vector in every row"):
        layout_after(joined, lambda t: torch.cat([t[:, :2], t[:, 2:, columns]], 1))
