"""An operation has one name however it is spelled, and can be called again on other tensors without writing."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from captum_norm.operations.modes import WatchingMode
from captum_norm.operations.operation import Operation, base_name, swapped

close = torch.testing.assert_close


def seen(function, *tensors) -> list[Operation]:
    """The operations that a function makes, as they were handed over."""
    operations: list[Operation] = []
    with WatchingMode(lambda name: operations.append):
        function(*tensors)
    return operations


def seen_alone(function, *tensors) -> Operation:
    (operation,) = seen(function, *tensors)
    return operation


@pytest.fixture
def x() -> Tensor:
    return torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x @ x.detach().T, ["detach", "t", "matmul"]),
        (lambda x: torch.softmax(x, -1), ["softmax"]),
        (lambda x: F.softmax(x, -1), ["softmax"]),
        (lambda x: 2 * x, ["mul"]),
        (lambda x: x.multiply_(2), ["mul_"]),
        (lambda x: x.absolute_().arctan_().true_divide_(2), ["abs_", "atan_", "div_"]),
        (lambda x: x.__setitem__(0, 1.0), ["setitem"]),
        (lambda x: x[0], ["getitem"]),
        (lambda x: torch.concat([x, x]), ["cat"]),
        (lambda x: 1 / x, ["rdiv"]),
        (lambda x: x.shape, ["shape"]),
        (lambda x: setattr(x, "data", x.detach()), ["detach", "data_"]),
        (lambda x: torch.special.softmax(torch.special.expit(x), -1), ["sigmoid", "softmax"]),
        (lambda x: F.threshold(torch.arctan(torch.absolute(x)), 0, 0), ["abs", "atan", "threshold"]),
        (lambda x: (x > 1).__ior__(x < 0), ["gt", "lt", "bitwise_or_"]),
        (lambda x: (x > 1) & ~(x < 0), ["gt", "lt", "bitwise_not", "bitwise_and"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_every_spelling_is_one_operation(function, name, x):
    assert [operation.name for operation in seen(function, x)] == name


def test_operands_given_by_keyword_stand_where_they_usually_do(x):
    added = seen_alone(lambda x: torch.add(input=x, other=x, alpha=2), x)
    assert added.args[0] is added.args[1] is x
    assert added.argument(2, "alpha") == 2
    chosen = seen(lambda x: torch.where(x > 1, input=x, other=-x), x)[-1]
    assert [chosen.kwargs[name] is chosen.tensors[n] for n, name in ((1, "input"), (2, "other"))] == [True, True]
    close(chosen.again(lambda tensor: tensor), torch.where(x > 1, x, -x))


def test_lists_of_tensors_are_opened(x):
    y = x + 1
    operation = seen_alone(lambda x: torch.cat([x, y], dim=0), x)
    assert operation.tensors[0] is x
    assert operation.tensors[1] is y
    assert len(seen_alone(lambda x: x.unbind(0), x).outputs) == 2


@pytest.mark.parametrize(
    ("function", "writes"),
    [
        (lambda x: x.mul_(3), True),
        (lambda x: x.__setitem__(0, 7.0), True),
        (lambda x: x.copy_(torch.ones(3)), True),
        (lambda x: F.hardtanh(x, 0.0, 2.0, inplace=True), True),
        (lambda x: x.clamp(max=1), False),
        (lambda x: torch.relu(x), False),
        (lambda x: x.__len__(), False),
    ],
    ids=["mul_", "setitem", "copy_", "hardtanh in place", "clamp", "relu", "len"],
)
def test_what_is_written_and_what_calling_again_gives_without_writing(function, writes, x):
    given = x.clone()
    operation = seen(function, given)[-1]
    assert operation.writes == writes
    other = x + 0.5
    again = operation.again(lambda tensor: other if tensor is given else tensor)
    assert torch.equal(other, x + 0.5)
    if isinstance(again, Tensor):
        returned = function(other)
        close(again, other if writes else returned)


def test_other_arguments_may_stand_in_for_its_own(x):
    operation = seen_alone(lambda x: torch.mul(x, 3), x)
    close(operation.again(lambda tensor: tensor, (x, 5)), x * 5)


@pytest.mark.parametrize(
    ("dropout", "axes"),
    [(F.dropout, 2), (F.alpha_dropout, 2), (F.dropout1d, 3), (F.dropout2d, 4), (F.dropout3d, 5)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_dropout_is_seen_in_training_and_with_a_probability(dropout, axes):
    x = torch.ones([2] * axes)
    assert seen_alone(lambda x: dropout(x, 0.5, training=True), x).drops_out
    for p, training in ((0.0, True), (0.5, False)):
        assert not seen(lambda x, p=p, training=training: dropout(x, p, training=training), x)


def test_in_place_names_lose_their_underscore_and_others_do_not():
    assert [base_name(name) for name in ("add_", "add", "__and__", "setitem")] == ["add", "add", "__and__", "setitem"]


def test_tensors_are_swapped_inside_lists_and_tuples_but_sizes_stay(x):
    size = torch.Size([2, 3])
    swapped_arguments = swapped((x, [x, 1], size), lambda tensor: "x")
    assert swapped_arguments == ("x", ["x", 1], size)
    assert type(swapped_arguments[2]) is torch.Size


def test_what_is_overwritten_is_the_first_operand_each_of_a_list_of_these_or_what_out_names(x):
    def overwritten(function):
        return [id(tensor) for tensor in seen_alone(function, x).overwritten]

    other, out = x.clone(), torch.empty(2, 3)
    assert overwritten(lambda x: x.mul_(2)) == overwritten(lambda x: x.__setitem__(0, 1.0)) == [id(x)]
    assert overwritten(lambda x: torch._foreach_add_([x, other], 1)) == [id(x), id(other)]
    assert overwritten(lambda x: torch.mul(x, 2, out=out)) == [id(out)]
    assert overwritten(lambda x: x * 2) == []
