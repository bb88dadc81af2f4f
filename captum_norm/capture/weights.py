"""The attention weights that a fused kernel uses and keeps to itself, computed beside the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_norm.operations.precision import at_least_float32


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """The weights that ``scaled_dot_product_attention`` uses and does not return: softmax(q k^T scale + mask).

    Args:
        query: (..., head, query, head_dim).
        key: (..., head or key/value head, key, head_dim).

    Returns:
        (..., head, query, key), float32 for half inputs; rows with no key allowed are zero, as in torch.
    """
    dtype = at_least_float32(query.dtype)
    query = query.to(dtype) * (query.shape[-1] ** -0.5 if scale is None else scale)
    key = key.to(dtype)
    if key.ndim > 2 and key.shape[-3] != query.shape[-3]:  # groups of heads share a key head
        grouped = query.reshape(*query.shape[:-3], key.shape[-3], -1, *query.shape[-2:])
        scores = (grouped @ key.unsqueeze(-3).mT).flatten(-4, -3)
    else:
        scores = query @ key.mT
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores.masked_fill_(~allowed, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores.add_(mask)
    nothing = None if mask is None else (scores == -math.inf).all(-1, keepdim=True)
    # In place where that is known to be sound: on a CPU fresh memory costs more than the softmax itself.
    in_place = scores.device.type == "cpu" and not scores.requires_grad
    weights = torch.softmax(scores, -1, out=scores if in_place else None)
    return weights if nothing is None else weights.masked_fill_(nothing, 0.0)
