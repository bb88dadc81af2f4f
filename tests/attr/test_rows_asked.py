"""Which rows of each call are wanted, and in whose queries they are counted."""

import torch

from captum_norm.attr._aggregate import make_aggregate
from captum_norm.attr._position import Rows
from captum_norm.attr._read_out import same_rows
from captum_norm.attr._rows_asked import RowsAsked
from captum_norm.attr._sequences import Sequences
from captum_norm.capture import Positions
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
