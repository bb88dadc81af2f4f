"""What goes into a model of any kind: text, pictures, films, sound, series, tables, or several of them.

Inputs are told by the names of ``forward``'s arguments and the sizes in the configuration.  Where one name stands for
several shapes (pixels as a picture, as tiles, as flattened patches with a grid), the candidates come in order of how
much of the model they exercise, and the first one that runs is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tests.coverage.tiny import IMAGE, PATCH, VOCABULARY, WIDTH

BATCH, LENGTH, FRAMES = 2, 7, 4
Inputs = dict[str, Any]


def sizes(config: PretrainedConfig, *names: str, default: Any = None) -> Any:
    """The first of these fields found in the configuration or, breadth first, in its parts."""
    level = [config]
    while level:
        for name in names:
            for part in level:
                if part.__dict__.get(name) is not None:
                    return part.__dict__[name]
        level = [v for part in level for v in part.__dict__.values() if isinstance(v, PretrainedConfig)]
    return default


def _one(size: Any) -> int:
    return int(size[-1] if isinstance(size, (list, tuple)) else size)


def _two(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return (
        (int(size[-2]), int(size[-1]))
        if isinstance(size, (list, tuple)) and len(size) > 1
        else (_one(size), _one(size))
    )


class Shapes:
    """The sizes that inputs are made of."""

    def __init__(self, config: PretrainedConfig) -> None:
        vision = next(
            (
                v
                for n in ("vision_config", "image_config", "image_model_config", "backbone_config")
                if isinstance(v := config.__dict__.get(n), PretrainedConfig)
            ),
            config,
        )
        self.config, self.vision = config, vision
        self.height, self.width = _two(
            sizes(vision, "image_size", "img_size", default=sizes(config, "image_size", default=IMAGE))
        )
        channels = sizes(vision, "num_channels", "in_channels", "in_chans", "num_input_channels", default=3)
        self.channels = channels if isinstance(channels, int) else 3
        self.patch = _one(sizes(vision, "patch_size", default=PATCH))
        self.temporal = _one(sizes(vision, "temporal_patch_size", "patch_temporal", default=1))
        self.merge = _one(
            sizes(
                vision,
                "spatial_merge_size",
                "merge_size",
                "merge_kernel_size",
                default=sizes(config, "spatial_merge_size", default=1),
            )
        )
        self.frames = int(sizes(vision, "num_frames", default=FRAMES))
        self.mels = int(
            sizes(
                config,
                "num_mel_bins",
                "n_mels",
                "input_feat_per_channel",
                "feature_size",
                "input_feat_size",
                "feature_projection_input_dim",
                "input_dim",
                "input_channels",
                "num_mel_filters",
                default=16,
            )
        )
        self.vocabulary = int(sizes(config, "vocab_size", default=VOCABULARY))
        self.wide = int(sizes(config, "hidden_size", "d_model", "n_embd", default=WIDTH))

    def picture(self, *lead: int) -> Tensor:
        return torch.randn(*lead, self.channels, self.height, self.width)

    def patches(self, rows: int, *lead: int) -> Tensor:
        return torch.randn(*lead, rows, self.channels * self.temporal * self.patch**2)


def text(shapes: Shapes, length: int = LENGTH) -> Tensor:
    return torch.randint(5, min(60, shapes.vocabulary), (BATCH, length))


def mask(length: int = LENGTH) -> Tensor:
    """The second example is two tokens shorter."""
    result = torch.ones(BATCH, length, dtype=torch.long)
    result[1, length - 2 :] = 0
    return result


def boxes(length: int) -> Tensor:
    corners = torch.randint(0, 50, (BATCH, length, 2))
    return torch.cat([corners, corners + torch.randint(1, 50, (BATCH, length, 2))], dim=-1)


def accepted(model: PreTrainedModel) -> dict[str, bool]:
    """The names of forward's arguments; True where the caller must give it."""
    skip = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind not in skip}


