"""One forward for every Captum method: the gate is exact, the target is the class, and the model is left as it was."""

import copy
import functools
import pickle
import threading
import warnings
from contextlib import nullcontext

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
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DeiTConfig,
    DeiTModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerForMaskedLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)
from transformers.tokenization_utils_base import BatchEncoding

from captum_norm.forward import HFForward, real_tokens, resolve_position

# Weights large enough that every token matters to every output.
ENCODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "num_labels": 3,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
TRANSLATOR = {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "init_std": 0.3,
    "scale_embedding": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
GPT = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.3}
IMAGE = {"image_size": 12, "patch_size": 4, "num_labels": 3, "initializer_range": 0.3}
VISION = IMAGE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def specials(**ids: int) -> dict[str, int]:
    return {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1} | ids


MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**ENCODER)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER)),
    "deberta": lambda: DebertaV2ForSequenceClassification(
        DebertaV2Config(**ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**ENCODER, cls_token_id=0, sep_token_id=2, local_attention=4, global_attn_every_n_layers=2)
    ),
    "xlnet": lambda: XLNetLMHeadModel(
        XLNetConfig(vocab_size=50, d_model=32, n_layer=2, n_head=4, d_inner=32, initializer_range=0.3, **specials())
    ),
    "longformer": lambda: LongformerForMaskedLM(LongformerConfig(**ENCODER, attention_window=[4, 4])),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT, **specials())),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ENCODER, num_key_value_heads=2)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**ENCODER, num_key_value_heads=2, num_local_experts=4)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**TRANSLATOR)),
    "marian": lambda: MarianMTModel(MarianConfig(**TRANSLATOR)),
    "m2m100": lambda: M2M100ForConditionalGeneration(M2M100Config(**TRANSLATOR)),
}
CAUSAL = ("gpt2", "llama", "mixtral")
LOOKS_AHEAD = ("roberta", "modernbert", "xlnet", "longformer")
TRANSLATORS = ("t5", "bart", "marian", "m2m100")


@functools.cache
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def text(padding: str = "right", **more: Tensor) -> dict[str, Tensor]:
    """Three texts of 7, 5 and 3 tokens."""
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    mask = mask if padding == "right" else mask.flip(1)
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask, **more}


def pair(padding: str = "right") -> dict[str, Tensor]:
    """The same with a translation of 4, 4 and 2 tokens."""
    target = torch.randint(5, 50, (3, 4), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    return text(padding, decoder_input_ids=target.masked_fill(mask == 0, 1), decoder_attention_mask=mask)


def encoding_for(name: str, padding: str = "right") -> dict[str, Tensor]:
    return pair(padding) if name in TRANSLATORS else text(padding)


def call(forward: HFForward, encoding: dict[str, Tensor]) -> Tensor:
    arguments = forward.inputs(encoding)
    with torch.no_grad():
        return forward(arguments["inputs"], *(arguments["additional_forward_args"] or ()))


def hooks(model: nn.Module) -> int:
    kinds = [name for name in vars(model) if name.endswith("_hooks")]
    return sum(len(vars(module)[kind]) for module in model.modules() for kind in kinds)


# -- the gate --


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gate_of_ones_changes_no_bit(name, padding):
    model, encoding = model_of(name), encoding_for(name, padding)
    ids, gate = (call(HFForward(model, mode), encoding) for mode in ("ids", "gate"))
    assert ids.ndim == 2
    assert ids.isfinite().all()
    assert torch.equal(ids, gate)


@pytest.mark.parametrize("name", MODELS)
def test_a_gate_of_zero_erases_one_token_and_no_position(name):
    """As if the token's row in the embedding table were zero, for this token of this example only."""
    model, encoding = copy.deepcopy(model_of(name)), encoding_for(name)
    ids = encoding["input_ids"]
    ids[0, 2], ids[ids == 4] = 4, 5  # id 4 occurs once
    ids[0, 2] = 4
    forward = HFForward(model, "gate")
    arguments = forward.inputs(encoding)
    gate = arguments["inputs"].clone()
    gate[0, 2] = 0
    with torch.no_grad():
        found = forward(gate, *arguments["additional_forward_args"])
        for table in [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == 50]:
            table.weight = nn.Parameter(table.weight.clone())  # no longer tied to the output
            table.weight[4] = 0
    expected = call(HFForward(model), encoding)
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], call(HFForward(model_of(name)), encoding)[0])
    assert torch.equal(found[1:], call(HFForward(model_of(name)), encoding)[1:])


