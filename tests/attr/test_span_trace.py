"""SpanTrace: its definition on running models, hops, the figures of its authors' code, and what it refuses."""

import json

import numpy as np
import pytest
import torch
import transformers
from torch.linalg import vector_norm

from captum_norm import HFForward, SpanTrace
from captum_norm.capture import recording
from tests.architectures import ARCHITECTURES
from tests.attr.models import ids, tiny
from tests.device.span_of_8b import costs

close = torch.testing.assert_close


def prox(state, part):
    return (vector_norm(state, 1, -1) - vector_norm(state - part, 1, -1)).clamp_min(0)


def slow_layers(model, tokens, u):
    """Shares of the rows weighted by u (query,) in every block of one text: (token, head, residual, bias) each."""
    with torch.no_grad(), recording(blocks=True, sources=[tokens]) as records:
        model(tokens)
    for record in records:
        block, W_O = record.block, record.W_O.double()
        parts = torch.einsum("hqk,hke,hed->hqkd", record.weights[0].double(), record.values[0].double(), W_O)
        residual = block.residual.double()
        for norm in (block.inner, block.norm):
            if norm is not None:
                each = parts.movedim(1, 2).flatten(0, 1)  # one part of every query at a time
                parts = torch.stack([norm(part[None])[0] for part in each]).unflatten(0, (len(parts), -1)).movedim(2, 1)
        residual = residual if block.norm is None else block.norm(residual)
        parts = torch.einsum("q,hqkd->hkd", u, parts)
        state, residual = u @ block.output[0].double(), u @ residual[0]
        nearer, others = prox(state, parts), prox(state, torch.stack([residual, state - parts.sum((0, 1)) - residual]))
        total = nearer.sum() + others.sum()
        yield nearer.sum(0) / total, nearer.sum(1) / total, others[0] / total, others[1] / total


DECODERS = ("GPT-2", "GPT-NeoX", "Llama", "Qwen3", "Gemma-2", "Mixtral")


@pytest.mark.parametrize("name", DECODERS)
def test_scores_are_their_definition_on_any_residual_layout(name):
    """Pre-norm, parallel, sandwiched, experts; q and k norms, biases, grouped keys."""
    model, tokens = ARCHITECTURES[name].build(), ids(1, 7) % 40
    method = SpanTrace(model)
    u = torch.tensor([0, 0, 0, 0, 1, 1, 0], dtype=torch.float64)
    layers = list(slow_layers(model, tokens, u))
    found = method.attribute(tokens, span=(4, 6))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if ARCHITECTURES[name].casts else {"rtol": 1e-9, "atol": 1e-10}
    close(found[0].double(), sum(tokens for tokens, *_ in layers), **tolerance)
    for layer, (tokens_of, heads, residual, bias) in enumerate(layers):
        close(method.report.tokens[layer][0].double(), tokens_of, **tolerance)
        close(method.report.heads[layer][0].double(), heads, **tolerance)
        close(method.report.residual[layer, 0].double(), residual, **tolerance)
        close(method.report.bias[layer, 0].double(), bias, **tolerance)
    total = found.sum(1) + method.report.residual.sum(0) + method.report.bias.sum(0)
    close(total.double(), torch.full((1,), float(len(layers)), dtype=torch.float64))
    assert (found[0, 6] == 0).all()  # no row of the span sees it


def test_weights_are_those_of_the_rows_and_a_span_is_not_the_mean_of_its_rows():
    model, tokens = tiny("GPT2").double(), ids(1, 7)
    weights = [0.2, 0.8]
    u = torch.tensor([0, 0, 0, 0, 0.2, 0.8, 0], dtype=torch.float64)
    method = SpanTrace(model)
    close(method.attribute(tokens, span=(4, 6), weights=weights)[0], sum(t for t, *_ in slow_layers(model, tokens, u)))
    rows = method.attribute_each(tokens, positions=[4, 5])
    assert not torch.allclose(rows.mean(0), method.attribute(tokens, span=(4, 6)), atol=1e-3)
    close(rows[1], method.attribute(tokens, span=(5, 6)))


def test_hops_hand_the_reasonings_share_on():
    """The recursion written out: t of the answer, then of the reasoning weighted by what fell to it."""
    model, tokens = tiny("Llama").double(), ids(2, 9)
    span, thought = (7, 9), torch.tensor([0, 0, 0, 0, 1, 1, 1, 0, 0], dtype=torch.float64)
    one = SpanTrace(model)
    t = one.attribute(tokens, span=span)
    expected, left = t.clone(), (t * thought).sum(1) / t.sum(1)
    for _ in range(2):
        t = torch.cat([one.attribute(tokens[[b]], span=(4, 7), weights=t[b, 4:7]) for b in range(2)])
        expected += left[:, None] * t
        left = left * (t * thought).sum(1) / t.sum(1)
    method = SpanTrace(model, hops=2)
    found = method.attribute(tokens, span=span, reasoning=(4, 7))
    close(found[:, :4], expected[:, :4])
    assert (found[:, 4:] == 0).all()
    close(method.report.ratios[-1], left)
    assert method.report.hops.shape == (3, 2, 9)


