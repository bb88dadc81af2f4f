"""Exponentials of scores that meet the values before they are divided are attention: refused, never passed over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import captum_norm
from captum_norm import InexactCaptureError, attention_maps
from captum_norm.maps import certified

HEADS, WIDTH, LENGTH = 2, 8, 6


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / 2


def blocks_of_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The running maximum of FlashAttention, by hand."""
    mixed, total, largest = 0, 0, torch.full((*q.shape[:-1], 1), -torch.inf)
    for start in range(0, LENGTH, 2):
        s = scores(q, k[:, :, start : start + 2])
        now = torch.maximum(largest, s.amax(-1, keepdim=True))
        e, shrunk = (s - now).exp(), (largest - now).exp()
        mixed, total = mixed * shrunk + e @ v[:, :, start : start + 2], total * shrunk + e.sum(-1, keepdim=True)
        largest = now
    return mixed / total


def halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e[..., :3] @ v[:, :, :3] + e[..., 3:] @ v[:, :, 3:]) / e.sum(-1, keepdim=True)


def a_column_of_ones(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    both = scores(q, k).exp() @ torch.cat([v, torch.ones_like(v[..., :1])], -1)
    return both[..., :-1] / both[..., -1:]


def sparsemax(z: Tensor) -> Tensor:
    """Martins and Astudillo (2016)."""
    ordered = z.sort(-1, descending=True).values
    total, counts = ordered.cumsum(-1), torch.arange(1, z.shape[-1] + 1)
    k = (1 + counts * ordered > total).sum(-1, keepdim=True)
    return (z - (total.gather(-1, k - 1) - 1) / k).clamp(min=0)


def divided(e: Tensor, v: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True) @ v


NOT_READ = {
    "divided afterwards": lambda q, k, v: (e := scores(q, k).exp(), e @ v / e.sum(-1, keepdim=True))[1],
    "divided afterwards, by einsum": lambda q, k, v: (
        e := scores(q, k).exp(),
        torch.einsum("bhqk,bhkd->bhqd", e, v) / e.sum(-1, keepdim=True),
    )[1],
    "divided afterwards, heads side by side": lambda q, k, v: (
        e := scores(q, k).exp().flatten(0, 1),
        (torch.bmm(e, v.flatten(0, 1)) / e.sum(-1, keepdim=True)).unflatten(0, v.shape[:2]),
    )[1],
    "multiplied and summed": lambda q, k, v: (
        e := scores(q, k).exp(),
        (e[..., None] * v[:, :, None]).sum(3) / e.sum(-1, keepdim=True),
    )[1],
    "blocks of keys": blocks_of_keys,
    "halves of keys": halves,
    "as many keys as features": lambda q, k, v: (
        e := scores(q, k).exp(),
        (e[..., :4] @ v[:, :, :4] + torch.einsum("bhqk,bhkd->bhqd", e[..., 4:], v[:, :, 4:])) / e.sum(-1)[..., None],
    )[1],
    "a column of ones": a_column_of_ones,
    "to the base 2": lambda q, k, v: divided(torch.exp2(scores(q, k)), v),
    "a power": lambda q, k, v: divided(torch.pow(2.0, scores(q, k)), v),
    "a power of a number": lambda q, k, v: divided(3.0 ** scores(q, k), v),
    "to the base 2, divided afterwards": lambda q, k, v: (e := torch.exp2(scores(q, k)), e @ v / e.sum(-1)[..., None])[
        1
    ],
    "a power, divided afterwards": lambda q, k, v: (e := torch.pow(2.0, scores(q, k)), e @ v / e.sum(-1)[..., None])[1],
    "a power of a number, divided afterwards": lambda q, k, v: (e := 3.0 ** scores(q, k), e @ v / e.sum(-1)[..., None])[
        1
    ],
    "normalised by a function": lambda q, k, v: F.normalize(scores(q, k).exp(), p=1, dim=-1) @ v,
    "softmin": lambda q, k, v: F.softmin(-scores(q, k), -1) @ v,
}
NOT_READ |= {
    "sparsemax": lambda q, k, v: sparsemax(scores(q, k)) @ v,
    "an activation over its sum": lambda q, k, v: divided(F.softplus(scores(q, k)), v),
    "odds over their sum": lambda q, k, v: (p := scores(q, k).sigmoid(), divided(p / (1 - p), v))[1],
    "expm1": lambda q, k, v: divided(scores(q, k).expm1() + 1, v),
    "exponentials of a list": lambda q, k, v: divided(torch._foreach_exp([scores(q, k)])[0], v),
    "a sparse softmax": lambda q, k, v: (
        torch.stack(
            [
                torch.stack([torch.sparse.softmax(s.to_sparse(), 1).to_dense() for s in of_one])
                for of_one in scores(q, k)
            ]
        )
        @ v
    ),
    "torch's own kernel": lambda q, k, v: torch._scaled_dot_product_attention_math(q, k, v, scale=0.5)[0],
    "a kernel by its name": lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, scale=0.5
    )[0],
}
READ = {
    "exponentials over their sum": lambda q, k, v: divided(scores(q, k).exp(), v),
    "exponentials of a logarithm": lambda q, k, v: scores(q, k).log_softmax(-1).exp() @ v,
    "torch.special": lambda q, k, v: torch.special.softmax(scores(q, k), -1) @ v,
}


