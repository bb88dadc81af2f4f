"""Every public method is a Captum method: what Captum's tools rely on, held over the table of all methods."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr import Attribution, LayerAttribution, NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from captum_norm.attr import ALTILogit, AttentionNorm, AttentionWeights, LayerAttentionNorm, LayerAttentionWeights
from captum_norm.forward import HFForward
from captum_norm.methods import METHODS as COMPARED

from .methods import INPUT_METHODS, LAYER_METHODS, METHODS, Row
from .models import ids, tiny

# A row of ALTI that no input brings nearer is zero, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:alti. no input brings the output nearer")

close = torch.testing.assert_close
every_method = pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
every_input_method = pytest.mark.parametrize("row", [row for row in METHODS if not row.layer], ids=lambda row: row.name)
every_method_by_position = pytest.mark.parametrize("row", INPUT_METHODS, ids=lambda row: row.name)
every_layer_method = pytest.mark.parametrize("row", LAYER_METHODS, ids=lambda row: row.name)

TOKENS = ids(3, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])


def layer_of(model: Any, number: int = 1) -> nn.Module:
    model = getattr(model, "model", model)
    return model.bert.encoder.layer[number].attention


def parts_of(model: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The first layer, what the last one does behind its attention, and the classifier."""
    if hasattr(model, "bert"):
        return model.bert.encoder.layer[0], model.bert.encoder.layer[1].output, model.classifier
    return model.transformer.h[0], model.transformer.h[1].mlp, model.score


def built(row: Row, forward: Any = None, **more: Any) -> Any:
    """The method on a tiny BERT classifier, its second layer for layer classes."""
    forward = tiny(row.family) if forward is None else forward
    return row.build(forward, layer_of(forward, **more) if row.layer else None)


def arguments(forward: HFForward) -> dict[str, Any]:
    return forward.inputs({"input_ids": TOKENS, "attention_mask": MASK})


# 1, 11, 13: the class


@every_method
def test_it_is_a_captum_class_with_captums_order_of_arguments(row):
    assert issubclass(row.method, LayerAttribution if row.layer else Attribution)
    constructor = list(inspect.signature(row.method).parameters.values())
    assert [p.name for p in constructor[: 1 + row.layer]] == ["forward_func", "layer"][: 1 + row.layer]
    assert all(p.kind is p.KEYWORD_ONLY for p in constructor[1 + row.layer :])
    parameters = list(inspect.signature(row.method.attribute).parameters.values())
    assert [p.name for p in parameters[:4]] == ["self", "inputs", "target", "additional_forward_args"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[4:])
    assert row.method.attribute.__wrapped__  # NoiseTunnel calls it


@every_input_method
def test_several_answers_of_one_pass_are_the_answers_one_by_one(row):
    """Whatever a method explains, it is asked for several answers in the same words."""
    tokens, method = ids(2, 6), row.build(tiny("GPT2"))
    positions = [3, 5]
    targets = [method.target_at(position, token) for position, token in zip(positions, (7, 2), strict=True)]
    answers = method.attribute_each(tokens, targets, positions)
    assert answers.shape == (2, 2, 6)
    for answer, target, position in zip(answers, targets, positions, strict=True):
        target = target if row.reads_target or row.by_position else None
        close(answer, method.attribute(tokens, target, **row.at(position)))
    with pytest.raises(ValueError, match=rf"{row.method.__name__}.attribute_each explains .*: give .*="):
        method.attribute_each(tokens)


@every_input_method
def test_it_says_what_it_explains_and_whether_for_from_against(row):
    compared = COMPARED[row.method.__name__]
    assert (row.method.explains, row.method.signed) == (compared.explains, compared.signed)
    method = row.build(tiny("GPT2"))
    method.attribute(ids(1, 6), method.target_at(5, 2))
    assert bool(method.report.certificates) is row.method.certifies_calls


@every_method
def test_its_small_promises(row):
    method = built(row)
    assert method.has_convergence_delta() is row.has_delta
    assert method.multiplies_by_inputs is row.has_delta  # a share of the output is a vector times a gradient
    assert method.get_name().replace(" ", "") == row.method.__name__
    assert max(map(len, method.get_name().split())) > 1
    with pytest.raises(NotImplementedError, match=row.method.__name__):
        method.attribute_future()


