"""Attention weights as an attribution: what the norms are compared with."""

from __future__ import annotations

from torch import Tensor

from captum_norm.attr._base import MapMethod
from captum_norm.capture import AttentionRecord
from captum_norm.measures import MEASURES


class AttentionWeights(MapMethod):
    """The attention weight alpha_ij, mean over heads: how often j is *looked at*, whatever it then passes on.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        aggregate: how the attention calls become one: ``"mean"``, ``"rollout"``, ``"flow"`` (slower: see
            ``AttentionFlow``), or an integer for one call.
        residual: for ``"rollout"`` and ``"flow"``, mix each map with the identity: (A + I) / row sum.
        max_memory: how many bytes of its calls a row of a product may keep at once, None for all.  Where they take
            more, the model runs again for the calls that were let go: slower, and the same numbers.

    Raises:
        ValueError: if there is no such aggregate.

    Sources: https://arxiv.org/abs/1706.03762 (the weights), https://arxiv.org/abs/2004.10102 (why they are not all).

    Example:
        Scores of one row sum to 1, because every row of weights does:

        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
        >>> scores = AttentionWeights(model).attribute(torch.randn(1, 3, 8))
        >>> scores.shape, round(float(scores.sum()), 4)
        (torch.Size([1, 3, 8]), 1.0)
    """

    def measure(self, record: AttentionRecord) -> Tensor:
        """Mean over heads of alpha, (batch, query, key); rows sum to 1."""
        return MEASURES["mean_weights"].compute(record)
