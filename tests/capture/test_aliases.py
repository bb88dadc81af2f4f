"""What is known of a tensor is no longer known where its numbers were written through another one."""

import pytest
import torch
from torch import Tensor, nn

from captum_norm import AttentionNorm, AttentionRollout, DecompX, attention_maps
from captum_norm.capture import recording
from captum_norm.capture.ledger import Written
from captum_norm.operations.operation import Operation
from tests.capture.test_ledger import READ, Attention

close = torch.testing.assert_close
LENGTH = 5


class Part(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def model(function) -> nn.Module:
    torch.manual_seed(0)
    layers = Attention(READ["matmul"]), Part(function), Attention(READ["matmul"])
    return nn.Sequential(*layers).eval().requires_grad_(False)


def through(write):
    """A part that gives out a copy of its input, into which ``write`` has written its numbers rolled."""

    def function(x: Tensor) -> Tensor:
        y = x.clone()
        view = y.flatten(1)
        write(y, x.roll(1, 1))
        return view.view(y.shape) if write is ROLLED["the tensor of a view"] else y

    return function


def _row_by_row(y: Tensor, rolled: Tensor) -> None:
    for own, row in zip(y.unbind(1), rolled.unbind(1), strict=True):
        own.copy_(row)


def _replaced(y: Tensor, rolled: Tensor) -> None:
    y.data = rolled


ROLLED = {
    "data": lambda y, rolled: y.data.copy_(rolled),
    "detach": lambda y, rolled: y.detach().copy_(rolled),
    "slice": lambda y, rolled: y[:].copy_(rolled),
    "view": lambda y, rolled: y.view(-1).copy_(rolled.reshape(-1)),
    "transpose": lambda y, rolled: y.transpose(0, 1).copy_(rolled.transpose(0, 1)),
    "rows": _row_by_row,
    "foreach": lambda y, rolled: torch._foreach_copy_(list(y.unbind(1)), list(rolled.unbind(1))),
    "strided": lambda y, rolled: y.as_strided(y.size(), y.stride()).copy_(rolled),
    "out=": lambda y, rolled: torch.add(rolled, 0, out=y.flatten(1).view(y.shape)),
    "the tensor of a view": lambda y, rolled: y.copy_(rolled),
    "another tensor's data": _replaced,
}


@pytest.mark.parametrize("way", ROLLED)
def test_positions_written_through_another_tensor_are_not_those_that_stood_there(way):
    """With the numbers of other positions in it, what calls read of the tensor no longer is what it was."""
    rolled, x = model(through(ROLLED[way])), torch.randn(2, LENGTH, 8)
    close(rolled(x), model(lambda x: x.roll(1, 1))(x))
    refused = r"AttentionRollout: .*(not known to be input|positions are mixed)|its keys are not those of"
    with pytest.raises(ValueError, match=refused):
        AttentionRollout(rolled).attribute(x, target=(0, 0))
    try:
        found = DecompX(rolled).attribute(x, target=(0, 0))
    except ValueError as error:
        assert "cannot be held fixed" in str(error)  # noqa: PT017
    else:
        close(found, DecompX(model(lambda x: x.roll(1, 1))).attribute(x, target=(0, 0)))


STILL = {
    "scaled": lambda y: y.flatten(0, 1).mul_(2),
    "a part": lambda y: y[:, :2].add_(1),
    "the data": lambda y: y.data.tanh_(),
    "a norm's input": lambda y: y.view(-1)[: y.numel() // 2].neg_(),
}


@pytest.mark.parametrize("way", STILL)
def test_positions_stay_where_numbers_are_written_in_their_places(way):
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        STILL[way](y)
        return y

    changed, x = model(function), torch.randn(2, LENGTH, 8)
    assert AttentionRollout(changed).attribute(x, target=(0, 0)).shape == (2, LENGTH, 8)
    with recording(sources=(x,)) as records:
        changed(x)
    assert [record.keys.index.tolist() for record in records] == [list(range(LENGTH))] * 2


def _into(read: Tensor, view: Tensor, row: Tensor) -> Tensor:
    view.copy_(row.reshape(view.shape))
    return read


def _set(read: Tensor, row: Tensor) -> Tensor:
    read[:] = row
    return read


def _each(read: Tensor, row: Tensor) -> Tensor:
    torch._foreach_copy_(list(read.unbind()), list(row.unbind()))
    return read


READ_ROW_3 = {
    "setitem": _set,
    "view": lambda read, row: _into(read, read.view(-1), row),
    "data": lambda read, row: _into(read, read.data, row),
    "another shape": lambda read, row: _into(read, read.unsqueeze(1), row),
    "foreach": _each,
}


@pytest.mark.parametrize("before", [lambda x: x[:, 0].clone(), lambda x: x.mean(1)], ids=["a row", "a mean"])
@pytest.mark.parametrize("way", READ_ROW_3)
def test_a_row_written_through_another_tensor_is_not_taken_for_what_stood_there_before(way, before):
    torch.manual_seed(0)
    read = Part(lambda x: READ_ROW_3[way](before(x), x[:, 3]))
    reads, x = nn.Sequential(Attention(READ["matmul"]), read).eval().requires_grad_(False), torch.randn(2, LENGTH, 8)
    try:
        found = AttentionNorm(reads).attribute(x, target=0)
    except ValueError as error:
        assert "is not known" in str(error)  # noqa: PT017
    else:
        close(found, AttentionNorm(reads).attribute(x, target=0, position=3))


MASKED = {
    "scores": lambda s, hidden: (s.view(-1, LENGTH, LENGTH).masked_fill_(hidden, -torch.inf), s.softmax(-1))[1],
    "their data": lambda s, hidden: (s.data[:].masked_fill_(hidden.view(2, 2, 1, -1), -1e9), s.softmax(-1))[1],
    "weights": lambda s, hidden: _masked_afterwards(s.softmax(-1), hidden),
}


def _masked_afterwards(w: Tensor, hidden: Tensor) -> Tensor:
    w.view(-1, LENGTH, LENGTH).masked_fill_(hidden, 0)
    return w


@pytest.mark.parametrize("way", MASKED)
def test_padding_hidden_through_a_view_is_padding(way):
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, 3:] = False

    def mix(scores: Tensor, values: Tensor) -> Tensor:
        hidden = (~given[0]).repeat_interleave(2, 0)[:, None]
        return MASKED[way](scores, hidden) @ values

    given = [real]
    torch.manual_seed(0)
    layer, x = Attention(mix).eval(), torch.randn(2, LENGTH, 8)
    masked = lambda x, mask: (given.__setitem__(0, mask), layer(x))[1]  # noqa: E731
    with recording(sources=(x,), beside=(real,)) as records:
        masked(x, real)
    assert records[0].key_mask.tolist() == real.tolist()


def test_weights_scaled_through_a_view_are_read_as_they_are_used():
    def mix(scores: Tensor, values: Tensor) -> Tensor:
        weights = scores.softmax(-1)
        weights[:, 0].mul_(0.5)
        used.append(weights.clone())
        return weights @ values

    used: list[Tensor] = []
    torch.manual_seed(0)
    layer, x = Attention(mix).eval(), torch.randn(2, LENGTH, 8)
    with recording(sources=(x,)) as records:
        layer(x)
    close(records[0].weights, used[0])


def _copied(x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(x)


@pytest.mark.parametrize(
    ("function", "positions"),
    [
        (_copied, [0, 1, 2, 3, 4]),
        (lambda x: x.clone().copy_(x.flip(1)), [4, 3, 2, 1, 0]),
        (lambda x: _copied(x).add_(x.flip(1)), [0, 1, 2, 3, 4]),
    ],
    ids=["a buffer", "turned round", "a sum in it"],
)
def test_what_is_copied_into_a_tensor_is_at_the_positions_that_it_had(function, positions):
    maps = attention_maps(model(function), torch.randn(2, LENGTH, 8), layers=[0, 1])
    assert maps.keys[1].index.tolist() == positions


def test_an_alias_of_what_a_map_wrote_holds_no_classes_once_it_is_overwritten():
    written, weight, x = Written(), nn.Parameter(torch.randn(4, 8)), torch.randn(3, 8)
    out = nn.functional.linear(x, weight)
    view = out.view(3, 4)
    written.see(Operation("linear", nn.functional.linear, (x, weight), {}, out))
    written.see(Operation("view", Tensor.view, (out, 3, 4), {}, view))
    assert out in written
    assert view in written
    written.forget(out)
    assert out not in written
    assert view not in written
