"""Tiny random models of torch and transformers as people use them: positions first, pictures or sound in a text, long
documents with global tokens or in blocks, films and spectrograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IDS, PICTURE = torch.randint(5, 50, (1, 8), generator=torch.Generator().manual_seed(0)), 32
PICTURES = ("llava", "paligemma", "gemma3", "smolvlm", "idefics3", "internvl", "qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True)
class Example:
    """A model, what is explained of it, and its input.

    Attributes:
        model: holds the parameters.
        forward: what is explained, a function of the input; the model itself where that is one.
        given: the input.
        target: what is explained of the output.
    """

    model: nn.Module
    forward: Callable[..., Any]
    given: Tensor
    target: Any = 1


def picture(size: int = PICTURE, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1))


def _positions_first(pooled: bool) -> Example:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2).eval()
    x = torch.randn(7, 2, 16, generator=torch.Generator().manual_seed(8))
    return Example(encoder, (lambda t: encoder(t).mean(0)) if pooled else encoder, x, 1 if pooled else (0, 1))


def _picture_in_text(model_type: str) -> Example:
    """A vision-language model of transformers, its picture held fixed."""
    from tests.coverage.check import Result, build

    model, inputs = build(model_type, Result(model_type)) or (None, {})
    if model is None or "pixel_values" not in inputs or "input_ids" not in inputs:
        raise ImportError(f"no tiny {model_type} was built")
    # The first of two examples, whose patches may lie one after the other.
    first = {name: value[: len(value) // 2] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    ids = first.pop("input_ids")
    return Example(model, lambda i: model(input_ids=i, **first).last_hidden_state, ids, (-1, 1))


def _picture_beside_text() -> Example:
    from tests.coverage.tiny import VARIANTS, tiny_config, tiny_model

    config: Any = tiny_config("mllama", VARIANTS[0])
    seen = config.vision_config
    seen.supported_aspect_ratios, seen.max_num_tiles = [[1, 1], [1, 2], [2, 1]], 2
    seen.intermediate_layers_indices, seen.vision_output_dim, seen.num_global_layers = [0], 64, 1
    config.text_config.cross_attention_layers = [1]
    model: Any = tiny_model(config)
    fixed = {
        "pixel_values": picture(seen.image_size)[:, None, None].expand(-1, -1, 2, -1, -1, -1),
        "aspect_ratio_ids": torch.ones(1, 1).long(), "aspect_ratio_mask": torch.ones(1, 1, 2).long(),
        "cross_attention_mask": torch.ones(1, IDS.shape[1], 1, 2).long(),
    }  # fmt: skip
    return Example(model, lambda i: model(input_ids=i, **fixed).last_hidden_state, IDS, (-1, 1))


def _sound_in_text() -> Example:
    from tests.coverage.tiny import VARIANTS, tiny_config, tiny_model

    config: Any = tiny_config("qwen2_audio", VARIANTS[0])
    model: Any = tiny_model(config)
    ids = torch.cat([IDS[:, :3], torch.full((1, 25), config.audio_token_index), IDS[:, 3:]], 1)
    sound = torch.randn(1, 16, 100, generator=torch.Generator().manual_seed(11))
    fixed = {"input_features": sound, "feature_attention_mask": torch.ones(1, 100).long()}
    return Example(model, lambda i: model(input_ids=i, **fixed).last_hidden_state, ids, (-1, 1))


def _long(kind: str) -> Example:
    """The long-document models, as their checkpoints are used: global tokens, block-sparse."""
    import transformers as hf

    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48}  # fmt: skip
    both = {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}  # fmt: skip
    ids = torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(9))
    of_all = torch.zeros_like(ids).index_fill(1, torch.tensor([0]), 1)
    start = torch.tensor([[2, 7, 9]])
    if kind == "Longformer":
        model: Any = hf.LongformerForSequenceClassification(
            hf.LongformerConfig(**sizes, attention_window=[4, 4], max_position_embeddings=60, pad_token_id=1)
        ).eval()
        return Example(model, lambda i: model(input_ids=i, global_attention_mask=of_all).logits, ids)
    if kind == "BigBird":
        model = hf.BigBirdForSequenceClassification(
            hf.BigBirdConfig(**sizes, block_size=2, num_random_blocks=1, max_position_embeddings=80, sep_token_id=3)
        ).eval()
        return Example(model, model, ids)
    if kind == "LED":
        model = hf.LEDForConditionalGeneration(
            hf.LEDConfig(**both, attention_window=[4, 4], max_encoder_position_embeddings=64, pad_token_id=1)
        ).eval()
        return Example(
            model, lambda i: model(input_ids=i, decoder_input_ids=start, global_attention_mask=of_all).logits, ids,
            (-1, 1),
        )  # fmt: skip
    if kind == "BigBird-Pegasus":
        model = hf.BigBirdPegasusForConditionalGeneration(
            hf.BigBirdPegasusConfig(**both, block_size=2, num_random_blocks=1, max_position_embeddings=64)
        ).eval()
    else:
        model = hf.LongT5ForConditionalGeneration(
            hf.LongT5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=1, num_heads=4,
                            local_radius=3, global_block_size=4, encoder_attention_type=kind)
        ).eval()  # fmt: skip
    return Example(model, lambda i: model(input_ids=i, decoder_input_ids=start).logits, ids, (-1, 1))


def _film_or_sound(film: bool) -> Example:
    import transformers as hf

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    generator = torch.Generator().manual_seed(10)
    if film:
        model: Any = hf.VideoMAEForVideoClassification(
            hf.VideoMAEConfig(**sizes, image_size=16, patch_size=8, num_frames=4)
        ).eval()
        return Example(model, model, torch.randn(1, 4, 3, 16, 16, generator=generator))
    model = hf.ASTForAudioClassification(
        hf.ASTConfig(**sizes, patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8)
    ).eval()
    return Example(model, model, torch.randn(1, 16, 8, generator=generator))


def as_used() -> Iterator[tuple[str, str, Callable[[], Example]]]:
    """Library, model and how it is made."""
    yield "torch", "TransformerEncoder, positions first", lambda: _positions_first(pooled=False)
    yield "torch", "the same, pooled", lambda: _positions_first(pooled=True)
    for name in PICTURES:
        yield "transformers, as used", f"{name}, picture in text", lambda n=name: _picture_in_text(n)
    yield "transformers, as used", "mllama, picture beside text", _picture_beside_text
    yield "transformers, as used", "qwen2_audio, sound in text", _sound_in_text
    for kind, used in {
        "Longformer": "global token", "LED": "global token", "BigBird": "block-sparse",
        "BigBird-Pegasus": "block-sparse", "local": "LongT5", "transient-global": "LongT5",
    }.items():  # fmt: skip
        yield "transformers, as used", f"{kind}, {used}", lambda k=kind: _long(k)
    yield "transformers, as used", "VideoMAE", lambda: _film_or_sound(film=True)
    yield "transformers, as used", "AST", lambda: _film_or_sound(film=False)
