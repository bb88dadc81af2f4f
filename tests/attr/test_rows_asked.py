"""Which rows of each call are wanted, and in whose queries they are counted."""

import pytest
import torch
from torch import nn

from captum_norm import (
    AttentionFlow,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    AttentionWeights,
    InformationFlowRoutes,
    attention_maps,
)
from captum_norm.attr._aggregate import make_aggregate
from captum_norm.attr._position import Rows
from captum_norm.attr._read_out import same_rows
from captum_norm.attr._rows_asked import RowsAsked
from captum_norm.attr._sequences import Sequences
from captum_norm.attr._unread import asks_nothing
from captum_norm.capture import AttentionCall, Positions
from tests.attr.records import record_of


def test_rows_counted_in_one_sequence_are_not_taken_of_another():
    record = record_of(torch.rand(1, 2, 5, 5), torch.rand(1, 2, 5, 3))
    asked = RowsAsked("AttentionNorm", Rows(9), make_aggregate("mean"), Sequences())
    asked.counted_in = Positions(1, torch.arange(15))
    assert asked.needed(record, 0) is record  # it has no row 9 of its own
    assert RowsAsked("AttentionNorm", Rows(3), make_aggregate("mean"), Sequences()).needed(record, 0).shape[2] == 1


def test_rows_beyond_the_queries_that_they_count_in_are_none():
    known = Positions(0, torch.arange(3))
    assert same_rows(torch.tensor([[5]]), known, known) is None
    assert same_rows(torch.tensor([[2]]), known, known).tolist() == [[2]]


IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
SOME = {
    "all but the first": ([1, 2, 3, 4, 5], lambda x: x[:, 1:]),
    "the first three": ([0, 1, 2], lambda x: x[:, :3]),
    "each second": ([0, 2, 4], lambda x: x[:, ::2]),
    "in an order of their own": ([4, 1, 0], lambda x: x[:, [4, 1, 0]]),
    "one": ([2], lambda x: x[:, 2:3]),
}


class AsksSome(nn.Module):
    """Layers of which the last asks for some rows of the input alone, behind rows that are no input, if any."""

    def __init__(self, some, beside=0, layers=1):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.places = nn.Embedding(10, 8), nn.Parameter(torch.randn(6, 8))
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(layers))
        self.beside, self.some, self.head = nn.Parameter(torch.randn(beside, 8)), some, nn.Linear(8, 3)

    def forward(self, ids):
        x = self.embedding(ids) + self.places
        for attention in self.layers[:-1]:
            x = x + attention(x, x, x, need_weights=False)[0]
        asked = torch.cat([self.beside.expand(len(x), -1, -1), self.some(x)], 1)
        return self.head(asked + self.layers[-1](asked, x, x, need_weights=False)[0])


@pytest.mark.parametrize("beside", [0, 2])
@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("method", [AttentionNorm, AttentionWeights])
def test_a_position_is_the_inputs_where_some_rows_alone_are_queries(method, case, beside):
    positions, some = SOME[case]
    method = method(AsksSome(some, beside).eval())
    target = (beside, 1)
    rows = attention_maps(method.forward_func, IDS, quantities=("summed_norms",)).summed_norms[0][:, beside:]
    for row, position in enumerate(positions):
        found = method.attribute(IDS, target, position=position)
        torch.testing.assert_close(method.attribute(IDS, target, position=position - 6), found)
        torch.testing.assert_close(method.attribute(IDS, target, position=torch.full((2, 2), position))[:, 1], found)
        if isinstance(method, AttentionNorm):
            torch.testing.assert_close(found, rows[:, row])
    several = method.attribute(IDS, target, position=[positions[0], positions[-1]])
    torch.testing.assert_close(several[0], method.attribute(IDS, target, position=positions[0])[0])
    torch.testing.assert_close(several[1], method.attribute(IDS, target, position=positions[-1])[1])