def candidates(model: PreTrainedModel) -> Iterator[tuple[str, Inputs]]:
    """Inputs to try, the fullest first, each with a name for the page."""
    shapes, names = Shapes(model.config), accepted(model)
    special = SPECIAL.get(model.config.model_type)
    if special is not None:
        yield "own", special(shapes)
        return
    main = model.main_input_name
    if "input_ids" in names and main != "pixel_values":
        for kind, features in ("image", images), ("audio", sounds), ("video", films):
            if any(n in names for n in KINDS[kind]) and hasattr(model, GETTERS[kind]):
                for extra in features(shapes, names):
                    yield from _placed(model, shapes, names, kind, extra)
        for kind, features in ("image", images), ("audio", sounds), ("video", films):
            if any(n in names for n in KINDS[kind]):
                for extra in features(shapes, names):
                    yield f"text and {kind}", _text(shapes, names) | extra
        yield "text", _text(shapes, names)
    for kind, features in ("image", images), ("video", films), ("audio", sounds):
        if any(n in names for n in KINDS[kind]):
            for extra in features(shapes, names):
                yield kind, extra
                yield kind + " and text", _text(shapes, names) | extra
    if "hidden_states" in names:
        for extra in images(shapes, {"pixel_values": True, "grid_thw": True}):
            if "grid_thw" in extra:
                yield "image", {("hidden_states" if k == "pixel_values" else k): v for k, v in extra.items()}
    if "inputs_embeds" in names:
        yield "embeddings", {"inputs_embeds": torch.randn(BATCH, LENGTH, shapes.wide)}
    if "hidden_states" in names:
        yield "embeddings", {"hidden_states": torch.randn(BATCH, LENGTH, shapes.wide)}


KINDS = {
    "image": ("pixel_values", "pixel_values_images", "flattened_patches", "images"),
    "video": ("pixel_values_videos", "pixel_values", "video"),
    "audio": ("input_features", "input_values", "audio_mel", "audio_values", "input_speech"),
}
GETTERS = {"image": "get_image_features", "audio": "get_audio_features", "video": "get_video_features"}


def _text(shapes: Shapes, names: dict[str, bool], length: int = LENGTH) -> Inputs:
    made = {
        "input_ids": lambda: text(shapes, length),
        "attention_mask": lambda: mask(length),
        "decoder_input_ids": lambda: text(shapes, 5),
        "bbox": lambda: boxes(length),
        "token_type_ids": lambda: None,
    }
    required = {
        "task_inputs": lambda: text(shapes, int(sizes(shapes.config, "task_seq_len", default=LENGTH))),
        "qformer_input_ids": lambda: text(shapes),
        "query_embeds": lambda: torch.randn(BATCH, 6, shapes.wide),
    }
    result = {n: make() for n, make in made.items() if n in names}
    result |= {n: make() for n, make in required.items() if names.get(n)}
    return {n: v for n, v in result.items() if v is not None}


