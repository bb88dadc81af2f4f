"""DecompX propagated by hand: the authors' figures, ablations included, and what its rules promise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from captum_norm.functional import FrozenNorm
from captum_norm.functional.decompx import EncoderLayer, activated, decompx_layer, decompx_output, share_bias

close = torch.testing.assert_close
RULES = {"nobias": "none", "biastoken": "token", "noFFN": "absdot", "noLN": "none", "rollout": "absdot"}
VARIANTS = (
    "nobias_ZO nobias_LA absdot_ZO absdot_LA absdot_ReLU abssim_ZO norm_ZO equal_ZO cls_ZO dot_ZO biastoken_ZO "
    "noFFN_absdot noLN_nobias"
).split()


@pytest.fixture(scope="module")
def reference(oracles):
    """The model of the published figures, its hidden states and attentions, and the figures."""
    forward, weights = np.load(oracles / "tiny_forward.npz"), np.load(oracles / "tiny_weights.npz")
    model = BertForSequenceClassification(BertConfig(**json.loads(str(forward["config"])))).double().eval()
    parameters = {name: torch.from_numpy(weights[name]) for name in weights.files if weights[name].dtype.kind == "f"}
    model.load_state_dict(parameters, strict=False)
    return model.requires_grad_(False), forward, np.load(oracles / "tiny_decompx.npz")


def layers(model: Any, forward: Any) -> list[EncoderLayer]:
    """What each layer computed, from its parameters and what the model returned."""
    found = []
    for layer, hidden, weights in zip(
        model.bert.encoder.layer, torch.from_numpy(forward["hidden_states"]), torch.from_numpy(forward["attentions"]),
        strict=False,
    ):  # fmt: skip
        value, output, inner, outer = (
            layer.attention.self.value, layer.attention.output, layer.intermediate.dense, layer.output,
        )  # fmt: skip
        heads = (weights.shape[1], -1)
        W_V, b_V = value.weight.T.unflatten(1, heads), value.bias.unflatten(0, heads)
        W_O, b_O = output.dense.weight.T.unflatten(0, heads), output.dense.bias
        values = torch.einsum("bkd,dhe->bhke", hidden, W_V) + b_V[:, None]
        state = torch.einsum("bhqk,bhke,hed->bqd", weights, values, W_O) + b_O + hidden
        norm_1 = norm_of(output.LayerNorm, state)
        fed = outer.dense(nn.functional.gelu(inner(norm_1.output()))) + norm_1.output()
        found.append(
            EncoderLayer(
                hidden, weights, W_V, b_V, W_O, b_O, norm_1, inner.weight.T, inner.bias, outer.dense.weight.T,
                outer.dense.bias, norm_of(outer.LayerNorm, fed),
            )
        )  # fmt: skip
    return found


def norm_of(norm: nn.LayerNorm, state: Tensor) -> FrozenNorm:
    return FrozenNorm(state, norm.weight, norm.bias, norm.eps)


def logits(model: Any, parts: Tensor, row: Tensor, rule: Any, activation: Any) -> Tensor:
    pooler, classifier = model.bert.pooler.dense, model.classifier
    return decompx_output(
        parts, row, pooler.weight.T, pooler.bias, classifier.weight.T, classifier.bias, rule, activation
    )


def rule_and_line(variant: str) -> tuple[Any, Any]:
    rule, _, line = variant.partition("_")
    return RULES.get(rule, rule), line if line in ("ZO", "LA", "ReLU") else "ZO"


def assert_published(found: Tensor, figure: np.ndarray, mask: Tensor) -> None:
    """Equal at (batch, source, ...) where sources are real; a source more than the positions is the biases'."""
    real = torch.cat([mask, mask.new_ones(len(mask), found.shape[1] - mask.shape[1])], 1)
    expected = torch.from_numpy(figure)[real]
    close(found[real], expected, rtol=1e-10, atol=1e-8 * max(1.0, float(expected.abs().max()) / 100))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_published_one(reference, variant):
    model, forward, published = reference
    rule, line = rule_and_line(variant)
    mask, parts = torch.from_numpy(forward["attention_mask"]).bool(), None
    for number, layer in enumerate(layers(model, forward)):
        parts = decompx_layer(
            parts, layer, rule, line, feed_forward="noFFN" not in variant, layer_norm="noLN" not in variant
        )
        norms = parts.norm(dim=-1).transpose(1, 2)  # (batch, source, query)
        assert_published(norms, published[f"{variant}/aggregated_norm"][number].swapaxes(1, 2), mask)
    row = torch.from_numpy(forward["hidden_states"])[-1][:, 0]
    # the pooler's tanh is taken through the origin where ReLU's line stands for gelu
    found = logits(model, parts[:, 0], row, rule, "ZO" if line == "ReLU" else line)
    assert_published(found, published[f"{variant}/classifier"], mask)


def test_the_biases_shared_at_the_very_end(reference):
    model, forward, published = reference
    parts = None
    for layer in layers(model, forward):
        parts = decompx_layer(parts, layer, "token")
    row = torch.from_numpy(forward["hidden_states"])[-1][:, 0]
    of_classes = logits(model, parts[:, 0], row, "token", "ZO")
    found = share_bias(of_classes[:, :-1], of_classes[:, -1], "absdot")
    mask = torch.from_numpy(forward["attention_mask"]).bool()
    assert_published(found, published["biastoken_then_absdot_ZO/classifier"], mask)


