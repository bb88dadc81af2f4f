"""Language models that see or hear: what they write is explained with the picture it was written of, patch by patch."""

import pytest
import torch
import transformers

from captum_norm import ALTILogit, AttentionNorm, AttentionWeights, HFForward, LLMAttentionAttribution, SpanTrace
from captum_norm.pictures import picture_grids, sound_frames
from captum_norm.visualization import picture_maps
from tests.coverage.tiny import tiny_config

SIGHT = 59
BEFORE_5 = int(transformers.__version__.split(".")[0]) < 5
TEXT = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "initializer_range": 0.2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
EYE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip


class Numbers:
    """A tokenizer whose tokens are their numbers."""

    def encode(self, text, **_):
        return [int(number) for number in text.split()]

    def convert_ids_to_tokens(self, ids):
        return [str(number) for number in ids] if isinstance(ids, list) else str(ids)

    def convert_tokens_to_ids(self, token):
        return int(token)


def llava():
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**EYE),
        image_token_index=SIGHT, vision_feature_layer=-1,
    )  # fmt: skip
    ids = [1, *[SIGHT] * 16, 7, 8, 9]
    return transformers.LlavaForConditionalGeneration(config), ids, {"pixel_values": torch.randn(1, 3, 16, 16)}


def gemma3():
    """The patches of a picture see each other both ways, as the types of its tokens say."""
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT), vision_config=transformers.SiglipVisionConfig(**EYE),
        mm_tokens_per_image=4, image_token_index=SIGHT, boi_token_index=58, eoi_token_index=57,
    )  # fmt: skip
    ids = [1, 58, *[SIGHT] * 4, 57, 7, 8, 9]
    types = (torch.tensor([ids]) == SIGHT).long()
    fixed = {"pixel_values": torch.randn(1, 3, 16, 16), "token_type_ids": types}
    return transformers.Gemma3ForConditionalGeneration(config), ids, fixed


def smolvlm():
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=EYE, image_token_id=SIGHT, scale_factor=2,
        pad_token_id=0,
    )  # fmt: skip
    ids = [1, *[SIGHT] * 4, 7, 8, 9]
    return transformers.SmolVLMForConditionalGeneration(config), ids, {"pixel_values": torch.randn(1, 1, 3, 16, 16)}


def qwen2_vl():
    config = tiny_config("qwen2_vl")
    config.image_token_id, config.vision_start_token_id, config.video_token_id = SIGHT, 58, 57
    eye = config.vision_config
    ids = [58, *[SIGHT] * 6, 7, 8, 9]
    fixed = {
        "pixel_values": torch.randn(24, eye.in_channels * eye.temporal_patch_size * eye.patch_size**2),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }
    if BEFORE_5:
        config.get_text_config().rope_scaling = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    model = transformers.Qwen2VLForConditionalGeneration(config)
    if not BEFORE_5:  # before, the ids alone told
        fixed["mm_token_type_ids"] = (torch.tensor([ids]) == SIGHT).long()
    return model, ids, fixed


