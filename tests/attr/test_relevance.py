"""AttentionRelevance against the definition, computed from what eager models return of their attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch.utils.checkpoint import checkpoint

from captum_norm.attr import AttentionNorm, AttentionRelevance, DecompX, ValueZeroing
from captum_norm.capture import InexactCaptureError
from captum_norm.forward import HFForward
from captum_norm.functional import gradient_weights, relevance, relevance_encoder_decoder
from tests.architectures import ARCHITECTURES

from .models import ids, tiny

close = torch.testing.assert_close


def slow_relevance(model: Any, explained: Any, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(R of the source, R of the prefix or None), from returned attentions and their gradients."""
    output = model(**inputs, output_attentions=True)
    kinds = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    weights = {kind: output.get(kind) or () for kind in kinds}
    every = [w for kind in kinds for w in weights[kind]]
    gradients = iter(torch.autograd.grad(explained(output).sum(), every))
    maps = {kind: [gradient_weights(w, next(gradients)) for w in weights[kind]] for kind in kinds}
    if maps["cross_attentions"]:
        return relevance_encoder_decoder(*(maps[kind] for kind in kinds[1:]))
    return relevance(maps["attentions"]), None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_it_is_the_definition(family, attention):
    tokens, rows = ids(2, 6), family != "Bert"
    expected, _ = slow_relevance(
        tiny(family).double(), lambda o: o.logits[:, -1, 3] if rows else o.logits[:, 1], input_ids=tokens
    )
    method = AttentionRelevance(tiny(family, attention).double())
    found = method.attribute(tokens, target=(-1, 3) if rows else 1, position="all")
    casts = family == "Llama"  # its softmax computes in float32
    close(found, expected, rtol=0, atol=1e-6 if casts else 1e-12)
    assert (found >= 0).all()


@pytest.mark.parametrize("family", ["Bart", "T5"])
def test_an_encoder_decoder_has_scores_for_the_source_and_for_the_prefix(family):
    inputs = {"input_ids": ids(2, 6), "decoder_input_ids": ids(2, 4, seed=1)}
    source, prefix = slow_relevance(tiny(family).double(), lambda o: o.logits[:, 2, 5], **inputs)
    model = tiny(family).double()
    method = AttentionRelevance(lambda source, prefix: model(source, decoder_input_ids=prefix).logits)
    found = method.attribute(tuple(inputs.values()), target=(2, 5), position="all")
    close(found, (source, prefix), rtol=0, atol=1e-12)
    close(method.attribute(tuple(inputs.values()), target=(2, 5), position=2), (source[:, 2], prefix[:, 2]))


class Written(nn.Module):
    """One layer of attention; the value product is written in one of several ways."""

    def __init__(self, product: Any) -> None:
        super().__init__()
        self.into, self.out, self.product = nn.Linear(8, 24), nn.Linear(8, 8), product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x).unflatten(-1, (3, 2, 4)).unbind(2)
        weights = torch.einsum("bqhe,bkhe->bhqk", q, k).softmax(-1)
        return (x + self.out(self.product(weights, v).flatten(2)))[:, 0]


PRODUCTS = {
    "matmul": lambda w, v: (w @ v.transpose(1, 2)).transpose(1, 2),
    "turned": lambda w, v: (v.permute(0, 2, 3, 1) @ w.mT).permute(0, 3, 1, 2),
    "einsum": lambda w, v: torch.einsum("bhqk,bkhe->bqhe", w, v),
}


