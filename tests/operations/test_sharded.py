"""Weights are copied where an operation computes with them, and nowhere else."""

import torch
from torch import nn

from captum_norm.operations import sharded
from captum_norm.operations.operation import Operation
from captum_norm.operations.sharded import is_distributed, what_is_split, with_weights_held

WEIGHT = nn.Parameter(torch.ones(3, 3))
X = torch.ones(1, 3)


def test_a_weight_that_is_computed_with_stays_when_its_memory_is_given_back():
    weight = nn.Parameter(torch.ones(3, 3))
    calls = (("linear", (X, weight), {}), ("matmul", (X, weight.t()), {}), ("linear", (X,), {"weight": weight}))
    for name, args, kwargs in calls:
        held = with_weights_held(Operation(name, getattr(torch, name, nn.functional.linear), args, kwargs))
        assert held.tensors[0] is X
        assert held.tensors[1].untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
        assert torch.equal(held.tensors[1], torch.ones(3, 3))
        assert isinstance(held.tensors[1], nn.Parameter)


def test_what_is_moved_or_written_to_is_the_models_own():
    ids = torch.tensor([0])
    for name, args in (("t", (WEIGHT,)), ("mul_", (WEIGHT, 2)), ("embedding", (ids, WEIGHT)), ("add", (X, X))):
        op = Operation(name, torch.t, args, {})
        assert with_weights_held(op) is op


def test_a_process_by_itself_is_not_distributed():
    assert not is_distributed()


class DTensor(torch.Tensor):
    """Named as torch's own, which takes a process group to make."""


class FSDPModule:
    pass


class Gathered(FSDPModule, nn.Linear):
    pass


def test_a_weight_in_parts_is_named_unless_its_module_puts_it_together(monkeypatch):
    assert what_is_split([nn.Sequential(nn.Linear(3, 3))]) == ""
    monkeypatch.setattr(sharded, "is_distributed", lambda: True)
    for linear, found in ((nn.Linear(3, 3), True), (Gathered(3, 3), False)):
        linear.weight = nn.Parameter(torch.ones(3, 3).as_subclass(DTensor))
        assert what_is_split([nn.Sequential(linear)]).startswith("0.weight is split over devices") == found
