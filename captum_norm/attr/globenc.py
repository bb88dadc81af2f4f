"""GlobEnc: norms of whole encoder layers, composed along the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from captum_norm.attr._aggregate import AggregateType
from captum_norm.attr._base import MapMethod
from captum_norm.attr.block_norm import block_norms, block_quantity
from captum_norm.capture import AttentionRecord


class GlobEnc(MapMethod):
    """A row of the product over layers of ||N_2(N(sum_h alpha_ij f_h(x_j) + [j = i] x_i))||.

    N is the norm behind attention's residual, N_2 that behind the feed-forward part's.  The feed-forward part itself is
    not applied to the vectors (but with ``feed_forward=True``); it counts through the divisor of N_2.  In pre-LN layers
    no norm stands behind, and the maps are those with the residual.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        aggregate: ``"rollout"`` (the paper's: the plain product, the residual is in the maps), ``"mean"``, or an
            integer for one layer.
        feed_forward: apply the feed-forward part to the vectors too, as in ``AttentionBlockNorm``.
        max_memory: as in ``AttentionNorm``.

    Scores are not normalised.  In an encoder-decoder, cross-attention is composed with the encoder.

    Raises:
        ValueError: if there is no such aggregate; in ``attribute`` also if a layer has no residual, norm or
            feed-forward part, naming the attention call and what was found.

    Source: Modarressi et al. (2022), "GlobEnc", section 3, https://arxiv.org/abs/2205.03286.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> scores = GlobEnc(model).attribute(torch.randn(1, 3, 8)).sum(-1)
        >>> scores.shape, int(scores.argmax())  # position 0 is explained, and is mostly itself
        (torch.Size([1, 3]), 0)
    """

    reads_block: ClassVar[bool] = True

    def __init__(
        self, forward_func: Callable[..., Any], *, feed_forward: bool = False, aggregate: AggregateType = "rollout",
        max_memory: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(forward_func, aggregate=aggregate, max_memory=max_memory)
        self.feed_forward = feed_forward

    def measure(self, record: AttentionRecord) -> Tensor:
        """N-Enc, (batch, query, key), in cross-attention with the residual as one more key."""
        if self.feed_forward:
            return block_norms("GlobEnc", record, residual=True, layer_norm=True, feed_forward=True)
        return block_quantity(type(self).__name__, "globenc_norms", record)