@pytest.mark.parametrize("name", ["turned", "einsum"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_value_product_counts_however_it_is_written(name, frozen):
    model, x = Written(PRODUCTS["matmul"]).double(), torch.randn(2, 5, 8).double()
    expected = AttentionRelevance(model).attribute(x, target=3, position="all")
    assert not torch.allclose(expected, torch.eye(5).double())
    model.product = PRODUCTS[name]
    model.requires_grad_(not frozen)
    close(AttentionRelevance(model).attribute(x, target=3, position="all"), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_it_runs_on_every_architecture(architecture):
    """Also with parameters frozen, and equal then: the graph begins at the first attention call."""
    model, batch = architecture.build(), architecture.batch()
    names = list(batch)[-1:] if architecture.name == "Whisper" else list(batch)  # sound has no positions of its own
    fixed = {name: value for name, value in batch.items() if name not in names}

    def forward(*given: Tensor) -> Tensor:
        return architecture.explained(model(**fixed, **dict(zip(names, given, strict=True))))

    scores = AttentionRelevance(forward).attribute(tuple(batch[name] for name in names))
    assert all(bool(torch.isfinite(one).all() and (one >= 0).all()) for one in scores)
    assert sum(float(one.sum()) for one in scores) > 0.01
    model.requires_grad_(False)
    close(AttentionRelevance(forward).attribute(tuple(batch[name] for name in names)), scores)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_forward_and_one_backward_pass(attention, monkeypatch):
    model, backward = tiny("Bert", attention), []
    forwards: list[int] = []
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: forwards.append(1))
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: backward.append(1) or grad(*args, **kwargs))
    AttentionRelevance(model).attribute(ids(2, 6), target=1)
    assert (len(forwards), len(backward)) == (1, 1)


def test_gradients_of_the_caller_stay_as_they_are():
    model = tiny("Bert")
    model(ids(2, 6)).logits.sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    embeds = torch.randn(2, 6, 16, requires_grad=True)
    AttentionRelevance(HFForward(model, "embeds")).attribute(embeds, target=1)
    assert embeds.grad is None
    assert embeds.requires_grad
    assert before
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters() if name in before)