@pytest.mark.parametrize(("family", "side"), [("GPT2", "right"), ("Llama", "right"), ("Llama", "left")])
def test_a_padded_batch_equals_one_by_one(family, side):
    model, tokens = tiny(family), ids(2, 7)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    spans, alone = [(3, 6), (2, 4)], slice(0, 5)
    if side == "left":
        mask, spans, alone = mask.flip(1), [(3, 6), (4, 6)], slice(2, 7)
    forward = HFForward(model)
    given = forward.inputs({"input_ids": tokens, "attention_mask": mask})
    found = SpanTrace(forward).attribute(**given, span=spans)
    close(found[0], SpanTrace(model).attribute(tokens[:1], span=(3, 6))[0], rtol=1e-5, atol=1e-6)
    close(found[1, alone], SpanTrace(model).attribute(tokens[1:, alone], span=(2, 4))[0], rtol=1e-5, atol=1e-6)
    assert (found[1][mask[1] == 0] == 0).all()
    with pytest.raises(ValueError, match="a span holds padding"):
        SpanTrace(forward).attribute(**given, span=(0, 7))


def test_it_stands_where_other_methods_stand():
    """Eager or sdpa, gate or ids, half precision, tuples; by default the last real token, as HFForward says."""
    tokens, model = ids(2, 6), tiny("GPT2")
    found = SpanTrace(model).attribute(tokens)
    close(found, SpanTrace(tiny("GPT2", "sdpa")).attribute(tokens, span=(5, 6)), rtol=1e-5, atol=1e-6)
    gate = HFForward(model, "gate", position=3)
    gated = SpanTrace(gate).attribute(torch.ones(2, 6), additional_forward_args=tokens)
    close(gated, SpanTrace(model).attribute(tokens, span=(3, 4)))
    half = SpanTrace(model.bfloat16()).attribute((tokens,))
    assert (type(half), half[0].dtype) == (tuple, torch.float32)
    close(half[0], found, rtol=0.2, atol=0.05)


