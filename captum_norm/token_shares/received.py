"""What does each class of tokens receive from the queries of one attention call, and each key by weight?

Of weights, and of norms per head, which are weights times one number for each key, no map is made: classes are columns,

    sum_{j in c} α_ij = Σ_j α_ij 1_c(j)        sum_{j in c} ‖α_ij f(x_j)‖ = Σ_j |α_ij| (1_c(j) ‖f(x_j)‖),

and the sums for all classes and both measures one product with the weights, a block of queries at a time.

Axes: b batch, h head, q query, k key, c class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_norm import measures
from captum_norm.capture import AttentionRecord, blocks_in_float32
from captum_norm.functional.gram import KeyFactors, key_factors
from captum_norm.functional.norms import all_zero
from captum_norm.operations.precision import at_least_float32
from captum_norm.token_classes import shares_of_sums


@dataclass
class Received:
    """What the keys of one call received.

    Attributes:
        by_class: by measure, added up over queries: sums, and sums as shares of the query's, (2, batch, class) float64,
            means over heads.
        by_key: the weight of each key, added up over queries, (batch, head, key); with ``f_norms``.
        f_norms: ‖f(x)‖ of each key, (batch, head, key); None where it depends on the query, or nothing but weights was
            asked for.
    """

    by_class: dict[str, Tensor]
    by_key: Tensor
    f_norms: Tensor | None = None
    kept: KeyFactors = field(default_factory=KeyFactors, repr=False)


def received(record: AttentionRecord, names: Sequence[str], one_hot: Tensor, queries: Tensor) -> Received:
    """What classes and keys receive from the queries that are real.

    Args:
        record: the call.
        names: of measures.
        one_hot: which keys are real and of each class, (batch, key, class) bool.
        queries: which are real, (batch, query) bool.

    Raises:
        ValueError: if the record has not got a measure, or a real query gives nothing to any key.
    """
    batch, head, _, key = record.shape
    by_key = torch.zeros(batch, head, key, dtype=at_least_float32(record.values.dtype), device=one_hot.device)
    empty = torch.zeros(2, batch, one_hot.shape[-1], dtype=torch.float64)
    found, columns = Received({name: empty.clone() for name in names}, by_key), None
    for rows, block in blocks_in_float32(record):
        real = queries[:, rows]
        if real.any():
            seen = _seen(block.weights, rows.stop)
            sums = _of_pairs(block, names, one_hot, seen, found.kept)
            columns = _columns(block, names, one_hot, found) if columns is None else columns
            sums |= _of_columns(block, columns, seen)
            for name, of_classes in sums.items():
                found.by_class[name] += _added_up(of_classes, real, rows.start)
            if found.f_norms is not None:
                weights = block.weights[..., :seen]
                by_key[..., :seen] += (real.to(weights.dtype)[:, None, None] @ weights)[:, :, 0]
    return found


def _seen(weights: Tensor, stop: int) -> int:
    """How many keys to look at: where no weight goes to keys behind the block, no measure is anything there."""
    behind = weights[..., stop:]
    return weights.shape[-1] if behind.numel() and (behind[..., -1].any() or not all_zero(behind)) else stop


def _of_pairs(
    block: AttentionRecord, names: Sequence[str], one_hot: Tensor, seen: int, kept: KeyFactors
) -> dict[str, Tensor]:
    """Sums over the keys of each class, (batch, head or 1, class, query), of measures that are no weight times a number
    of the key."""
    asked = [name for name in names if not _is_by_key(block, name)]
    with key_factors(kept):
        measured = measures.compute_measures(block, asked)
    sums = {}
    for name, scores in measured.items():
        if isinstance(scores, str):
            raise ValueError(f"{block.call.name} has no {name}: {scores}.")
        scores = _sizes(scores if scores.ndim == 4 else scores[:, None])[..., :seen]
        sums[name] = one_hot.mT[:, None, :, :seen].to(scores.dtype) @ scores.mT
    return sums


def _is_by_key(block: AttentionRecord, name: str) -> bool:
    plain = block.gate is None or block.gate.shape[-1] == 1
    return name == "weights" or (name == "head_norms" and plain)


def _columns(block: AttentionRecord, names: Sequence[str], one_hot: Tensor, found: Received) -> dict[str, Tensor]:
    """For each measure that is a weight times a number of the key that number, at the keys of each class, (batch, head,
    class, key); and ‖f(x)‖ into ``found``."""
    classes = one_hot.mT[:, None].expand(-1, block.shape[1], -1, -1)
    numbers = {"weights": torch.ones((), dtype=block.weights.dtype, device=classes.device)}
    if tuple(names) != ("weights",):
        with key_factors(found.kept):
            f_norms = measures.compute_measures(block, ("transformed_norms",))["transformed_norms"]
        if isinstance(f_norms, Tensor):
            found.f_norms, numbers["head_norms"] = f_norms, f_norms[:, :, None]
    return {name: classes * numbers[name] for name in names if _is_by_key(block, name)}


def _of_columns(block: AttentionRecord, columns: dict[str, Tensor], seen: int) -> dict[str, Tensor]:
    """Sums over the keys of each class, (batch, head, class, query), by one product with the weights."""
    if not columns:
        return {}
    together = torch.cat(list(columns.values()), 2)[..., :seen]
    # With classes in front: torch's product with a few columns behind takes longer on a CPU.
    sums = together @ _sizes(block.weights[..., :seen]).to(together.dtype).mT
    found = dict(zip(columns, sums.chunk(len(columns), 2), strict=True))
    if block.gate is not None and "head_norms" in found:
        found["head_norms"] = found["head_norms"] * block.gate.abs().mT
    return found


def _added_up(sums: Tensor, real: Tensor, first: int) -> Tensor:
    """Sums (batch, head, class, query) and what they are of each query's, over real queries, (2, batch, class)."""
    queries = real[:, None]
    sums = sums if real.all() else sums.masked_fill(~queries[:, :, None], 0)
    shares = shares_of_sums(sums.mT, queries, first)
    return torch.stack([sums.sum(-1), shares.sum(-2)]).double().mean(2).cpu()


def _sizes(scores: Tensor) -> Tensor:
    return scores.abs() if scores.numel() and bool(scores.amin() < 0) else scores
