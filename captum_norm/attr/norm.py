"""The paper's measure as an attribution: the length of the vector that attention really adds."""

from __future__ import annotations

from torch import Tensor

from captum_norm.attr._base import InputAttribution
from captum_norm.capture import AttentionRecord
from captum_norm.functional import summed_norms


class AttentionNorm(InputAttribution):
    """||sum_h alpha^h_ij f^h(x_j)||: how much j *adds* to i through all heads together, with f(x) = (x W_V + b_V) W_O.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        aggregate: how the attention calls become one: ``"mean"``, ``"rollout"`` (the plain product), ``"flow"``
            (slow: see ``AttentionFlow``), or an integer for one call.
        residual: for ``"rollout"`` and ``"flow"``, mix each map with the identity: (A + I) / row sum.

    Scores are lengths in the units of the residual stream; they are not normalised.

    Raises:
        ValueError: if there is no such aggregate.

    Source: Kobayashi et al. (2020), "Attention is Not Only a Weight", equation 5, https://arxiv.org/abs/2004.10102.

    Example:
        A key whose value is erased adds nothing, however much weight it gets:

        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.MultiheadAttention(8, 2, batch_first=True, bias=False).eval()
        >>> x = torch.randn(1, 3, 8)
        >>> x[0, 2] = 0
        >>> scores = AttentionNorm(lambda x: model(x, x, x)[0]).attribute(x).sum(-1)
        >>> scores.shape, bool(scores[0, 1] > 0), float(scores[0, 2])
        (torch.Size([1, 3]), True, 0.0)
    """

    def measure(self, record: AttentionRecord) -> Tensor:
        """||sum_h alpha f(x)||, (batch, query, key)."""
        return summed_norms(record.weights, record.values, record.W_O, gate=record.gate)