def test_token_types_in_the_same_table_are_not_gated():
    model = model_of("gpt2")
    encoding = text(token_type_ids=torch.randint(5, 50, (3, 7)))
    forward = HFForward(model, "gate")
    gate, extras = torch.zeros(3, 7), forward.inputs(encoding)["additional_forward_args"]
    other = text(token_type_ids=torch.randint(5, 50, (3, 7)))
    others = forward.inputs(other)["additional_forward_args"]
    with torch.no_grad():
        assert not torch.equal(forward(gate, *extras), forward(gate, *others))


def test_the_decoder_of_an_autoencoder_is_not_gated():
    """The same tensor goes into encoder and decoder, whose embeddings are one module."""
    model = BartModel(BartConfig(**TRANSLATOR)).eval()
    model.set_input_embeddings(model.shared)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    ids = text()["input_ids"]
    forward, gate = HFForward(model, "gate"), torch.ones(3, 7)
    gate[:, 3] = 0
    with torch.no_grad():
        assert torch.equal(forward(gate, ids, None, ids), forward(gate, ids, None, ids.clone()))


class Upended(nn.Module):
    """Works sequence first, as XLNet does, on any copy of the ids."""

    def __init__(self, copied):
        super().__init__()
        self.table, self.copied = nn.Embedding(50, 8), copied

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids):
        return self.table(self.copied(input_ids)).transpose(0, 1)


@pytest.mark.parametrize("copied", [lambda ids: ids.T, lambda ids: ids.T.contiguous()], ids=["view", "copy"])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_the_gate_follows_a_model_that_works_sequence_first(batch, copied):
    model, ids = Upended(copied), torch.randint(5, 50, (batch, 4))
    gate = torch.rand(batch, 4)
    forward = HFForward(model, "gate", position=2)
    torch.testing.assert_close(forward(gate, ids), model.table(ids)[:, 2] * gate[:, 2, None])


def test_a_gate_that_cannot_be_laid_out_is_refused():
    with pytest.raises(ValueError, match="batch and sequence cannot be told apart"):
        HFForward(Upended(lambda ids: ids.T.contiguous()), "gate", position=0)(torch.rand(2, 2), torch.full((2, 2), 5))


def test_the_gate_reaches_ids_whose_image_places_were_filled_in():
    model = Upended(lambda ids: ids.masked_fill((ids == 9) | (ids == 8), 1))
    model.forward = lambda input_ids: model.table(model.copied(input_ids))
    ids, gate = torch.tensor([[9, 8, 9, 4, 6]]), torch.rand(1, 5)
    expected = model.table(torch.tensor([[1, 1, 1, 4, 6]])) * gate[..., None]
    torch.testing.assert_close(HFForward(model, "gate", names=(), position=3)(gate, ids), expected[:, 3])


def test_only_the_ids_are_gated_not_what_else_goes_through_the_table():
    """Not the same ids once more (a decoder that copies its encoder), nor others that agree here and there."""
    table = nn.Embedding(50, 8)

    class Copying(nn.Module):
        def get_input_embeddings(self):
            return table

        def forward(self, input_ids):
            others = table(input_ids.roll(1, dims=1)) + table(input_ids[:, [0, 1, 3, 2]])
            return others + table(input_ids.clone()) + table(input_ids.clone())

    ids, gate = torch.tensor([[6, 6, 7, 8]]), torch.rand(1, 4)
    others = table(ids.roll(1, dims=1)) + table(ids[:, [0, 1, 3, 2]])
    expected = others + table(ids) * gate[..., None] + table(ids)
    for position in range(4):
        found = HFForward(Copying(), "gate", position=position)(gate, ids)
        torch.testing.assert_close(found, expected[:, position])