def images(shapes: Shapes, names: dict[str, bool]) -> Iterator[Inputs]:
    """Pictures as (batch, channel, height, width), as tiles, and as flattened patches with their grid."""
    name = next((n for n in KINDS["image"] if n in names), None)
    if name is None:
        return
    extras: Inputs = {}
    size = torch.tensor([[shapes.height, shapes.width]] * BATCH)
    if "image_sizes" in names:
        extras["image_sizes"] = size
    if "pixel_mask" in names:
        extras["pixel_mask"] = torch.ones(BATCH, shapes.height, shapes.width, dtype=torch.long)
    grid = next(
        (
            n
            for n in ("image_grid_thw", "grid_thw", "image_grid_hws", "grid_hws", "spatial_shapes", "target_sizes")
            if n in names
        ),
        None,
    )
    if grid is not None or "pixel_position_ids" in names or "image_position_ids" in names:
        side = max(2 * shapes.merge, 4)
        side += -side % shapes.merge
        rows = torch.tensor([[1, side, side]] * BATCH)
        if grid is not None and "thw" not in grid:
            rows = rows[:, 1:]
        more: Inputs = {} if grid is None else {grid: rows}
        for n in ("merge_sizes", "image_merge_sizes"):
            if n in names:
                more[n] = torch.full((BATCH,), shapes.merge)
        if "pixel_attention_mask" in names:
            more["pixel_attention_mask"] = torch.ones(BATCH, side * side, dtype=torch.long)
        if "moe_mm_token_type_ids" in names or "mm_token_type_ids" in names:
            more["_types"] = True
        place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).reshape(1, -1, 2)
        for n in ("pixel_position_ids", "image_position_ids"):
            if n in names:
                more[n] = place.repeat(BATCH, 1, 1)
        flat = shapes.patches(BATCH * side * side)
        yield {name: flat} | more
        yield {name: flat.unflatten(0, (BATCH, side * side))} | more
        yield {name: flat.unflatten(-1, (shapes.channels, -1, shapes.patch, shapes.patch)).squeeze(2)} | more
        yield {name: flat.unflatten(-1, (shapes.channels, -1, shapes.patch, shapes.patch))} | more
        yield {name: flat[:, : shapes.channels * shapes.patch**2]} | more
        yield {name: flat[:, : shapes.channels * shapes.patch**2].unflatten(0, (BATCH, side * side))} | more
        yield {
            name: flat[:, : shapes.channels * shapes.patch**2].unflatten(
                -1, (shapes.channels, shapes.patch, shapes.patch)
            )
        } | more
    yield {name: shapes.picture(BATCH)} | extras
    if sizes(shapes.vision, "num_frames"):
        yield {name: shapes.picture(BATCH, shapes.frames)}
    if extras:
        yield {name: shapes.picture(BATCH)}
    if "aspect_ratio_ids" in names:
        tiles = int(sizes(shapes.config, "max_num_tiles", default=4))
        yield {
            name: shapes.picture(BATCH, 1, tiles),
            "aspect_ratio_ids": torch.ones(BATCH, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(BATCH, 1, tiles, dtype=torch.long),
        }
    yield {name: shapes.picture(BATCH, 1)} | extras
    yield {name: shapes.picture(BATCH, 2)} | extras
    yield {name: shapes.picture(BATCH, 3)} | extras
    yield {name: shapes.picture(BATCH, 5)} | extras
    yield {name: shapes.picture(BATCH, shapes.frames)}
    yield {name: torch.randn(BATCH, shapes.channels, 2 * shapes.height, 2 * shapes.width)}
    yield {name: torch.randn(BATCH, shapes.channels, 64, 64)}
    yield {name: torch.randn(BATCH, shapes.channels, 224, 224)}
    if name == "flattened_patches":
        place = torch.cartesian_prod(torch.arange(1, 4), torch.arange(1, 4)).float().repeat(BATCH, 1, 1)
        yield {name: torch.cat([place, shapes.patches(9, BATCH)], dim=-1)}


def films(shapes: Shapes, names: dict[str, bool]) -> Iterator[Inputs]:
    """Films as (batch, frame, channel, height, width), the axes also the other way, and as flattened patches."""
    name = next((n for n in KINDS["video"] if n in names), None)
    if name is None:
        return
    if "video_grid_thw" in names:
        side = max(2 * shapes.merge, 4)
        yield {name: shapes.patches(BATCH * 2 * side * side), "video_grid_thw": torch.tensor([[2, side, side]] * BATCH)}
    yield {name: shapes.picture(BATCH, shapes.frames)}
    yield {name: shapes.picture(BATCH, shapes.frames).transpose(1, 2)}
    yield {name: shapes.picture(BATCH, 1, shapes.frames)}


def sounds(shapes: Shapes, names: dict[str, bool]) -> Iterator[Inputs]:
    """Sound as samples (batch, time) or (batch, 1, time), or as a spectrogram, either way round."""
    name = next((n for n in KINDS["audio"] if n in names), None)
    if name is None:
        return
    decoder = {"decoder_input_ids": text(shapes, 5)} if "decoder_input_ids" in names else {}
    positions = 2 * int(sizes(shapes.config, "max_source_positions", default=50))
    masks = [
        n
        for n in ("input_features_mask", "feature_attention_mask", "audio_mel_mask", "attention_mask", "padding_mask")
        if n in names
    ]
    masks = [n for n in masks if n != "attention_mask" or "input_ids" not in names][:1]
    lengths = (positions, 64, 100, 3000)
    if name != "input_values":
        for length, bands in [(n, shapes.mels) for n in lengths] + [(64, n) for n in (7 * shapes.mels, 80, 128, 160)]:
            mel = torch.randn(BATCH, length, bands)
            for given in (mel, mel.mT.contiguous()):
                for n in masks:
                    yield {
                        name: given,
                        n: torch.ones(BATCH, length, dtype=torch.bool if "mel" in n else torch.long),
                    } | decoder
                yield {name: given} | decoder
    for length in (3840, 8000, 16000):
        yield {name: torch.randn(BATCH, length)} | decoder
        yield {name: torch.randn(BATCH, 1, length)} | decoder
        for n in masks:
            yield {name: torch.randn(BATCH, 1, length), n: torch.ones(BATCH, length, dtype=torch.bool)} | decoder
    if name == "input_values":
        yield {name: torch.randn(BATCH, int(sizes(shapes.config, "max_length", default=64)), shapes.mels)} | decoder
        yield {name: torch.randn(BATCH, 64, shapes.wide)} | decoder


def _placed(
    model: PreTrainedModel, shapes: Shapes, names: dict[str, bool], kind: str, extra: Inputs
) -> Iterator[tuple[str, Inputs]]:
    """Text with as many placeholders as the picture or sound has features."""
    token = sizes(model.config, f"{kind}_token_id", f"{kind}_token_index", "media_placeholder_token_id")
    typed = extra.pop("_types", None)
    if token is None:
        return
    getter = getattr(model, GETTERS[kind])
    taken = inspect.signature(getter).parameters
    try:
        with torch.no_grad():
            required = {n: v for n, v in _text(shapes, names).items() if n in taken and "qformer" in n}
            features = getter(**required | {n: v for n, v in extra.items() if n in taken})
    except Exception:
        return
    rows = _rows(features)
    if not rows:
        return
    for per in dict.fromkeys((max(1, rows // BATCH), rows)):
        start, end = (
            sizes(model.config, f"{word}_{side}_token_id", default=6)
            for word in ("vision",)
            for side in ("start", "end")
        )
        ids = text(shapes, LENGTH)
        middle = torch.tensor([start] + [token] * per + [end]).repeat(BATCH, 1)
        ids = torch.cat([ids[:, :3], middle, ids[:, 3:]], dim=1)
        given = _text(shapes, names, ids.shape[1]) | {"input_ids": ids} | extra
        for n in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
            if n in names and (n != "token_type_ids" or typed or n in names):
                yield f"text with {kind}", given | {n: (ids == token).long() * (2 if kind == "video" else 1)}
        yield f"text with {kind}", given


def _rows(features: Any) -> int:
    if isinstance(features, Tensor):
        return features.shape[:-1].numel()
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(features, name, None) is not None:
            return _rows(getattr(features, name))
    if isinstance(features, (list, tuple)):
        return (
            sum(map(_rows, features))
            if all(isinstance(f, Tensor) for f in features)
            else _rows(features[0])
            if features
            else 0
        )
    return 0


def _series(shapes: Shapes) -> Inputs:
    config = shapes.config
    past = int(sizes(config, "context_length", default=32)) + max(sizes(config, "lags_sequence", default=[0]))
    ahead = int(sizes(config, "prediction_length", default=4))
    return {
        "past_values": torch.randn(BATCH, past),
        "past_time_features": torch.randn(BATCH, past, 1),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": torch.randn(BATCH, ahead),
        "future_time_features": torch.randn(BATCH, ahead, 1),
    }


def _plain_series(shapes: Shapes) -> Inputs:
    channels = int(sizes(shapes.config, "num_input_channels", default=1))
    return {"past_values": torch.randn(BATCH, int(sizes(shapes.config, "context_length")), channels)}


def _decisions(shapes: Shapes) -> Inputs:
    config, steps = shapes.config, 5
    return {
        "states": torch.randn(BATCH, steps, config.state_dim),
        "actions": torch.randn(BATCH, steps, config.act_dim),
        "rewards": torch.randn(BATCH, steps, 1),
        "returns_to_go": torch.randn(BATCH, steps, 1),
        "timesteps": torch.arange(steps).repeat(BATCH, 1),
        "attention_mask": mask(steps),
    }


# Inputs that the names of forward's arguments do not tell.
SPECIAL: dict[str, Callable[[Shapes], Inputs]] = {
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), _series),
    **dict.fromkeys(("patchtst", "patchtsmixer"), _plain_series),
    "decision_transformer": _decisions,
    "dia": lambda s: (
        _text(s, {"input_ids": True, "attention_mask": True})
        | {"decoder_input_ids": torch.randint(5, 60, (BATCH, 5, int(sizes(s.config, "num_channels", default=9))))}
    ),
    "blip_2_qformer": lambda s: {
        "query_embeds": torch.randn(BATCH, 6, s.wide),
        "encoder_hidden_states": torch.randn(BATCH, 5, int(sizes(s.config, "encoder_hidden_size"))),
    },
    "clap": lambda s: {
        "input_ids": text(s),
        "attention_mask": mask(),
        "input_features": torch.randn(BATCH, 1, 128, 32),
    },
    "clap_audio_model": lambda s: {"input_features": torch.randn(BATCH, 1, 128, 32)},
    "depth_pro": lambda s: {"pixel_values": torch.randn(BATCH, 3, 128, 128)},
    "idefics": lambda s: {
        "input_ids": text(s),
        "attention_mask": mask(),
        "pixel_values": s.picture(BATCH, 1),
        "image_attention_mask": torch.ones(BATCH, LENGTH, 1, dtype=torch.long),
    },
    "kosmos-2": lambda s: {
        "input_ids": text(s, 12),
        "attention_mask": mask(12),
        "pixel_values": s.picture(BATCH),
        "image_embeds_position_mask": torch.tensor([[0] * 3 + [1] * 6 + [0] * 3] * BATCH),
    },
    "lxmert": lambda s: {
        "input_ids": text(s),
        "attention_mask": mask(),
        "visual_feats": torch.randn(BATCH, 5, 16),
        "visual_pos": torch.rand(BATCH, 5, 4),
    },
    "perceiver": lambda s: {"inputs": torch.randn(BATCH, LENGTH, s.wide), "attention_mask": mask()},
    **dict.fromkeys(
        ("mimi_decoder", "pocket_tts_audio_tokenizer_decoder"),
        lambda s: {"latents": torch.randn(BATCH, s.wide, 8)},
    ),
    **dict.fromkeys(
        ("xcodec2", "neucodec"),
        lambda s: {"input_values": torch.randn(BATCH, 1, 3840), "input_features": torch.randn(BATCH, 64, 160)},
    ),
    "tvp": lambda s: {"input_ids": text(s), "attention_mask": mask(), "pixel_values": torch.randn(BATCH, 4, 3, 64, 64)},
    "pi0": lambda s: {
        "input_ids": torch.cat(
            [torch.full((BATCH, 16), int(sizes(s.config, "image_token_id", "image_token_index"))), text(s)], 1
        ),
        "attention_mask": mask(LENGTH + 16),
        "pixel_values": s.picture(BATCH, 1),
        "action_embeds": torch.randn(BATCH, 5, s.wide),
        "pixel_attention_mask": torch.ones(BATCH, 1, dtype=torch.bool),
    },
    "seggpt": lambda s: {
        n: torch.randn(BATCH, 3, 32, 32) for n in ("pixel_values", "prompt_pixel_values", "prompt_masks")
    },
    "speecht5": lambda s: {
        "input_values": torch.randn(BATCH, LENGTH, s.wide),
        "attention_mask": mask(),
        "decoder_input_values": torch.randn(BATCH, 5, s.wide),
    },
    "timesfm": lambda s: {
        "past_values": torch.randn(BATCH, 64),
        "past_values_padding": torch.zeros(BATCH, 64),
        "freq": torch.zeros(BATCH, 1, dtype=torch.long),
    },
    "timesfm2_5": lambda s: {"past_values": torch.randn(BATCH, 64)},
}
