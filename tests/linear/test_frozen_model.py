"""A frozen model is the model at its own input, affine everywhere else, and leaks nothing into its constant."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from captum_norm import FrozenModel
from captum_norm.linear import NotFrozenError

from ..architectures import ARCHITECTURES, Architecture

close = torch.testing.assert_close
every_architecture = pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)


def tolerance(make: Architecture) -> float:
    return 3e-6 if make.only_float32 else 1e-6 if make.casts else 1e-11


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a model's largest stacks."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    return [layer for stack in stacks for layer in stack if sum(1 for _ in layer.parameters()) > 4]


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


def test_the_first_layers_input_holds_position_and_type_embeddings():
    make = ARCHITECTURES["BERT"]
    model = make.build()
    with torch.no_grad():
        hidden = model(**make.batch(), output_hidden_states=True).hidden_states
    close(FrozenModel(model, make.batch()).x, hidden[0])
    picture = ARCHITECTURES["ViT"]
    model = picture.build()
    with torch.no_grad():
        hidden = model(**picture.batch(), output_hidden_states=True).hidden_states
    close(FrozenModel(model, picture.batch()).x, hidden[0])  # the class token is one of its vectors


def test_an_encoder_decoder_has_two_sequences_unless_one_is_named():
    make = ARCHITECTURES["BART"]
    model = make.build()
    both = FrozenModel(model, make.batch())
    assert [tuple(x.shape) for x in both.x] == [(2, 6, 16), (2, 4, 16)]
    source = FrozenModel(model, make.batch(), of="input_ids")
    close(source.x, both.x[0])
    explained = (-1, 3)
    close(source.contributions(explained).vectors, both.contributions(explained).vectors[0])
    with pytest.raises(ValueError, match="no input 'hidden'; there are input_ids, decoder_input_ids"):
        FrozenModel(model, make.batch(), of="hidden")


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


def test_attention_is_the_sum_of_weighted_values():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.randn(1, 4, 8).double()
    parts, constant = FrozenModel(lambda x: attention(x, x, x)[0], x).decompose()
    _, weights = attention(x, x, x, average_attn_weights=False)
    W_V, b_V = attention.in_proj_weight[16:], attention.in_proj_bias[16:]
    W_O = attention.out_proj.weight.T.unflatten(0, (2, 4))
    values = (x @ W_V.T).unflatten(-1, (2, 4))
    close(parts[:, 0], torch.einsum("hqk,khe,hed->kqd", weights[0], values[0], W_O).detach())
    close(constant[0, 0], (b_V @ attention.out_proj.weight.T + attention.out_proj.bias).detach())


# ---- what is held fixed, one by one


def contributions(function: Any, x: Tensor, **conventions: Any) -> Any:
    """x (batch, position) or (batch, position, model); the first entry of the last position is explained."""
    frozen = FrozenModel(function, x, **conventions)
    return frozen.contributions(lambda y: y.flatten(1)[:, -1])


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


class Perceptron(nn.Module):
    """Two linear layers and a function between them."""

    def __init__(self, act: Any, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.act = nn.Linear(4, 6, bias), nn.Linear(6, 3, bias), act
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()


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


class Gated(nn.Module):
    """act(g x) * (u x), as in a gated feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.g, self.u = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.g(x)) * self.u(x)


def test_a_gated_activation_goes_half_to_each_factor_or_all_past_the_gate(x):
    model = Gated()
    g, u = model.g(x)[:, -1, -1].detach(), model.u(x)[:, -1, -1].detach()
    last = x[:, -1]
    through_u = F.silu(g)[:, None] * model.u.weight[-1].detach() * last
    through_g = (F.silu(g) / g * u)[:, None] * model.g.weight[-1].detach() * last
    close(contributions(model, x, product="gate").vectors[:, -1], through_u)
    close(contributions(model, x, product="half").vectors[:, -1], 0.5 * (through_u + through_g))
    assert FrozenModel(model, x, product="gate").check().worst < 1e-14