def test_an_adapter_around_the_embedding_is_gated_as_a_whole_and_once():
    model = copy.deepcopy(model_of("bert"))

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.update = base, nn.Parameter(torch.randn(50, 32))

        def forward(self, ids):
            return self.base(ids) + self.update[ids]

    model.bert.embeddings.word_embeddings = Adapter(model.bert.embeddings.word_embeddings)
    forward = HFForward(model, "gate")
    _, mask = text().values()
    gate = torch.full((3, 7), 0.5)
    with torch.no_grad():
        found = forward(gate, text()["input_ids"], mask)
        model.bert.embeddings.word_embeddings.base.weight *= 0.5
        model.bert.embeddings.word_embeddings.update *= 0.5
        torch.testing.assert_close(found, model(**text()).logits)


VISION_MODELS = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**VISION)),
    "deit": lambda: DeiTModel(DeiTConfig(**VISION)),
    "swin": lambda: SwinModel(SwinConfig(**IMAGE, embed_dim=8, depths=[1], num_heads=[2], window_size=3)),
}


@pytest.mark.parametrize("name", VISION_MODELS)
def test_images_are_gated_by_patch(name):
    model, pixels = VISION_MODELS[name]().eval(), torch.randn(2, 3, 12, 12)
    arguments = HFForward(model, "gate").inputs({"pixel_values": pixels})
    assert arguments["inputs"].shape == (2, 9)
    assert torch.equal(
        call(HFForward(model, "gate"), {"pixel_values": pixels}), call(HFForward(model), {"pixel_values": pixels})
    )


def test_a_patch_gated_off_is_a_patch_embedded_as_zero():
    model, pixels = ViTForImageClassification(ViTConfig(**VISION)).eval(), torch.randn(1, 3, 12, 12)
    model.vit.embeddings.patch_embeddings.projection.bias.data.zero_()  # so that black is embedded as zero
    gate = torch.ones(1, 9)
    gate[0, 5] = 0  # row 1, column 2 of the 3 x 3 patches
    black = pixels.clone()
    black[:, :, 4:8, 8:12] = 0
    with torch.no_grad():
        torch.testing.assert_close(HFForward(model, "gate")(gate, pixels), model(black).logits)


@pytest.mark.parametrize("embedding", ["vit.embeddings.patch_embeddings.projection", "module"])
def test_the_embedding_can_be_named(embedding):
    model, pixels = ViTForImageClassification(ViTConfig(**VISION)).eval(), torch.randn(1, 3, 12, 12)
    gate = torch.rand(1, 9)
    by_name = model.vit.embeddings.patch_embeddings.projection if embedding == "module" else embedding
    with torch.no_grad():
        expected = HFForward(model, "gate")(gate, pixels)
        torch.testing.assert_close(HFForward(model, "gate", embedding=by_name)(gate, pixels), expected)


@functools.cache
def whisper() -> nn.Module:
    sizes = {k: v for k, v in TRANSLATOR.items() if k not in ("max_position_embeddings", "scale_embedding")}
    config = WhisperConfig(**sizes, num_mel_bins=8, max_source_positions=10, max_target_positions=12)
    return WhisperForConditionalGeneration(config).eval()


def test_sound_has_no_gate_of_its_own_but_can_have_one_by_name():
    sound = {"input_features": torch.randn(2, 8, 20)}
    assert call(HFForward(whisper()), sound).shape == (2, 50)
    with pytest.raises(ValueError, match=r"seen to embed input_features.*embedding="):
        HFForward(whisper(), "gate").inputs(sound)
    frames = HFForward(whisper(), "gate", embedding="model.encoder.conv2")
    assert frames.inputs(sound)["inputs"].shape == (2, 10)
    assert torch.equal(call(frames, sound), call(HFForward(whisper()), sound))


class HandMade(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(50, 4))

    def forward(self, input_ids):
        return self.weight[input_ids].sum(1)


def test_a_model_without_an_embedding_module_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"no module of HandMade was seen to embed input_ids.*embedding="):
        HFForward(HandMade(), "gate")(torch.ones(1, 3), torch.tensor([[3, 4, 5]]))