def qwen2_audio():
    config = tiny_config("qwen2_audio")
    config.audio_token_index = config.audio_token_id = SIGHT
    ear = config.audio_config
    length = 2 * ear.max_source_positions
    ids = [1, *[SIGHT] * (((length - 1) // 2 - 1) // 2 + 1), 7, 8, 9]
    fixed = {
        "input_features": torch.randn(1, ear.num_mel_bins, length),
        "feature_attention_mask": torch.ones(1, length, dtype=torch.long),
    }
    return transformers.Qwen2AudioForConditionalGeneration(config), ids, fixed


# A random model may write the placeholder itself, which then stands for no patch.
WRITE = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [SIGHT]}


def written(make, method=AttentionNorm):
    torch.manual_seed(0)
    model, ids, fixed = make()
    wrapped = LLMAttentionAttribution(method(HFForward(model.eval(), **fixed)), Numbers())
    return model, torch.tensor([ids]), fixed, wrapped.attribute(ids, gen_args=WRITE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [llava, gemma3, smolvlm, qwen2_vl, qwen2_audio], ids=lambda make: make.__name__)
def test_what_is_written_is_written_of_the_picture_and_explained_with_it(make):
    model, ids, fixed, result = written(make)
    expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **fixed, **WRITE)[0, ids.shape[1] :]
    assert result.output_tokens == [str(token) for token in expected.tolist()]
    alone = AttentionNorm(HFForward(model, **fixed, position=-1)).attribute(ids)
    torch.testing.assert_close(result.token_attr[:1], alone)


@pytest.mark.filterwarnings("ignore")
def test_each_written_token_has_a_picture_of_its_patches():
    _, ids, fixed, result = written(llava)
    [grid] = picture_grids(result.token_attr, ids, SIGHT)
    assert grid.shape == (3, 4, 4)
    assert torch.equal(grid[1, 2], result.token_attr[1, 9:13])
    names = [f"{number}: {token}" for number, token in enumerate(result.output_tokens)]
    figure = picture_maps(fixed["pixel_values"][0], dict(zip(names, grid, strict=True)))
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["picture", names[0]]


@pytest.mark.filterwarnings("ignore")
def test_patches_of_any_shape_and_frames_lie_as_the_ids_say():
    _, ids, _, result = written(qwen2_vl, AttentionWeights)
    with pytest.raises(ValueError, match="6 placeholders in a row are no square"):
        picture_grids(result.token_attr, ids, SIGHT)
    [grid] = picture_grids(result.token_attr, ids, SIGHT, [(2, 3)])
    assert torch.equal(grid.flatten(1), result.token_attr[:, 1:7])
    with pytest.raises(ValueError, match=r"holds 6 placeholders, and shapes \[\(2, 2\)\] hold 4"):
        picture_grids(result.token_attr, ids, SIGHT, [(2, 2)])
    _, ids, _, result = written(qwen2_audio)
    [frames] = sound_frames(result.token_attr, ids, SIGHT)
    assert frames.shape[1] == int((ids == SIGHT).sum())
    with pytest.raises(ValueError, match="no id is the placeholder 5"):
        sound_frames(result.token_attr, ids, 5)


def embedded(output, types):
    output["logits"] = output["logits"] + types[:, -output["logits"].shape[1] :]
    return output


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_that_reads_the_answer_is_refused_unless_it_is_told_to_be_one():
    torch.manual_seed(0)
    config = transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**TEXT), image_token_index=SIGHT, projection_dim=32,
        vision_config=transformers.SiglipVisionConfig(**EYE, projection_dim=32),
    )  # fmt: skip
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    method = AttentionNorm(HFForward(model, pixel_values=torch.randn(1, 3, 16, 16)))
    ids = [*[SIGHT] * 16, 1, 7, 8, 9]
    with pytest.raises(ValueError, match="looks ahead"):
        LLMAttentionAttribution(method, Numbers()).attribute(ids, gen_args=WRITE)
    if BEFORE_5:  # token types meant something while it was trained alone
        return
    alone = method.attribute(torch.tensor([ids]), position=-1)
    text = torch.tensor([[*ids, 5, 6, 7]])
    told = HFForward(model, **method.forward_func.fixed, token_type_ids=(torch.arange(23) > 19).long()[None])
    torch.testing.assert_close(AttentionNorm(told).attribute(text, position=19)[:, :20], alone)
    assert AttentionNorm(told).attribute(text, position=21)[0, 20:].tolist()[2:] == [0.0]

    # The same in one go, where the prompt is called one.
    types = HFForward(model, **method.forward_func.fixed, token_type_ids=torch.zeros(1, 20, dtype=torch.long))
    written = LLMAttentionAttribution(AttentionNorm(types), Numbers())
    rows = [AttentionNorm(told).attribute(text, position=n)[0, :20] for n in (19, 20, 21)]
    torch.testing.assert_close(written.attribute(ids, "5 6 7").token_attr, torch.stack(rows))
    assert written.attribute(ids, gen_args=WRITE).token_attr.shape == (WRITE["max_new_tokens"], 20)

    # Types that are embedded as well would make what is written another text.
    table = torch.nn.Embedding(2, TEXT["vocab_size"])
    model.register_forward_hook(lambda _, args, given, output: embedded(output, table(given["token_type_ids"])),
                                with_kwargs=True)  # fmt: skip
    with pytest.raises(ValueError, match="looks ahead"):
        written.attribute(ids, "5 6 7")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [llava, smolvlm, qwen2_vl, qwen2_audio, gemma3], ids=lambda make: make.__name__)
def test_what_sees_a_picture_beside_a_decoder_is_none_of_its_layers(make):
    if make is smolvlm and BEFORE_5:
        pytest.skip("its older form puts the rows of a picture among those of a text by torch.where")
    torch.manual_seed(0)
    model, ids, fixed = make()
    forward, ids = HFForward(model.eval(), **fixed), torch.tensor([ids])
    methods = ALTILogit(forward), SpanTrace(forward)
    if make is gemma3:  # its decoder sees the picture both ways
        for method in methods:
            with pytest.raises(ValueError, match=r"language_model.layers.0.self_attn' \(self\) looks ahead"):
                method.attribute(ids, 5)
        return
    scores, delta = methods[0].attribute(ids, 5, return_convergence_delta=True)
    torch.testing.assert_close(scores.sum(1) + delta, model(input_ids=ids, **fixed).logits[:, -1, 5].detach())
    end = ids.shape[1]
    assert methods[1].attribute(ids, span=(end - 2, end)).shape == ids.shape
    assert len(methods[0].report.attention) == len(methods[1].report.tokens) == 2
