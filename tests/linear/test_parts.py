"""Biases of attention that are shared among parts: held back until the residual, however the model is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from captum_norm import DecompX

close = torch.testing.assert_close
IDS = torch.tensor([[3, 7, 1, 9, 4, 12], [2, 2, 5, 8, 1, 0]])
HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE


class Layer(nn.Module):
    """x + attention(norm(x)), of which ``end`` makes the output of x, weights and values."""

    def __init__(self, end: Callable[[Layer, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.end = end
        self.norm, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.learned = nn.Parameter(torch.empty(2, HEADS, 2, SIZE))  # keys and values of two more

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        keys = torch.cat([self.heads(self.k(y)), self.learned[0].expand(len(x), -1, -1, -1)], 2)
        return self.end(self, x, (self.heads(self.q(y)) @ keys.mT / 2).softmax(-1), self.heads(self.v(y)))


class Model(nn.Module):
    """A plain layer, in which values are the tokens', and one that is written as ``end`` has it."""

    def __init__(self, end: Callable[[Layer, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.Sequential(Layer(plain), Layer(end))
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids))[:, 0])


def joined(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).flatten(2)


def mixed(layer: Layer, weights: Tensor, values: Tensor) -> Tensor:
    return weights @ torch.cat([values, layer.learned[1].expand(len(values), -1, -1, -1)], 2)


def plain(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    return x + layer.o(joined(mixed(layer, weights, values)))


def two_products(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    keys = values.shape[2]
    return x + layer.o(joined(weights[..., :keys] @ values + weights[..., keys:] @ layer.learned[1]))


def side_by_side(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    return x + layer.o(torch.cat(mixed(layer, weights, values).unbind(1), -1))


def stacked(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    return x + layer.o(torch.stack(mixed(layer, weights, values).unbind(1), 2).flatten(2))


def written_into_memory(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    memory = torch.zeros_like(x)
    for n, head in enumerate(mixed(layer, weights, values).unbind(1)):
        memory[..., SIZE * n : SIZE * (n + 1)] = head
    return x + layer.o(memory)


def by_head(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    of_heads = zip(mixed(layer, weights, values).unbind(1), layer.o.weight.split(SIZE, 1), strict=True)
    return x + (sum(linear(head, W) for head, W in of_heads) + layer.o.bias)


def entry_by_entry(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    products = joined(mixed(layer, weights, values))[:, :, None] * layer.o.weight
    return x + (products.sum(-1) + layer.o.bias)


def subtracted(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    return x - linear(joined(mixed(layer, weights, values)), -layer.o.weight, -layer.o.bias)


def added_by_the_product(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    rows = joined(mixed(layer, weights, values)).flatten(0, 1)
    return torch.addmm(x.flatten(0, 1) + layer.o.bias, rows, layer.o.weight.T).view_as(x)


def in_the_shape_of_another(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    rows = joined(mixed(layer, weights, values)).flatten(0, 1)
    return x + torch.addmm(layer.o.bias, rows, layer.o.weight.T).view_as(x)


FORMS = [
    two_products,
    side_by_side,
    stacked,
    written_into_memory,
    by_head,
    entry_by_entry,
    subtracted,
    added_by_the_product,
    in_the_shape_of_another,
]


@pytest.mark.parametrize("bias", ["token", "absdot", "norm", "abssim", "dot"])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_attention_written_otherwise_has_the_same_shares(form, bias):
    one, other = Model(plain).double().eval(), Model(form).double().eval()
    close(one(IDS), other(IDS))
    if form is added_by_the_product:  # its b_O is the residual's, and shared there
        one.layers[1].o.bias.data.zero_()
        other.layers[1].o.bias.data.zero_()
    expected = DecompX(one, bias=bias).attribute(IDS, target=1, return_convergence_delta=True)
    close(DecompX(other, bias=bias).attribute(IDS, target=1, return_convergence_delta=True), expected)


def normed(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    return x + layer.behind(layer.o(joined(mixed(layer, weights, values))))


def normed_by_hand(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    y = layer.o(joined(mixed(layer, weights, values)))
    centred = y - y.mean(-1, keepdim=True)
    scale = (y.var(-1, correction=0, keepdim=True) + layer.behind.eps).rsqrt()
    return x + (centred * scale * layer.behind.weight + layer.behind.bias)


def squashed(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    heads = mixed(layer, weights, values).tanh()
    return x + layer.o(joined(heads))


def squashed_side_by_side(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    heads = torch.cat(mixed(layer, weights, values).unbind(1), -1).tanh()
    return x + layer.o(heads)


def activated(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    return x + layer.behind(layer.o(joined(mixed(layer, weights, values))).tanh())


def shared_and_activated(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """What is added is no residual, but has biases shared as one."""
    return x + layer.behind((layer.o(joined(mixed(layer, weights, values))) + 0 * x).tanh())


def beside_a_constant(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    W = torch.cat([layer.o.weight, layer.q.weight], 1)
    return x + linear(torch.cat([x, layer.learned[0, 0].flatten().expand_as(x)], -1), W).tanh()


def padded_and_a_constant(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    W = torch.cat([layer.o.weight, layer.q.weight], 1)
    return x + linear(pad(x, (0, WIDTH)) + pad(layer.learned[0, 0].flatten(), (WIDTH, 0)), W).tanh()


BETWEEN = [
    (normed, normed_by_hand),
    (squashed, squashed_side_by_side),
    (activated, shared_and_activated),
    (beside_a_constant, padded_and_a_constant),
]


@pytest.mark.parametrize(("one", "other"), BETWEEN)
def test_what_stands_between_attention_and_the_residual_shares_alike_in_each_of_its_forms(one, other):
    for bias in ("absdot", "norm"):
        models = [Model(end).double().eval() for end in (one, other)]
        close(models[0](IDS), models[1](IDS))
        first, second = (DecompX(model, bias=bias).attribute(IDS, target=1) for model in models)
        close(first, second)