def test_two_threads_share_one_model():
    """Each gate acts on its own call, also while the other thread is inside the same model."""
    model, encoding = model_of("bert"), text()
    forward = HFForward(model, "gate")
    extras = forward.inputs(encoding)["additional_forward_args"]
    gates = [torch.rand(3, 7), torch.rand(3, 7)]
    expected = [forward(gate, *extras) for gate in gates]
    both_inside = threading.Barrier(2, timeout=30)

    def wait(*args):
        both_inside.wait()

    # Both have set up their gate before one embeds, and both have embedded before one takes its gate down.
    table = model.bert.embeddings
    handles = [table.register_forward_pre_hook(wait), table.register_forward_hook(wait)]
    found: dict[int, Tensor] = {}

    def work(index):
        found[index] = forward(gates[index], *extras)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    assert all(torch.equal(found[index], expected[index]) for index in range(2))
    assert hooks(model) == 0


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_behind(error):
    model = copy.deepcopy(model_of("roberta"))
    model.roberta.encoder.layer[0].register_forward_hook(lambda *args: None)  # the user's own
    before = hooks(model)

    def fail(*args, **kwargs):
        raise error

    if error is not None:
        model.roberta.encoder.layer[1].forward = fail
    # The second and third measure whether the model is causal.
    for forward in (HFForward(model, "gate", position=0), HFForward(model, "gate"), HFForward(model)):
        with nullcontext() if error is None else pytest.raises(error):
            call(forward, text())
    assert hooks(model) == before == 1


def test_a_forward_cut_short_to_count_patches_leaves_no_hook():
    model = ViTForImageClassification(ViTConfig(**VISION))
    HFForward(model, "gate").inputs({"pixel_values": torch.randn(1, 3, 12, 12)})
    assert hooks(model) == 0


# -- the embeddings --


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


# -- the row, so that the target is the class --


@pytest.mark.parametrize("name", [*CAUSAL, *LOOKS_AHEAD])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_row_is_the_last_real_token_of_a_causal_model_and_the_first_of_another(name, padding):
    model, encoding = model_of(name), text(padding)
    with torch.no_grad():
        logits = model(**encoding).logits
    real = [row.nonzero().flatten().tolist() for row in encoding["attention_mask"]]
    rows = [r[-1] if name in CAUSAL else r[0] for r in real]
    assert torch.equal(call(HFForward(model), encoding), logits[range(3), rows])


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_causal_models_are_told_in_half_precision(name, dtype):
    model = copy.deepcopy(model_of(name)).to(dtype)
    found = call(HFForward(model), text())
    assert found.dtype == dtype
    assert torch.equal(found[1], model(**text()).logits[1, 4])


def test_a_small_model_that_looks_ahead_is_told_in_half_precision():
    """With default weights and bfloat16 the other tokens barely move the first row."""
    model = BertModel(BertConfig(**ENCODER | {"initializer_range": 0.02})).to(torch.bfloat16).eval()
    assert torch.equal(call(HFForward(model), text())[0], model(**text()).last_hidden_state[0, 0])


def test_a_decoder_made_bidirectional_is_no_longer_causal():
    config = BertConfig(**ENCODER | {"is_decoder": True})
    causal, model = BertForMaskedLM(config).eval(), BertForMaskedLM(BertConfig(**ENCODER)).eval()
    model.load_state_dict(causal.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [call(HFForward(m), text()) for m in (causal, model)]
    assert torch.equal(rows[0], causal(**text()).logits[range(3), [6, 4, 2]])
    assert torch.equal(rows[1], model(**text()).logits[:, 0])


def test_measuring_causality_is_seen_by_nobody():
    """Not by a mode around the call, nor by the random generator; and it is done once."""
    model, runs = copy.deepcopy(model_of("gpt2")).train(), []
    model.register_forward_pre_hook(lambda *args: runs.append(threading.get_ident()))

    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.calls += func is nn.functional.embedding
            return func(*args, **(kwargs or {}))

    forward = HFForward(model)
    arguments = forward.inputs(text())
    with Count(), torch.inference_mode():
        torch.manual_seed(3)
        first = forward(arguments["inputs"], *arguments["additional_forward_args"])
        after_first = torch.get_rng_state()
        torch.manual_seed(3)
        second = forward(arguments["inputs"], *arguments["additional_forward_args"])
    assert torch.equal(torch.get_rng_state(), after_first)
    assert torch.equal(first, second)
    assert Count.calls == 2 * 2  # tokens and positions, twice
    assert len(runs) == 3
    assert runs.count(threading.get_ident()) == 2
    assert all(p.grad is None for p in model.parameters())


def test_a_model_whose_causality_cannot_be_measured_asks_for_the_position():
    model = HandMade()
    model.forward = lambda input_ids: model.weight[input_ids]
    with pytest.raises(ValueError, match=r"cannot be measured.*Give position: -1, 0"):
        HFForward(model, names=())(torch.tensor([[3, 4, 5]]))
    assert HFForward(model, names=(), position=-1)(torch.tensor([[3, 4, 5]])).shape == (1, 4)


def test_causality_is_measured_where_the_model_adds_to_its_embeddings_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, input_ids):
            embeds = self.table(input_ids)
            embeds += 1.0
            return embeds.cumsum(1)

    model = InPlace()
    torch.testing.assert_close(HFForward(model)(IDS), model(IDS)[:, -1])


