"""What each class returns is its definition, written out slowly from the model's own attentions and value layers."""

from __future__ import annotations

import re
import warnings
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from captum_norm.attr import (
    ALTI,
    AttentionFlow,
    AttentionNorm,
    AttentionRollout,
    AttentionWeights,
    LayerAttentionNorm,
    LayerAttentionWeights,
    _aggregate,
)
from captum_norm.forward import HFForward
from captum_norm.functional import flow

from .methods import INPUT_METHODS
from .models import FAMILIES, SlowCall, ids, slow_calls, tiny

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
TEXT_ONLY = ("Bert", "GPT2", "Llama")
ENCODER_DECODERS = ("Bart", "T5")
close = torch.testing.assert_close


def inputs_of(family: str) -> dict[str, Tensor]:
    if family == "ViT":
        return {"pixel_values": IMAGE}
    decoder = {"decoder_input_ids": ids(2, 4, seed=1)} if family in ENCODER_DECODERS else {}
    return {"input_ids": ids(2, 6), **decoder}


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The attention modules in the order they run."""
    named = ("attention", "attn", "self_attn", "encoder_attn", "SelfAttention", "EncDecAttention")
    found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in named}
    return [m for n, m in found.items() if not any(other.startswith(f"{n}.") for other in found)]


def forward_of(family: str, model: Any) -> Any:
    """The model as a function of ``inputs_of(family)`` in their order."""
    names = tuple(inputs_of(family))
    return lambda *tensors: model(**dict(zip(names, tensors, strict=True)))


def with_residual(maps: list[Tensor]) -> Tensor:
    return reduce(lambda product, a: (a + torch.eye(a.shape[-1])) / 2 @ product, maps, torch.eye(maps[0].shape[-1]))


def mean(maps: list[Tensor]) -> Tensor:
    return torch.stack(maps).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_maps_are_the_definition(family):
    model, inputs = tiny(family), inputs_of(family)
    slow = slow_calls(tiny(family), **inputs)
    layers = attention_modules(model)
    assert len(layers) == len(slow)
    given, forward = tuple(inputs.values()), forward_of(family, model)
    for heads, expected in (("each", SlowCall.head_norms), ("sum", SlowCall.summed_norms)):
        maps = LayerAttentionNorm(forward, layers).attribute(given, heads=heads)
        close(maps, [expected(call) for call in slow], rtol=1e-4, atol=1e-5)
    for heads, expected in (("each", lambda call: call.weights), ("mean", SlowCall.mean_weights)):
        maps = LayerAttentionWeights(forward, layers).attribute(given, heads=heads)
        close(maps, [expected(call) for call in slow], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TEXT_ONLY)
@pytest.mark.parametrize("position", [0, 3, -1])
def test_a_row_of_the_mean_over_layers(family, position):
    model, inputs = tiny(family), inputs_of(family)
    slow = slow_calls(tiny(family), **inputs)
    found = AttentionNorm(model).attribute(inputs["input_ids"], position=position)
    close(found, mean([c.summed_norms() for c in slow])[:, position], rtol=1e-4, atol=1e-5)
    found = AttentionWeights(model).attribute(inputs["input_ids"], position=position)
    close(found, mean([c.mean_weights() for c in slow])[:, position])


@pytest.mark.parametrize("family", TEXT_ONLY)
def test_one_layer_and_all_positions(family):
    model, inputs = tiny(family), inputs_of(family)
    slow = slow_calls(tiny(family), **inputs)
    for aggregate in (0, 1, -1, -2):
        found = AttentionNorm(model, aggregate=aggregate).attribute(inputs["input_ids"], position="all")
        close(found, slow[aggregate].summed_norms(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TEXT_ONLY)
def test_rollout_is_the_product_of_half_attention_half_identity(family):
    model, inputs = tiny(family), inputs_of(family)
    slow = slow_calls(tiny(family), **inputs)
    expected = with_residual([c.mean_weights() for c in slow])
    close(AttentionRollout(model).attribute(inputs["input_ids"], position="all"), expected)
    close(AttentionRollout(model).attribute(inputs["input_ids"], position=2), expected[:, 2])
    same = AttentionWeights(model, aggregate="rollout", residual=True)
    close(same.attribute(inputs["input_ids"], position=2), expected[:, 2])


def test_the_plain_product_of_norms():
    model, tokens = tiny("Bert"), ids(2, 6)
    first, second = (c.summed_norms() for c in slow_calls(tiny("Bert"), input_ids=tokens))
    found = AttentionNorm(model, aggregate="rollout").attribute(tokens, position="all")
    close(found, second @ first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TEXT_ONLY)
def test_flow_is_the_maximum_flow_through_the_models_own_weights(family):
    model, tokens = tiny(family), ids(2, 6)
    slow = [c.mean_weights() for c in slow_calls(tiny(family), input_ids=tokens)]
    expected = flow(slow, residual=True)
    close(AttentionFlow(model).attribute(tokens, position="all"), expected)
    close(AttentionFlow(model).attribute(tokens, position=[2, -1]), expected[[0, 1], [2, 5]])
    close(AttentionFlow(model).attribute(tokens, position="mean"), expected.mean(1))
    close(AttentionFlow(model, residual=False).attribute(tokens, position=3), flow(slow, position=3))
    assert ((expected > 0) == (slow[0] + slow[1] > 0)).all()  # nothing flows from what comes later


def test_flow_shows_its_progress_where_it_is_asked_for(capfd):
    model, tokens = tiny("Bert"), torch.arange(5, 11)[None]
    silent = AttentionFlow(model).attribute(tokens)
    assert capfd.readouterr().err == ""
    close(AttentionFlow(model, show_progress=True).attribute(tokens), silent)
    assert re.search("attention flow.*6/6", capfd.readouterr().err)


def test_the_flow_of_norms():
    model, tokens = tiny("Bert"), ids(2, 6)
    slow = [c.summed_norms() for c in slow_calls(tiny("Bert"), input_ids=tokens)]
    for residual in (False, True):
        found = AttentionNorm(model, aggregate="flow", residual=residual).attribute(tokens, position=1)
        close(found, flow(slow, residual=residual, position=1), rtol=1e-4, atol=1e-5)


class GivenWeights(nn.Module):
    """Layers of attention whose weights, (query, key), are given rather than computed."""

    def __init__(self, *maps: list[list[float]]) -> None:
        super().__init__()
        self.logits = [torch.tensor(a).log() for a in maps]
        self.out = nn.ModuleList(nn.Linear(4, 4) for _ in maps)

    def forward(self, x: Tensor) -> Tensor:
        for logits, out in zip(self.logits, self.out, strict=True):
            x = out((0 * (x @ x.mT) + logits).softmax(-1) @ x)
        return x


def test_a_flow_that_is_solved_by_hand():
    """Output 0 takes half from each position; position 1 holds .8 of input 0, .2 of input 1: 1 can pass from 0."""
    model, x = GivenWeights([[1.0, 0.0], [0.8, 0.2]], [[0.5, 0.5], [0.0, 1.0]]), torch.randn(1, 2, 4)
    found = AttentionFlow(model, residual=False).attribute(x, position="all")
    close(found, torch.tensor([[[1 / 1.2, 0.2 / 1.2], [0.8, 0.2]]]))
    # (A + I) / 2 is [1 0; .4 .6] below [.75 .25; 0 1]: from 0, .75 and .25 of .4; from 1, .25 of .6
    found = AttentionFlow(model).attribute(x, position="all")
    close(found, torch.tensor([[[1 / 1.25, 0.25 / 1.25], [0.4, 0.6]]]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", TEXT_ONLY)
@pytest.mark.parametrize("residual", [False, True])
def test_padding_is_no_part_of_the_network_that_flows(family, side, residual):
    tokens, mask = ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    real, model = mask[1].bool(), tiny(family).base_model  # a head may read a row of padding

    def forward(tokens: Tensor, mask: Tensor) -> Any:
        positions = (mask.cumsum(1) - 1).clamp(0)  # padding on the left moves no token
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions).last_hidden_state

    method = AttentionFlow(forward, residual=residual)
    for position in (None, "mean", "all"):
        together = method.attribute(tokens, additional_forward_args=mask, position=position)
        alone = method.attribute(tokens[1:, real], additional_forward_args=mask[1:, real], position=position)
        found = together[1][real] if position == "all" else together[1]
        close(found[..., real], alone[0], rtol=1e-4, atol=1e-6)
        assert (together[1][..., ~real] == 0).all()
        assert position != "all" or (together[1][~real] == 0).all()


def test_flow_is_computed_for_the_rows_asked_for_alone(monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(_aggregate, "flow", lambda maps, **told: seen.append(maps[-1].shape[1]) or flow(maps))
    method = AttentionFlow(tiny("Bert"))
    for position in (None, 2, [1, 3], "mean", "all"):
        method.attribute(ids(2, 6), position=position)
    assert seen == [1, 1, 1, 6, 6]


@pytest.mark.parametrize("method", [AttentionRollout, AttentionFlow])
def test_a_key_that_is_no_input_passes_nothing_on(method):
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True) for _ in range(2)).eval()
    x, maps = torch.randn(2, 4, 8), []

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x, weights = layer(x, x, x)
            maps.append(weights.detach()[..., :4])
        return x

    forward(x)
    expected = flow(maps, residual=True) if method is AttentionFlow else with_residual_rows(maps)
    close(method(forward).attribute(x, position="all"), expected)


def with_residual_rows(maps: list[Tensor]) -> Tensor:
    """The product where rows of A sum to less than 1."""
    mixed = [a + torch.eye(a.shape[-1]) for a in maps]
    return reduce(lambda product, a: a @ product, [a / a.sum(-1, keepdim=True) for a in mixed])


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_flow_stays_within_a_sequence(family):
    model, inputs = tiny(family), inputs_of(family)
    slow = slow_calls(tiny(family), **inputs)
    method, given = AttentionFlow(forward_of(family, model)), tuple(inputs.values())
    with pytest.raises(ValueError, match=r'is cross-attention.*kind="self".*AttentionRollout'):
        method.attribute(given)
    for found, kind in zip(method.attribute(given, position=1, kind="self"), ("self", "decoder"), strict=True):
        close(found, flow([c.mean_weights() for c in slow if c.kind == kind], residual=True, position=1))


def test_the_mean_over_real_rows():
    model, tokens = tiny("Bert"), ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    slow = mean([c.summed_norms() for c in slow_calls(tiny("Bert"), input_ids=tokens, attention_mask=mask)])
    found = AttentionNorm(model).attribute(tokens, additional_forward_args=mask, position="mean")
    close(found[0], slow[0].mean(0), rtol=1e-4, atol=1e-5)
    close(found[1], slow[1, :4].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:alti. no input brings the output nearer")
@pytest.mark.parametrize(("family", "expected"), [("Bert", 0), ("GPT2", -1), ("Llama", -1)])
def test_by_default_the_first_token_is_explained_or_the_last_of_a_causal_model(family, expected):
    model, tokens = tiny(family), ids(2, 6)
    for row in INPUT_METHODS:
        method = row.build(model)
        close(method.attribute(tokens), method.attribute(tokens, position=expected))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", TEXT_ONLY)
def test_padding_on_either_side_is_no_row_that_is_explained_unless_a_head_reads_it(family, side):
    model, tokens = HFForward(tiny(family)), ids(2, 6)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    real = mask[1].nonzero().flatten()
    expected = [0, 0] if family == "Bert" else [5, int(real[-1])]  # BERT's classes are read from the first row
    method = AttentionNorm(model)
    found = method.attribute(tokens, additional_forward_args=mask)
    close(found, method.attribute(tokens, additional_forward_args=mask, position=expected))
    assert (found[1, mask[1] == 0] == 0).all()
    assert (found[1, real[0 if family == "Bert" else -1]] > 0).all()


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_source_scores_are_cross_attention_and_prefix_scores_self_attention(family):
    model, inputs = tiny(family), inputs_of(family)
    slow = slow_calls(tiny(family), **inputs)
    cross = mean([c.summed_norms() for c in slow if c.kind == "cross"])
    prefix = mean([c.summed_norms() for c in slow if c.kind == "decoder"])
    method, given = AttentionNorm(forward_of(family, model)), tuple(inputs.values())
    source, own = method.attribute(given, position=2)
    close(source, cross[:, 2], rtol=1e-4, atol=1e-5)
    close(own, prefix[:, 2], rtol=1e-4, atol=1e-5)
    source, own = method.attribute(given)
    close(source, cross[:, -1], rtol=1e-4, atol=1e-5)
    close(own, prefix[:, -1], rtol=1e-4, atol=1e-5)
    # the source alone, the decoder's ids as an extra
    alone = AttentionNorm(HFForward(model, names=("decoder_input_ids",)))
    close(alone.attribute(given[0], additional_forward_args=given[1]), source)
    close(AttentionNorm(HFForward(model)).attribute(given), (source, own))


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_rollout_composes_cross_attention_with_the_encoder(family):
    """Each decoder layer: own attention, then cross-attention into what the encoder's outputs are made of."""
    model, inputs = tiny(family), inputs_of(family)
    slow = slow_calls(tiny(family), **inputs)
    encoder = with_residual([c.mean_weights() for c in slow if c.kind == "self"])
    source, prefix = torch.zeros(2, 4, 6), torch.eye(4).expand(2, 4, 4)
    for own, cross in zip(
        *[[c.mean_weights() for c in slow if c.kind == k] for k in ("decoder", "cross")], strict=True
    ):
        own = (own + torch.eye(4)) / 2
        source, prefix = own @ source, own @ prefix
        source, prefix = (source + cross @ encoder) / 2, prefix / 2
    found = AttentionRollout(forward_of(family, model)).attribute(tuple(inputs.values()), position="all")
    close(found, (source, prefix))
    close(found[0].sum(-1) + found[1].sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_kind_self_explains_the_encoder(family):
    model, inputs = tiny(family), inputs_of(family)
    slow = [c for c in slow_calls(tiny(family), **inputs) if c.kind == "self"]
    forward = HFForward(model, names=("decoder_input_ids",))
    arguments = {"inputs": inputs["input_ids"], "additional_forward_args": inputs["decoder_input_ids"], "kind": "self"}
    close(
        AttentionNorm(forward).attribute(**arguments, position=4),
        mean([c.summed_norms() for c in slow])[:, 4],
        rtol=1e-4,
        atol=1e-5,
    )
    rollout = with_residual([c.mean_weights() for c in slow])
    close(AttentionRollout(forward).attribute(**arguments), rollout[:, 0])


def test_decoder_ids_that_the_model_makes_itself_are_not_the_source():
    """BART shifts the source by one for its decoder: the same tokens, but another sequence."""
    model, tokens = tiny("Bart"), ids(2, 6)
    shifted = torch.cat([torch.full((2, 1), model.config.decoder_start_token_id), tokens[:, :-1]], dim=1)
    named = HFForward(model, names=("decoder_input_ids",))
    for row in INPUT_METHODS:
        if not row.refuses_cross:
            expected = row.build(named).attribute(tokens, additional_forward_args=shifted)
            close(row.build(model).attribute(tokens), expected)


def test_pixels_share_their_patchs_score():
    model = tiny("ViT")
    slow = mean([c.summed_norms() for c in slow_calls(tiny("ViT"), pixel_values=IMAGE)])
    method = AttentionNorm(model)
    found = method.attribute(IMAGE)
    assert found.shape == IMAGE.shape
    patches = found.unfold(2, 4, 4).unfold(3, 4, 4).sum(dim=(1, 4, 5)).flatten(1)
    close(patches, slow[:, 0, 1:], rtol=1e-4, atol=1e-5)
    assert found[0, :, :4, :4].unique().numel() == 1
    close(method.report.left_out[0], slow[:, 0, 0] / slow[:, 0].sum(-1))
    close(method.attribute(IMAGE, position="all"), slow[:, :, 1:], rtol=1e-4, atol=1e-5)


def test_rollout_of_an_image_passes_through_the_class_token():
    slow = with_residual([c.mean_weights() for c in slow_calls(tiny("ViT"), pixel_values=IMAGE)])
    method = AttentionRollout(tiny("ViT"))
    close(method.attribute(IMAGE).sum(dim=(1, 2, 3)), 1 - slow[:, 0, 0])
    close(method.report.left_out[0], slow[:, 0, 0])


def test_sequence_classes_of_torch_have_scores_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 8)
    found = AttentionWeights(model).attribute(x)
    assert found.shape == x.shape
    close(found.sum(dim=(1, 2)), torch.ones(2))


