"""Norms of the whole attention block: attention, residual connection and normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._aggregate import Aggregate, AggregateType, make_aggregate
from captum_norm.attr._base import MapMethod
from captum_norm.attr._captum import logged
from captum_norm.attr._sequences import KindType
from captum_norm.attr.layer import LayerMethod
from captum_norm.capture import AttentionRecord
from captum_norm.measures import compute_measures


def block_quantity(title: str, name: str, record: AttentionRecord) -> Tensor:
    """A quantity of the block around a call.

    Raises:
        ValueError: if the call has none, naming it and what was found.
    """
    found = compute_measures(record, [name])[name]
    if isinstance(found, str):
        raise ValueError(
            f"{title}: the block around attention call {record.call.name!r} ({record.call.kind}) cannot be taken in: "
            f"{found}. AttentionNorm measures its attention alone."
        )
    return found


def block_norms(
    title: str, record: AttentionRecord, residual: bool, layer_norm: bool, feed_forward: bool = False
) -> Tensor:
    """The norms of a block with or without its residual, norms and feed-forward part, (batch, query, key[ + 1]).

    Where another attention call comes before the feed-forward part, it is that call's.
    """
    if not residual and not layer_norm:
        return block_quantity(title, "summed_norms", record)
    if feed_forward and not (record.block is not None and record.block.feed_forward == "later"):
        return block_quantity(title, "ff_res_ln_norms" if layer_norm else "ff_res_norms", record)
    if not residual and record.block is not None:
        record = replace(record, block=replace(record.block, residual=torch.zeros_like(record.block.residual)))
    norms = block_quantity(title, "res_ln_norms" if layer_norm else "res_norms", record)
    return norms if residual else norms[..., : record.weights.shape[-1]]


def check_feed_forward(title: str, residual: bool, feed_forward: bool) -> None:
    """That what the feed-forward part is to make something of holds the residual."""
    if feed_forward and not residual:
        raise ValueError(
            f"{title}: a feed-forward part reads the stream, residual included: feed_forward=True needs residual=True."
        )


class AttentionBlockNorm(MapMethod):
    """||N(sum_h alpha_ij f_h(x_j) + [j = i] x_i)||: how much j adds to i through a whole attention block.

    The residual connection hands x_i on to position i, and a normalisation N, its divisor held at what it was, sorts
    the sum out into its parts.  Both are taken where the model has them, read from its data flow: LayerNorm or RMSNorm
    behind the residual (post-LN) or between attention and residual (sandwich norms); a norm before attention (pre-LN)
    is in f already.  What is read must reproduce the states the model computed.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        residual: take the residual connection in.
        layer_norm: take the normalisation in.  Neither: ``AttentionNorm``.
        feed_forward: go on through the feed-forward part and what is behind it, shared out by integrated gradients
            (``functional.feed_forward_parts``), with the residual around it; read from the model, as all else.
        aggregate: how the attention calls become one: ``"mean"``, ``"rollout"`` (the plain product: the residual is in
            the maps), or an integer for one call.
        max_memory: as in ``AttentionNorm``.

    Scores are lengths in the units of the residual stream; they are not normalised.  What a decoder keeps of itself
    beside its cross-attention is in the scores of its own prefix, by ``aggregate="rollout"``.

    Raises:
        ValueError: if there is no such aggregate; in ``attribute`` also if a block has no residual, no norm anywhere or
            no feed-forward part that can be read, although it is asked for, naming the attention call and what was
            found.

    Source: Kobayashi et al. (2021), section 3, https://arxiv.org/abs/2109.07152 (AttnRes-N, AttnResLn-N); with the
    feed-forward part Kobayashi et al. (2024), https://arxiv.org/abs/2302.00456.

    Example:
        The residual lets a position speak for itself:

        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
        >>> x = torch.randn(1, 4, 8)
        >>> def own_share(method):
        ...     scores = method.attribute(x).sum(-1)[0]
        ...     return scores[0] / scores.sum()
        >>> alone = AttentionBlockNorm(model, residual=False, layer_norm=False)
        >>> bool(own_share(AttentionBlockNorm(model)) > 0.5 > own_share(alone))
        True
    """

    reads_block: ClassVar[bool] = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        residual: bool = True,
        layer_norm: bool = True,
        feed_forward: bool = False,
        aggregate: AggregateType = "mean",
        max_memory: int | None = None,
    ) -> None:
        super().__init__(forward_func, aggregate=aggregate, max_memory=max_memory)
        check_feed_forward("AttentionBlockNorm", residual, feed_forward)
        self.residual, self.layer_norm, self.feed_forward = residual, layer_norm, feed_forward

    def _new_aggregate(self) -> Aggregate:
        return make_aggregate(self.aggregate)  # the residual is in the maps

    def measure(self, record: AttentionRecord) -> Tensor:
        """The block's norms, (batch, query, key), in cross-attention with the residual as one more key."""
        return block_norms(type(self).__name__, record, self.residual, self.layer_norm, self.feed_forward)


class LayerAttentionBlockNorm(LayerMethod):
    """The norms of one attention block, ||N(sum_h alpha_ij f_h(x_j) + [j = i] x_i)||, (batch, query, key).

    In cross-attention there is one more key, the residual, last.  Residual and norm belong to the sum of all heads, so
    there is no map per head.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        layer: the attention module, any module around it, or a list of such.
        residual, layer_norm, feed_forward: as in ``AttentionBlockNorm``.

    Source: Kobayashi et al. (2021), section 3, https://arxiv.org/abs/2109.07152.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
        >>> norms = LayerAttentionBlockNorm(model, model.self_attn).attribute(torch.randn(1, 4, 8))
        >>> norms.shape, bool((norms.argmax(-1) == torch.arange(4)).all())  # each position is mostly itself
        (torch.Size([1, 4, 4]), True)
    """

    heads = ("sum",)
    reads_block: ClassVar[bool] = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | list[Module],
        *,
        residual: bool = True,
        layer_norm: bool = True,
        feed_forward: bool = False,
    ) -> None:
        super().__init__(forward_func, layer)
        check_feed_forward("LayerAttentionBlockNorm", residual, feed_forward)
        self.residual, self.layer_norm, self.feed_forward = residual, layer_norm, feed_forward

    @logged
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        heads: str = "sum",
        kind: KindType = None,
        call: int | None = None,
    ) -> Tensor | list[Any]:
        """The norms of each attention block inside ``layer``.

        Args:
            inputs, target, additional_forward_args, kind, call: as in ``LayerAttentionNorm``.
            heads: ``"sum"``; there is no other form.

        Returns:
            (batch, query, key), non-negative, batch first whatever the model does, zero in padding rows and columns; a
            list for several attention calls or for a list of layers.

        Raises:
            TypeError, ValueError, InexactCaptureError, AssertionError: as in ``LayerAttentionNorm``; ValueError also if
                a block has no residual, or no norm although it is asked for.
        """
        if heads != "sum":
            raise ValueError(
                f"LayerAttentionBlockNorm: heads={heads!r}: residual and norm belong to the sum of all heads, so a "
                "block has no norms per head; heads='sum' is the only form. LayerAttentionNorm has norms per head."
            )
        maps: Tensor | list[Any] = super().attribute(
            inputs, target, additional_forward_args, heads=heads, kind=kind, call=call
        )
        return maps

    def measure(self, record: AttentionRecord, heads: str) -> Tensor:
        """The block's norms, (batch, query, key), in cross-attention with the residual as one more key."""
        return block_norms(type(self).__name__, record, self.residual, self.layer_norm, self.feed_forward)
