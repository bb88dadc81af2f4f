"""Frozen forms that autograd takes backwards in one step: nothing of size query x key is kept.

Axes: b batch, h head, q query, k key, e head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_norm.capture import attention_weights

# Weights computed again at a time in the backward pass: 16 MiB of float32.
_BLOCK = 1 << 22


class FrozenAttention(torch.autograd.Function):
    """``scaled_dot_product_attention`` as a linear map of its values: the weights are constants.

    The backward pass makes the weights again in blocks of queries, so that memory grows with the length alone.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None,
        func: Any, kwargs: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(query, key, mask)
        ctx.is_causal, ctx.scale, ctx.heads = is_causal, scale, value.shape[-3] if value.ndim > 2 else 1
        return func(query, key, value, attn_mask=mask, is_causal=is_causal, **kwargs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, mask = ctx.saved_tensors
        lead, queries, keys = gradient.shape[:-2], query.shape[-2], key.shape[-2]
        rows = max(1, _BLOCK // max(1, lead.numel() * keys))
        total: Any = 0
        for start in range(0, queries, rows):
            cut = slice(start, min(start + rows, queries))
            weights = attention_weights(query[..., cut, :], key, _rows(ctx, mask, cut, query, keys), False, ctx.scale)
            total = total + weights.to(gradient.dtype).mT @ gradient[..., cut, :]
        if total.ndim > 2 and ctx.heads != total.shape[-3]:  # groups of heads share their values
            total = total.unflatten(-3, (ctx.heads, -1)).sum(-3)
        return total, *[None] * 7


def _rows(ctx: Any, mask: Tensor | None, cut: slice, query: Tensor, keys: int) -> Tensor | None:
    """The mask of some queries; a causal one is written out for them."""
    if ctx.is_causal:
        rows = torch.arange(cut.start, cut.stop, device=query.device)
        return torch.arange(keys, device=query.device) <= rows[:, None]
    return mask if mask is None or mask.shape[-2] == 1 else mask[..., cut, :]


class Line(torch.autograd.Function):
    """An activation's value forwards, bit for bit, and a line through the origin backwards: x times a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


class FrozenLayerNorm(torch.autograd.Function):
    """``layer_norm`` with 1/sigma held fixed: centring, a factor for each row, gamma, and beta."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, shape: list[int], weight: Tensor | None, eps: float
    ) -> Tensor:
        out, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(scale, weight)
        ctx.axes, ctx.has_bias = tuple(range(-len(shape), 0)), bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale, weight = ctx.saved_tensors
        wanted = ctx.has_bias and ctx.needs_input_grad[1]
        of_bias = gradient.sum(tuple(range(gradient.ndim - len(ctx.axes)))) if wanted else None
        scaled = gradient if weight is None else gradient * weight
        return (scaled - scaled.mean(ctx.axes, keepdim=True)) * scale.to(gradient.dtype), of_bias, None, None, None
