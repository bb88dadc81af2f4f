"""ALTI: how much nearer each input brings each output of a block, composed along the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from captum_norm.attr._aggregate import AggregateType
from captum_norm.attr._base import MapMethod
from captum_norm.capture import AttentionRecord
from captum_norm.measures import alti_contributions, lacks_block, lacks_part


class ALTI(MapMethod):
    """A row of the product over layers of c_ij = max(0, ||y_i|| - ||y_i - t_ij||) / row sum.

    t_ij is what j adds to the output y_i of an attention block, residual and norms included (as in
    ``AttentionBlockNorm``), and the norm is L1.  In an encoder-decoder this is ALTI+: cross-attention has the residual
    as one more input and is composed with the encoder, so that the scores of ``(input_ids, decoder_input_ids)``
    together sum to 1.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        p: 1 for the norm L1 (the paper's), 2 for L2, which costs about a fifth.
        feed_forward: ask it of what stands behind the feed-forward part, whose shares are those of
            ``AttentionBlockNorm(feed_forward=True)``.
        aggregate: ``"rollout"`` (the paper's: the plain product, the residual is in the maps), ``"mean"``, or an
            integer for one block.
        max_memory: as in ``AttentionNorm``.

    A row to which no input brings the output nearer is zero, with a warning.  Divisors are the model's own, eps
    included; the authors' code leaves eps out (``functional.alti(..., as_published=True)`` does).

    Raises:
        ValueError: if ``p`` is neither 1 nor 2, or there is no such aggregate; in ``attribute`` also if a block has no
            residual, or with ``feed_forward`` no such part that can be read, naming the attention call and what was
            found.

    Source: Ferrando et al. (2022), section 3, https://arxiv.org/abs/2203.04212; ALTI+: Ferrando et al. (2022),
    section 3, https://arxiv.org/abs/2205.11631.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> scores = ALTI(model).attribute(torch.randn(1, 3, 8)).sum(-1)
        >>> round(float(scores.sum()), 4), int(scores.argmax())
        (1.0, 0)
    """

    reads_block: ClassVar[bool] = True
    larger_blocks: ClassVar[int] = 4  # each goes through the vectors of all keys

    def __init__(
        self, forward_func: Callable[..., Any], *, p: int = 1, feed_forward: bool = False,
        aggregate: AggregateType = "rollout", max_memory: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(forward_func, aggregate=aggregate, max_memory=max_memory)
        if p not in (1, 2):
            raise ValueError(f"ALTI: p should be 1 or 2, the norm that distances are measured by, got {p!r}.")
        self.p, self.feed_forward = p, feed_forward

    @classmethod
    def get_name(cls) -> str:
        """ "ALTI": the name is an acronym."""
        return "ALTI"

    def measure(self, record: AttentionRecord) -> Tensor:
        """c, (batch, query, key), in cross-attention with the residual as one more key; rows with the sum 1."""
        block = record.block
        # Where another attention call comes before the feed-forward part, it is that call's.
        behind = self.feed_forward and not (block is not None and block.feed_forward == "later")
        lacking = lacks_part(record) if behind else lacks_block(record)
        if lacking:
            raise ValueError(
                f"ALTI: the block around attention call {record.call.name!r} ({record.call.kind}) cannot be taken in: "
                f"{lacking}."
            )
        return alti_contributions(record, self.p, behind)