def test_causality_is_measured_on_an_example_with_more_than_one_token():
    """The first example has one real token, which depends on nothing else in any model."""
    encoding = {"input_ids": text()["input_ids"], "attention_mask": text()["attention_mask"].clone()}
    encoding["attention_mask"][0, 1:] = 0
    with torch.no_grad():
        expected = model_of("roberta")(**encoding).logits[:, 0]
    assert torch.equal(call(HFForward(model_of("roberta")), encoding), expected)


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


# -- positions that follow Captum's repetitions --


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


# -- Captum's methods --

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


# -- calling --


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


def test_extras_go_by_their_names():
    model = model_of("bert")
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).expand(3, 7)
    positions = torch.arange(7).flip(0)[None].expand(3, 7)
    ids, mask = text().values()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, token_type_ids=types, position_ids=positions).logits
        named = HFForward(model, names=("position_ids", "attention_mask", "token_type_ids"))
        assert torch.equal(named(ids, positions, mask, types), expected)
        assert torch.equal(HFForward(model, position_ids=positions)(ids, mask, types), expected)
        assert torch.equal(HFForward(model)(ids, None, types), model(ids, token_type_ids=types).logits)


def test_ids_and_decoder_ids_can_both_be_inputs():
    model, (ids, mask, target, target_mask) = model_of("bart"), pair().values()
    forward = HFForward(model)
    expected = forward(ids, mask, target, target_mask)
    assert torch.equal(forward(ids, target, mask, target_mask), expected)
    assert torch.equal(forward(ids, target), forward(ids, None, target))


def test_a_model_that_generates_starts_with_its_start_token():
    ids = text()["input_ids"]
    model = model_of("t5")
    arguments = HFForward(model).inputs({"input_ids": ids})
    assert arguments["additional_forward_args"][1].tolist() == [[0], [0], [0]]
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=torch.zeros(3, 1, dtype=torch.long)).logits[:, 0]
    assert torch.equal(call(HFForward(model), {"input_ids": ids}), expected)


def test_labels_become_the_decoders_input():
    labels = torch.tensor([[7, 8, 2]] * 3)
    arguments = HFForward(model_of("bart")).inputs({**text(), "labels": labels})
    assert arguments["additional_forward_args"][1].tolist() == [[2, 7, 8]] * 3