BAD = {
    "out of range": ({"span": (4, 9)}, ValueError, r"span \(4, 9\) holds no rows of an input of 6 positions"),
    "negative": ({"span": (-2, 3)}, ValueError, "count from 0"),
    "empty": ({"span": (3, 3)}, ValueError, "holds no rows"),
    "no pair": ({"span": 3}, TypeError, r"span should be \(start, stop\).* got 3"),
    "floats": ({"span": (1.0, 2.0)}, TypeError, "span should be"),
    "too few spans": ({"span": [(1, 2)] * 3}, TypeError, "such a pair for each of 2 examples"),
    "weights without a span": ({"weights": [1.0]}, ValueError, "give span="),
    "weights of other rows": ({"span": (2, 4), "weights": [1.0]}, ValueError, "should be 2 numbers of 0 or more"),
    "negative weights": ({"span": (2, 4), "weights": [1.0, -1.0]}, ValueError, "0 or more"),
    "a reasoning without hops": ({"span": (4, 6), "reasoning": (2, 4)}, ValueError, r"SpanTrace\(model, hops=1\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_spans_that_are_none_are_answered_by_what_was_found(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        SpanTrace(tiny("GPT2")).attribute(ids(2, 6), **arguments)


def test_hops_need_a_span_and_a_reasoning_beside_it():
    method = SpanTrace(tiny("GPT2"), hops=1)
    with pytest.raises(ValueError, match="give span= and reasoning=, or hops=0"):
        method.attribute(ids(1, 6), span=(4, 6))
    with pytest.raises(ValueError, match="span and reasoning overlap"):
        method.attribute(ids(1, 6), span=(3, 6), reasoning=(2, 4))
    with pytest.raises(ValueError, match=r"take.* rows one by one, which have no hops"):
        method.attribute_each(ids(1, 6), positions=[3])
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="hops should be 0 or more"):
            SpanTrace(tiny("GPT2"), hops=wrong)


@pytest.mark.parametrize("family", ["Bert", "Bart"])
def test_a_model_that_is_no_decoder_is_refused(family):
    with pytest.raises(ValueError, match=r"SpanTrace explains decoders, .*attention call .* looks ahead"):
        SpanTrace(tiny(family)).attribute(ids(1, 6))


# ------------------------------------------------------------------------------------------- its authors' figures


def published(oracles, kind):
    """The model in float64 and its figures; HF's norms, softmax and rotary stay in float32."""
    file = np.load(oracles / f"flashtrace_{kind}.npz")
    config = json.loads(str(file["config"]))
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    names = [name for name in file.files if name.startswith("weights/")]
    weights = {name.removeprefix("weights/"): torch.from_numpy(file[name]).double() for name in names}
    model.load_state_dict(weights, strict=False)
    return model, file


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_scores_of_running_models_are_those_of_flashtrace(oracles, kind):
    model, file = published(oracles, kind)
    for case in ("0/", "1/"):
        known = {n.removeprefix(case): torch.from_numpy(np.asarray(file[n])) for n in file.files if n.startswith(case)}
        tokens = known["input_ids"].view(1, -1)

        def span(name, known=known):
            start, stop = (int(known["prompt_length"]) + known[f"{name}_span_generation"]).tolist()
            return start, stop + 1

        answer, near = span("answer"), {"rtol": 0, "atol": 1e-5}
        method = SpanTrace(model)
        close(method.attribute(tokens, span=answer)[0], known["span/tokens"], **near)
        close(method.report.feed_forward[:, 0], known["span/ffn"], **near)
        close(sum(method.report.heads)[0], known["span/heads"], **near)
        weighted = method.attribute(tokens, span=answer, weights=known["span_weighted/weights"])
        close(weighted[0], known["span_weighted/tokens"], **near)
        clipped = SpanTrace(model, threshold=float(known["span_threshold/threshold"]))
        close(clipped.attribute(tokens, span=answer)[0], known["span_threshold/tokens"], **near)
        rows = list(range(tokens.shape[1]))
        close(method.attribute_each(tokens, positions=rows)[:, 0], known["matrix/tokens"], **near)
        for hops in (1, 2):
            found = SpanTrace(model, hops=hops).attribute(tokens, span=answer, reasoning=span("reasoning"))
            close(found[0], known[f"multi_hop_{hops}/sum"], **near)


def test_biases_eps_and_norms_of_queries_are_taken_in_where_the_authors_code_leaves_them_out(oracles):
    """Both, on a model with b_V and another eps: theirs leaves b_V out of the parts and always takes 1e-6."""
    model, file = published(oracles, "llama")
    tokens = torch.from_numpy(file["0/input_ids"]).view(1, -1)
    config = transformers.Qwen2Config(**{**model.config.to_dict(), "rms_norm_eps": 1e-2, "model_type": "qwen2"})
    biased = transformers.Qwen2ForCausalLM._from_config(config, attn_implementation="eager").double().eval()
    biased.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in biased.model.layers:
            layer.self_attn.v_proj.bias.copy_(torch.linspace(-1, 1, 12))
    length = tokens.shape[1]
    found = SpanTrace(biased).attribute(tokens, span=(length - 3, length))[0]
    u = torch.zeros(length, dtype=torch.float64)
    u[-3:] = 1
    close(found, sum(t for t, *_ in slow_layers(biased, tokens, u)), rtol=1e-5, atol=1e-6)
    theirs = sum(as_published(biased, tokens, u))
    assert (found - theirs).abs().max() > 0.05
    unbiased = SpanTrace(model).attribute(tokens, span=(length - 3, length))[0]
    close(unbiased, sum(as_published(model, tokens, u)), rtol=0, atol=1e-5)


def as_published(model, tokens, u):
    """Shares of keys with parts made anew of the stream: v_proj's weight alone, eps 1e-6, no share of biases."""
    with torch.no_grad(), recording(blocks=True, sources=[tokens]) as records:
        model(tokens)
    for record, layer in zip(records, model.model.layers, strict=True):
        x, W_V = record.block.residual[0].double(), layer.self_attn.v_proj.weight
        normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.input_layernorm.weight
        values = (normed @ W_V.T).unflatten(-1, (2, -1)).transpose(0, 1).repeat_interleave(2, 0)
        parts = torch.einsum("q,hqk,hke,hed->hkd", u, record.weights[0].double(), values, record.W_O)
        state = u @ record.block.output[0].double()
        nearer, residual = prox(state, parts), prox(state, u @ x)
        yield (nearer.sum(0) / (nearer.sum() + residual)).detach()


def test_no_call_is_asked_for_all_of_its_weights(monkeypatch):
    """So that memory grows with the length, not with its square."""
    from captum_norm.capture.rows import CheckedRows

    monkeypatch.setattr(CheckedRows, "whole", lambda self: pytest.fail("all weights were asked for"))
    tokens, model = ids(1, 12), tiny("Llama", "sdpa")
    SpanTrace(model).attribute(tokens)
    SpanTrace(model, hops=1).attribute(tokens, span=(8, 12), reasoning=(4, 8))


def test_the_script_for_a_gpu_runs_small_on_a_cpu():
    found = costs(small=True, prompt=20, written=20)
    assert (found["device"], found["tokens"]) == ("cpu", [20, 20])
    assert all(found[what]["seconds"] > 0 for what in ("forward", "whole answer", "one hop"))
