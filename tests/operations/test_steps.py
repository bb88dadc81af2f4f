"""A move that a model made is made again on the numbers of entries, and equal moves have equal keys."""

from weakref import ref

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from captum_norm.operations.modes import WatchingMode
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import Anchor, Place, broadcast
from captum_norm.operations.steps import NOT_AN_INPUT, step_of


def moved(function, x) -> Operation:
    operations: list[Operation] = []
    with WatchingMode(lambda name: operations.append):
        function(x)
    return operations[-1]


INDEX = torch.tensor([1, 0])
MOVES = {
    "view": lambda x: x.view(2, 12),
    "transpose": lambda x: x.transpose(0, 2),
    "view_as": lambda x: x.view_as(torch.empty(4, 6)),
    "expand": lambda x: x[:, :1].expand(2, 5, 4),
    "getitem": lambda x: x[:, 1:, ::2],
    "by an index": lambda x: x[INDEX],
    "index_select": lambda x: x.index_select(0, INDEX),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 2),
}


@pytest.mark.parametrize("function", MOVES.values(), ids=MOVES)
def test_a_step_moves_numbers_as_the_model_moved_its_tensor(function):
    numbers = torch.arange(24).view(2, 3, 4)
    operation = moved(function, numbers.double())
    given = numbers[:, :1] if operation.name == "expand" else numbers
    step = step_of(operation, None)
    assert torch.equal(step.apply(given).double(), operation.out)
    assert step.key == step_of(moved(function, numbers.double()), None).key


def test_one_of_several_outputs_is_a_step_of_its_own():
    numbers = torch.arange(6).view(2, 3)
    operation = moved(lambda x: x.unbind(1), numbers.double())
    steps = [step_of(operation, k) for k in range(3)]
    assert [step.apply(numbers).tolist() for step in steps] == [[0, 3], [1, 4], [2, 5]]
    assert len({step.key for step in steps}) == 3


def test_padding_is_no_input():
    step = step_of(moved(lambda x: F.pad(x, (1, 0), value=7.0), torch.ones(1, 2)), None)
    assert step.apply(torch.tensor([[4, 5]])).tolist() == [[NOT_AN_INPUT, 4, 5]]


def test_an_index_that_changes_later_is_remembered_as_it_was():
    index = torch.tensor([1, 0])
    step = step_of(moved(lambda x: x[index], torch.ones(2, 2)), None)
    index.zero_()
    assert step.apply(torch.tensor([[1], [2]])).tolist() == [[2], [1]]


def test_a_place_numbers_batch_and_position_and_is_lost_where_positions_are_torn():
    anchor = Anchor(0, (2, 3, 4), (1,))
    place = Place(anchor)
    assert place.numbers()[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    wide = place.of_features(5).of_features(7)
    assert len(wide.steps) == 1  # of two that change the features alone, the last one counts
    assert wide.numbers().shape == (2, 3, 7)
    assert place.then(broadcast(torch.Size([2, 3, 4]))).numbers().shape == (2, 3, 4)
    torn = place.then(step_of(moved(lambda x: x.transpose(1, 2), torch.ones(2, 3, 4)), None)).of_features(1)
    assert torn.numbers() is None


def test_equal_moves_of_sizes_are_one_step_and_lead_to_one_place():
    """So that what is worked out of a place in one layer is there in the next."""
    place, x = Place(Anchor(0, (2, 3, 4), (1,))), torch.ones(2, 3, 4)
    one, same, other = (step_of(moved(lambda x, n=n: x.transpose(1, n), x), None) for n in (2, 2, 0))
    assert one is same
    assert place.then(one) is place.then(same)
    assert place.then(other) is not place.then(one)
    assert place.of_features(5) is place.of_features(5)
    assert place.mixed_by(frozenset("m")).then(one).mixers == frozenset("m")


def test_a_list_of_sizes_moves_as_its_numbers_do():
    numbers = torch.arange(24).view(2, 3, 4)
    step = step_of(moved(lambda x: x.view([4, 6]), numbers), None)
    assert step.key == step_of(moved(lambda x: x.view((4, 6)), numbers), None).key
    assert torch.equal(step.apply(numbers), numbers.view(4, 6))


def test_a_place_keeps_none_behind_a_step_of_one_operation_alone():
    """Else a loop over positions would keep each index that it takes until the model has run."""
    place = Place(Anchor(0, (2, 3, 4), (1,)))
    step = step_of(moved(lambda x: x[INDEX], torch.ones(2, 3, 4)), None)
    behind = ref(place.then(step))
    assert behind() is None