@pytest.mark.wide(5)
@pytest.mark.parametrize("row", INPUT_METHODS, ids=lambda row: row.name)
@pytest.mark.parametrize("family", [*TEXT_ONLY, "Bart"])
def test_scores_are_non_negative_and_sum_to_what_the_table_says(row, family):
    if family == "Bart" and row.refuses_cross:
        with pytest.raises(ValueError, match=row.refuses_cross):
            row.build(tiny(family)).attribute(ids(2, 6))
        return
    method = row.build(tiny(family))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = method.attribute(ids(2, 6))
    assert (scores >= 0).all()
    assert scores.sum() > 0
    assert all("no input brings the output nearer" in str(warning.message) for warning in caught)
    assert not caught or row.method is ALTI  # which warns of rows that are zero, so that something is lost
    if row.sums_to is None:
        return
    total = torch.full((2,), row.sums_to)
    if caught or (family == "Bart" and (row.composes or row.method.reads_block)):  # the prefix, the residual: a share
        assert (scores.sum(-1) <= total + 1e-6).all()
        assert (scores.sum(-1) < total - 1e-6).any()
    else:
        close(scores.sum(-1), total)


class Gated(nn.Module):
    """Attention whose mixed values are multiplied by a gate of the query before W_O."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gate, self.out = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        gate = self.gate(x).sigmoid().unflatten(-1, (2, 4)).transpose(1, 2)
        return (q @ k.mT).softmax(-1), v, gate

    def forward(self, x: Tensor) -> Tensor:
        weights, v, gate = self.parts(x)
        return self.out((weights @ v * gate).transpose(1, 2).flatten(2))


def test_an_elementwise_gate_follows_its_row():
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(3, 5, 8)
    weights, v, gate = (t.detach() for t in model.parts(x))
    W_O = model.out.weight.detach().T.unflatten(0, (2, 4))
    slow = torch.einsum("bhqk,bhke,bhqe,hed->bqkd", weights, v, gate, W_O).norm(dim=-1)
    method = AttentionNorm(model)
    close(method.attribute(x, position="all"), slow, rtol=1e-4, atol=1e-5)
    close(method.attribute(x, position=[4, 0, 2]).sum(-1), slow[range(3), [4, 0, 2]], rtol=1e-4, atol=1e-5)


def test_autocast_around_the_call_does_not_coarsen_the_product():
    model, tokens = tiny("Bert"), ids(2, 6)
    found: list[Tensor] = []
    for enabled in (False, True):
        # weights of uniform attention are the same in any precision: what differs is our own arithmetic
        with torch.no_grad():
            for layer in model.bert.encoder.layer:
                layer.attention.self.query.weight.zero_()
                layer.attention.self.query.bias.zero_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(AttentionRollout(model).attribute(tokens))
    close(found[1].sum(-1), found[0].sum(-1), rtol=0, atol=5e-3)
    assert found[1].dtype is torch.float32


def test_padding_of_the_prefix_is_zero_in_cross_attention_too():
    model = tiny("Bart")
    forward = HFForward(model)
    mask, prefix_mask = torch.ones(2, 6).long(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    extras = (mask, ids(2, 4, seed=1), prefix_mask)
    cross = LayerAttentionNorm(forward, model.model.decoder.layers[1]).attribute(ids(2, 6), None, extras, kind="cross")
    assert (cross[1, :, 2:] == 0).all()
    assert (cross[1, :, :2] > 0).all()
    method = AttentionNorm(forward)
    close(method.attribute(ids(2, 6), None, extras), method.attribute(ids(2, 6), None, extras, position=[3, 1]))
    with pytest.raises(ValueError, match="position 3 of example 1 is padding"):
        method.attribute(ids(2, 6), None, extras, position=3)


def test_one_tensor_given_as_source_and_prefix_is_two_inputs():
    model, text = tiny("Bart"), ids(2, 6)

    def forward(source, prefix):
        output = model(input_ids=source, decoder_input_ids=prefix)
        return output[0][:, -1]

    twice, apart = (AttentionNorm(forward).attribute(pair) for pair in ((text, text), (text, text.clone())))
    assert all(torch.equal(a, b) for a, b in zip(twice, apart, strict=True))


class _LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.largest = max([self.largest, *(tensor.numel() for tensor in made if isinstance(tensor, Tensor))])
        return out


@pytest.mark.parametrize("position", [None, "all"])
def test_no_vector_is_made_per_query_and_key(position):
    length, model = 32, tiny("Bert")
    text = ids(1, length)
    AttentionNorm(model).attribute(text)  # what is kept per parameter is made
    with _LargestTensor() as seen:
        AttentionNorm(model).attribute(text, position=position)
    assert seen.largest < length * length * model.config.hidden_size
