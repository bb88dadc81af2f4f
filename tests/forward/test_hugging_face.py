"""One forward for every Captum method: embeddings, rows, targets, repetitions, and the model left as it was."""

import copy
import functools
import pickle

import pytest
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Lime,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
)
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    ViTConfig,
    ViTForImageClassification,
)

from captum_norm.forward import HFForward

from .models import (
    ENCODER,
    MODELS,
    TRANSLATOR,
    TRANSLATORS,
    VISION,
    call,
    encoding_for,
    hooks,
    model_of,
    pair,
    text,
)


@pytest.mark.parametrize("name", ["bert", "deberta", "roberta", "modernbert", "gpt2", "llama", "t5", "bart"])
def test_embeddings_give_what_ids_give(name):
    encoding = encoding_for(name)
    torch.testing.assert_close(
        call(HFForward(model_of(name), "embeds"), encoding), call(HFForward(model_of(name)), encoding)
    )


@pytest.mark.parametrize("name", ["roberta", "marian", "m2m100"])
def test_embeddings_that_mean_something_else_than_the_ids_are_refused(name):
    """RoBERTa and M2M100 count positions from the padding, Marian scales what it looks up."""
    with pytest.raises(ValueError, match=r"off by .* Use mode='gate'"):
        HFForward(model_of(name), "embeds").inputs(encoding_for(name, "left"))


def test_the_check_of_the_embeddings_holds_under_dropout_and_draws_no_random_number():
    model = copy.deepcopy(model_of("bert")).train()
    state = torch.get_rng_state()
    HFForward(model, "embeds").inputs(text())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


def test_models_without_inputs_embeds_say_so():
    with pytest.raises(ValueError, match=r"ViTForImageClassification takes no inputs_embeds.*gate"):
        HFForward(ViTForImageClassification(ViTConfig(**VISION)), "embeds")
    forward = HFForward(BartForSequenceClassification(BartConfig(**TRANSLATOR)), "embeds")
    with pytest.raises(ValueError, match=r"does not run from inputs_embeds.*mode='gate'"):
        forward.inputs({"input_ids": torch.tensor([[5, 6, 2]])})


@pytest.mark.parametrize("position", [2, -5, [2, 2, 2], (2, 2, 2), torch.tensor(2), torch.tensor([2, 2, 2])])
def test_the_row_can_be_chosen(position):
    with torch.no_grad():
        logits = model_of("llama")(**text()).logits
    assert torch.equal(call(HFForward(model_of("llama"), position=position), text()), logits[:, 2])


def test_each_example_can_have_its_own_row():
    with torch.no_grad():
        logits = model_of("roberta")(**text()).logits
    assert torch.equal(call(HFForward(model_of("roberta"), position=[6, 1, 0]), text()), logits[range(3), [6, 1, 0]])


