"""Attention flow: how much can pass from each input to a position, every attention weight being a capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum_norm.attr._aggregate import Aggregate, Flow
from captum_norm.attr.weights import AttentionWeights


class AttentionFlow(AttentionWeights):
    """The maximum flow from each input to a position through the layers, divided by the sum over inputs.

    An edge lets through (A + I) / 2 at most, with A the attention weights, mean over heads.  Each input's flow is found
    by itself, as if it had all edges alone: an input is limited by its narrowest passage, not by a product of shares as
    in ``AttentionRollout``.  Scores of a position sum to 1; padding is no part of the network; flows are exact up to
    rounding.

    Each score is a maximum-flow problem over all layers.  One position of a model with 12 layers and 128 tokens takes a
    tenth of a second where flows are limited at their ends, some seconds where narrow passages lie in between, and
    ``position="mean"`` or ``"all"`` that times the number of positions.  All maps of a pass are kept, (batch, query,
    key) for each layer.

    Cross-attention is refused: a flow is defined within one sequence.  ``kind="self"`` gives an encoder-decoder's
    sequences each by itself; ``AttentionRollout`` composes them.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        residual: whether to count the residual connections, as the paper does; without them A itself.
        show_progress: whether to show on standard error how many flows are found.

    Source: Abnar and Zuidema (2020), "Quantifying Attention Flow in Transformers", section 3,
    https://arxiv.org/abs/2005.00928.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> scores = AttentionFlow(model).attribute(torch.randn(1, 3, 8)).sum(-1)
        >>> round(float(scores.sum()), 4), int(scores.argmax())  # most can pass from the position to itself
        (1.0, 0)
    """

    def __init__(self, forward_func: Callable[..., Any], *, residual: bool = True, show_progress: bool = False) -> None:
        super().__init__(forward_func, aggregate="flow", residual=residual)
        self.show_progress = show_progress

    def _new_aggregate(self) -> Aggregate:
        return Flow(self.residual, self.show_progress)
