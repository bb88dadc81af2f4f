"""What figures are drawn of, and what is read back from them."""

from types import SimpleNamespace

import numpy as np
import torch

TOKENS = ["[CLS]", "not", "bad", "[SEP]"]


def some_map(size=4, keys=None, seed=0):
    return torch.rand(size, keys or size, generator=torch.Generator().manual_seed(seed)) + 0.01


def some_maps(calls=3, heads=2, batch=2, size=4):
    """What ``attention_maps`` returns, as far as figures look at it."""
    weights = [torch.rand(batch, heads, size, size).softmax(-1) for _ in range(calls)]
    return SimpleNamespace(
        calls=[SimpleNamespace(name=f"layer.{i}.self", kind="self", call=0, heads=heads) for i in range(calls)],
        weights=weights,
        head_norms=[2 * one for one in weights],
        summed_norms=[3 * one.mean(1) for one in weights],
        tokens=[TOKENS[:size] for _ in range(batch)],
    )


def block_maps(calls=3, batch=2, size=4, kind="self", masks=None):
    """Quantities of blocks: in cross-attention the residual is one more key."""
    keys = size + (kind == "cross")
    return SimpleNamespace(
        calls=[SimpleNamespace(name=f"layer.{i}.self", kind=kind, call=0, heads=2) for i in range(calls)],
        weights=[torch.rand(batch, 2, size, size).softmax(-1) for _ in range(calls)],
        res_norms=[torch.rand(batch, size, keys) for _ in range(calls)],
        alti=[torch.rand(batch, size, keys).softmax(-1) for _ in range(calls)],
        mixing_attn=[0.5 + torch.rand(batch, size) / 2 for _ in range(calls)],
        mixing_res_ln=[torch.rand(batch, size) / 2 for _ in range(calls)],
        key_masks=[masks] * calls,
        query_masks=[masks] * calls,
        query_tokens=lambda call, example: TOKENS[:size],
        key_tokens=lambda call, example: TOKENS[:size],
    )


def panels(figure):
    return [axes for axes in figure.axes if axes.images and axes.get_label() not in ("colour bar", "key")]


def bars(figure):
    return [axes for axes in figure.axes if axes.get_label() == "colour bar"]


def labels(ticks):
    return [label.get_text() for label in ticks]


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def cells(figure):
    return [tuple(patch.get_facecolor()) for patch in figure.axes[0].patches]