@pytest.mark.parametrize("case", SOME)
def test_a_position_that_is_no_query_is_refused_by_name(case):
    positions, some = SOME[case]
    method = AttentionNorm(AsksSome(some).eval())
    for position in set(range(6)) - {*positions}:
        for given in (position, position - 6, [positions[0], position]):
            with pytest.raises(ValueError, match=r"position -?\d asks nothing in attention call 'layers.0'") as error:
                method.attribute(IDS, (0, 1), position=given)
            assert f"its queries are positions {positions}" in str(error.value)
    with pytest.raises(ValueError, match="position 6 is out of range: there are 6 positions"):
        method.attribute(IDS, (0, 1), position=6)


def test_of_many_queries_the_error_names_some():
    call = AttentionCall("layers.0", "self", 0, 2, "")
    assert "positions [1, 2, 3, 4, 5, 6, 7, 8] and 91 more of the input" in asks_nothing("M", call, 0, range(1, 100))


def test_a_position_counts_in_the_one_call_that_is_asked_for():
    model = AsksSome(SOME["each second"][1], layers=2).eval()
    maps = attention_maps(model, IDS, quantities=("summed_norms",)).summed_norms
    first, last = (AttentionNorm(model, aggregate=number) for number in (0, -1))
    torch.testing.assert_close(first.attribute(IDS, (0, 1), position=1), maps[0][:, 1])
    torch.testing.assert_close(last.attribute(IDS, (0, 1), position=2), maps[1][:, 1])
    with pytest.raises(ValueError, match="position 1 asks nothing"):
        last.attribute(IDS, (0, 1), position=1)


@pytest.mark.parametrize("method", [AttentionRollout, AttentionFlow, AttentionRelevance, InformationFlowRoutes])
def test_a_position_is_the_inputs_where_calls_are_composed_over_some_rows(method):
    model = AsksSome(lambda x: x, layers=2).eval()

    def cut(ids):
        x = (model.embedding(ids) + model.places)[:, 1:]
        for attention in model.layers:
            x = x + attention(x, x, x, need_weights=False)[0]
        return model.head(x)

    method = method(cut)
    rows = method.attribute(IDS, (0, 1), position="all")
    for position in range(1, 6):
        torch.testing.assert_close(method.attribute(IDS, (0, 1), position=position), rows[:, position - 1])
    with pytest.raises(ValueError, match="position 0 asks nothing in attention call"):
        method.attribute(IDS, (0, 1), position=0)


def test_a_row_of_the_output_is_still_the_one_that_was_read():
    positions, some = SOME["in an order of their own"]
    method = AttentionNorm(AsksSome(some).eval())
    for row, position in enumerate(positions):
        found = method.attribute(IDS, (row, 1))
        torch.testing.assert_close(found, method.attribute(IDS, (row, 1), position=position))


def test_a_negative_position_is_refused_where_the_length_of_the_input_is_not_known():
    model = AsksSome(SOME["each second"][1]).eval()
    states = model.embedding(IDS).detach()
    method = AttentionNorm(lambda x: model.head(model.layers[0](x[:, ::2], x, x, need_weights=False)[0]))
    assert method.attribute(states, (0, 1), position=2).shape == states.shape
    with pytest.raises(ValueError, match=r"position -2 asks nothing.*how many positions the input has is not known"):
        method.attribute(states, (0, 1), position=-2)


def test_a_position_among_some_queries_that_is_padding_is_refused():
    known, real = Positions(0, torch.tensor([4, 1, 0])), torch.tensor([[True, True, True], [False, True, True]])
    record = record_of(torch.rand(2, 2, 3, 6), torch.rand(2, 2, 6, 3)).but(queries=known)
    asked = RowsAsked("AttentionNorm", Rows(4), make_aggregate("mean"), Sequences())
    asked.texts = {0: 6}
    assert asked.needed(record, 0).shape[2] == 1
    with pytest.raises(ValueError, match=r"position 4 of example 1 is padding: its real tokens are \[0, 1\]"):
        asked._among(0, known, 2, real)
