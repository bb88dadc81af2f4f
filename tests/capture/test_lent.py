"""Numbers that a model hands to what is no operation of torch may change there, or come back as others."""

import ctypes
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_norm import AttentionRollout, attention_maps
from captum_norm.capture import InexactCaptureError
from tests.capture.test_aliases import LENGTH, model

close = torch.testing.assert_close


def _rolled(memory: np.ndarray) -> None:
    memory[:] = np.roll(memory, 1, 1)


def _by_address(y: Tensor) -> None:
    numbers = (ctypes.c_float * y.numel()).from_address(y.data_ptr())
    _rolled(np.frombuffer(numbers, np.float32).reshape(y.shape))


def _in_a_thread(y: Tensor) -> None:
    thread = threading.Thread(target=lambda: y.copy_(y.roll(1, 1)))
    thread.start()
    thread.join()


def _switched_off(y: Tensor) -> None:
    with torch._C.DisableTorchFunction():
        y.copy_(y.roll(1, 1))


def _by_the_storage(y: Tensor) -> None:
    y.untyped_storage().copy_(y.roll(1, 1).untyped_storage())


def _shared(y: Tensor) -> None:
    other = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(y))
    other.copy_(other.roll(1, 1))


CHANGED = {
    "numpy": lambda y: _rolled(y.numpy()),
    "an array": lambda y: _rolled(np.asarray(y)),
    "dlpack": _shared,
    "an address": _by_address,
    "another thread": _in_a_thread,
    "torch functions switched off": _switched_off,
    "a storage": _by_the_storage,
    "set_": lambda y: y.set_(y.roll(1, 1)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", CHANGED)
def test_numbers_that_were_changed_out_of_sight_are_named(way):
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        with torch.no_grad():
            CHANGED[way](y)
        return y

    changed, x = model(function), torch.randn(2, LENGTH, 8)
    close(changed(x), model(lambda x: x.roll(1, 1))(x))
    named = r"linear in '2\.q' \(it reads numbers that were changed out of sight\)"
    with pytest.raises(InexactCaptureError, match=named):
        AttentionRollout(changed).attribute(x, target=(0, 0))


def test_other_views_of_memory_that_was_changed_out_of_sight_have_no_known_positions():
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        view = y.view(y.shape)
        _rolled(y.numpy())
        y.square()  # notices the change, and the view is read by nothing before the next layer
        return view

    maps = attention_maps(model(function), torch.randn(2, LENGTH, 8), layers=[0, 1])
    assert maps.keys[0] is not None
    assert maps.keys[1] is None


def test_zeros_that_a_kernel_writes_into_are_no_constant():
    def function(x: Tensor) -> Tensor:
        y, rolled = torch.zeros_like(x), x.roll(1, 1)
        ctypes.memmove(y.data_ptr(), rolled.data_ptr(), y.nbytes)
        return y

    with pytest.raises(InexactCaptureError, match="changed out of sight"):
        AttentionRollout(model(function)).attribute(torch.randn(2, LENGTH, 8), target=(0, 0))


@pytest.mark.parametrize(
    "look", [lambda y: y.numpy(), np.asarray, lambda y: y.data_ptr(), lambda y: y.untyped_storage()],
    ids=["numpy", "array", "address", "storage"],
)  # fmt: skip
def test_memory_that_is_only_looked_at_hides_nothing(look):
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        look(y)
        return y * 2

    x = torch.randn(2, LENGTH, 8)
    found = AttentionRollout(model(function)).attribute(x, target=(0, 0))
    close(found, AttentionRollout(model(lambda x: x * 2)).attribute(x, target=(0, 0)))


def test_what_is_written_over_lent_memory_is_not_compared_with_what_it_held():
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        memory = y.numpy()
        y.mul_(2)
        _rolled(memory)
        return y

    with pytest.raises(InexactCaptureError, match="changed out of sight"):
        AttentionRollout(model(function)).attribute(torch.randn(2, LENGTH, 8), target=(0, 0))


RETURNED = {
    "item": lambda x: x + x.sum().item(),
    "float": lambda x: x + float(x.sum()),
    "list": lambda x: torch.tensor(x.tolist()),
    "array": lambda x: torch.tensor(np.roll(x.numpy(), 1, 1)),
    "scalar of numpy": lambda x: x * np.float64(x.numpy().max()),
    "text": lambda x: x + float(f"{x.sum():.3f}"),
}


@pytest.mark.parametrize("way", RETURNED)
def test_numbers_that_come_back_from_python_are_named(way):
    with pytest.raises(InexactCaptureError, match="numbers that were handed to Python"):
        AttentionRollout(model(RETURNED[way])).attribute(torch.randn(2, LENGTH, 8), target=(0, 0))


UNCHANGED = {
    "constants": lambda x: (x.sum().item(), x * 0.5 + 0.25)[1],
    "a choice": lambda x: x if x.abs().max().item() > 0.1 else -x,
    "a count": lambda x: x[:, : int((x[0, :, 0] < 1e9).sum())],
    "printed": lambda x: (f"{x.mean()}", x)[1],
}


@pytest.mark.parametrize("way", UNCHANGED)
def test_numbers_that_stay_the_same_on_other_inputs_are_constants(way):
    assert len(AttentionRollout(model(UNCHANGED[way])).attribute(torch.randn(2, LENGTH, 8), target=(0, 0))) == 2
