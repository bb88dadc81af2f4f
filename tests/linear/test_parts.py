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


def memory_for(values: Tensor, more: int = 0) -> Tensor:
    return torch.zeros(len(values), HEADS, values.shape[2] + more, SIZE, dtype=values.dtype)


def places_of(values: Tensor) -> Tensor:
    return torch.arange(values.shape[2])[:, None].expand_as(values)


def copied_by_an_index(values: Tensor) -> Tensor:
    return memory_for(values).index_copy(2, torch.arange(values.shape[2]), values)


def kept_in_memory_with_room(values: Tensor) -> Tensor:
    memory = memory_for(values, more=3)
    memory.index_copy_(2, torch.arange(values.shape[2]), values)
    return memory[:, :, : values.shape[2]]


def set_by_an_index(values: Tensor) -> Tensor:
    memory = memory_for(values)
    memory[:, :, torch.arange(values.shape[2])] = values
    return memory


def set_one_after_the_other(values: Tensor) -> Tensor:
    memory = torch.full_like(memory_for(values), torch.nan)
    for n, value in enumerate(values.unbind(2)):
        memory[:, :, n] = value
    return memory


def copied(values: Tensor) -> Tensor:
    return memory_for(values).copy_(values)


def put(values: Tensor) -> Tensor:
    return memory_for(values).index_put((torch.arange(len(values)),), values)


def added_to_zeros_by_an_index(values: Tensor) -> Tensor:
    return memory_for(values).index_add(2, torch.arange(values.shape[2]), values)


def scattered(values: Tensor) -> Tensor:
    return memory_for(values).scatter(2, places_of(values), values)


def added_to_zeros(values: Tensor) -> Tensor:
    return memory_for(values).scatter_add(2, places_of(values), values)


def scattered_by_a_mask(values: Tensor) -> Tensor:
    return memory_for(values).masked_scatter(torch.ones_like(values, dtype=torch.bool), values)


def gathered(values: Tensor) -> Tensor:
    return values.gather(2, places_of(values))


def chosen_everywhere(values: Tensor) -> Tensor:
    return torch.where(torch.ones(len(values), 1, 1, 1).bool(), values, 5.0)


def masked_nowhere(values: Tensor) -> Tensor:
    return values.masked_fill(torch.zeros(len(values), 1, 1, 1).bool(), 5.0)


def times_one(values: Tensor) -> Tensor:
    return values * torch.ones(values.shape[2], 1).to(values) / 1.0


def plus_zero(values: Tensor) -> Tensor:
    return values + memory_for(values) - 0


def chosen_by_a_matrix(values: Tensor) -> Tensor:
    return torch.einsum("hg,bgke->bhke", torch.eye(HEADS).to(values), values)


def multiplied_by_ones(values: Tensor) -> Tensor:
    return linear(values, torch.eye(SIZE).to(values)) @ torch.eye(SIZE).to(values)


MOVED = [
    copied_by_an_index,
    kept_in_memory_with_room,
    set_by_an_index,
    set_one_after_the_other,
    copied,
    put,
    added_to_zeros_by_an_index,
    scattered,
    added_to_zeros,
    scattered_by_a_mask,
    gathered,
    chosen_everywhere,
    masked_nowhere,
    times_one,
    plus_zero,
    chosen_by_a_matrix,
    multiplied_by_ones,
]


@pytest.mark.parametrize("bias", ["token", "absdot", "norm", "abssim", "dot"])
@pytest.mark.parametrize("moved", MOVED)
def test_values_that_are_written_chosen_or_multiplied_by_one_keep_their_bias(moved, bias):
    one = Model(plain).double().eval()
    other = Model(lambda layer, x, weights, values: plain(layer, x, weights, moved(values))).double().eval()
    close(one(IDS), other(IDS))
    close(DecompX(other, bias=bias).attribute(IDS, target=1), DecompX(one, bias=bias).attribute(IDS, target=1))


def doubled(values: Tensor) -> Tensor:
    return values.index_add(2, torch.arange(values.shape[2]), values)


def doubled_by_a_matrix(values: Tensor) -> Tensor:
    return torch.einsum("hg,bgke->bhke", torch.tensor([[1.0, 1.0], [1.0, 1.0]]).to(values), values)


def summed(values: Tensor) -> Tensor:
    return values.sum(1, keepdim=True).expand_as(values)


def combined_by_a_matrix(values: Tensor) -> Tensor:
    return torch.einsum("hg,bgke->bhke", torch.tensor([[2.0, -1.0], [-1.0, 2.0]]).to(values), values)


def combined(values: Tensor) -> Tensor:
    return 2 * values - values.flip(1)


def with_another_bias(values: Tensor) -> Tensor:
    return values + torch.arange(SIZE).to(values)


def scaled_with_another_bias(values: Tensor) -> Tensor:
    return 2 * (0.5 * values) + torch.arange(SIZE).to(values)


def doubled_in_halves(values: Tensor) -> Tensor:
    index = torch.arange(values.shape[2]).repeat(2)
    return memory_for(values).index_add(2, index, torch.cat([values, values], 2), alpha=0.5)


def halved_and_doubled(values: Tensor) -> Tensor:
    return 2 * (0.5 * values)


ADDING = [
    (doubled, lambda values: 2 * values),
    (doubled_by_a_matrix, summed),
    (lambda values: values + values.flip(1), summed),
    (combined_by_a_matrix, combined),
    (with_another_bias, scaled_with_another_bias),
    (doubled_in_halves, halved_and_doubled),
]


@pytest.mark.parametrize(("one", "other"), ADDING)
def test_what_adds_up_entries_shares_their_bias_before_however_it_is_written(one, other):
    for bias in ("absdot", "norm"):
        models = [
            Model(lambda layer, x, weights, values, end=end: plain(layer, x, weights, end(values))).double().eval()
            for end in (one, other)
        ]
        close(models[0](IDS), models[1](IDS))
        first, second = (DecompX(model, bias=bias).attribute(IDS, target=1) for model in models)
        close(first, second)


def kept_where_constants_were(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """What is written beside constants, which are then written over, one after the other."""
    memory = torch.cat([layer.learned[0, 0].detach().flatten()[None, None].expand_as(x)] * 2, -1).clone()
    memory[..., :WIDTH] = layer.o(x)
    memory[..., :WIDTH] = layer.o(x)
    return x + linear(memory, torch.cat([layer.o.weight, layer.q.weight], 1)).tanh()


def joined_where_constants_were(layer: Layer, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    beside = layer.learned[0, 0].detach().flatten().expand_as(x)
    return x + linear(torch.cat([layer.o(x), beside], -1), torch.cat([layer.o.weight, layer.q.weight], 1)).tanh()


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
    (kept_where_constants_were, joined_where_constants_were),
]


@pytest.mark.parametrize(("one", "other"), BETWEEN)
def test_what_stands_between_attention_and_the_residual_shares_alike_in_each_of_its_forms(one, other):
    for bias in ("absdot", "norm"):
        models = [Model(end).double().eval() for end in (one, other)]
        close(models[0](IDS), models[1](IDS))
        first, second = (DecompX(model, bias=bias).attribute(IDS, target=1) for model in models)
        close(first, second)