@every_method
def test_its_docstrings_give_example_source_and_shapes(row):
    text = inspect.getdoc(row.method)
    assert ">>>" in text
    assert "https://arxiv.org" in text
    assert "(batch" in inspect.getdoc(row.method.attribute)


@every_layer_method
def test_a_wrong_layer_errs_when_it_is_used(row):
    model = tiny("Bert")
    method = row.build(model, "bert.encoder.layer.0")
    with pytest.raises(TypeError, match=r"layer should be a module.*'bert\.encoder\.layer\.0'"):
        method.attribute(TOKENS)
    method.layer = model.classifier
    with pytest.raises(ValueError, match=r"layer 'classifier' \(Linear\).*encoder\.layer\.0\.attention"):
        method.attribute(TOKENS)
    method.layer = tiny("Bert").bert.encoder.layer[0]
    with pytest.raises(ValueError, match="that forward_func does not hold"):
        method.attribute(TOKENS)
    method.layer = model.bert.encoder.layer[0]
    assert method.attribute(TOKENS).shape == row.shape(3, 6, 6)


@every_method
def test_a_model_without_attention_is_refused(row):
    model = nn.Sequential(nn.Embedding(60, 4), nn.Linear(4, 4))
    method = row.build(model, model[1] if row.layer else None)
    with pytest.raises(ValueError, match=f"{row.method.__name__}: no softmax attention was seen"):
        method.attribute(TOKENS)


# 2, 4: shapes and what kind of tensor comes back


@every_input_method
def test_a_tensor_gives_a_tensor_and_a_tuple_a_tuple(row):
    method = built(row)
    alone = method.attribute(TOKENS)
    assert alone.shape == TOKENS.shape
    (within,) = method.attribute((TOKENS,))
    close(within, alone, rtol=0, atol=0)


@pytest.mark.wide(4)
@every_input_method
def test_ids_gate_and_embeddings_have_the_same_scores(row):
    model = tiny(row.family)
    by_mode = {mode: HFForward(model, mode) for mode in ("ids", "gate", "embeds")}
    scores = {mode: built(row, forward).attribute(**arguments(forward)) for mode, forward in by_mode.items()}
    assert torch.equal(scores["gate"], scores["ids"])
    assert scores["embeds"].shape == (*TOKENS.shape, 16)
    close(scores["embeds"].sum(-1), scores["ids"], rtol=1e-6, atol=1e-6)


@every_input_method
def test_a_gate_written_by_hand_is_understood(row):
    model = tiny(row.family)
    table = model.get_input_embeddings()
    method = built(row, lambda gate, tokens: model(inputs_embeds=table(tokens) * gate[..., None]).logits)
    close(method.attribute(torch.ones(3, 6), additional_forward_args=TOKENS), built(row, model).attribute(TOKENS))


@pytest.mark.wide(7)
@every_method
@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_results_are_plain_tensors_whatever_surrounds_the_call(row, surrounding):
    forward = HFForward(tiny(row.family), "embeds")
    expected = built(row, forward).attribute(**arguments(forward))
    with surrounding():
        given = arguments(forward)
        given["inputs"] = given["inputs"].clone().requires_grad_(not torch.is_inference_mode_enabled())
        result = built(row, forward).attribute(**given)
    assert not result.requires_grad
    assert result.is_contiguous()
    assert result.device == TOKENS.device
    close(result, expected, rtol=0, atol=0)


@pytest.mark.wide(7)
@every_method
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_models_give_float32_and_double_models_float64(row, dtype, expected):
    result = built(row, tiny(row.family).to(dtype)).attribute(TOKENS)
    assert result.dtype is expected
    reference = built(row).attribute(TOKENS).to(expected)
    close(result, reference, rtol=0.3, atol=0.1 * float(reference.max()))


def test_the_mean_over_heads_is_not_rounded_to_half_precision():
    model = tiny("Bert").bfloat16()
    each = LayerAttentionWeights(model, layer_of(model)).attribute(TOKENS)
    found = AttentionWeights(model, aggregate=-1).attribute(TOKENS, position="all")
    close(found, each.mean(1), rtol=1e-6, atol=1e-7)


