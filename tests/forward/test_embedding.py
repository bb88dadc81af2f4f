"""The gate: ones change no bit, a zero erases one token, and only the embedding of the input is touched."""

import copy
import functools
import threading
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartModel,
    DeiTConfig,
    DeiTModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from captum_norm.forward import HFForward

from .models import IMAGE, MODELS, TRANSLATOR, VISION, HandMade, call, encoding_for, hooks, model_of, text


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
