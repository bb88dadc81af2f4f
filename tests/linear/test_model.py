"""A frozen model is the model at its own input, affine everywhere else, and leaks nothing into its constant."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from captum_norm import FrozenModel
from captum_norm.linear import NotFrozenError
from tests.architectures import ARCHITECTURES, Architecture
from tests.linear.perceptron import Perceptron

close = torch.testing.assert_close
every_architecture = pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)


def tolerance(make: Architecture) -> float:
    return 3e-6 if make.only_float32 else 1e-6 if make.casts else 1e-11


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a model's largest stacks."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    return [layer for stack in stacks for layer in stack if sum(1 for _ in layer.parameters()) > 4]


@pytest.mark.wide(4)
@every_architecture
def test_every_architecture_passes_the_four_tests(make):
    found = FrozenModel(make.build(), make.batch()).check()
    assert found.worst < tolerance(make)
    assert found.leak is not None


@every_architecture
def test_every_layer_passes_the_four_tests(make):
    model = make.build()
    layers = blocks(model)
    assert layers
    for layer in (layers[0], layers[-1]):
        frozen = FrozenModel(model, make.batch(), layer=layer)
        assert frozen.check().worst < tolerance(make)


@every_architecture
def test_forwards_and_backwards_are_one_map(make):
    """The parts carried forwards to the number explained are what one backward pass gives."""
    frozen = FrozenModel(make.build(), make.batch())
    found = frozen.contributions((-1, 3) if make.rows else 3)
    parts, constant = frozen.decompose()
    several = isinstance(parts, tuple)
    for forwards, backwards in zip(*((parts, found.vectors) if several else ((parts,), (found.vectors,))), strict=True):
        explained = torch.stack([make.explained(part) for part in forwards], dim=1)
        close(explained, backwards.sum(-1), rtol=tolerance(make), atol=tolerance(make))
    close(make.explained(constant), found.bias, rtol=tolerance(make), atol=tolerance(make))
    close(found.output, make.explained(frozen.y), rtol=tolerance(make), atol=tolerance(make))
    assert found.error < tolerance(make)


def test_the_map_at_other_inputs():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x, others = torch.randn(2, 3, 8).double(), torch.randn(4, 2, 3, 8).double()
    frozen = FrozenModel(layer, x)
    close(frozen(others), torch.stack([frozen(other[None])[0] for other in others]))
    close(frozen(others) - frozen.constant(), frozen.linear(others))
    mixed = 0.3 * others[0] + 0.7 * others[1]
    close(frozen(mixed[None])[0], 0.3 * frozen(others[:1])[0] + 0.7 * frozen(others[1:2])[0])
    with pytest.raises(ValueError, match=r"should be \(4, 2, 3, 8\), got \(4, 2, 3, 5\)"):
        frozen(others[..., :5])
    with pytest.raises(ValueError, match="has 1 inputs, got 2"):
        frozen(others, others)


def test_the_model_is_as_it_was():
    make = ARCHITECTURES["BERT"]
    model = make.build().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.classifier.weight.requires_grad_(False)
    model.classifier.bias.grad = torch.ones_like(model.classifier.bias)
    before = {name: (p.clone(), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    modes, state = [m.training for m in model.modules()], (torch.get_rng_state(), random.getstate())
    expected = model(**make.batch()).logits
    frozen = FrozenModel(model, make.batch())
    assert torch.equal(frozen.y, expected)
    outputs: list[Tensor] = []
    frozen.contributions(lambda y: outputs.append(y.detach().clone()) or y[:, 0])  # type: ignore[func-returns-value]
    frozen.decompose()
    assert torch.equal(outputs[0], expected)
    for name, parameter in model.named_parameters():
        value, requires_grad, grad = before[name]
        assert torch.equal(parameter, value)
        assert (parameter.requires_grad, parameter.grad is grad) == (requires_grad, True)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_targets_that_leave_no_number_are_refused(x):
    frozen = FrozenModel(Perceptron(F.gelu), x)
    with pytest.raises(ValueError, match=r"one number per example.*\(2, 3, 3\).*\(2, 3\)"):
        frozen.contributions(1)
    with pytest.raises(NotFrozenError, match="does not depend on the input vectors"):
        frozen.contributions(lambda y: y.detach()[:, 0, 0].softmax(0))
