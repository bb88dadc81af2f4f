"""DecompX: the authors' figures from the running model, and an output that is all there, on fifteen architectures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMultipleChoice, BertForSequenceClassification

from captum_norm import DecompX, FrozenModel, HFForward
from captum_norm.linear import NotFrozenError

from ..architectures import ARCHITECTURES, Architecture
from .models import ids, tiny

close = torch.testing.assert_close
every_architecture = pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)
ONE_BACKWARD = ("token", "none", "equal", "cls")
CARRIED = ("absdot", "norm", "abssim", "dot")


def tolerance(make: Architecture) -> float:
    return 1e-6 if make.casts else 1e-9


def explaining(make: Architecture, **more: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """A function of the sequences alone that returns (batch, class), and these sequences."""
    model, given = make.build(**more), make.batch()

    def forward(*sequences: Tensor) -> Tensor:
        logits = model(**dict(zip(given, sequences, strict=True))).logits
        return logits[:, -1] if make.rows else logits

    return forward, tuple(given.values())


def total(scores: Any) -> Tensor:
    return torch.stack([part.flatten(1).sum(1) for part in scores]).sum(0)


# ---- the authors' figures


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def reference(request, oracles):
    forward, weights = np.load(oracles / "tiny_forward.npz"), np.load(oracles / "tiny_weights.npz")
    config = BertConfig(**json.loads(str(forward["config"])), attn_implementation=request.param)
    model = BertForSequenceClassification(config).double().eval()
    parameters = {name: torch.from_numpy(weights[name]) for name in weights.files if weights[name].dtype.kind == "f"}
    model.load_state_dict(parameters, strict=False)
    inputs = [torch.from_numpy(forward[name]) for name in ("input_ids", "attention_mask", "token_type_ids")]
    return model, inputs, np.load(oracles / "tiny_decompx.npz")


@pytest.mark.wide(3)
@pytest.mark.parametrize(
    ("bias", "activation", "published"),
    [
        ("token", "ZO", "biastoken_ZO"),
        ("none", "ZO", "nobias_ZO"),
        ("equal", "ZO", "equal_ZO"),
        ("cls", "ZO", "cls_ZO"),
        ("absdot", "ZO", "absdot_ZO"),
        ("absdot", "LA", "absdot_LA"),
        ("absdot", "ReLU", "absdot_ReLU"),
        ("norm", "ZO", "norm_ZO"),
        ("abssim", "ZO", "abssim_ZO"),
        ("dot", "ZO", "dot_ZO"),
    ],
)
def test_scores_are_the_published_contributions(reference, bias, activation, published):
    model, (tokens, mask, types), figures = reference
    method = DecompX(model, bias=bias, activation=activation)
    for target in range(3):
        expected = torch.from_numpy(figures[f"{published}/classifier"])[:, :9, target]
        found, delta = method.attribute(tokens, target, (mask, types), return_convergence_delta=True)
        real = mask.bool()
        close(found[real], expected[real], rtol=1e-10, atol=1e-8 * max(1.0, float(expected.abs().max()) / 100))
        assert (found[~real] == 0).all()
        if bias == "token":
            close(delta, torch.from_numpy(figures[f"{published}/classifier"])[:, 9, target], rtol=0, atol=1e-8)
        if bias not in ("token", "none") and activation != "ReLU":
            assert delta.abs().max() < 1e-10


# ---- any architecture


@every_architecture
def test_tokens_and_biases_sum_to_the_output(make):
    forward, sequences = explaining(make)
    with torch.no_grad():
        expected = forward(*sequences)[:, 3]
    method = DecompX(forward)
    scores, delta = method.attribute(sequences, 3, return_convergence_delta=True)
    assert [part.shape for part in scores] == [sequence.shape for sequence in sequences]
    close(total(scores) + delta, expected, rtol=tolerance(make), atol=tolerance(make))
    close(method.report.bias + method.report.left_out, delta, rtol=tolerance(make), atol=tolerance(make))
    assert method.report.error < tolerance(make)  # the biases having been counted by themselves


@every_architecture
def test_without_biases_nothing_is_left_over(make):
    forward, sequences = explaining(make, biases=False)
    for more in ({}, {"product": "gate"}):
        method = DecompX(forward, **more)
        _, delta = method.attribute(sequences, 3, return_convergence_delta=True)
        assert method.report.bias.abs().max() < tolerance(make)
        if make.name != "ViT":  # whose class token has a share, and is no input
            assert delta.abs().max() < tolerance(make)


@pytest.mark.wide(5)
@every_architecture
@pytest.mark.parametrize("bias", ["equal", "cls", "absdot", "norm"])
def test_rules_that_share_biases_leave_nothing(make, bias):
    forward, sequences = explaining(make)
    method = DecompX(forward, bias=bias)
    _, delta = method.attribute(sequences, 3, return_convergence_delta=True)
    close(delta, method.report.left_out, rtol=tolerance(make), atol=tolerance(make))
    if make.name != "ViT":
        assert delta.abs().max() < tolerance(make)


@every_architecture
@pytest.mark.parametrize("attention", ["eager"])
def test_other_attention_gives_the_same_scores(make, attention):
    given = [explaining(make, attention=name) for name in (None, attention)]
    first, second = (DecompX(forward).attribute(sequences, 3) for forward, sequences in given)
    for one, other in zip(first, second, strict=True):
        close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma-2", "T5"])
def test_a_tokens_score_is_what_its_vector_adds(name):
    """Where the first layer's values have no bias, scores are those of the first layer's input."""
    make = ARCHITECTURES[name]
    model = make.build(biases=False)
    given = make.batch()
    found = FrozenModel(model, given).contributions((-1, 3)).vectors
    scores = DecompX(lambda *sequences: model(**dict(zip(given, sequences, strict=True))).logits[:, -1]).attribute(
        tuple(given.values()), 3
    )
    found = found if isinstance(found, tuple) else (found,)
    for vectors, score in zip(found[: len(scores)], scores, strict=True):
        close(vectors.sum(-1), score, rtol=1e-5, atol=1e-6)
    # Where attention is written out, T5's table of relative positions is a sequence, too; weights are held fixed.
    assert not any(vectors.any() for vectors in found[len(scores) :])


def test_the_rule_for_biases_decides_what_the_scores_sum_to():
    model, tokens = tiny("Bert").double(), ids(2, 6)
    with torch.no_grad():
        logit = model(tokens).logits[:, 1]
    by_rule = {rule: DecompX(model, bias=rule).attribute(tokens, 1) for rule in (*ONE_BACKWARD, *CARRIED)}
    assert torch.equal(by_rule["token"], by_rule["none"])
    for rule in ("equal", "cls", *CARRIED):
        close(by_rule[rule].sum(1), logit)
    of_biases = logit - by_rule["token"].sum(1)
    close(by_rule["equal"] - by_rule["token"], (of_biases / 6)[:, None].expand(2, 6))
    close((by_rule["cls"] - by_rule["token"])[:, 0], of_biases)
    close(by_rule["cls"][:, 1:], by_rule["token"][:, 1:])
    assert not torch.allclose(by_rule["absdot"], by_rule["norm"])


def test_in_a_causal_model_later_tokens_have_no_share():
    model, tokens = tiny("GPT2").double(), ids(2, 6)
    forward = HFForward(model, position=3)
    for bias in ("token", "equal", "cls", "absdot"):
        found, delta = DecompX(forward, bias=bias).attribute(tokens, 7, return_convergence_delta=True)
        assert (found[:, 4:] == 0).all()
        assert (found[:, :4] != 0).all()
        close(found.sum(1) + delta, forward(tokens).detach()[:, 7])
    short = DecompX(HFForward(model, position=-1)).attribute(tokens[:, :4], 7)
    close(DecompX(forward).attribute(tokens, 7)[:, :4], short)


def test_the_sources_tokens_alone_leave_the_prefixs_share_to_the_delta():
    model = tiny("Bart").double()
    source, prefix = ids(2, 6), ids(2, 4, seed=1)
    forward = HFForward(model, names=("decoder_input_ids",))

    def both(source: Tensor, prefix: Tensor) -> Any:
        return model(input_ids=source, decoder_input_ids=prefix).logits[:, -1]

    method = DecompX(both)
    (of_source, of_prefix), of_biases = method.attribute((source, prefix), 7, return_convergence_delta=True)
    alone = DecompX(forward)
    scores, delta = alone.attribute(source, 7, prefix, return_convergence_delta=True)
    close(scores, of_source)
    close(delta, of_biases + of_prefix.sum(1))
    close(alone.report.left_out, of_prefix.sum(1))


def test_pixels_share_their_patchs_score():
    make = ARCHITECTURES["ViT"]
    model, (pixels,) = make.build(), make.batch().values()
    scores = DecompX(model).attribute(pixels, 3)
    patches = scores.unfold(2, 4, 4).unfold(3, 4, 4).sum(dim=(1, 4, 5)).flatten(1)
    vectors = FrozenModel(model.eval(), pixels).contributions(3).vectors[:, 1:].sum(-1)
    assert scores[0, :, :4, :4].unique().numel() == 1
    assert patches.shape == vectors.shape
    forward = HFForward(model, "gate")
    close(DecompX(forward).attribute(**forward.inputs({"pixel_values": pixels}), target=3), patches)


def test_a_frame_of_sound_shares_its_score_with_what_it_covers():
    make = ARCHITECTURES["Whisper"]
    forward, (sound, prefix) = explaining(make)
    of_sound, _ = DecompX(forward).attribute((sound, prefix), 3)
    assert of_sound.shape == sound.shape
    frames = of_sound.unfold(2, 2, 2).sum((1, 3))
    close(of_sound, frames.repeat_interleave(2, 1)[:, None].expand_as(sound) / 16)


def test_product_conventions_differ_and_both_add_up():
    model, tokens = tiny("Llama").double(), ids(2, 6)
    forward = HFForward(model)
    half, gate = (
        DecompX(forward, product=product).attribute(tokens, 7, return_convergence_delta=True)
        for product in ("half", "gate")
    )
    assert not torch.allclose(half[0], gate[0])
    for scores, delta in (half, gate):
        close(scores.sum(1) + delta, forward(tokens).detach()[:, 7], rtol=1e-6, atol=1e-6)


def test_scores_of_a_batch_do_not_depend_on_its_other_examples():
    model, tokens = tiny("Bert").double(), ids(3, 6)
    for bias in ("token", "absdot"):
        together, delta = DecompX(model, bias=bias).attribute(tokens, [0, 1, 2], return_convergence_delta=True)
        for number in range(3):
            alone = DecompX(model, bias=bias).attribute(tokens[number : number + 1], number)
            close(together[number : number + 1], alone)
        assert delta.shape == (3,)


@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX", "BART"])
def test_scores_do_not_depend_on_whether_the_model_keeps_keys_and_values_for_later_passes(family):
    make = ARCHITECTURES[family]
    model, given = make.build(), make.batch()
    shares = []
    for keeps in (True, False):
        model.config.use_cache = keeps
        assert (model(**given).past_key_values is not None) == keeps

        def forward(*sequences: Tensor) -> Tensor:
            return model(**dict(zip(given, sequences, strict=True))).logits[:, -1]

        shares.append(DecompX(forward, bias="absdot").attribute(tuple(given.values()), 0))
    close(shares[0], shares[1])


# ---- what goes wrong


def test_a_missing_target_is_refused_where_there_are_several_classes():
    with pytest.raises(ValueError, match=r"DecompX explains one number per example.*\(2, 3\).*give a class"):
        DecompX(tiny("Bert")).attribute(ids(2, 6))
    one = DecompX(lambda tokens: tiny("Bert")(tokens).logits[:, 0])
    close(one.attribute(ids(2, 6)), DecompX(tiny("Bert")).attribute(ids(2, 6), 0))


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match=r"bias should be one of 'token', .*'dot', got 'cosine'"):
        DecompX(nn.Identity(), bias="cosine")
    with pytest.raises(ValueError, match="activation should be one of"):
        DecompX(nn.Identity(), activation="gelu")
    with pytest.raises(ValueError, match="product should be one of"):
        DecompX(nn.Identity(), product="both")


def test_parts_that_would_not_fit_are_refused_before_they_are_made():
    method = DecompX(tiny("Bert"), bias="absdot", max_memory=1 << 12)
    with pytest.raises(ValueError, match=r"carrying 7 parts .* max_memory .* bias=\"token\""):
        method.attribute(ids(2, 6), 1)
    assert DecompX(tiny("Bert"), max_memory=1).attribute(ids(2, 6), 1).shape == (2, 6)


class Doubling(torch.autograd.Function):
    """Twice the input, told to autograd as three times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient


def test_what_was_not_seen_is_found_by_adding_up():
    model = tiny("Bert").double()

    def forward(tokens: Tensor) -> Tensor:
        return Doubling.apply(model(tokens).logits)

    with pytest.raises(NotFrozenError, match=r"the frozen model does not add up.*custom autograd function"):
        DecompX(forward).attribute(ids(2, 6), 1)


def test_positions_that_stand_where_examples_are_sought_are_refused_with_the_way_out():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)  # torch's default: positions first
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    with pytest.raises(NotFrozenError, match=r"axis 0 .*another one was given.*model\(x\.transpose\(0, 1\)\)"):
        DecompX(lambda x: encoder(x).sum(1)).attribute(x, target=1)  # which examples an output is of is not seen

    def first(x: Tensor) -> Tensor:
        return encoder(x.transpose(0, 1)).transpose(0, 1)

    found, delta = DecompX(first).attribute(x.transpose(0, 1), target=(3, 1), return_convergence_delta=True)
    close(found.sum((1, 2)) + delta, encoder(x)[3, :, 1])
    close(DecompX(encoder).attribute(x, target=(3, 1)), found.transpose(0, 1))


@pytest.mark.parametrize("best", [0, 1, 2])
def test_an_output_that_is_read_from_one_example_for_all_is_refused(best):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    with pytest.raises(NotFrozenError, match="an example's output depends on what another one was given"):
        DecompX(lambda x: encoder(x)[best].expand(x.shape)).attribute(torch.randn(3, 4, 8).double(), target=(0, 1))


