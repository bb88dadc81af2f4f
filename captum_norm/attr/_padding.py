"""A warning where a text is padded and attention was not told."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Module


def special_ids(modules: Sequence[Module]) -> tuple[int | None, frozenset[int]]:
    """The pad id of the outermost model that has one, and its ids of begin and end.

    A model without a configuration says it by the ``padding_idx`` of its embedding.
    """
    for module in modules:
        config: Any = getattr(module, "config", None)
        pad = getattr(config, "pad_token_id", None)
        if isinstance(pad, int):
            ends = (getattr(config, name, None) for name in ("bos_token_id", "eos_token_id"))
            return pad, frozenset(end for end in ends if isinstance(end, int))
    embeddings = [part for module in modules[:1] for part in module.modules() if isinstance(part, Embedding)]
    known = {part.padding_idx for part in embeddings if part.padding_idx is not None}
    return (known.pop() if len(known) == 1 else None), frozenset()


def warn_of_padding(title: str, index: int, ids: Tensor, pad: int | None, ends: frozenset[int]) -> None:
    """Warn if ids begin or end with the pad id, though attention looks at all of them.

    Args:
        title: the method's name.
        index: which input.
        ids: (batch, position); any other tensor holds no ids.
        pad, ends: the model's pad id, and those of begin and end; a text that is no padding may end with one of these.
    """
    if pad is None or ids.ndim != 2 or ids.dtype is not torch.long:
        return
    wide = 2 if pad in ends else 1
    padding = ids == pad
    at_an_end = padding[:, :wide].all(1) | padding[:, -wide:].all(1)
    padded = at_an_end & ~padding.all(1) if ids.shape[1] > wide else at_an_end & False
    if bool(padded.any()):
        warnings.warn(
            f"{title}: {int(padded.sum())} of {len(ids)} texts in inputs[{index}] begin or end with the pad id, {pad}, "
            "but attention looks at all of it: padding is read as text. Pass attention_mask, or all that the tokenizer "
            "returned: attribute(encoding).",
            stacklevel=5,
        )
