"""A norm is split over what the values were made from, exactly: with the bias share it is the norm again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_norm.functional import input_split, summed_norms, value_gradients

close = torch.testing.assert_close


def attention(
    batch: int = 2, head: int = 3, query: int = 4, key: int = 5, head_dim: int = 2, model: int = 6, feature: int = 7
) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    sizes = {
        "weights": (batch, head, query, key),
        "inputs": (batch, key, feature),
        "W_V": (head, feature, head_dim),
        "b_V": (head, head_dim),
        "W_O": (head, head_dim, model),
    }
    return {name: torch.randn(*shape, generator=rng, dtype=torch.float64) for name, shape in sizes.items()}


def values_of(inputs: Tensor, W_V: Tensor, b_V: Tensor) -> Tensor:
    return torch.einsum("bkc,hce->bhke", inputs, W_V) + b_V[:, None]


def contributions(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """sum_h alpha f(x), one vector for each pair: (batch, query, key, model)."""
    mixed = weights[..., None] * values[:, :, None]
    return torch.einsum("bhqke,hed->bqkd", mixed if gate is None else mixed * gate[:, :, :, None], W_O)


def test_a_case_solved_by_hand():
    """x = (1, 2) reads W_V = 2 and b_V = (1, 0): f = (3, 4), 5 long; half of it is added."""
    split, bias = input_split(
        torch.tensor([[[[0.5]]]]), torch.tensor([[[1.0, 2.0]]]), 2 * torch.eye(2)[None], torch.tensor([[1.0, 0.0]]),
        torch.eye(2)[None],
    )  # fmt: skip
    close(split, torch.tensor([[[0.6, 1.6]]]))  # 0.5 * (3/5 * 2, 4/5 * 4)
    close(bias, torch.tensor([0.3]))  # 0.5 * 3/5 * 1
    close(split.sum() + bias, torch.tensor([2.5]))


def test_it_is_the_definition():
    given = attention()
    values = values_of(given["inputs"], given["W_V"], given["b_V"])
    y = contributions(given["weights"], values, given["W_O"])
    unit = y / y.norm(dim=-1, keepdim=True)
    image = torch.einsum("bhqk,hce,hed->bqkcd", given["weights"], given["W_V"], given["W_O"])  # dy / dx
    expected = given["inputs"] * torch.einsum("bqkcd,bqkd->bkc", image, unit)
    of_bias = torch.einsum("bhqk,he,hed,bqkd->b", given["weights"], given["b_V"], given["W_O"], unit)
    split, bias = input_split(**given)
    close(split, expected)
    close(bias, of_bias)


@pytest.mark.parametrize("last", [None, 1, 2])
def test_it_is_autograds_gradient(last):
    given = attention()
    gate = None if last is None else torch.randn(2, 3, 4, last, dtype=torch.float64)
    values = values_of(given["inputs"], given["W_V"], given["b_V"]).requires_grad_()
    norms = contributions(given["weights"], values, given["W_O"], gate).norm(dim=-1).sum()
    (expected,) = torch.autograd.grad(norms, values)
    close(value_gradients(given["weights"], values.detach(), given["W_O"], gate), expected)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_split_and_bias_share_add_up_to_the_norms(batch, head, query, key, head_dim, model):
    given = attention(batch, head, query, key, head_dim, model)
    split, bias = input_split(**given)
    values = values_of(given["inputs"], given["W_V"], given["b_V"])
    norms = summed_norms(given["weights"], values, given["W_O"])
    close(split.sum((1, 2)) + bias, norms.sum((1, 2)))


def test_each_input_gets_what_its_own_norm_is_without_a_bias():
    given = attention()
    given["b_V"] = torch.zeros_like(given["b_V"])
    split, bias = input_split(**given)
    norms = summed_norms(given["weights"], values_of(given["inputs"], given["W_V"], given["b_V"]), given["W_O"])
    close(split.sum(-1), norms.sum(1))
    assert (bias == 0).all()


def test_rotating_the_output_changes_nothing():
    given = attention()
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    close(input_split(**given | {"W_O": given["W_O"] @ rotation}), input_split(**given))


def test_heads_that_cancel_leave_nothing_to_split():
    values = torch.randn(1, 1, 3, 4).expand(1, 2, 3, 4)
    W_O = torch.randn(1, 4, 5) * torch.tensor([1.0, -1.0])[:, None, None]
    assert (value_gradients(torch.full((1, 2, 2, 3), 0.5), values, W_O) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_gives_float32(dtype):
    given = {name: tensor.to(dtype) for name, tensor in attention().items()}
    split, bias = input_split(**given)
    assert split.dtype == bias.dtype == torch.float32
    exact = input_split(**{name: tensor.double() for name, tensor in given.items()})
    close(split.double(), exact[0], rtol=1e-6, atol=1e-6)


def test_sizes_that_disagree_are_named():
    with pytest.raises(ValueError, match="input_split: head is 3 in weights but 2 in b_V"):
        input_split(**attention() | {"b_V": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="value_gradients: key is 5 in weights but 4 in values"):
        value_gradients(torch.ones(1, 2, 3, 5), torch.ones(1, 2, 4, 6), torch.ones(2, 6, 12))
    with pytest.raises(ValueError, match="value_gradients: weights is not finite"):
        value_gradients(torch.full((1, 1, 1, 1), torch.nan), torch.ones(1, 1, 1, 2), torch.ones(1, 2, 2))
