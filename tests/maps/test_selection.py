"""Only the calls, heads and rows that were chosen are kept, and those that do not exist are named."""


import pytest
import torch

from captum_norm.capture import InexactCaptureError
from captum_norm.maps import attention_maps
from tests.maps.records import IDS, QUANTITIES, inexact, record


def test_only_the_chosen_heads_and_rows_are_kept(emitting):
    model = emitting(record())
    whole = attention_maps(model, IDS, QUANTITIES)
    part = attention_maps(model, IDS, QUANTITIES, head_indices=[2, 0], positions=[-1, 1])
    torch.testing.assert_close(part.weights[0], whole.weights[0][:, [2, 0]][:, :, [3, 1]])
    torch.testing.assert_close(part.head_norms[0], whole.head_norms[0][:, [2, 0]][:, :, [3, 1]])
    torch.testing.assert_close(part.transformed_norms[0], whole.transformed_norms[0][:, [2, 0]])
    torch.testing.assert_close(part.summed_norms[0], whole.summed_norms[0][:, [3, 1]])
    assert part.queries[0].index.tolist() == [3, 1]
    assert part.query_masks[0].shape == (2, 2)
    assert (part.head_indices, part.positions) == ((2, 0), (-1, 1))


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ([1], ["encoder.layer.1.self"]),
        (0, ["encoder.layer.0.self"]),
        ([-1, 0], ["encoder.layer.0.self", "pooler"]),
        ("encoder.layer.1", ["encoder.layer.1.self"]),
        ("encoder", ["encoder.layer.0.self", "encoder.layer.1.self"]),
        (["pooler", 0], ["encoder.layer.0.self", "pooler"]),
    ],
    ids=str,
)
def test_calls_are_chosen_by_index_or_by_name(emitting, layers, names):
    model = emitting(record("encoder.layer.0.self"), record("encoder.layer.1.self"), record("pooler"))
    maps = attention_maps(model, IDS, layers=layers)
    assert [call.name for call in maps.calls] == names
    assert len(maps) == len(maps.weights) == len(names)


def test_layer_1_is_not_layer_10(emitting):
    maps = attention_maps(emitting(record("layer.10"), record("layer.1")), IDS, layers="layer.1")
    assert [call.name for call in maps.calls] == ["layer.1"]


def test_gates_are_cut_with_heads_and_rows(emitting):
    gated = record(gate=torch.rand(2, 3, 4, 1, dtype=torch.float64))
    whole = attention_maps(emitting(gated), IDS, QUANTITIES)
    part = attention_maps(emitting(gated), IDS, QUANTITIES, head_indices=[1], positions=[2])
    torch.testing.assert_close(part.head_norms[0], whole.head_norms[0][:, [1]][:, :, [2]])
    torch.testing.assert_close(part.summed_norms[0], whole.summed_norms[0][:, [2]])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": [7]}, r"layers holds 7, which is no attention call.*0 'layer.0.attention'"),
        ({"layers": [-2]}, r"layers holds -2, but the model makes 1 attention calls"),
        ({"layers": "layer.00"}, r"layers holds 'layer.00'"),
        ({"head_indices": [3]}, r"head_indices holds 3, but 'layer.0.attention' has 3 heads"),
        ({"positions": [-5]}, r"positions holds -5, but 'layer.0.attention' has 4 rows"),
        ({"quantities": ()}, r"was asked for no quantity"),
    ],
    ids=str,
)
def test_choices_that_do_not_exist_are_named(emitting, choice, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(emitting(record()), IDS, **choice)


def test_a_call_that_cannot_be_read_is_an_error_unless_it_was_not_asked_for(emitting):
    model = emitting(record("a"), inexact("b"), record("c"))
    with pytest.raises(InexactCaptureError, match=r"off by 0\.5"):
        attention_maps(model, IDS)
    assert [call.name for call in attention_maps(model, IDS, layers=["a", 2]).calls] == ["a", "c"]
