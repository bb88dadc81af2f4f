"""Under which keywords positional extras reach a model: its masks, types and a decoder's ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.keywords import keywords_of

_DECODER = "decoder_input_ids"


def default_names(model: nn.Module, fixed: Collection[str], is_encoder_decoder: bool) -> tuple[str, ...]:
    """The usual ones, as far as the model takes them and they are not fixed."""
    names: tuple[str, ...] = ("attention_mask", _DECODER if is_encoder_decoder else "token_type_ids")
    names += ("decoder_attention_mask",) if is_encoder_decoder else ()
    known = keywords_of(model)
    return tuple(name for name in names if name in known and name not in fixed)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that were given.

    Raises:
        TypeError: if they are no sequence of keywords.
        ValueError: if one is there twice.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"HFForward: names should be keywords in a sequence, ('attention_mask',), got {names!r}.")
    if len(set(names)) < len(names):
        raise ValueError(f"HFForward: names has an entry twice: {tuple(names)}.")
    return tuple(names)


def in_order(names: tuple[str, ...], extras: Sequence[Any]) -> tuple[str, ...]:
    """The names with the decoder's ids first, where the first extra can only be these and no mask."""
    if _DECODER not in names[1:] or not extras or not isinstance(extras[0], Tensor):
        return names
    first = extras[0]
    if first.is_floating_point() or first.dtype is torch.bool or bool(((first == 0) | (first == 1)).all()):
        return names
    return (_DECODER, *(name for name in names if name != _DECODER))