def test_layers_by_themselves_multiplied(reference):
    """The ablation without propagation: each layer's norms as if its input were its tokens, then their product."""
    model, forward, published = reference
    mask = torch.from_numpy(forward["attention_mask"]).bool()
    pairs, product = mask[:, :, None] & mask[:, None], None
    for number, layer in enumerate(layers(model, forward)):
        norms = decompx_layer(None, layer, "absdot").norm(dim=-1)
        expected = torch.from_numpy(published["rollout_absdot/encoder_norm"][number])
        close(norms[pairs], expected[pairs], rtol=0, atol=1e-8)
        norms = norms * mask[:, None]
        product = norms if product is None else norms @ product
        close(
            product[pairs], torch.from_numpy(published["rollout_absdot/aggregated_norm"][number])[pairs], rtol=1e-9,
            atol=1e-8,
        )  # fmt: skip


def a_layer(seed: int, sizes: tuple[int, int, int, int]) -> EncoderLayer:
    batch, length, heads, head_dim = sizes
    width, feed = heads * head_dim, 5
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng).double()  # noqa: E731
    hidden, weights = draw(batch, length, width), draw(batch, heads, length, length).softmax(-1)
    W_V, b_V, W_O, b_O = draw(width, heads, head_dim), draw(heads, head_dim), draw(heads, head_dim, width), draw(width)
    values = torch.einsum("bkd,dhe->bhke", hidden, W_V) + b_V[:, None]
    state = torch.einsum("bhqk,bhke,hed->bqd", weights, values, W_O) + b_O + hidden
    norm_1 = FrozenNorm(state, draw(width), draw(width))
    W_1, b_1, W_2, b_2 = draw(width, feed), draw(feed), draw(feed, width), draw(width)
    u = norm_1.output()
    norm_2 = FrozenNorm(torch.nn.functional.gelu(u @ W_1 + b_1) @ W_2 + b_2 + u, draw(width), draw(width))
    return EncoderLayer(hidden, weights, W_V, b_V, W_O, b_O, norm_1, W_1, b_1, W_2, b_2, norm_2)


@given(
    seed=st.integers(0, 9),
    sizes=st.sampled_from([(1, 1, 1, 2), (2, 3, 2, 3), (1, 4, 3, 2)]),
    rule=st.sampled_from(["token", "equal", "cls", "absdot", "norm", "abssim"]),
    line=st.sampled_from(["ZO", "LA"]),
    own=st.sampled_from([None, True, False]),
)
def test_parts_sum_to_the_layers_output(seed, sizes, rule, line, own):
    layer = a_layer(seed, sizes)
    first = decompx_layer(None, layer, rule, line, values_of_tokens=own)
    close(first.sum(2), layer.norm_2.output(), rtol=1e-9, atol=1e-9)
    again = decompx_layer(decompx_layer(None, layer, "none"), layer, "none")
    assert again.shape == (*layer.hidden.shape[:2], layer.hidden.shape[1], layer.hidden.shape[2])


def test_the_values_bias_goes_where_it_is_told():
    layer = a_layer(0, (1, 3, 2, 2))
    tokens = decompx_layer(None, layer, "none", feed_forward=False, layer_norm=False, values_of_tokens=True)
    biases = decompx_layer(None, layer, "none", feed_forward=False, layer_norm=False, values_of_tokens=False)
    moved = torch.einsum("bhqk,he,hed->bqkd", layer.weights, layer.b_V, layer.W_O)
    close(tokens - biases, moved)


@given(
    rule=st.sampled_from(["token", "equal", "cls", "absdot", "norm", "abssim", "dot"]),
    shape=st.sampled_from([(2, 3), (1, 4), (2, 2, 3, 5)]),
    seed=st.integers(0, 20),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_a_shared_bias_is_all_there(rule, shape, seed, dtype):
    rng = torch.Generator().manual_seed(seed)
    parts, bias = torch.rand(shape, generator=rng).to(dtype), torch.rand(shape[-1], generator=rng).to(dtype)
    found = share_bias(parts, bias, rule)
    close(found.sum(-2), parts.sum(-2) + bias, rtol=1e-4, atol=1e-4)
    close(share_bias(parts, bias.expand(*shape[:-2], shape[-1]), rule), found)
    assert torch.equal(share_bias(parts, bias, "none"), parts)


def test_a_part_that_is_zero_gets_no_share():
    parts = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    for rule in ("equal", "absdot", "norm", "abssim", "dot"):
        assert (share_bias(parts, torch.tensor([1.0, 1.0]), rule)[1] == 0).all()
    assert torch.equal(share_bias(torch.zeros(2, 2), torch.ones(2), "absdot"), torch.zeros(2, 2))


def test_half_precision_shares_without_dividing_by_zero():
    parts = torch.zeros(3, 4, dtype=torch.float16)
    assert share_bias(parts, torch.ones(4, dtype=torch.float16), "absdot").isfinite().all()


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"bias rule should be one of 'none', 'token', .* got 'cosine'"):
        share_bias(torch.ones(2, 2), torch.ones(2), "cosine")
    with pytest.raises(ValueError, match="activation should be 'ZO', 'LA' or 'ReLU', got 'GeLU'"):
        activated(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1), torch.tanh, "none", "GeLU")


def test_disagreeing_shapes_are_named():
    layer = a_layer(0, (1, 3, 2, 2))
    wrong = EncoderLayer(**{**layer.__dict__, "b_O": torch.ones(7).double()})
    with pytest.raises(ValueError, match="decompx_layer: model is 4 in hidden but 7 in b_O"):
        decompx_layer(None, wrong)