@pytest.mark.parametrize("bias", ["token", "absdot"])
def test_choices_are_explained_as_each_by_itself(bias):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**sizes, intermediate_size=24, max_position_embeddings=32)
    model = BertForMultipleChoice(config).double().eval()
    tokens = torch.randint(5, 55, (2, 3, 7))
    found = DecompX(model, bias=bias).attribute(tokens, target=1)
    alone = DecompX(lambda ids: model(ids[:, None]).logits, bias=bias).attribute(tokens[:, 1], target=0)
    close(found[:, 1], alone)
    assert (found[:, [0, 2]] == 0).all()


def test_an_output_that_is_a_probability_is_refused_with_the_way_out():
    model = tiny("Bert")
    with pytest.raises(NotFrozenError, match="explain the logits"):
        DecompX(lambda tokens: model(tokens).logits.softmax(-1)).attribute(ids(2, 6), 1)


def test_examples_packed_into_one_row_are_asked_for_one_at_a_time():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()

    def packed(x: Tensor) -> Tensor:
        return layer(x.flatten(0, 1)[None])

    x = torch.randn(2, 3, 8)
    with pytest.raises(NotFrozenError, match=r"in one row .*give one example at a time"):
        DecompX(packed).attribute(x, target=(0, 0))
    assert DecompX(packed).attribute(x[:1], target=(0, 0)).shape == (1, 3, 8)


@pytest.mark.parametrize("bias", ["token", "absdot"])
def test_an_output_added_up_over_the_batch_is_refused_as_one_and_explained_example_by_example(bias):
    model, tokens = tiny("Bert"), ids(2, 6)
    for added in (lambda y: y.sum(0)[1], lambda y: y[:, 1].sum(), lambda y: y.mean(0, keepdim=True)[:, 1]):
        with pytest.raises(NotFrozenError, match=r"adds up several examples .*Explain one number for each example"):
            DecompX(lambda tokens, added=added: added(model(tokens).logits), bias=bias).attribute(tokens)
    found = DecompX(lambda tokens: model(tokens).logits[:, 1], bias=bias).attribute(tokens)
    alone = [DecompX(model, bias=bias).attribute(tokens[n : n + 1], target=1) for n in range(2)]
    close(found, torch.cat(alone))