def test_a_classifier_that_feeds_its_decoder_itself_is_left_to():
    model = BartForSequenceClassification(BartConfig(**TRANSLATOR)).eval()
    encoding = {"input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])}
    with torch.no_grad():
        assert torch.equal(call(HFForward(model, "gate"), encoding), model(**encoding).logits)


@pytest.mark.parametrize("kind", [dict, BatchEncoding, lambda e: {k: v.tolist() for k, v in e.items()}])
def test_encodings_of_any_kind_are_taken(kind):
    encoding = text(offset_mapping=torch.zeros(3, 7, 2), special_tokens_mask=torch.zeros(3, 7))
    arguments = HFForward(model_of("llama")).inputs(kind(encoding))
    assert torch.equal(arguments["inputs"], text()["input_ids"])
    (mask,) = arguments["additional_forward_args"]
    assert torch.equal(mask, text()["attention_mask"])


def test_an_encoding_of_ids_alone_needs_no_extras():
    assert HFForward(model_of("llama")).inputs({"input_ids": text()["input_ids"]})["additional_forward_args"] is None


def test_an_extra_left_out_in_the_middle_keeps_its_place():
    encoding = {"input_ids": text()["input_ids"], "token_type_ids": torch.zeros(3, 7, dtype=torch.long)}
    first, second = HFForward(model_of("bert")).inputs(encoding)["additional_forward_args"]
    assert first is None
    assert second is encoding["token_type_ids"]


# -- bad input --


def bert(*args, **kwargs) -> HFForward:
    return HFForward(model_of("bert"), *args, **kwargs)


IDS = torch.tensor([[5, 6, 7]])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda: HFForward(model_of("bert").forward), TypeError, "should be a torch.nn.Module, got method"),
        (lambda: bert("gates"), ValueError, "mode should be one of 'ids', 'embeds', 'gate', got 'gates'"),
        (lambda: bert(position="all"), ValueError, "got 'all'"),
        (lambda: bert(position=True), TypeError, "got True"),
        (lambda: bert(position=[1, False]), TypeError, "got .1, False."),
        (lambda: bert(position=torch.tensor([True])), TypeError, "position should be"),
        (lambda: bert(position=1.5), TypeError, "got 1.5"),
        (lambda: bert(position=[]), TypeError, "position should be"),
        (lambda: bert(position=[[1], [2]]), TypeError, "position should be"),
        (lambda: bert(position=3)(IDS), ValueError, "position 3 is out of range.*3 positions, 0 to 2 .or -1 to -3"),
        (lambda: bert(position=[-4])(IDS), ValueError, "position -4 is out of range"),
        (lambda: HFForward(model_of("llama"), position=5)(IDS), ValueError, "5 is out of range.*0 to 2"),
        (lambda: HFForward(model_of("bart"), position=5)(IDS), ValueError, "5 is out of range.*0 to 2"),
        (lambda: bert(names=("attention_msk",)), ValueError, "'attention_msk'.*Did you mean 'attention_mask'"),
        (lambda: bert(names="attention_mask"), TypeError, "names should be keywords in a sequence"),
        (lambda: bert(names=("position_ids", "position_ids")), ValueError, "an entry twice"),
        (lambda: bert(names=("input_ids",)), ValueError, "input_ids is given twice"),
        (lambda: bert(names=("position_ids",), position_ids=IDS), ValueError, "position_ids is given twice"),
        (lambda: bert(postion=3), ValueError, "'postion'.*Did you mean 'position'"),
        (lambda: HFForward(HandMade(), colour=3), ValueError, "'colour', which neither it nor HandMade takes"),
        (lambda: bert("gate", embedding="bert.embedings"), ValueError, "no module 'bert.embedings'.*Did you mean"),
        (lambda: bert("gate", embedding=nn.Embedding(2, 2)), ValueError, "no part of BertForSequenceClassification"),
        (lambda: bert()(IDS.float()), TypeError, "token ids are integers.*mode='gate' or mode='embeds'"),
        (lambda: bert()(IDS.bool()), TypeError, "token ids are integers"),
        (lambda: bert()(IDS[0]), ValueError, r"should be \(batch, sequence\), got shape \(3,\).*return_tensors"),
        (lambda: bert()(IDS[:, :0]), ValueError, "input_ids is empty"),
        (lambda: bert()(IDS[:0]), ValueError, "input_ids is empty"),
        (lambda: bert()(torch.full((1, 41), 5)), ValueError, "41 tokens.*max_length=40"),
        (lambda: bert()(torch.tensor([[50]])), ValueError, "0 to 49"),
        (lambda: HFForward(model_of("gpt2"))(torch.full((1, 41), 5)), ValueError, "41 tokens.*max_length=40"),
        (lambda: HFForward(model_of("roberta"))(torch.full((1, 39), 5)), ValueError, "39 tokens.*max_length=38"),
        (lambda: bert()(IDS, None, None, None, None), ValueError, "4 extras but knows 2: attention_mask, token_type"),
        (lambda: bert(names=())(IDS, IDS), ValueError, "1 extras but knows 0: none"),
        (lambda: bert("gate")(torch.ones(1, 3)), ValueError, r"input_ids as the first of additional_forward_args"),
        (lambda: bert("gate")(IDS, IDS), TypeError, "a gate is float"),
        (lambda: bert("gate")(torch.ones(1, 2), IDS), ValueError, r"gate is \(1, 2\), but input_ids is \(1, 3\)"),
        (lambda: bert("gate")(torch.ones(1, 3), IDS.float()), TypeError, "token ids are integers"),
        (lambda: bert("embeds")(IDS), ValueError, "takes float embeddings"),
        (lambda: bert("embeds")(torch.ones(1, 41, 32)), ValueError, "max_position_embeddings. ends at 40"),
        (lambda: bert().inputs("a text"), TypeError, "takes a tokenizer's encoding, got str. Tokenize first"),
        (
            lambda: bert().inputs({"attention_mask": IDS}),
            ValueError,
            "needs input_ids, the encoding has attention_mask",
        ),
        (lambda: bert().inputs({"input_ids": [[1], [1, 2]]}), ValueError, "input_ids cannot be a tensor.*padding=True"),
        (
            lambda: bert().inputs({"input_ids": IDS, "position_ids": IDS}),
            ValueError,
            "encoding has position_ids.*names=",
        ),
        (lambda: bert().inputs({"input_ids": IDS[0]}), ValueError, r"got shape \(3,\)"),
    ],
)
def test_bad_input_is_refused_at_the_door(bad, error, message):
    with pytest.raises(error, match=message):
        bad()


