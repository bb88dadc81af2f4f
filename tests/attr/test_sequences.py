"""Tokens that one call hides and another one looks at are real, whichever comes first."""

import pytest
import torch
from torch import nn

from captum_norm import AttentionBlockNorm, AttentionFlow, AttentionNorm, AttentionRollout, attention_maps
from captum_norm.attr._sequences import RealPositions
from captum_norm.capture import Positions
from captum_norm.maps import certified

close = torch.testing.assert_close
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
SOME = torch.tensor([[1, 0, 1, 1, 0, 1]]).bool()
WITHOUT_THE_LAST = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()


class Layer(nn.Module):
    """Attention by hand, or by the kernel, with spare slots behind the keys."""

    def __init__(self, fused, room):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.norm, self.fused, self.room = nn.LayerNorm(16), fused, room

    def forward(self, x, seen):
        q, k, v = (f(self.norm(x)).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.room:
            k, v = (nn.functional.pad(one, (0, 0, 0, self.room)) for one in (k, v))
            seen = nn.functional.pad(torch.ones(6, 6).bool() if seen is None else seen, (0, self.room))
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            s = q @ k.mT / 2
            y = (s if seen is None else s.masked_fill(~seen, -torch.inf)).softmax(-1) @ v
        return x + self.o(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Layers of which each has a mask of its own, or none."""

    def __init__(self, masks, read=lambda x: x[:, 0], fused=False, room=0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layers = nn.Embedding(10, 16), nn.ModuleList(Layer(fused, room) for _ in masks)
        self.masks, self.read, self.classes = masks, read, nn.Linear(16, 3)
        self.eval()

    def forward(self, ids):
        x = self.embedding(ids)
        for layer, mask in zip(self.layers, self.masks, strict=True):
            x = layer(x, mask)
        return self.classes(self.read(x))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("masks", [(None, SOME, None), (SOME, None, None), (None, None, SOME)])
def test_keys_that_one_layer_alone_leaves_out_are_no_padding(masks, fused):
    model = Model(masks, fused=fused)
    norms = attention_maps(model, IDS).summed_norms
    for layer, expected in enumerate(norms):
        close(AttentionNorm(model, aggregate=layer).attribute(IDS), expected[:, 0], rtol=1e-4, atol=1e-5)
    method = AttentionRollout(model)
    layers = [(weights.mean(1) + torch.eye(6)) / 2 for weights in attention_maps(model, IDS).weights]
    close(method.attribute(IDS), (layers[2] @ layers[1] @ layers[0])[:, 0], rtol=1e-4, atol=1e-5)
    assert all(real is None or real.all() for real in method.report.real)


@pytest.mark.parametrize("masks", [(None, SOME), (SOME, None)])
@pytest.mark.parametrize(("read", "shares"), [
    (lambda x: x[:, 1], torch.eye(6)[1]), (lambda x: x.mean(1), torch.full((6,), 1 / 6)),
])  # fmt: skip
def test_rows_that_one_layer_alone_leaves_out_of_its_keys_are_explained_where_they_are_read(masks, read, shares):
    model = Model(masks, read)
    for layer, norms in enumerate(attention_maps(model, IDS).summed_norms):
        method = AttentionNorm(model, aggregate=layer)
        close(method.attribute(IDS), torch.einsum("q,bqk->bk", shares, norms), rtol=1e-4, atol=1e-5)
        assert method.report.row == "read"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("room", [0, 2])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_padding_is_not_real_for_a_call_that_does_not_look_ahead_of_the_text(order, room, fused):
    """Spare slots behind the keys are hidden from all, and no tokens: a call that hides nothing else hides no token."""
    looking_back = torch.ones(6, 6).tril().bool()
    masks = [looking_back & WITHOUT_THE_LAST[:, None, None], looking_back][order]
    model = Model(masks, lambda x: x, fused, room)
    method = AttentionNorm(model, aggregate=0)
    found = method.attribute(IDS, target=(3, 1))
    assert torch.equal(method.report.real[0][:, :6], WITHOUT_THE_LAST)
    close(found, attention_maps(model, IDS).summed_norms[0][:, 3, :6], rtol=1e-4, atol=1e-5)


def test_padding_that_another_call_looks_at_is_real():
    model = Model([WITHOUT_THE_LAST[:, None, None], None])
    method = AttentionNorm(model, aggregate=1)
    close(method.attribute(IDS), attention_maps(model, IDS).summed_norms[1][:, 0], rtol=1e-4, atol=1e-5)


def test_padding_is_not_real_for_a_window_that_does_not_reach_it():
    window = torch.block_diag(torch.ones(4, 4), torch.ones(2, 2)).bool()
    method = AttentionNorm(Model([window, WITHOUT_THE_LAST[:, None, None]]))
    method.attribute(IDS)
    assert torch.equal(method.report.real[0], WITHOUT_THE_LAST)


@pytest.mark.parametrize("method", [AttentionBlockNorm, AttentionFlow])
def test_it_is_no_matter_for_blocks_and_flow_either_which_call_comes_first(method):
    assert (method(Model([SOME, None])).attribute(IDS) > 0).all()


def test_a_certificate_counts_as_real_what_any_call_looks_at():
    assert all(real == count for real, count in certified(Model([SOME, None]), IDS).real.values())


def test_real_tokens_of_another_axis_are_those_of_the_same_numbers():
    known = RealPositions(torch.tensor([[True, False, True]]), Positions(0, torch.arange(3)))
    assert known.of(Positions(0, torch.tensor([2, 1]))).tolist() == [[True, False]]
    assert known.of(Positions(0, torch.tensor([-1, 0, 5]))).tolist() == [[False, True, False]]
