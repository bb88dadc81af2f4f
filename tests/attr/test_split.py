"""The norms of a layer, split over the vectors that went into it, on any architecture: nothing is lost."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_norm import attention_layers
from captum_norm.attr import LayerAttentionNorm, LayerAttentionWeights
from captum_norm.forward import HFForward
from captum_norm.functional import input_split

from ..architectures import ARCHITECTURES
from .models import HEADS, WIDTH, ids, tiny

close = torch.testing.assert_close
every_architecture = pytest.mark.parametrize("one", ARCHITECTURES.values(), ids=lambda one: one.name)

TOKENS = ids(3, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])


def splitting(forward: Any, layer: Any) -> LayerAttentionNorm:
    return LayerAttentionNorm(forward, layer, attribute_to_layer_input=True)


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs() / expected).max())


@pytest.mark.wide(4)
@every_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_split_and_delta_add_up_to_the_norms_of_the_row(one, dtype):
    if dtype == torch.float64 and one.only_float32:
        pytest.skip("computes in float32 alone")
    model, batch = one.build().to(dtype), one.batch(dtype)

    def forward(*inputs: Tensor) -> Any:
        return model(**dict(zip(batch, inputs, strict=True)))

    layers = [call.module for call in attention_layers(model, batch)]
    inputs = tuple(batch.values())
    maps = LayerAttentionNorm(forward, layers).attribute(inputs, heads="sum")
    splits = splitting(forward, layers).attribute(inputs, position=-1, return_convergence_delta=True)
    assert len(splits) == len(layers) >= 2
    for (split, delta), norms in zip(splits, maps, strict=True):
        assert split.shape == (2, norms.shape[2], 16)
        assert delta.shape == (2,)
        assert split.dtype == delta.dtype == dtype
        found = split.sum((1, 2)) + delta
        assert relative(found, norms[:, -1].sum(-1)) < (1e-6 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_the_split_by_hand(attention):
    """BERT, whose W_V and b_V can be looked up, against the formula."""
    model = tiny("Bert", attention)
    layer = model.bert.encoder.layer[1].attention
    given: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _m, args: given.append(args[0].detach()))
    weights = LayerAttentionWeights(model, layer).attribute(TOKENS)
    handle.remove()
    value, dense = layer.self.value, layer.output.dense
    expected, bias = input_split(
        weights[:, :, 2:3],
        given[0],
        value.weight.detach().T.unflatten(1, (HEADS, -1)).transpose(0, 1),
        value.bias.detach().unflatten(0, (HEADS, -1)),
        dense.weight.detach().T.unflatten(0, (HEADS, -1)),
    )
    split, delta = splitting(model, layer).attribute(TOKENS, position=2, return_convergence_delta=True)
    close(split, expected, rtol=1e-4, atol=1e-6)
    close(delta, bias, rtol=1e-4, atol=1e-6)


def test_cross_attention_is_split_over_the_encoders_output():
    model = tiny("Bart")
    layer = model.model.decoder.layers[1].encoder_attn
    source, prefix = ids(2, 7), ids(2, 4, seed=1)

    def forward(source: Tensor, prefix: Tensor) -> Any:
        return model(input_ids=source, decoder_input_ids=prefix)

    split, delta = splitting(forward, layer).attribute((source, prefix), return_convergence_delta=True)
    assert split.shape == (2, 7, WIDTH)
    norms = LayerAttentionNorm(forward, layer).attribute((source, prefix), heads="sum")
    assert relative(split.sum((1, 2)) + delta, norms[:, -1].sum(-1)) < 1e-6  # the decoder is causal: its last row
    encoded = model.get_encoder()(source).last_hidden_state.detach()
    assert ((split == 0) == (encoded == 0)).all()


def test_keys_out_of_sight_get_nothing():
    model = tiny("GPT2")
    split = splitting(model, model.transformer.h[1].attn).attribute(TOKENS, position=2)
    assert (split[:, :3] != 0).all()
    assert (split[:, 3:] == 0).all()


def test_without_biases_each_keys_features_add_up_to_its_norm():
    model = tiny("Llama")
    layer = model.model.layers[0].self_attn
    split, delta = splitting(model, layer).attribute(TOKENS, return_convergence_delta=True)
    close(split.sum(-1), LayerAttentionNorm(model, layer).attribute(TOKENS, heads="sum")[:, -1], rtol=1e-5, atol=1e-6)
    assert (delta == 0).all()


def test_padding_gets_nothing_and_changes_nothing():
    model = tiny("Bert")
    layer = model.bert.encoder.layer[1].attention
    split, delta = splitting(model, layer).attribute(
        TOKENS, additional_forward_args=MASK, return_convergence_delta=True
    )
    assert (split[MASK == 0] == 0).all()
    alone, alone_delta = splitting(model, layer).attribute(TOKENS[1:2, :4], return_convergence_delta=True)
    close(split[1:2, :4], alone, rtol=1e-4, atol=1e-6)
    close(delta[1:2], alone_delta, rtol=1e-4, atol=1e-6)


def test_positions_are_those_of_the_input_methods():
    model = tiny("Bert")
    layer = model.bert.encoder.layer[0].attention
    method = splitting(model, layer)
    first = method.attribute(TOKENS)
    close(first, method.attribute(TOKENS, position=0), rtol=0, atol=0)
    each = [method.attribute(TOKENS, position=row) for row in range(6)]
    own = method.attribute(TOKENS, position=[1, 5, 0])
    close(own, torch.stack([each[1][0], each[5][1], each[0][2]]), rtol=0, atol=0)
    close(method.attribute(TOKENS, position="mean"), torch.stack(each).mean(0))
    by_forward = splitting(HFForward(model, position=3), layer).attribute(TOKENS)
    close(by_forward, each[3], rtol=0, atol=0)
    real = method.attribute(TOKENS, additional_forward_args=MASK, position="mean")
    close(real[2:, :3], method.attribute(TOKENS[2:, :3], position="mean"))


def test_a_map_is_still_what_it_was():
    model = tiny("Bert")
    layer = model.bert.encoder.layer[0].attention
    plain = LayerAttentionNorm(model, layer)
    assert plain.has_convergence_delta() is False
    assert splitting(model, layer).has_convergence_delta() is True
    expected = plain.attribute(TOKENS)
    close(splitting(model, layer).attribute(TOKENS, attribute_to_layer_input=False), expected, rtol=0, atol=0)
    asked = plain.attribute(TOKENS, attribute_to_layer_input=True)
    close(asked, splitting(model, layer).attribute(TOKENS), rtol=0, atol=0)


def test_several_calls_and_layers_give_lists():
    model = tiny("Bart")
    decoder = model.model.decoder.layers[0]
    forward = HFForward(model)
    inputs = (ids(2, 7), ids(2, 4, seed=1))
    both = splitting(forward, [decoder.self_attn, decoder.encoder_attn]).attribute(inputs)
    assert [split.shape[1] for split in both] == [4, 7]
    cross = splitting(forward, decoder.encoder_attn).attribute(inputs, kind="cross")
    close(cross, both[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="no self-attention call ran inside"):
        splitting(forward, decoder.encoder_attn).attribute(inputs, kind="self")


class Twice(nn.Module):
    """One attention module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.attention(x, x, x, need_weights=False)[0]
        return x