def test_the_mean_is_over_real_tokens():
    with torch.no_grad():
        logits = model_of("roberta")(**text("left")).logits
    expected = torch.stack([logits[0].mean(0), logits[1, 2:].mean(0), logits[2, 4:].mean(0)])
    torch.testing.assert_close(call(HFForward(model_of("roberta"), position="mean"), text("left")), expected)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_encoder_decoders_explain_the_last_real_token_of_the_decoder(name):
    with torch.no_grad():
        logits = model_of(name)(**pair()).logits
    assert torch.equal(call(HFForward(model_of(name)), pair()), logits[range(3), [3, 3, 1]])


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("mode", ["ids", "gate"])
@pytest.mark.parametrize("name", [n for n in MODELS if n != "xlnet"])
def test_a_batch_gives_what_its_examples_give_one_by_one(name, mode, padding):
    if padding == "left" and name == "gpt2":
        pytest.skip("GPT-2 counts positions from the padding on the left unless position_ids are given")
    if padding == "left" and name in ("bert", "deberta", "bart", "marian"):
        pytest.skip("these models pool, or count positions from, the left end, padding or not")
    forward, encoding = HFForward(model_of(name), mode), encoding_for(name, padding)
    together = call(forward, encoding)
    for index in range(3):
        real = encoding["attention_mask"][index].bool()
        single = {k: v[index : index + 1, real] for k, v in encoding.items() if not k.startswith("decoder")}
        if name in TRANSLATORS:
            real = encoding["decoder_attention_mask"][index].bool()
            single |= {k: v[index : index + 1, real] for k, v in encoding.items() if k.startswith("decoder")}
        torch.testing.assert_close(together[index], call(forward, single)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_the_target_is_the_class_where_the_model_returns_a_row_per_token():
    """Captum on the bare model would take target 4 for the fifth token."""
    forward = HFForward(model_of("llama"), "gate")
    arguments = forward.inputs(text())
    scores = Saliency(forward).attribute(**arguments, target=4, abs=False)
    gate = arguments["inputs"].clone().requires_grad_()
    embeds = model_of("llama").get_input_embeddings()(text()["input_ids"]) * gate[..., None]
    logits = model_of("llama")(inputs_embeds=embeds, attention_mask=text()["attention_mask"]).logits
    (expected,) = torch.autograd.grad(logits[range(3), [6, 4, 2], 4].sum(), gate)
    torch.testing.assert_close(scores, expected)


def test_a_model_that_pools_returns_its_own_result():
    with torch.no_grad():
        expected = model_of("bert")(**text()).logits
    for position in (None, 3, "mean", [1, 2, 0]):
        assert torch.equal(call(HFForward(model_of("bert"), position=position), text()), expected)


def test_a_span_model_gives_the_start_of_the_span():
    model = BertForQuestionAnswering(BertConfig(**ENCODER | {"num_labels": 2})).eval()
    with torch.no_grad():
        expected = model(**text()).start_logits
    assert torch.equal(call(HFForward(model), text()), expected)


@pytest.mark.parametrize(
    "fixed", [{"return_dict": False}, {"labels": torch.tensor([0, 1, 2])}, {"output_hidden_states": True}]
)
def test_any_form_of_the_output_is_understood(fixed):
    model = copy.deepcopy(model_of("bert"))  # transformers leaves hooks where hidden states were asked for
    assert torch.equal(call(HFForward(model, **fixed), text()), call(HFForward(model_of("bert")), text()))


def test_a_loss_in_front_of_the_result_is_not_explained():
    expected = call(HFForward(model_of("bert")), text())
    forward = HFForward(model_of("bert"), return_dict=False, labels=torch.tensor([0, 1, 2]))
    assert torch.equal(call(forward, text()), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_and_gates_have_the_models_dtype(dtype):
    model = copy.deepcopy(model_of("bert")).to(dtype)
    arguments = HFForward(model, "gate").inputs(text())
    assert arguments["inputs"].dtype == dtype
    assert call(HFForward(model, "gate"), text()).dtype == dtype
    single = HFForward(model, "gate")(torch.ones(3, 7), *arguments["additional_forward_args"])
    assert torch.equal(single, call(HFForward(model), text()))


@pytest.mark.parametrize(
    "repeat", [lambda t: t.repeat_interleave(3, 0), lambda t: torch.cat([t] * 3)], ids=["in place", "end to end"]
)
@pytest.mark.parametrize("mode", ["ids", "gate"])
def test_positions_follow_a_repeated_batch(mode, repeat):
    forward = HFForward(model_of("roberta"), mode, position=[6, 1, 0])
    arguments = forward.inputs(text())
    extras = arguments["additional_forward_args"]
    with torch.no_grad():
        expected = repeat(forward(arguments["inputs"], *extras))
        passed_along = forward(repeat(arguments["inputs"]), *[None if e is None else repeat(e) for e in extras])
        from_rows = forward(repeat(arguments["inputs"]), *[None if e is None else repeat(e) for e in extras[:-1]])
    torch.testing.assert_close(passed_along, expected)
    torch.testing.assert_close(from_rows, expected)


def test_positions_that_could_follow_in_two_ways_are_refused():
    forward = HFForward(model_of("roberta"), position=[1, 2])
    with pytest.raises(ValueError, match=r"2 entries for a batch of 4.*do not show.*inputs\(encoding\)"):
        forward(torch.full((4, 5), 7))
    same = HFForward(model_of("roberta"), position=[2, 2])(torch.full((4, 5), 7))
    assert torch.equal(same, HFForward(model_of("roberta"), position=2)(torch.full((4, 5), 7)))


def test_positions_of_another_length_are_refused():
    forward = HFForward(model_of("roberta"), position=[1, 2])
    with pytest.raises(ValueError, match="2 entries for a batch of 3"):
        forward(text()["input_ids"])
    with pytest.raises(ValueError, match="2 entries, but the encoding has 3 examples"):
        forward.inputs(text())


@pytest.mark.parametrize(
    "method",
    [
        lambda f: functools.partial(IntegratedGradients(f).attribute, n_steps=4),
        lambda f: functools.partial(IntegratedGradients(f).attribute, n_steps=4, internal_batch_size=6),
        lambda f: functools.partial(
            NoiseTunnel(Saliency(f)).attribute, nt_samples=4, nt_samples_batch_size=3, stdevs=0.0
        ),
        lambda f: functools.partial(FeatureAblation(f).attribute, perturbations_per_eval=3),
        lambda f: functools.partial(DeepLift(f).attribute),
    ],
    ids=["integrated", "in batches", "noise", "ablation", "deeplift"],
)
@pytest.mark.filterwarnings("ignore")
def test_each_example_keeps_its_row_under_captums_methods(method):
    position = [6, 1, 0]
    forward = HFForward(model_of("roberta"), "gate", position=position)
    together = method(forward)(**forward.inputs(text()), target=4)
    for index in range(3):
        single = HFForward(model_of("roberta"), "gate", position=position[index])
        alone = method(single)(**single.inputs({k: v[index : index + 1] for k, v in text().items()}), target=4)
        torch.testing.assert_close(together[index], alone[0], rtol=1e-4, atol=1e-4)


METHODS = {
    "IntegratedGradients": lambda f: functools.partial(IntegratedGradients(f).attribute, n_steps=4),
    "Saliency": lambda f: Saliency(f).attribute,
    "InputXGradient": lambda f: InputXGradient(f).attribute,
    "DeepLift": lambda f: DeepLift(f).attribute,
    "GradientShap": lambda f: functools.partial(GradientShap(f).attribute, baselines=torch.zeros(3, 7), n_samples=2),
    "FeatureAblation": lambda f: FeatureAblation(f).attribute,
    "ShapleyValueSampling": lambda f: functools.partial(ShapleyValueSampling(f).attribute, n_samples=1),
    "Occlusion": lambda f: functools.partial(Occlusion(f).attribute, sliding_window_shapes=(1,)),
    "KernelShap": lambda f: functools.partial(KernelShap(f).attribute, n_samples=10),
    "Lime": lambda f: functools.partial(Lime(f).attribute, n_samples=10),
}


@pytest.mark.parametrize("name", ["bert", "llama", "m2m100"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_captums_methods_score_tokens_through_the_gate(method, name):
    if method == "Lime":
        pytest.importorskip("sklearn")
    model = model_of(name)
    forward = HFForward(model, "gate")
    scores = METHODS[method](forward)(**forward.inputs(encoding_for(name)), target=2)
    assert scores.shape == (3, 7)
    assert scores.isfinite().all()
    assert scores.abs().sum() > 0
    assert hooks(model) == 0


def test_integrated_gradients_through_the_gate_are_complete():
    model = copy.deepcopy(model_of("bert")).double()
    forward = HFForward(model, "gate")
    arguments = forward.inputs(text())
    scores = IntegratedGradients(forward).attribute(**arguments, target=1, n_steps=200)
    extras = arguments["additional_forward_args"]
    with torch.no_grad():
        change = forward(arguments["inputs"], *extras) - forward(torch.zeros(3, 7).double(), *extras)
    torch.testing.assert_close(scores.sum(1), change[:, 1], rtol=1e-3, atol=1e-3)


def test_ablation_through_the_gate_is_the_change_when_a_token_is_gone():
    forward = HFForward(model_of("llama"), "gate")
    arguments = forward.inputs(text())
    gate, extras = arguments["inputs"], arguments["additional_forward_args"]
    scores = FeatureAblation(forward).attribute(**arguments, target=3)
    without = gate.clone()
    without[:, 1] = 0
    with torch.no_grad():
        expected = (forward(gate, *extras) - forward(without, *extras))[:, 3]
    torch.testing.assert_close(scores[:, 1], expected)


@pytest.mark.parametrize(
    "wrapped",
    [
        copy.deepcopy,
        lambda f: pickle.loads(pickle.dumps(f)),
        nn.DataParallel,
        lambda f: functools.partial(f),
        lambda f: lambda *args: f(*args),
    ],
    ids=["deepcopy", "pickle", "DataParallel", "partial", "lambda"],
)
@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_copies_and_wrappers_give_the_same(wrapped, name):
    forward = HFForward(model_of(name), "gate")
    arguments = forward.inputs(encoding_for(name))
    args = (arguments["inputs"], *arguments["additional_forward_args"])
    assert torch.equal(wrapped(forward)(*args), forward(*args))


def test_a_wrapped_model_is_read_through_the_wrapper():
    model = nn.DataParallel(model_of("bert"))
    assert HFForward(model).names == ("attention_mask", "token_type_ids")
    assert torch.equal(call(HFForward(model, "gate"), text()), call(HFForward(model_of("bert")), text()))


def test_a_wrapper_that_passes_everything_on_is_read_through():
    class Passing(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, *args, **kwargs):
            return self.base(*args, **kwargs)

    forward = HFForward(Passing(model_of("roberta")), "gate")
    assert forward.names == ("attention_mask", "token_type_ids")
    assert torch.equal(call(forward, text()), call(HFForward(model_of("roberta")), text()))


def test_the_model_is_left_as_it_was():
    model = copy.deepcopy(model_of("llama")).eval()
    parameters, config = [p.clone() for p in model.parameters()], model.config.to_dict()
    forward = HFForward(model, "gate")
    arguments = forward.inputs(text())
    IntegratedGradients(forward).attribute(**arguments, target=1, n_steps=2)
    assert not forward.training
    assert not any(module.training for module in model.modules())
    assert model.config.to_dict() == config
    assert all(
        torch.equal(p, q) and p.requires_grad and p.grad is None
        for p, q in zip(model.parameters(), parameters, strict=True)
    )
    assert forward.model is model