@pytest.mark.wide(4)
@every_input_method
def test_a_gate_belongs_to_the_encoders_tokens(row):
    """Also where the prefix is as long as the source, so that nothing but the data flow tells them apart."""
    if row.refuses_cross or row.decoders:
        return
    model = tiny("Bart")
    encoding = {"input_ids": TOKENS, "decoder_input_ids": ids(3, 6, seed=1)}
    forwards = [HFForward(model, mode) for mode in ("ids", "gate")]
    scores = [built(row, forward).attribute(**forward.inputs(encoding)) for forward in forwards]
    assert torch.equal(scores[0], scores[1])


# 3: layers


@every_layer_method
def test_layer_maps_have_every_head_or_one_map(row):
    method = built(row)
    assert method.attribute(TOKENS).shape == row.shape(3, 6, 6)
    assert method.attribute(TOKENS, heads=row.together).shape == (3, 6, 6)
    if row.per_head:
        assert torch.equal(method.attribute(TOKENS, heads="each"), method.attribute(TOKENS))
    else:
        with pytest.raises(ValueError, match="has no norms per head; heads='sum' is the only form"):
            method.attribute(TOKENS, heads="each")
    with pytest.raises(ValueError, match=f"'{row.together}'.*got 'max'" if row.per_head else "heads='max'"):
        method.attribute(TOKENS, heads="max")


@every_layer_method
def test_a_list_of_layers_gives_a_list_equal_to_one_by_one(row):
    model = tiny("Bert")
    layers = [layer_of(model, 1), layer_of(model, 0)]
    together = row.build(model, layers).attribute(TOKENS)
    assert isinstance(together, list)
    for layer, found in zip(layers, together, strict=True):
        assert torch.equal(found, row.build(model, layer).attribute(TOKENS))


@every_layer_method
def test_several_calls_in_one_layer_give_a_list_unless_one_is_chosen(row):
    model = tiny("Bart")
    forward = HFForward(model, names=("decoder_input_ids",))
    method = row.build(forward, model.model.decoder.layers[0])
    given = {"inputs": TOKENS, "additional_forward_args": ids(3, 4, seed=1)}
    both = method.attribute(**given)
    assert [m.shape for m in both] == [row.shape(3, 4, 4), row.shape(3, 4, 6, cross=True)]
    for number, kind in enumerate(("self", "cross")):
        assert torch.equal(method.attribute(**given, kind=kind), both[number])
        assert torch.equal(method.attribute(**given, call=number), both[number])
    with pytest.raises(ValueError, match=r"call=2, but layer .*made 2 attention calls"):
        method.attribute(**given, call=2)
    with pytest.raises(ValueError, match="kind should be"):
        method.attribute(**given, kind="causal")
    only_self = row.build(forward, model.model.decoder.layers[0].self_attn)
    with pytest.raises(ValueError, match=r"no cross-attention call ran inside layer 'model\.model\.decoder"):
        only_self.attribute(**given, kind="cross")


