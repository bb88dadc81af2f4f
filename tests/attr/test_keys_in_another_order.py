"""Attention does not mind in which order its keys stand, so no answer may; and keys need not be the queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import captum_norm
from captum_norm import InexactCaptureError

HEADS, WIDTH, LENGTH = 2, 8, 5
ORDER = torch.tensor([3, 0, 4, 1, 2])
ORDERS = {
    "rolled": lambda x: x.roll(1, 1),
    "turned round": lambda x: x.flip(1),
    "by an index": lambda x: x[:, ORDER],
    "by rows": lambda x: torch.stack([x[:, i] for i in ORDER.tolist()], 1),
}
COMPOSING = ("AttentionRollout", "AttentionFlow", "GlobEnc", "ALTI", "ValueZeroing", "AttentionRelevance")
METHODS = ("AttentionNorm", "AttentionWeights", "AttentionBlockNorm", "InformationFlowRoutes", "DecompX", *COMPOSING)


class Layer(nn.Module):
    """Post-norm attention whose keys and values are made of rows in an order of their own."""

    def __init__(self, ordered) -> None:
        super().__init__()
        self.ordered = ordered
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        context = self.ordered(x)
        q, k, v = (
            one(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for one, y in ((self.q, x), (self.k, context), (self.v, context))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = self.norm(x + self.o(mixed.transpose(1, 2).flatten(2)))
        return self.second_norm(x + self.feed_forward(x))


class Model(nn.Module):
    def __init__(self, *orders) -> None:
        super().__init__()
        self.layers, self.classes = nn.ModuleList(map(Layer, orders)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.classes(x[:, 0])


def scores(method: str, *orders) -> Tensor:
    torch.manual_seed(0)
    model, x = Model(*orders).eval(), torch.randn(2, LENGTH, WIDTH)
    return getattr(captum_norm, method)(model).attribute(x, target=1)


def in_place(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("ordered", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_keys_changes_no_answer(method, ordered):
    plain = scores(method, in_place, in_place)
    assert torch.allclose(scores(method, ordered, ordered), plain, atol=1e-5)
    assert torch.allclose(scores(method, in_place, ordered), plain, atol=1e-5)


@pytest.mark.parametrize("method", [*COMPOSING, "AttentionBlockNorm", "InformationFlowRoutes"])
def test_keys_that_are_not_the_queries_are_refused_where_a_query_is_to_be_its_own_key(method):
    """The keys of the tokens before: the last token is none of them."""

    def before(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, 0))[:, :-1]

    with pytest.raises((ValueError, InexactCaptureError), match="queries"):
        scores(method, before, before)
    assert scores("AttentionNorm", before, before).shape == (2, LENGTH, WIDTH)
