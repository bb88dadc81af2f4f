"""Attention rollout: weights composed along the model, residual connections included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum_norm.attr.weights import AttentionWeights


class AttentionRollout(AttentionWeights):
    """A row of the product over layers of (A + I) / 2, with A the attention weights, mean over heads.

    In an encoder-decoder the cross-attention is composed with the encoder's rollout, so that the scores of
    ``(input_ids, decoder_input_ids)`` together sum to 1.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        residual: whether to count the residual connections, as the paper does; without them the plain product.
        max_memory: as in ``AttentionNorm``.

    Source: Abnar and Zuidema (2020), "Quantifying Attention Flow in Transformers", section 3,
    https://arxiv.org/abs/2005.00928.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> scores = AttentionRollout(model).attribute(torch.randn(1, 3, 8)).sum(-1)
        >>> round(float(scores.sum()), 4), bool(scores[0, 0] > 0.25)  # half of half stays where it is
        (1.0, True)
    """

    def __init__(
        self, forward_func: Callable[..., Any], *, residual: bool = True, max_memory: int | None = None
    ) -> None:
        super().__init__(forward_func, aggregate="rollout", residual=residual, max_memory=max_memory)