class Twice(nn.Module):
    """One attention module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.norm(x + self.attention(x, x, x)[0])


@every_layer_method
def test_calls_of_one_module_are_counted(row):
    model = Twice().eval()
    x = torch.randn(2, 5, 8)
    first, second = row.build(model, model.attention).attribute(x)
    assert torch.equal(row.build(model, model.attention).attribute(x, call=0), first)
    assert torch.equal(row.build(model, model.attention).attribute(x, call=-1), second)
    norm = AttentionNorm(model)
    by_call = [norm.attribute(x, call=number, position="all") for number in (0, 1)]
    close(by_call, [AttentionNorm(model, aggregate=n).attribute(x, position="all") for n in (0, 1)])
    with pytest.raises(ValueError, match="call=2"):
        norm.attribute(x, call=2)


# 5: target

GOOD_TARGETS = [1, torch.tensor(1), [0, 1, 2], torch.tensor([0, 1, 2]), (1,), [(1,), (2,), (0,)], torch.tensor([2])]
BAD_TARGETS = [[0, 1], (0, 1, 2), torch.tensor([0, 1]), "a", [None, None, None], 7]


@pytest.mark.wide(4)
@every_method
def test_the_class_is_validated_and_changes_nothing(row):
    method = built(row)
    if row.reads_target:
        assert_each_example_has_its_target(method)
        return
    expected = method.attribute(TOKENS)
    for target in GOOD_TARGETS:
        assert torch.equal(method.attribute(TOKENS, target), expected)
    for forward in (method.forward_func, functools.partial(method.forward_func, return_dict=False)):
        method.forward_func = forward
        assert torch.equal(method.attribute(TOKENS, target=[0, 1, 2]), expected)


def assert_each_example_has_its_target(method: Any) -> None:
    by_class = [method.attribute(TOKENS, number) for number in range(3)]
    assert not torch.allclose(by_class[0], by_class[1])
    for target in GOOD_TARGETS:
        classes = torch.as_tensor(target).flatten().expand(3).tolist()
        expected = torch.stack([by_class[number][example] for example, number in enumerate(classes)])
        close(method.attribute(TOKENS, target), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.wide(7)
@every_method
@pytest.mark.parametrize("target", BAD_TARGETS, ids=str)
def test_a_wrong_class_is_captums_own_error(row, target):
    if row.method is ALTILogit:
        return  # its targets are tokens
    forward = HFForward(tiny(row.family), "gate")
    with pytest.raises(Exception) as captums:  # whatever Captum raises
        captum.attr.Saliency(forward).attribute(
            torch.ones(3, 6).requires_grad_(), target, additional_forward_args=TOKENS
        )
    with pytest.raises(type(captums.value)):
        built(row, forward).attribute(torch.ones(3, 6), target, TOKENS)


# 6: hooks

HOOKS = ("forward", "forward_pre", "backward", "backward_pre", "state_dict", "load_state_dict_pre")


def hooks_of(model: nn.Module) -> Counter[str]:
    """How many hooks of each kind there are, on all modules together and globally."""
    count = Counter({kind: sum(len(getattr(m, f"_{kind}_hooks")) for m in model.modules()) for kind in HOOKS})
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks"):
        count[name] = len(getattr(nn.modules.module, name))
    return count


class StoppedError(RuntimeError):
    pass


def raiser(error: BaseException) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        raise error

    return hook


def assert_hooks_are_as_before(build: Callable[[Any], Any], forward: HFForward) -> None:
    """After success, a wrong target, an exception in the model and Ctrl-C, with the user's own hooks there."""
    model, given = forward.model, arguments(forward)
    _, last, classifier = parts_of(model)
    classifier.register_forward_hook(lambda *_: None)
    before = hooks_of(model)
    method = build(forward)
    method.attribute(**given, target=1)
    assert hooks_of(model) == before
    with pytest.raises((AssertionError, TypeError)):
        method.attribute(**given, target=(0, 1, 2))
    assert hooks_of(model) == before
    for error in (StoppedError(), KeyboardInterrupt()):
        handle = last.register_forward_hook(raiser(error))
        with pytest.raises(type(error)):
            method.attribute(**given, target=1)
        handle.remove()
        assert hooks_of(model) == before
    method.attribute(**given, target=1)  # and it still works


@pytest.mark.wide(7)
@every_method
@pytest.mark.parametrize("mode", ["ids", "gate"])
def test_no_hook_is_left_behind(row, mode):
    assert_hooks_are_as_before(lambda forward: built(row, forward), HFForward(tiny(row.family), mode))


class Leaky(AttentionNorm):
    """Removes its hook only if all goes well."""

    def attribute(self, *args: Any, **kwargs: Any) -> Any:
        handle = self.forward_func.model.register_forward_hook(lambda *_: None)
        result = super().attribute(*args, **kwargs)
        handle.remove()
        return result


def test_a_leaky_class_is_caught():
    with pytest.raises(AssertionError, match="Counter"):
        assert_hooks_are_as_before(Leaky, HFForward(tiny("Bert")))


# 7: the model


