"""Shares of a span: their definition written out, and the figures of the papers' code from the tensors it saw."""

import json

import numpy as np
import pytest
import torch
from torch.linalg import vector_norm

from captum_norm.functional import span_shares, span_values
from captum_norm.functional.span import proximity

EXACT = {"rtol": 0, "atol": 1e-10}


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def case(gate=None):
    weights = drawn(2, 3, 4, 5).softmax(-1)
    gate = None if gate is None else drawn(2, 3, 4, gate)
    return weights, drawn(2, 3, 5, 6), drawn(3, 6, 8), torch.rand(2, 4).double(), gate


@pytest.mark.parametrize("gate", [None, 1, 6])
def test_shares_are_their_definition(gate):
    """Every part of every head and key as a vector, and what the span is further from without it."""
    weights, values, W_O, span, gate = case(gate)
    residual, bias = drawn(2, 8), drawn(2, 8)
    gates = torch.ones(2, 3, 4, 6).double() if gate is None else gate
    parts = torch.einsum("bi,bhij,bhie,bhje,hed->bhjd", span, weights, gates.expand(2, 3, 4, 6), values, W_O)
    state = parts.sum((1, 2)) + residual + bias

    def prox(part):
        return (vector_norm(state, 1, -1) - vector_norm(state - part, 1, -1)).clamp_min(0)

    of_parts = torch.stack([torch.stack([prox(parts[:, h, j]) for j in range(5)], -1) for h in range(3)], 1)
    total = of_parts.sum((1, 2)) + prox(residual) + prox(bias)
    found = span_shares(span_values(weights, values, span, gate), W_O, residual, state)
    for share, expected in (
        (found.tokens, of_parts.sum(1)), (found.heads, of_parts.sum(2)),
        (found.residual, prox(residual)), (found.bias, prox(bias)),
    ):  # fmt: skip
        torch.testing.assert_close(share, expected / total.view(2, *[1] * (expected.ndim - 1)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.tokens.sum(1) + found.residual + found.bias, torch.ones(2).double())
    threshold = float(of_parts.median())
    kept = torch.where(of_parts < threshold, 0, of_parts)
    found = span_shares(span_values(weights, values, span, gate), W_O, residual, state, threshold=threshold)
    total = kept.sum((1, 2)) + prox(residual) + prox(bias)
    torch.testing.assert_close(found.heads, kept.sum(2) / total[:, None], rtol=1e-10, atol=1e-12)


def test_a_small_part_keeps_its_digits_and_a_useless_one_has_no_share():
    state = torch.tensor([[1e4, -1e4]])
    parts = torch.tensor([[1e-4, 0.0], [0.0, 1e-4], [3e4, 0.0]])
    assert proximity(parts, state).tolist() == [pytest.approx(1e-4), 0.0, 0.0]
    found = span_shares(parts.view(1, 1, 3, 2), torch.eye(2)[None], torch.zeros(1, 2), -state)
    assert found.tokens[0, 0] == 0
    zero = span_shares(torch.zeros(1, 1, 3, 2), torch.eye(2)[None], torch.zeros(1, 2), torch.zeros(1, 2))
    assert (zero.tokens == 0).all()
    assert zero.residual == 0


def test_a_part_in_a_coordinate_that_ends_at_zero_leads_away():
    assert proximity(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 1.0])) == 0.5


class Traced:
    """What the papers' code saw of a tiny decoder: streams and weights of each layer, and the decoder's parameters."""

    def __init__(self, file, case):
        self.known = {name: torch.from_numpy(value) for name, value in file.items() if value.dtype.kind in "fib"}
        self.config, self.prefix = json.loads(str(file["config"])), f"{case}/"
        self.layers, self.eps = range(self.config["num_hidden_layers"]), self.config["rms_norm_eps"]
        self.groups = self.config["num_attention_heads"] // self.config["num_key_value_heads"]

    def __getitem__(self, name):
        return self.known[self.prefix + name]

    def attention(self, layer):
        """weights, values and W_O of one layer, as the package has them."""
        x = self["x_before"][layer]
        normed = x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.parameter(layer, "input_layernorm")
        values = normed @ self.parameter(layer, "self_attn.v_proj").T
        values = values.unflatten(-1, (self.config["num_key_value_heads"], -1)).transpose(0, 1)
        values = values.repeat_interleave(self.groups, 0)
        W_O = self.parameter(layer, "self_attn.o_proj").T.unflatten(0, (self.config["num_attention_heads"], -1))
        return self["attentions"][layer][None], values[None], W_O

    def parameter(self, layer, name):
        return self.known[f"weights/model.layers.{layer}.{name}.weight"].double()

    def span(self, name):
        """The rows of a span, (1, query) bool."""
        start, stop = (self["prompt_length"] + self[f"{name}_span_generation"]).tolist()
        rows = torch.zeros(1, len(self["input_ids"]), dtype=torch.float64)
        rows[0, start : stop + 1] = 1
        return rows


@pytest.fixture(params=["llama", "qwen3"])
def kind(request):
    return request.param


@pytest.mark.parametrize("number", [0, 1])
def test_shares_are_those_of_flashtrace(oracles, kind, number):
    """Of the answer's rows, all alike, weighted, and with a threshold; no biases in this model."""
    traced = Traced(np.load(oracles / f"flashtrace_{kind}.npz"), number)
    answer = traced.span("answer")
    weighted = answer.clone()
    weighted[answer > 0] = traced["span_weighted/weights"].double()
    raw = float(traced["span_threshold/threshold"])
    for name, span, threshold in (
        ("span", answer, 0.0),
        ("span_weighted", weighted, 0.0),
        ("span_threshold", answer, raw),
    ):
        for layer in traced.layers:
            weights, values, W_O = traced.attention(layer)
            states = [torch.einsum("bi,id->bd", span, traced[x][layer]) for x in ("x_before", "x_mid")]
            found = span_shares(span_values(weights, values, span), W_O, *states, threshold=threshold)
            torch.testing.assert_close(found.tokens[0], traced[f"{name}/layer_tokens"][layer], **EXACT)
            torch.testing.assert_close(found.heads[0], traced[f"{name}/layer_heads"][layer], **EXACT)
            torch.testing.assert_close(found.residual[0], traced[f"{name}/layer_residual"][layer], **EXACT)
            assert found.bias < 1e-10