class Layer(nn.Module):
    def __init__(self, mixed) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mixed = mixed

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        return x + self.o(self.mixed(q, k, v).transpose(1, 2).flatten(2))


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).softmax(-1) @ v


def two_layers(mixed) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(Layer(mixed), Layer(plain)).eval(), torch.randn(2, LENGTH, WIDTH)


@pytest.mark.parametrize("mixed", NOT_READ.values(), ids=NOT_READ)
def test_a_softmax_that_is_divided_afterwards_or_not_seen_to_be_is_named(mixed):
    """The ordinary layer behind it would else be taken for all of the model's attention."""
    model, x = two_layers(mixed)
    what = (
        r"exponentials of its scores meet the values|softmax in '0', \(|multiplied with the values|"
        r"by no softmax that is followed, meet the values|does not return its weights; use scaled_dot_product_attention"
    )
    with pytest.raises(InexactCaptureError, match=what):
        attention_maps(model, x)
    for method in (captum_norm.AttentionNorm, captum_norm.AttentionWeights, captum_norm.AttentionRollout):
        with pytest.raises(InexactCaptureError, match=what):
            method(model).attribute(x)
    assert not certified(model, x).is_whole


@pytest.mark.parametrize(
    "name", [n for n in NOT_READ if not n.startswith(("to the base", "a power", "sparsemax", "an activation"))]
)
def test_they_are_the_same_softmax(name):
    (model, x), (expected, _) = two_layers(NOT_READ[name]), two_layers(plain)
    assert torch.allclose(model(x), expected(x), atol=1e-5)


@pytest.mark.parametrize("mixed", READ.values(), ids=READ)
def test_a_softmax_that_is_written_out_is_read(mixed):
    (model, x), (expected, _) = two_layers(mixed), two_layers(plain)
    assert torch.allclose(attention_maps(model, x).weights[0], attention_maps(expected, x).weights[0], atol=1e-6)


class Beside(nn.Module):
    def __init__(self, made) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return x + self.made(x)


@pytest.mark.parametrize(
    "made",
    [
        lambda x: x / (1 + (-x).exp()),
        lambda x: x * (x.exp() / x.exp().sum(-1, keepdim=True)),
        lambda x: torch.exp2(-x.square()),
        lambda x: torch.exp2(x) @ torch.eye(WIDTH),
    ],
    ids=["silu", "a gate over features", "a bell", "a map"],
)
def test_exponentials_that_meet_no_values_are_no_attention(made):
    model, x = two_layers(plain)
    model.insert(1, Beside(made))
    assert len(attention_maps(model, x).calls) == 2
    assert captum_norm.AttentionRollout(model).attribute(x).shape == x.shape


def test_exponentials_of_features_that_sum_positions_are_mixing_and_no_softmax():
    """Linear attention, as in Performers: no query's weights are ever made."""

    def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = k.exp()
        summed = torch.einsum("bhnd,bhne->bhde", k, v)
        return q.exp() @ summed / (q.exp() @ k.sum(2)[..., None])

    model, x = two_layers(linear_attention)
    maps = attention_maps(model, x)
    assert [call.name for call in maps.calls] == ["1"]
    with pytest.raises(ValueError, match="beside them positions are mixed by"):
        captum_norm.AttentionRollout(model).attribute(x)


def test_weights_of_scores_that_are_no_shares_are_mixing_and_no_softmax():
    """Retention, or a rectifier in the place of a softmax: rows of weights that add up to anything."""
    decay = torch.linspace(0, 1, LENGTH)
    decayed = (decay[:, None] - decay).tril()
    for function in (F.relu, torch.tanh, lambda s: s.tril(), lambda s: s * decayed.expand_as(s).exp()):
        model, x = two_layers(lambda q, k, v, function=function: function(scores(q, k)) @ v)
        assert [call.name for call in attention_maps(model, x).calls] == ["1"]
        with pytest.raises(ValueError, match="beside them positions are mixed by"):
            captum_norm.AttentionRollout(model).attribute(x)