def test_a_module_called_twice_has_a_split_for_each_call():
    model, x = Twice().eval(), torch.randn(2, 5, WIDTH)
    method = splitting(model, model.attention)
    splits = method.attribute(x, return_convergence_delta=True)
    maps = LayerAttentionNorm(model, model.attention).attribute(x, heads="sum")
    for (split, delta), norms in zip(splits, maps, strict=True):
        assert relative(split.sum((1, 2)) + delta, norms[:, 0].sum(-1)) < 1e-6
    close(method.attribute(x, call=1), splits[1][0], rtol=0, atol=0)


class Attention(nn.Module):
    """Attention by hand, its values changed on the way; adds into its input, as some models do."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change, self.v, self.o = change, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x += 0
        values = self.change(self.v(x))
        weights = (x @ x.mT / 8).softmax(-1)
        return self.o(torch.einsum("bqk,bke->bqe", weights, values))


def test_attention_written_by_hand_is_split():
    model, x = Attention(nn.Identity()), torch.randn(2, 5, WIDTH)
    split, delta = splitting(model, model).attribute(x, return_convergence_delta=True)
    norms = LayerAttentionNorm(model, model).attribute(x, heads="sum")
    assert relative(split.sum((1, 2)) + delta, norms[:, 0].sum(-1)) < 1e-6


@pytest.mark.parametrize("change", [nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH), nn.ReLU(), nn.Tanh()], ids=str)
def test_values_that_are_no_affine_function_of_the_input_are_refused(change):
    model = Attention(change)
    with pytest.raises(ValueError, match="no affine function of the layer's input"):
        splitting(model, model).attribute(torch.randn(2, 5, WIDTH))


def test_a_block_that_normalises_first_is_refused_and_its_attention_is_not():
    model = tiny("GPT2")
    block = model.transformer.h[0]
    with pytest.raises(ValueError, match=r"attention call 'transformer\.h\.0\.attn' are no affine.*Choose as layer"):
        splitting(model, block).attribute(TOKENS)
    assert splitting(model, block.attn).attribute(TOKENS).shape == (3, 6, WIDTH)
    post = tiny("Bert")
    inner, outer = (
        splitting(post, layer).attribute(TOKENS)
        for layer in (post.bert.encoder.layer[0].attention.self, post.bert.encoder.layer[0])
    )
    close(inner, outer, rtol=1e-5, atol=1e-7)


def test_what_has_no_split_is_refused():
    model = tiny("Bert")
    layer = model.bert.encoder.layer[0].attention
    method = splitting(model, layer)
    with pytest.raises(ValueError, match="heads='sum', got 'each'"):
        method.attribute(TOKENS, heads="each")
    with pytest.raises(ValueError, match='position="all" has no split'):
        method.attribute(TOKENS, position="all")
    with pytest.raises(ValueError, match="position 9 is out of range"):
        method.attribute(TOKENS, position=9)
    with pytest.raises(ValueError, match="return_convergence_delta belongs to attribute_to_layer_input=True"):
        LayerAttentionNorm(model, layer).attribute(TOKENS, return_convergence_delta=True)
    with pytest.raises(ValueError, match="position belongs to attribute_to_layer_input=True"):
        LayerAttentionNorm(model, layer).attribute(TOKENS, position=1)
    with pytest.raises(ValueError, match="they come from none of them; it is given no float tensor"):
        splitting(model, model).attribute(TOKENS)
    with pytest.raises(ValueError, match="no attention call ran inside layer 'classifier'"):
        splitting(model, model.classifier).attribute(TOKENS)
    with pytest.raises(IndexError):  # Captum's
        method.attribute(TOKENS, target=7)


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_is_the_same_whatever_surrounds_the_call(surrounding):
    model = tiny("Bert")
    layer = model.bert.encoder.layer[0].attention
    expected = splitting(model, layer).attribute(TOKENS)
    with surrounding():
        before = torch.is_grad_enabled()
        split, delta = splitting(model, layer).attribute(TOKENS.clone(), return_convergence_delta=True)
        assert torch.is_grad_enabled() == before
    close(split, expected, rtol=0, atol=0)
    assert not split.requires_grad
    assert not delta.requires_grad
    assert split.is_contiguous()


def test_a_graph_is_made_in_the_layer_alone():
    model = tiny("Bert")
    first, second = model.bert.encoder.layer[:2]
    inside, behind = [], []
    first.attention.self.register_forward_pre_hook(lambda *_: inside.append(torch.is_grad_enabled()))
    second.register_forward_pre_hook(lambda *_: behind.append(torch.is_grad_enabled()))
    splitting(model, first.attention).attribute(TOKENS)
    assert any(inside)
    assert not any(behind)


def test_the_model_is_untouched_even_when_it_raises():
    model = tiny("Bert")
    layer = model.bert.encoder.layer[0].attention
    before = {name: value.clone() for name, value in model.state_dict().items()}
    splitting(model, layer).attribute(TOKENS)
    handle = model.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        splitting(model, layer).attribute(TOKENS)
    handle.remove()
    handle = layer.output.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        splitting(model, layer).attribute(TOKENS)
    handle.remove()
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_split_too(duplicate):
    model = tiny("Bert")
    method = splitting(model, model.bert.encoder.layer[0].attention)
    close(duplicate(method).attribute(TOKENS), method.attribute(TOKENS), rtol=0, atol=0)


def test_half_precision_models_give_float32_scores():
    model = tiny("Bert").bfloat16()
    layer = model.bert.encoder.layer[0].attention
    split, delta = splitting(model, layer).attribute(TOKENS, return_convergence_delta=True)
    assert split.dtype == delta.dtype == torch.float32
    norms = LayerAttentionNorm(model, layer).attribute(TOKENS, heads="sum")
    assert relative(split.sum((1, 2)) + delta, norms[:, 0].sum(-1)) < 2e-2
