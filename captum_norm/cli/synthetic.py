"""Inputs for a model whose tokenizer or processor is not at hand, made from its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_norm.forward.inputs import longest_input

LENGTH = 12
"""Tokens in the longer of two made-up texts; the shorter is padded, so that masks are exercised too."""


def synthetic_inputs(model: Any) -> dict[str, Tensor]:
    """Random inputs of a small size that a Hugging Face model can take, the same every time.

    Raises:
        ValueError: where the config does not tell what the model takes.
    """
    name = getattr(model, "main_input_name", "input_ids")
    if name not in _MAKERS:
        raise ValueError(
            f"{type(model).__name__} takes {name}, and no such input can be made from its config. Give --text, or use "
            "attention_layers(model, inputs) in Python."
        )
    random = torch.Generator().manual_seed(0)
    made = _MAKERS[name](model.config, random, model)
    if getattr(model.config, "is_encoder_decoder", False):
        start = getattr(model.config, "decoder_start_token_id", None) or 0
        made["decoder_input_ids"] = torch.full((2, LENGTH // 2), start)
    floats = model.dtype
    return {k: t.to(device=model.device, dtype=floats if t.is_floating_point() else t.dtype) for k, t in made.items()}


def _text(config: Any, random: torch.Generator, model: Any) -> dict[str, Tensor]:
    length = min(LENGTH, longest_input(model) or LENGTH)
    vocabulary = config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (2, length), generator=random)
    special = [v for k, v in vars(config).items() if k.endswith("token_id") and isinstance(v, int)]
    ordinary = next(i for i in range(vocabulary) if i not in special)
    ids[torch.isin(ids, torch.tensor([ordinary, *special]))] = ordinary
    mask = torch.ones_like(ids)
    mask[1, -(length // 3) :] = 0
    pad = getattr(config, "pad_token_id", None)
    return {"input_ids": torch.where(mask.bool(), ids, ordinary if pad is None else pad), "attention_mask": mask}


def _pixels(config: Any, random: torch.Generator, model: Any) -> dict[str, Tensor]:
    told = getattr(config, "vision_config", config)
    size = getattr(told, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return {"pixel_values": torch.randn(2, getattr(told, "num_channels", 3), height, width, generator=random)}


def _spectrum(config: Any, random: torch.Generator, model: Any) -> dict[str, Tensor]:
    frames = 2 * getattr(config, "max_source_positions", 50)
    return {"input_features": torch.randn(2, getattr(config, "num_mel_bins", 80), frames, generator=random)}


def _sound(config: Any, random: torch.Generator, model: Any) -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 16000, generator=random)}


# A new kind of input is one row here, under the name that the model gives it.
_MAKERS: dict[str, Callable[[Any, torch.Generator, Any], dict[str, Tensor]]] = {
    "input_ids": _text,
    "pixel_values": _pixels,
    "input_features": _spectrum,
    "input_values": _sound,
}