class Odd(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner = Perceptron(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_an_unknown_operation_is_refused_by_name_and_module(x):
    with pytest.raises(NotFrozenError, match=r"operation 'special_i0e?' in 'inner' \(Perceptron\) on \(2, 3, 6\)"):
        contributions(Odd(torch.special.i0), x)


def test_what_is_frozen_as_a_whole_shows_as_a_leak(x):
    found = FrozenModel(Perceptron(torch.sigmoid, bias=False), x).check()
    assert found.replay < 1e-14
    assert found.sum < 1e-14
    assert found.leak == pytest.approx(1)


def test_norms_in_training_and_dropped_weights_are_refused(x):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3)).double()
    with pytest.raises(NotFrozenError, match=r"'batch_norm'.*model\.eval\(\)"):
        contributions(model, x)
    assert FrozenModel(model.eval(), x).check().worst < 1e-14
    with pytest.raises(NotFrozenError, match=r"scaled_dot_product_attention.*model\.eval\(\)"):
        contributions(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), x)


NORMS = {
    "layer": nn.LayerNorm(4),
    "layer without": nn.LayerNorm(4, elementwise_affine=False),
    "rms": nn.RMSNorm(4),
    "group": nn.GroupNorm(3, 3),
    "length": lambda x: F.normalize(x, dim=-1),
    "by hand": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "rms by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_are_linear_once_their_divisor_is_fixed(norm, x):
    if isinstance(norm, nn.Module):
        norm = copy.deepcopy(norm).double()
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    model = nn.Sequential(nn.Linear(4, 4), norm).double() if isinstance(norm, nn.Module) else norm
    found = FrozenModel(model, x).check()
    assert found.worst < 1e-12
    assert contributions(model, x).error < 1e-14


def scattered(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    return out.index_add_(1, torch.tensor([0, 2]), x[:, :2]) + 1


MOVES = {
    "writing into a buffer": scattered,
    "cat and chunk": lambda x: torch.cat(torch.cat([x, torch.ones_like(x)], -1).chunk(2, -1), 1)[:, ::2].flip(1),
    "where": lambda x: torch.where(torch.tensor([True, False, True, True]), x, torch.tensor(2.0).double()),
    "masked": lambda x: x.masked_fill(torch.tensor([True, False, True, False]), 5.0),
    "einsum with itself": lambda x: torch.einsum("bqd,bkd->bqk", x, x) @ x,
    "added in place": lambda x: x.clone().add_(x, alpha=2).sub_(3),
    "convolution": nn.Conv1d(3, 3, 3, padding=1).double(),
    "mean": lambda x: x.mean(1, keepdim=True).expand_as(x) - 7 + 1 / x.detach(),
}


@pytest.mark.parametrize("function", MOVES.values(), ids=MOVES)
def test_moves_sums_and_products(function, x):
    frozen = FrozenModel(function, x)
    found = frozen.check()
    assert max(found.replay, found.sum, found.affinity) < 1e-13
    for entry in range(4):
        assert frozen.contributions((0, entry)).error < 1e-14


# ---- the model and the caller


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


def test_a_layer_that_does_not_run_is_named():
    make = ARCHITECTURES["BERT"]
    with pytest.raises(ValueError, match="layer Linear does not run in this model"):
        FrozenModel(make.build(), make.batch(), layer=nn.Linear(2, 2))


def test_targets_that_leave_no_number_are_refused(x):
    frozen = FrozenModel(Perceptron(F.gelu), x)
    with pytest.raises(ValueError, match=r"one number per example.*\(2, 3, 3\).*\(2, 3\)"):
        frozen.contributions(1)
    with pytest.raises(NotFrozenError, match="does not depend on the input vectors"):
        frozen.contributions(lambda y: y.detach()[:, 0, 0].softmax(0))


def test_unknown_conventions_are_refused(x):
    with pytest.raises(ValueError, match="activation should be one of 'ZO', 'LA', 'ReLU', got 'GeLU'"):
        FrozenModel(nn.Identity(), x, activation="GeLU")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="product should be one of 'half', 'gate', got 'both'"):
        FrozenModel(nn.Identity(), x, product="both")  # type: ignore[arg-type]
