"""Running a frozen model: what has no linear form is refused by its name, its module and its shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from captum_norm import FrozenModel
from captum_norm.linear import Conventions, NotFrozenError
from captum_norm.linear.backward import BackwardRun
from tests.linear.perceptron import Perceptron, contributions


class Odd(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner = Perceptron(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_an_unknown_operation_is_refused_by_name_and_module(x):
    with pytest.raises(NotFrozenError, match=r"operation 'special_i0e?' in 'inner' \(Perceptron\) on \(2, 3, 6\)"):
        contributions(Odd(torch.special.i0), x)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.index_fill(1, torch.tensor([0]), 2.0), "index_fill"),
        (lambda x: F.bilinear(x, x, torch.ones(2, 6, 6).double()), "bilinear"),
        (lambda x: torch.einsum("bpf,bpf,bpf->bpf", x, x + 1, 2 * x), "einsum"),
    ],
    ids=["index_fill", "bilinear", "a product of three"],
)
def test_operations_that_are_known_and_have_no_linear_form_are_refused_by_name(function, name, x):
    with pytest.raises(NotFrozenError, match=rf"operation '{name}' in 'inner' \(Perceptron\)"):
        contributions(Odd(function), x)


def test_an_unknown_operation_that_gives_out_no_numbers_passes(x):
    """Where tokens are is no number: routing by an operation that nobody knows is held fixed."""
    routed = Perceptron(lambda x: x * torch.signbit(x))
    assert FrozenModel(routed, x).check().sum < 1e-13


def test_a_store_of_facts_is_empty_when_a_run_is_over(x):
    run = BackwardRun(Conventions(), starts=[(0, 0)])
    layer = nn.Linear(4, 4).double()
    with run.running():
        y = torch.relu(layer(x))
        assert y in run.known
    assert y not in run.known
