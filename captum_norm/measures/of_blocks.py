"""What is measured of the block around a call, with its residual, norms and feed-forward part; and why it cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_norm.capture import AttentionBlock, AttentionRecord
from captum_norm.functional import alti, block_quantities
from captum_norm.functional.alti import shares_of_rows
from captum_norm.functional.block import Block
from captum_norm.functional.feed_forward_block import FeedForward, feed_forward_alti, feed_forward_quantities


def lacks_block(record: AttentionRecord) -> str:
    """Why the block around the call is not known; ``""`` where it is."""
    return record.no_block if record.block is None else ""


def lacks_norm(record: AttentionRecord) -> str:
    """Why the block has no norm; ``""`` where it has one."""
    if record.block is None or record.block.normalised:
        return lacks_block(record)
    return "a residual was found around its attention, but no LayerNorm or RMSNorm before it, in it or behind it"


def lacks_feed_forward(record: AttentionRecord) -> str:
    """Why the block has no feed-forward part to take in, or more than one; ``""`` where it has one."""
    block = record.block
    if block is None or block.feed_forward in ("behind", "beside", "later"):
        return lacks_norm(record)
    if block.feed_forward == "several":
        return "several feed-forward parts with norms stand between it and the next attention call"
    return "a residual was found around its attention, but no feed-forward part (FFN) behind it or beside it"


def lacks_part(record: AttentionRecord) -> str:
    """Why what a feed-forward part makes of each vector is not known; ``""`` where it is."""
    block = record.block
    if block is None or block.part is None:
        return record.no_block if block is None else block.no_part
    try:
        _ = block.part.proved
    except ValueError as error:
        return f"its feed-forward part could not be read: {error}"
    return ""


def lacks_part_or_norm(record: AttentionRecord) -> str:
    """Why the part, or a norm behind it, is not known; ``""`` where both are."""
    return lacks_part(record) or lacks_norm(record)


def alti_contributions(record: AttentionRecord, p: int = 1, feed_forward: bool = False) -> Tensor:
    """ALTI's contributions of a record with its block, (batch, query, key), rows with the sum 1.

    With ``feed_forward``, to what stands behind the feed-forward part.
    """
    block = _block_of(record)
    if feed_forward:
        whole, part = _with_part(record, block)
        return shares_of_rows(feed_forward_alti(whole, part, p))
    return alti(
        record.weights, record.values, record.W_O, block.residual, block.norm, output=block.output, p=p,
        gate=record.gate, inner=block.inner, residual_key=block.residual_key,
    )  # fmt: skip


def _block_of(record: AttentionRecord) -> AttentionBlock:
    if record.block is None:
        raise ValueError(f"{record.call.name}: {record.no_block}")
    return record.block


def _with_part(record: AttentionRecord, block: AttentionBlock) -> tuple[Block, FeedForward]:
    """The block and its feed-forward part as the maths wants them."""
    if block.part is None:
        raise ValueError(f"{record.call.name}: {block.no_part}")
    whole = Block(
        "attention_maps", record.weights, record.values, record.W_O, block.residual, block.norm, block.second_norm,
        record.gate, block.inner, block.residual_key, output=block.behind,
    )  # fmt: skip
    return whole, block.part.proved


def part_measures(record: AttentionRecord, names: Sequence[str]) -> dict[str, Tensor]:
    """Those behind the feed-forward part at once, as they share its products."""
    return feed_forward_quantities(*_with_part(record, _block_of(record)), tuple(names))


def block_measures(record: AttentionRecord, names: Sequence[str]) -> dict[str, Tensor]:
    """All at once, as they share vectors and products."""
    block = _block_of(record)
    norms = [norm for norm in (block.norm, block.second_norm) if norm is not None]
    # A measure behind norms that the block lacks is the one behind those it has.
    as_read = {
        "res_ln_norms": "res_norms" if block.norm is None else "res_ln_norms",
        "mixing_res_ln": "mixing_res" if block.norm is None else "mixing_res_ln",
        "globenc_norms": ("res_norms", "res_ln_norms", "globenc_norms")[len(norms)],
    }
    wanted = {name: as_read.get(name, name) for name in names}
    results = block_quantities(
        tuple(dict.fromkeys(wanted.values())), record.weights, record.values, record.W_O, block.residual, *norms,
        gate=record.gate, inner=block.inner, residual_key=block.residual_key,
        attended=_attended(record, block), b_O=record.b_O,
    )  # fmt: skip
    return {name: results[found] for name, found in wanted.items()}


def _attended(record: AttentionRecord, block: AttentionBlock) -> Tensor | None:
    """What attention gave out, if it is what the weights and values make, to the digits of the results."""
    exact = block.attended is not None and record.weights.dtype == record.values.dtype == block.attended.dtype
    return block.attended if exact and float(record.certificate) < _EXACT.get(record.weights.dtype, 0.0) else None


_EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}  # half precision: never
