"""Calls that wait for others are read as they were when they were complete."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from captum_norm.capture import complete, recording
from captum_norm.capture.complete import CompleteCalls
from captum_norm.capture.held import HeadValues
from tests.capture.test_ledger import READ, Attention

LAYERS = 4


class Kept(nn.Module):
    """Attention whose values lie in memory that every other layer writes anew."""

    def __init__(self, memory: Tensor, write) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.memory, self.write = memory, write

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(len(x), -1, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        self.write(self.memory, v)
        return x + self.o((torch.softmax(q @ k.mT, -1) @ self.memory).transpose(1, 2).flatten(2))


@torch.library.custom_op("captum_norm_tests::put", mutates_args=("memory",))
def _put(memory: Tensor, values: Tensor) -> None:
    memory.copy_(values)


WRITES = {
    "by an operator of one's own": _put,
    "by one of torch's by its full name": torch.ops.aten.copy_.default,
    "in place": lambda memory, values: memory.copy_(values),
    "by an index": lambda memory, values: memory.__setitem__(slice(None), values),
    "out=": lambda memory, values: torch.add(values, 0, out=memory),
    "by data": lambda memory, values: memory.data.copy_(values),
}


def _model(make=lambda: Attention(READ["matmul"])) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(make() for _ in range(LAYERS))).eval().requires_grad_(False)


def _read(model: nn.Module, x: Tensor, **how) -> tuple[list, list[str]]:
    """What each record holds, and which layer was running when it was handed over."""
    found, running = [], [""]
    for name, layer in model.named_children():
        layer.register_forward_pre_hook(lambda layer, given, name=name: running.append(name))

    def note(record) -> None:
        numbers = record.weights.clone(), record.values.clone(), record.W_O.clone()
        found.append((record.call.name, float(record.certificate), *numbers))
        handed_over.append(running[-1])

    handed_over: list[str] = []
    with torch.no_grad(), recording(note, sources=(x,), **how):
        model(x)
        running.append("after")
    return found, handed_over


def _assert_same(found: list, expected: list) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:2] == theirs[:2]
        assert all(torch.equal(a, b) for a, b in zip(ours[2:], theirs[2:], strict=True))


def test_calls_that_wait_are_handed_over_at_the_end_as_they_would_be_one_by_one():
    model, x = _model(), torch.randn(2, 5, 8)
    one_by_one, when = _read(model, x)
    assert when == ["1", "2", "3", "after"]
    waited, when = _read(model, x, together=True)
    assert when == ["after"] * LAYERS
    _assert_same(waited, one_by_one)


def test_what_waits_is_handed_over_where_it_would_hold_much(monkeypatch):
    model, x = _model(), torch.randn(2, 5, 8)
    weights, values, W_O = 2 * 2 * 5 * 5 * 4, 2 * 5 * 8 * 4, 8 * 8 * 4
    held = weights + 2 * values + W_O  # W_O reads as much as values are
    monkeypatch.setattr(complete, "_MOST_HELD", 2 * held)
    assert _read(model, x, together=True)[1] == ["3", "3", "3", "after"]
    monkeypatch.setattr(complete, "_MOST_HELD", held)
    assert _read(model, x, together=True)[1] == ["2", "2", "after", "after"]
    monkeypatch.setattr(complete, "_MOST_HELD", held - 1)
    assert _read(model, x, together=True)[1] == ["1", "2", "3", "after"]


def test_calls_with_blocks_do_not_wait():
    model, x = _model(), torch.randn(2, 5, 8)
    assert _read(model, x, together=True, blocks=True)[1] == _read(model, x, blocks=True)[1]


@pytest.mark.parametrize("write", WRITES)
def test_a_call_is_read_before_its_memory_is_written_anew(write):
    memory, x = itertools.cycle((torch.zeros(2, 2, 5, 4), torch.zeros(2, 2, 5, 4))), torch.randn(2, 5, 8)
    model = _model(lambda: Kept(next(memory), WRITES[write]))
    one_by_one, _ = _read(model, x)
    waited, when = _read(model, x, together=True)
    _assert_same(waited, one_by_one)
    assert when == ["2", "3", "after", "after"]  # a call is complete when the next one begins


def test_a_call_that_waits_is_refused_by_its_own_name_and_reason():
    model, x, together, one_by_one = _model(), torch.randn(2, 5, 8), [], []
    model[1].o.register_forward_hook(lambda layer, given, out: out + torch.exp(given[0]))
    for refused, waits in ((together, True), (one_by_one, False)):
        with torch.no_grad(), recording(lambda record: None, on_inexact=refused.append, together=waits):
            model(x)
    assert [str(error) for error in together] == [str(error) for error in one_by_one]
    assert [error.call.name for error in together] == ["1"]


def test_what_the_model_does_behind_a_call_changes_nothing_of_it():
    found, projection = [], SimpleNamespace(nbytes=0)
    calls = CompleteCalls(lambda mixtures: found.extend((m.projection, m.problem) for m in mixtures), together=True)
    values = torch.ones(1)
    mixture = SimpleNamespace(
        projection=projection, problem="as it was", is_read=False, nbytes=0, values=HeadValues(values)
    )
    calls.add((mixture,))
    assert (mixture.is_read, mixture.projection) == (True, None)
    mixture.problem = "of something later"
    calls.hand_over()
    assert found == [(projection, "as it was")]
    assert mixture.projection is None
    calls.hand_over()
    assert len(found) == 1


def test_a_mask_that_is_compared_in_place_is_that_of_its_own_call():
    """Nothing is known of what such a comparison writes, but that it writes."""

    class Masked(Attention):
        def __init__(self, mask: Tensor) -> None:
            super().__init__(self.attend)
            self.mask = mask

        def attend(self, scores: Tensor, values: Tensor) -> Tensor:
            self.mask.eq_(False)
            return F.scaled_dot_product_attention(scores, scores, values, attn_mask=self.mask)

    masks = itertools.cycle((torch.ones(5, 5).tril().bool(), torch.ones(5, 5).bool()))
    model, x = _model(lambda: Masked(next(masks))), torch.randn(2, 5, 8)
    first = [layer.mask.clone() for layer in model[:2]]
    one_by_one, _ = _read(model, x)
    for layer, mask in zip(model, first, strict=False):
        layer.mask.copy_(mask)
    _assert_same(_read(model, x, together=True)[0], one_by_one)


def test_calls_wait_only_where_writes_are_counted_and_tensors_live_on():
    """In inference mode torch counts no writes; within ``vmap`` a tensor is another one when it ends."""
    x, read = torch.randn(2, 3), []

    def add(values: Tensor) -> Tensor:
        calls = CompleteCalls(read.append, together=True)
        calls.add((SimpleNamespace(projection=None, problem="", is_read=False, nbytes=0, values=HeadValues(values)),))
        return values

    add(x)
    assert not read
    with torch.inference_mode():
        add(x + 1)
    assert len(read) == 1
    torch.vmap(add)(x)
    assert len(read) == 2


def test_a_call_is_read_with_all_its_digits_whatever_is_cast_where_it_is_read():
    model, x = _model(), torch.randn(2, 5, 8)
    one_by_one, _ = _read(model, x)
    with torch.no_grad(), recording(sources=(x,), together=True) as records:
        y = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            y.clone().relu_()
    for record, (name, error, weights, *_) in zip(records, one_by_one, strict=True):
        assert (record.call.name, float(record.certificate)) == (name, error)
        assert torch.equal(record.weights, weights)


def test_calls_are_read_before_memory_is_handed_out():
    model, x, seen = _model(), torch.randn(2, 5, 8), []
    with torch.no_grad(), recording(lambda record: seen.append(record.call.name), together=True):
        y = model[1](model[0](x))
        assert not seen
        y.numpy()
        assert len(seen) == 1  # the other one is complete when a third begins