@every_method
def test_the_model_is_untouched(row):
    model = tiny(row.family).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    first, _, classifier = parts_of(model)
    first.eval()
    classifier.weight.requires_grad_(False)
    classifier.weight.grad = torch.ones_like(classifier.weight)

    def state() -> tuple[Any, ...]:
        parameters = {n: (p.clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()}
        modes = [m.training for m in model.modules()]
        return parameters, modes, copy.deepcopy(model.config.to_dict()), model.config._attn_implementation

    tokens, mask = TOKENS.clone(), MASK.clone()
    before, expected = state(), model(tokens, mask).logits
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    outputs: list[Tensor] = []

    def forward(*given: Tensor) -> Any:
        output = model(*given)
        outputs.append(output.logits)
        return output

    method = row.build(forward, layer_of(model) if row.layer else None)
    method.attribute(tokens, additional_forward_args=mask)
    after = state()
    assert torch.equal(outputs[0], expected)
    assert after[1:] == before[1:]
    for name, (value, requires_grad, grad) in before[0].items():
        found = after[0][name]
        assert torch.equal(found[0], value)
        assert (found[1], found[2] is grad) == (requires_grad, True)
    assert torch.equal(tokens, TOKENS)
    assert torch.equal(mask, MASK)
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert random.getstate() == numbers[1]
    assert (np.random.get_state()[1] == numbers[2]).all()


# 8: batches


@pytest.mark.wide(7)
@every_method
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_a_padded_batch_equals_one_by_one(row, side, family):
    if row.decoders and family == "Bert":
        return
    mask = MASK if side == "right" else MASK.flip(1)
    model = tiny(family)
    forward = HFForward(model)
    layer = dict(model.named_modules()).get({"Bert": "bert.encoder", "GPT2": "transformer", "Llama": "model"}[family])
    method = row.build(forward, layer)
    kwargs = {"call": 1} if row.layer else {}
    together = method.attribute(TOKENS, additional_forward_args=mask, **kwargs)
    for example, real in enumerate(mask.bool()):
        alone = method.attribute(TOKENS[[example]], additional_forward_args=mask[[example]], **kwargs)
        close(together[[example]], alone, rtol=1e-5, atol=1e-6)
        if side == "left" and family != "Llama":
            continue  # absolute positions count the padding
        unpadded = method.attribute(TOKENS[[example]][:, real], **kwargs)
        shortened = together[[example]][..., real]
        close(shortened[..., real, :] if row.layer else shortened, unpadded, rtol=1e-4, atol=1e-5)
        assert (together[example][..., ~real] == 0).all()
        if row.layer:
            assert (together[example][..., ~real, :] == 0).all()


# 9: forward functions


@pytest.mark.wide(4)
@every_method
def test_any_forward_function_gives_the_same_numbers(row):
    model = tiny(row.family)
    expected = built(row, model).attribute(TOKENS, None, MASK)
    layer = layer_of(model) if row.layer else None
    for forward in (
        HFForward(model),
        lambda tokens, mask: model(tokens, attention_mask=mask).logits,
        functools.partial(model, return_dict=False),
        model.forward,
        nn.DataParallel(model, device_ids=[0] if torch.cuda.is_available() else None),
        nn.DataParallel(HFForward(model), device_ids=[0] if torch.cuda.is_available() else None),
    ):
        if torch.cuda.is_available() and isinstance(forward, nn.DataParallel):
            continue
        assert torch.equal(row.build(forward, layer).attribute(TOKENS, None, MASK), expected)


@every_method
def test_replicas_in_other_threads_are_refused(row):
    model = tiny(row.family)
    parallel = nn.DataParallel(model)
    parallel.device_ids = [0, 1]
    for forward in (parallel, HFForward(parallel)):
        with pytest.raises(ValueError, match=r"replicas on devices \[0, 1\]"):
            row.build(forward, layer_of(model) if row.layer else None).attribute(TOKENS)


@pytest.mark.wide(7)
@every_method
@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_eager_and_sdpa_agree(row, family):
    if row.decoders and family == "Bert":
        return
    results = []
    for attention in ("eager", "sdpa"):
        model = tiny(family, attention)
        method = row.build(HFForward(model), model)
        results.append(method.attribute(TOKENS, additional_forward_args=MASK, **({"call": 0} if row.layer else {})))
    close(results[0], results[1], rtol=1e-5, atol=1e-5)


# 10: Captum's own tools


@pytest.mark.wide(5)
@every_input_method
@pytest.mark.parametrize("mode", ["gate", "embeds"])
@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_is_what_noise_gives_by_hand(row, mode, kind):
    forward = HFForward(tiny(row.family), mode)
    method, given = built(row, forward), arguments(forward)
    position = [1, 2, 0]
    asked: dict[str, Any] = {"position": position} if row.by_position else {}
    torch.manual_seed(3)
    found = NoiseTunnel(method).attribute(**given, nt_type=kind, nt_samples=4, stdevs=0.1, **asked, target=1)
    torch.manual_seed(3)
    x = given["inputs"].repeat_interleave(4, dim=0)
    noisy = x + torch.normal(0, torch.full(x.shape, 0.1))
    extras = tuple(extra.repeat_interleave(4, dim=0) for extra in given["additional_forward_args"])
    asked = {name: torch.tensor(rows).repeat_interleave(4) for name, rows in asked.items()}
    each = method.attribute(noisy, 1, extras, **asked).unflatten(0, (3, 4))
    mean, mean_square = each.mean(1), (each**2).mean(1)
    expected = {"smoothgrad": mean, "smoothgrad_sq": mean_square, "vargrad": mean_square - mean**2}[kind]
    close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.wide(4)
@every_input_method
def test_noise_tunnel_without_noise_is_the_plain_method(row):
    forward = HFForward(tiny(row.family), "gate")
    method, given = built(row, forward), arguments(forward)
    expected = method.attribute(**given, target=[0, 1, 2])
    found = NoiseTunnel(method).attribute(**given, nt_samples=5, nt_samples_batch_size=2, stdevs=0.0, target=[0, 1, 2])
    close(found, expected)


@every_method
@pytest.mark.parametrize("wrapped", [HFForward, lambda model: model], ids=["HFForward", "raw"])
def test_noise_on_token_ids_is_refused(row, wrapped):
    model = tiny(row.family)
    method = row.build(wrapped(model), layer_of(model) if row.layer else None)
    with pytest.raises(TypeError, match=r"(?s)ids.*mode='gate'.*mode='embeds'"):
        NoiseTunnel(method).attribute(TOKENS, nt_samples=2, target=1)


@pytest.mark.wide(5)
@every_input_method
@pytest.mark.parametrize("batch", [1, 3])
def test_sensitivity_max_is_what_one_computes_by_hand(row, batch):
    forward = HFForward(tiny(row.family), "gate")
    method = built(row, forward)
    gate, tokens, mask = torch.ones(batch, 6), TOKENS[:batch], MASK[:batch]
    shifts: list[Tensor] = []

    def perturb(inputs: Any) -> Any:
        (x,) = inputs if isinstance(inputs, tuple) else (inputs,)
        shifts.append(0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        moved = x + shifts[-1]
        return (moved,) if isinstance(inputs, tuple) else moved

    found = sensitivity_max(
        method.attribute, gate, perturb, n_perturb_samples=4, additional_forward_args=(tokens, mask), target=1
    )
    plain = method.attribute(gate, 1, (tokens, mask))
    (shift,) = shifts
    change = torch.stack(
        [method.attribute(gate + s, 1, (tokens, mask)) - plain for s in shift.unflatten(0, (batch, 4)).unbind(1)]
    )
    close(found, (change.norm(dim=-1) / plain.norm(dim=-1)).amax(0))


@pytest.mark.wide(5)
@every_input_method
@pytest.mark.parametrize("mode", ["ids", "gate", "embeds"])
def test_infidelity_takes_our_scores(row, mode):
    """Captum asks for scores and inputs of one shape; the figure is the square of what the scores miss."""
    forward = HFForward(tiny(row.family), mode)
    given = arguments(forward)
    scores = built(row, forward).attribute(**given)
    hidden = (torch.arange(6) == 2).expand(3, 6)
    hidden = hidden[..., None].expand_as(given["inputs"]) if mode == "embeds" else hidden

    def perturb(x: Any) -> tuple[Tensor, Tensor]:
        away = torch.full_like(x, 3) if mode == "ids" else torch.zeros_like(x)
        return hidden.to(torch.float32), torch.where(hidden, away, x)

    found = infidelity(forward, perturb, scores.new_tensor(0) + given["inputs"], scores, n_perturb_samples=1, target=1,
                       additional_forward_args=given["additional_forward_args"]) if mode != "ids" else infidelity(
        forward, perturb, given["inputs"], scores, n_perturb_samples=1, target=1,
        additional_forward_args=given["additional_forward_args"])  # fmt: skip
    extras = given["additional_forward_args"]
    with torch.no_grad():
        drop = forward(given["inputs"], *extras)[:, 1] - forward(perturb(given["inputs"])[1], *extras)[:, 1]
    claimed = (scores * hidden).flatten(1).sum(1)
    close(found, (claimed - drop) ** 2, rtol=1e-4, atol=1e-5)


# 10 to 12: positions, copies, threads


@pytest.mark.wide(4)
@every_method_by_position
def test_positions_follow_the_examples(row):
    method = built(row)
    whole = method.attribute(TOKENS, position="all")
    for position in ([5, 0, 3], torch.tensor([5, 0, 3]), np.array([5, 0, 3]), (5, 0, 3), [-1, -6, -3]):
        close(method.attribute(TOKENS, position=position), whole[range(3), [5, 0, 3]], rtol=1e-5, atol=1e-6)
    close(method.attribute(TOKENS, position=torch.tensor(2)), whole[:, 2], rtol=1e-5, atol=1e-6)
    close(method.attribute(TOKENS, position="mean"), whole.mean(1), rtol=1e-5, atol=1e-6)
    twice = TOKENS.repeat_interleave(2, dim=0)
    close(
        method.attribute(twice, position=[5, 0, 3]),
        whole[range(3), [5, 0, 3]].repeat_interleave(2, dim=0),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.wide(4)
@every_method_by_position
@pytest.mark.filterwarnings("ignore:alti")
def test_several_rows_are_given_one_by_one(row):
    method = built(row)
    rows = torch.tensor([[0, 3], [5, 1], [2, 2]])
    several = method.attribute(TOKENS, position=rows)
    assert several.shape == (3, 2, 6)
    for place in range(2):
        close(several[:, place], method.attribute(TOKENS, position=rows[:, place]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="position 5 of example 1 is padding"):
        method.attribute(TOKENS, additional_forward_args=MASK, position=rows)


@pytest.mark.wide(5)
@every_method_by_position
@pytest.mark.parametrize(
    ("position", "error", "message"),
    [
        (6, ValueError, r"position 6 .*out of range"),
        (-7, ValueError, r"position -7 .*out of range"),
        ([0, 1], ValueError, r"2 entries for a batch of 3"),
        (1.5, TypeError, r"position should be .*1\.5"),
        (True, TypeError, r"position should be"),
        ([], TypeError, r"position should be"),
        ("last", ValueError, r"position should be .*'last'"),
        ([0, 5, 0], ValueError, r"position 5 of example 1 is padding"),
    ],
    ids=str,
)
def test_a_wrong_position_is_refused(row, position, error, message):
    with pytest.raises(error, match=message):
        built(row).attribute(TOKENS, additional_forward_args=MASK, position=position)


@pytest.mark.wide(4)
@every_method_by_position
def test_the_forward_functions_position_holds_unless_another_is_asked_for(row):
    model = tiny(row.family)
    plain = built(row, model)
    for position in (3, -2, [1, 2, 3], "mean"):
        method = built(row, HFForward(model, position=position))
        close(method.attribute(TOKENS), plain.attribute(TOKENS, position=position), rtol=0, atol=0)
        close(method.attribute(TOKENS, position=0), plain.attribute(TOKENS), rtol=0, atol=0)
    for mode in ("ids", "gate"):
        forward = HFForward(model, mode, position=[1, 2, 3])
        given = forward.inputs({"input_ids": TOKENS})
        close(built(row, forward).attribute(**given), plain.attribute(TOKENS, position=[1, 2, 3]), rtol=0, atol=0)
        third = {"inputs": given["inputs"][2:], "additional_forward_args": _of_example(given, 2)}
        close(built(row, forward).attribute(**third), plain.attribute(TOKENS[2:], position=3), rtol=0, atol=0)


def _of_example(given: dict[str, Any], number: int) -> tuple[Any, ...]:
    extras = given["additional_forward_args"]
    return tuple(None if extra is None else extra[number : number + 1] for extra in extras)


@pytest.mark.wide(4)
@every_method
def test_copies_and_pickles_work_alike(row):
    forward = HFForward(tiny(row.family))
    method = built(row, forward)
    expected = method.attribute(**arguments(forward))
    for other in (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert torch.equal(other.attribute(**arguments(forward)), expected)
        assert str(other.report) == str(method.report)


@every_layer_method
def test_the_layer_may_be_exchanged(row):
    model = tiny("Bert")
    method = row.build(model, layer_of(model, 0))
    method.attribute(TOKENS)
    method.layer = layer_of(model, 1)
    assert torch.equal(method.attribute(TOKENS), row.build(model, layer_of(model, 1)).attribute(TOKENS))


@pytest.mark.wide(7)
@every_method
@pytest.mark.parametrize("shared", [True, False], ids=["one model", "two models"])
def test_threads_do_not_disturb_each_other(row, shared):
    model = tiny(row.family)
    models = [model, model if shared else tiny(row.family)]
    texts = [ids(2, 6, seed=1), ids(3, 5, seed=2)]
    methods = [built(row, HFForward(m, "gate")) for m in models]
    expected = [m.attribute(torch.ones(t.shape), None, t) for m, t in zip(methods, texts, strict=True)]
    start, wrong = threading.Barrier(2), []

    def work(number: int) -> None:
        start.wait()
        for _ in range(3):
            found = methods[number].attribute(torch.ones(texts[number].shape), None, texts[number])
            if not torch.equal(found, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@every_method
def test_each_call_leaves_its_certificates(row):
    method = built(row)
    if not row.layer and not row.method.certifies_calls:
        method.attribute(TOKENS)
        assert method.report.error <= method.report.tolerance
        return
    assert method.report.certificates == ()
    method.attribute(TOKENS)
    names = [call.name for call, _ in method.report.certificates]
    assert [("0" in names[0], "1" in names[1])] == [(True, True)]
    assert all(float(certificate) <= certificate.tolerance for _, certificate in method.report.certificates)
    assert all(call.modules == () for call, _ in method.report.certificates)  # holds no model alive


# 13: what else goes wrong


@every_input_method
def test_a_second_input_that_is_no_sequence_is_refused(row):
    said = r"inputs\[1\].*is read by no attention call.*additional_forward_args"
    with pytest.raises(ValueError, match="read one sequence" if row.decoders else said):
        built(row).attribute((TOKENS, MASK))


def test_an_unknown_aggregate_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match='aggregate=\'max\' is not known: use "mean", "rollout", "flow", or an int'):
        AttentionNorm(nn.Identity(), aggregate="max")
    with pytest.raises(ValueError, match='residual=True belongs to aggregate="rollout" or "flow"'):
        AttentionNorm(nn.Identity(), residual=True)
    with pytest.raises(ValueError, match="aggregate=2 asks for one attention call, but there are 2: give -2 to 1"):
        AttentionNorm(tiny("Bert"), aggregate=2).attribute(TOKENS)


@every_input_method
@pytest.mark.parametrize(
    ("tokens", "message"),
    [(torch.empty(1, 0).long(), "input_ids is empty"), (ids(1, 40), "40 tokens.*ends at 32"), (TOKENS + 60, "0 to 59")],
    ids=["empty", "too long", "unknown ids"],
)
def test_texts_the_model_cannot_take_are_refused(row, tokens, message):
    for forward in (tiny(row.family), HFForward(tiny(row.family))):
        with pytest.raises(ValueError, match=message):
            built(row, forward).attribute(tokens)


@pytest.mark.wide(4)
@every_method_by_position
def test_one_tensor_for_encoder_and_decoder_is_never_mixed_up(row):
    """Both stacks attend to the one input: cross-attention can be told, their self-attention cannot."""
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 2, 2, 16, batch_first=True).eval()
    x, method = torch.randn(2, 5, 8), row.build(lambda x: model(x, x.clone()))
    if row.refuses_cross:
        with pytest.raises(ValueError, match=row.refuses_cross):
            method.attribute(x)
    elif row.composes:
        with pytest.raises(ValueError, match="by an encoder and by a decoder"):
            method.attribute(x)
    else:
        source, _ = row.build(model).attribute((x, x.clone()), position=0)
        close(method.attribute(x, position=0), source)
        with pytest.raises(ValueError, match="by an encoder and by a decoder"):
            method.attribute(x, kind="self")


def test_inputs_that_are_no_tensors_are_refused():
    with pytest.raises(TypeError, match="inputs should be a tensor or a tuple of tensors, got str"):
        AttentionNorm(tiny("Bert")).attribute("a text")


def test_a_layer_of_an_unread_part_is_named():
    model = tiny("Bert")
    method = LayerAttentionNorm(model, model.bert.embeddings)
    with pytest.raises(ValueError, match=r"layer 'bert\.embeddings' \(BertEmbeddings\).*Attention ran in"):
        method.attribute(TOKENS)
