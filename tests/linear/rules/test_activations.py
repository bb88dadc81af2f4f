"""Activations: one line for each entry, however the function is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from captum_norm import FrozenModel
from tests.linear.perceptron import Perceptron, contributions

close = torch.testing.assert_close


def by_hand_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0))))


ACTIVATIONS = {
    "gelu": F.gelu,
    "relu": torch.relu,
    "relu in place": lambda x: F.relu(x.clone(), inplace=True),
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu by hand": by_hand_gelu,
    "erf by hand": lambda x: x * 0.5 * (1.0 + torch.erf(x / 2**0.5)),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "swish by hand": lambda x: x / (1 + torch.exp(-x)),
    "mish by hand": lambda x: x * torch.tanh(F.softplus(x)),
    "relu squared": lambda x: torch.relu(x).square(),
    "softcap": lambda x: 3.0 * torch.tanh(x / 3.0),
    "in place": lambda x: x.clone().mul_(2).clamp_(-1, 1),
}


@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_leaks_nothing_however_it_is_written(act, x):
    found = FrozenModel(Perceptron(act, bias=False), x).check()
    assert found.worst < 1e-14
    model = Perceptron(act)
    z = model.first(x)
    slope = (act(z) / z).detach()
    found = contributions(model, x)
    expected = torch.einsum("bpf,fd->bpd", slope * model.second.weight[-1], model.first.weight) * x
    close(found.vectors[:, -1], expected[:, -1].detach())
    assert (found.vectors[:, :-1] == 0).all()


@pytest.mark.parametrize("act", ["gelu", "silu", "tanh", "gelu by hand", "mish by hand", "relu squared"])
def test_the_tangent_is_the_gradient(act, x):
    """act'(z) everywhere: what is linear is the Jacobian, and its intercepts are biases."""
    model = Perceptron(ACTIVATIONS[act])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, -1, -1].sum(), leaf)
    found = contributions(model, x, activation="LA")
    close(found.vectors, x * gradient)
    assert FrozenModel(model, x, activation="LA").check().sum < 1e-14


def test_lines_of_a_relu_are_one_line(x):
    model = Perceptron(torch.relu)
    by_line = [contributions(model, x, activation=line).vectors for line in ("ZO", "LA", "ReLU")]
    close(by_line[0], by_line[1])
    close(by_line[0], by_line[2])
    off = contributions(Perceptron(F.gelu), x, activation="ReLU")
    assert off.error < 1e-14  # what gelu is beyond z counts as a bias


class Twice(torch.nn.Module):
    """An activation before and behind a linear map, in place or not, of what is live already."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.acts = torch.nn.SiLU(inplace), torch.nn.LeakyReLU(0.1, inplace), torch.nn.SiLU(inplace)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.acts[1](self.acts[0](self.first(x)))
        return self.acts[2](self.second(y))


@pytest.mark.parametrize("line", ["ZO", "LA", "ReLU"])
def test_activations_in_place_are_as_those_that_are_not(line, x):
    found, expected = (FrozenModel(Twice(inplace), x, activation=line) for inplace in (True, False))
    close(found.contributions((1, 2)).vectors, expected.contributions((1, 2)).vectors)
    assert found.contributions((1, 2)).error < 1e-14


class Narrower(Perceptron):
    """The first map is computed in more digits than what is made of it."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.double()).to(x.dtype)
        return torch.einsum("...f,df->...d", self.act(z) * z, self.second.weight.to(x.dtype))


@pytest.mark.parametrize("line", ["ZO", "LA", "ReLU"])
def test_the_line_of_an_activation_is_in_the_activation_s_own_format(line, x):
    """A sum of products takes operands of one format, as the model's own are."""
    narrow, wide = (contributions(Narrower(F.silu), inputs, activation=line) for inputs in (x.float(), x))
    close(narrow.vectors.double(), wide.vectors, rtol=1e-4, atol=1e-5)
