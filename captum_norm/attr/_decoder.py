"""What the methods for language models share: one causal stream of tokens, and what is told of its blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_norm.attr._captum import as_tuple
from captum_norm.capture import AttentionBlock, AttentionRecord


def block_of_decoder(title: str, record: AttentionRecord) -> AttentionBlock:
    """The block around an attention call of a decoder.

    Raises:
        ValueError: if the call looks ahead or at another sequence, or its block could not be read.
    """
    call = record.call
    if call.kind == "cross" or (call.kind != "causal" and record.shape[-1] > 1):
        looks = "at another sequence" if call.kind == "cross" else "ahead"
        raise ValueError(
            f"{title} explains decoders, whose tokens see none behind them, but attention call {call.name!r} "
            f"({call.kind}) looks {looks}. ALTI and AttentionNorm take encoders and encoder-decoders, DecompX all."
        )
    if record.block is None:
        raise ValueError(
            f"{title}: the block around attention call {call.name!r} ({call.kind}) cannot be taken in: "
            f"{record.no_block}."
        )
    return record.block


def at_queries(by_position: Tensor, record: AttentionRecord) -> Tensor:
    """Numbers of input positions (batch, position) at a record's queries, (batch, query); 0 where one is no input.

    Raises:
        ValueError: if the queries are not known to be input positions.
    """
    if record.queries is None:
        raise ValueError(
            f"the queries of attention call {record.call.name!r} ({record.call.kind}) are not known to be input "
            "positions, so that no span of them can be told."
        )
    index = record.queries.index.to(by_position.device)
    return by_position[:, index.clamp_min(0)].masked_fill(index < 0, 0)


def one_input(title: str, inputs: Any) -> Tensor:
    """The one sequence that a decoder reads, (batch, position, ...).

    Raises:
        TypeError: for what is neither a tensor nor a tuple of them.
        ValueError: for several.
    """
    given = as_tuple(inputs)
    if len(given) > 1 or given[0].ndim < 2:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(f"{title} explains decoders, which read one sequence, (batch, position, ...); got {shapes}.")
    return given[0]
