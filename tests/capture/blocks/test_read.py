"""Which key a query is itself: told by positions, else by a cache of earlier passes, else not known."""

import pytest
import torch

from captum_norm.capture.blocks.check import UnreadableBlockError
from captum_norm.capture.blocks.read import residual_key
from captum_norm.capture.call import Positions


def at(*index, source=0):
    return Positions(source, torch.tensor(index))


def test_the_same_positions_are_the_diagonal():
    assert residual_key(at(0, 1), at(0, 1), cross=False, cached=False, query=2, key=2) == "diagonal"


def test_a_query_among_other_keys_is_found_by_its_position():
    found = residual_key(at(4, 2), at(-1, 2, 3, 4), cross=False, cached=False, query=2, key=4)
    assert found.tolist() == [3, 1]


def test_behind_the_keys_of_earlier_passes_the_last_ones_are_the_queries():
    assert residual_key(None, None, cross=False, cached=True, query=2, key=5).tolist() == [3, 4]


def test_another_sequence_holds_no_query():
    assert residual_key(at(0, 1), at(0, 1, source=1), cross=True, cached=False, query=2, key=2) == "column"


def test_what_is_not_known_is_refused():
    with pytest.raises(UnreadableBlockError, match="which of the 5 keys each of the 2 queries is itself"):
        residual_key(None, None, cross=False, cached=False, query=2, key=5)