def test_autocast_and_compilation_leave_the_scores():
    model, tokens = tiny("Bert", "sdpa"), ids(2, 6)
    expected = AttentionRelevance(model).attribute(tokens, target=1)
    close(AttentionRelevance(torch.compile(model, backend="eager")).attribute(tokens, target=1), expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = AttentionRelevance(model).attribute(tokens, target=1)
    assert found.dtype is torch.float32
    close(found, expected, rtol=0, atol=0.05)


# what is refused


def test_a_target_is_needed_where_there_are_several_outputs():
    with pytest.raises(ValueError, match=r"AttentionRelevance explains one number per example.*\(2, 3\).*target=None"):
        AttentionRelevance(tiny("Bert")).attribute(ids(2, 6))
    with pytest.raises(ValueError, match=r"\(2, 6, 60\), target=1 leaves \(2, 60\).*HFForward"):
        AttentionRelevance(tiny("GPT2")).attribute(ids(2, 6), target=1)
    model = tiny("Bert")
    one = AttentionRelevance(lambda tokens: model(tokens).logits[:, 1])
    close(one.attribute(ids(2, 6)), AttentionRelevance(model).attribute(ids(2, 6), target=1))


def test_a_forward_without_gradients_is_refused():
    model = tiny("Bert")
    with pytest.raises(ValueError, match=r"has no gradient.*torch\.no_grad"):
        AttentionRelevance(torch.no_grad()(lambda tokens: model(tokens).logits)).attribute(ids(2, 6), target=1)
    with pytest.raises(InexactCaptureError, match=r"torch\.inference_mode\(\), where nothing has a gradient"):
        AttentionRelevance(torch.inference_mode()(lambda tokens: model(tokens).logits)).attribute(ids(2, 6), target=1)
    with pytest.raises(ValueError, match="has no gradient"):
        AttentionRelevance(lambda tokens: model(tokens).logits.detach()).attribute(ids(2, 6), target=1)


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


def overwritten(y: Tensor) -> Tensor:
    y, z = y.exp(), y * 2
    y += 1  # of which exp's gradient is made
    return y + z


@pytest.mark.parametrize("bent", [overwritten, WithoutBackward.apply])
def test_a_model_without_a_gradient_of_its_own_is_refused_with_a_way_out(bent):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(x: Tensor) -> Tensor:
        return bent(attention(x, x, x)[0]).sum((1, 2))

    with pytest.raises(ValueError, match=r"model's own gradient .*x = x \+ y for x \+= y.* methods without gradients"):
        AttentionRelevance(forward).attribute(torch.randn(2, 5, 8))


class WithoutGradients(nn.Module):
    """Attention whose values are mixed, or whose result is handed on, by an operation without gradients."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.v, self.shift = nn.Linear(8, 8), nn.Parameter(torch.zeros(2, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        weights, values = (x @ x.mT).softmax(-1), self.v(x)
        y = torch.empty_like(x)
        if self.way == "out=":
            torch.matmul(weights, values, out=y)
        else:
            y = weights @ values
        if self.way == "a parameter in place":
            y = self.shift.mul_(0) + y
        elif self.way == "a part of one in place":
            y = self.shift[0].mul_(0) + y
        elif self.way == "one of several views in place":
            y.unbind(1)[0].mul_(2)
        elif self.way == "numpy":
            y = y + float(y.numpy().sum())
        return y.sum((1, 2))


WAYS = ["out=", "a parameter in place", "a part of one in place", "one of several views in place", "numpy"]


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_runs_without_gradients_alone_is_refused_with_a_way_out(way):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"does not run with gradients \(.*\)\. .*methods without gradients"):
        AttentionRelevance(WithoutGradients(way)).attribute(torch.randn(2, 5, 8))


class Around(nn.Module):
    """Something before attention, by an operation that is given a function of the model's."""

    def __init__(self, before: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.line = before, nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(self.line, x))[:, 0]


CHOICES = {
    "the first": lambda line, x: torch.cond(x.sum() > -1e9, line, lambda t: t.clone(), (x,)),
    "the second": lambda line, x: torch.cond(x.sum() > 1e9, lambda t: t.clone(), line, (x,)),
    "without operands": lambda line, x: torch.cond(x.sum() > -1e9, lambda: line(x), lambda: x.clone()),
}


@pytest.mark.parametrize("method", [AttentionRelevance, AttentionNorm, ValueZeroing, DecompX])
@pytest.mark.parametrize("choice", CHOICES)
def test_of_a_choice_between_two_functions_the_one_that_runs_is_explained(choice, method):
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    chosen, plain = Around(CHOICES[choice]).eval(), Around(lambda line, x: line(x)).eval()
    close(method(chosen).attribute(x, target=1), method(plain).attribute(x, target=1))


def test_a_function_that_torch_traces_is_refused_by_name_with_gradients():
    model = Around(lambda line, x: map_over(line, line(x))).eval()
    with pytest.raises(ValueError, match=r"operation 'map_impl' cannot .* gradients.* loop in Python; methods without"):
        AttentionRelevance(model).attribute(torch.randn(2, 5, 8), target=1)
    looped = Around(lambda line, x: torch.stack([line(one) for one in line(x)])).eval()
    assert AttentionRelevance(looped).attribute(torch.randn(2, 5, 8), target=1).shape == (2, 5, 8)

    def wrong(x: Tensor) -> Tensor:
        raise AssertionError("the model's own")

    with pytest.raises(AssertionError, match="the model's own"):
        AttentionRelevance(wrong).attribute(torch.randn(2, 5, 8))


def test_what_goes_wrong_without_gradients_too_is_the_models_own_error():
    def forward(x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        AttentionRelevance(forward).attribute(torch.randn(2, 5, 8))


def hidden(output: Any) -> Tensor:
    """What a layer gives out: a tensor, or before transformers 5 a tuple that holds it."""
    return output[0] if isinstance(output, tuple) else output


def test_a_part_of_the_model_without_gradients_is_named():
    encoder = tiny("Bert")

    def forward(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            lower = hidden(encoder.bert.encoder.layer[0](encoder.bert.embeddings(tokens)))
        return hidden(encoder.bert.encoder.layer[1](lower))[:, 0]

    with pytest.raises(ValueError, match=r"no gradient with respect to attention call .*\(self, call 0\)"):
        AttentionRelevance(forward).attribute(ids(2, 6), target=1)


def test_checkpointed_layers_without_a_graph_are_refused():
    encoder = tiny("Bert").requires_grad_(False)

    def forward(tokens: Tensor) -> Tensor:
        x = encoder.bert.embeddings(tokens)
        for layer in encoder.bert.encoder.layer:
            x = hidden(checkpoint(layer, x.requires_grad_(), use_reentrant=True))
        return x[:, 0]

    with pytest.raises(ValueError, match="no gradient with respect to attention call"):
        AttentionRelevance(forward).attribute(ids(2, 6), target=1)
