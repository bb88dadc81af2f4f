"""What can be asked of one attention call, by the papers' names: one table for maps and attribution classes.

Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102: ``weights``, ``transformed_norms``, ``head_norms``,
``summed_norms``.  Kobayashi et al. (2021), https://arxiv.org/abs/2109.07152: ``res_norms``, ``res_ln_norms`` and the
mixing ratios.  Modarressi et al. (2022), https://arxiv.org/abs/2205.03286: ``globenc_norms``.  Ferrando et al. (2022),
https://arxiv.org/abs/2203.04212: ``alti``.

Residual and norms are taken where the model has them.  In post-LN blocks the norm stands behind the residual; in pre-LN
blocks it stands before attention, is in f(x) already, and nothing stands behind: there ``res_ln_norms`` are
``res_norms``, and ``globenc_norms`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.capture import AttentionBlock, AttentionRecord
from captum_norm.functional import alti, head_norms, summed_norms, transformed_norms
from captum_norm.functional.block import block_quantities


@dataclass(frozen=True)
class Quantity:
    """One row of the table.

    Attributes:
        axes: the axes of the result, for example ``"batch head query key"``.  Quantities of the block have one more key
            in cross-attention, the residual.
        compute: from a record (float32 at least, and holding only the chosen queries and heads) to the result; None for
            the quantities that ``block_quantities`` computes together.
        lacks: why a record cannot have it, in words; ``""`` where it can.
        of_block: it needs the block around the call.
    """

    axes: str
    compute: Callable[[AttentionRecord], Tensor] | None = None
    lacks: Callable[[AttentionRecord], str] = lambda record: ""
    of_block: bool = False


def _lacks_transformed_norms(record: AttentionRecord) -> str:
    if record.gate is None or record.gate.shape[-1] == 1:
        return ""
    return (
        "an element-wise gate stands between the mixed values and W_O, so f depends on the query and ‖f(x)‖ is no "
        "number per key. Ask for head_norms or summed_norms, which take the gate in"
    )


def lacks_block(record: AttentionRecord) -> str:
    """Why the block around the call is not known; ``""`` where it is."""
    return record.no_block if record.block is None else ""


def lacks_norm(record: AttentionRecord) -> str:
    """Why the block has no norm; ``""`` where it has one."""
    if record.block is None or record.block.normalised:
        return lacks_block(record)
    return "a residual was found around its attention, but no LayerNorm or RMSNorm before it, in it or behind it"


def lacks_feed_forward(record: AttentionRecord) -> str:
    """Why the block has no (one) feed-forward part to take in; ``""`` where it has."""
    block = record.block
    if block is None or block.feed_forward in ("behind", "beside", "later"):
        return lacks_norm(record)
    if block.feed_forward == "several":
        return "several feed-forward parts with norms stand between it and the next attention call"
    return "a residual was found around its attention, but no feed-forward part (FFN) behind it or beside it"


QUANTITIES: dict[str, Quantity] = {
    "weights": Quantity("batch head query key", lambda r: r.weights),
    "transformed_norms": Quantity(
        "batch head key", lambda r: transformed_norms(r.values, r.W_O), _lacks_transformed_norms
    ),
    "head_norms": Quantity("batch head query key", lambda r: head_norms(r.weights, r.values, r.W_O, gate=r.gate)),
    "summed_norms": Quantity("batch query key", lambda r: summed_norms(r.weights, r.values, r.W_O, gate=r.gate)),
    "res_norms": Quantity("batch query key", None, lacks_block, of_block=True),
    "res_ln_norms": Quantity("batch query key", None, lacks_norm, of_block=True),
    "globenc_norms": Quantity("batch query key", None, lacks_feed_forward, of_block=True),
    "mixing_weights": Quantity("batch query", None, lacks_block, of_block=True),
    "mixing_res_weights": Quantity("batch query", None, lacks_block, of_block=True),
    "mixing_attn": Quantity("batch query", None, lacks_block, of_block=True),
    "mixing_res": Quantity("batch query", None, lacks_block, of_block=True),
    "mixing_res_ln": Quantity("batch query", None, lacks_norm, of_block=True),
    "alti": Quantity("batch query key", lambda r: alti_contributions(r), lacks_block, of_block=True),
}
"""A new quantity is one row here."""


def need_blocks(names: Sequence[str]) -> bool:
    """Whether any of these quantities needs ``recording(blocks=True)``."""
    return any(QUANTITIES[name].of_block for name in names)


def compute_quantities(record: AttentionRecord, names: Sequence[str]) -> dict[str, Tensor | str]:
    """Quantities of a record by name, or the reason why it cannot have one.

    Example:
        >>> import torch
        >>> from captum_norm.capture import recording
        >>> layer = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> with torch.no_grad(), recording(blocks=True) as records:
        ...     _ = layer(torch.randn(1, 3, 8))
        >>> found = compute_quantities(records[0], ["res_norms", "mixing_res_ln"])
        >>> {name: tuple(result.shape) for name, result in found.items()}
        {'res_norms': (1, 3, 3), 'mixing_res_ln': (1, 3)}
    """
    found: dict[str, Tensor | str] = {name: QUANTITIES[name].lacks(record) for name in names}
    together = [name for name in names if not found[name] and QUANTITIES[name].compute is None]
    if together and record.block is not None:
        found |= _block_quantities(record, record.block, together)
    for name in names:
        compute = QUANTITIES[name].compute
        if not isinstance(found[name], Tensor) and not found[name] and compute is not None:
            found[name] = compute(record)
    return found


def _block_quantities(record: AttentionRecord, block: AttentionBlock, names: Sequence[str]) -> dict[str, Tensor]:
    """All at once, as they share vectors and products."""
    norms = [norm for norm in (block.norm, block.second_norm) if norm is not None]
    behind_residual = int(block.norm is not None)
    # A quantity behind norms that the block lacks is the one behind those it has.
    as_found = {
        "res_ln_norms": ("res_norms", "res_ln_norms")[behind_residual],
        "mixing_res_ln": ("mixing_res", "mixing_res_ln")[behind_residual],
        "globenc_norms": ("res_norms", "res_ln_norms", "globenc_norms")[len(norms)],
    }
    wanted = {name: as_found.get(name, name) for name in names}
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


def alti_contributions(record: AttentionRecord, p: int = 1) -> Tensor:
    """ALTI's contributions of a record with its block, (batch, query, key), rows with the sum 1."""
    block = record.block
    if block is None:
        raise ValueError(f"{record.call.name}: {record.no_block}")
    return alti(
        record.weights, record.values, record.W_O, block.residual, block.norm, output=block.output, p=p,
        gate=record.gate, inner=block.inner, residual_key=block.residual_key,
    )  # fmt: skip