def test_padding_is_no_token_to_explain():
    ids, mask = text().values()
    with pytest.raises(ValueError, match=r"position 6 of example 1 is padding: its real tokens are \[0, 1, 2, 3, 4\]"):
        HFForward(model_of("llama"), position=-1)(ids, mask)
    mask[2] = 0
    with pytest.raises(ValueError, match="example 2 marks no token as real"):
        HFForward(model_of("llama"))(ids, mask)


def test_a_mask_that_does_not_fit_the_output_tells_no_position():
    class Prefixed(nn.Module):
        """Two more rows than tokens, as prefix tuning has."""

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, input_ids, attention_mask=None):
            return nn.functional.pad(self.table(input_ids), (0, 0, 2, 0))

    ids, mask = text().values()
    with pytest.raises(ValueError, match=r"has 9 rows .* mask is \(3, 7\).*Give position as an index"):
        HFForward(Prefixed())(ids, mask)
    assert HFForward(Prefixed(), position=8)(ids, mask).shape == (3, 4)


def test_a_gate_of_another_number_of_patches_is_refused():
    model = ViTForImageClassification(ViTConfig(**VISION))
    with pytest.raises(ValueError, match=r"gate is \(1, 10\), but the embedding has 1 examples of 9"):
        HFForward(model, "gate")(torch.ones(1, 10), torch.randn(1, 3, 12, 12))


def test_a_model_that_returns_nothing_to_explain_is_refused():
    model = HandMade()
    model.forward = lambda input_ids: {"text": "none"}
    with pytest.raises(ValueError, match="HandMade returned a dict without a tensor"):
        HFForward(model, names=())(IDS)


# -- positions --

masks = st.lists(st.lists(st.booleans(), min_size=5, max_size=5).filter(any), min_size=1, max_size=4)


@given(masks, st.booleans())
def test_no_position_is_the_first_or_the_last_real_token(rows, causal):
    found = resolve_position(None, torch.tensor(rows).long(), len(rows), 5, causal)
    expected = [[i for i, real in enumerate(row) if real][-1 if causal else 0] for row in rows]
    assert found.tolist() == expected


@given(st.integers(-9, 9), st.integers(1, 6), st.integers(1, 4))
def test_an_index_counts_as_in_a_list(position, length, batch):
    try:
        expected = [range(length)[position]] * batch
    except IndexError:
        with pytest.raises(ValueError, match=f"{position} is out of range: there are {length} positions"):
            resolve_position(position, None, batch, length, causal=True)
    else:
        assert resolve_position(position, None, batch, length, causal=True).tolist() == expected


@given(masks, st.integers(1, 3))
def test_fewer_positions_than_examples_are_repeated_in_place(rows, times):
    mask = torch.tensor(rows).long()
    each = resolve_position(None, mask, len(rows), 5, causal=True)
    repeated = resolve_position(each, mask.repeat_interleave(times, 0), len(rows) * times, 5, causal=False)
    assert repeated.tolist() == [int(p) for p in each for _ in range(times)]


def test_real_tokens_are_those_of_the_mask():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert torch.equal(real_tokens(mask, 2, 3), mask.bool())
    assert real_tokens(None, 2, 3).all()
    with pytest.raises(ValueError, match=r"should be \(batch, sequence\) = \(2, 4\), got shape \(2, 3\)"):
        real_tokens(mask, 2, 4)
