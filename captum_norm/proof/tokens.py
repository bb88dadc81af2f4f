"""Does the output change with tokens that it is said not to rest on?  It must not, to the last digits.

What it is said to rest on: the rows that it was read from, and whatever these reach through weights that are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.capture import AttentionRecord, Recorded
from captum_norm.operations.precision import tolerance
from captum_norm.proof.erasing import SIGNAL, Finding

_NAME = "tokens that it does not rest on"


def reached(records: Sequence[AttentionRecord], length: int) -> Tensor | str:
    """(position, position) bool of the first example, whether row i may rest on token j; or why that is not known."""
    known = torch.eye(length, dtype=torch.bool)
    for record in records:
        where = f"{record.call.name or 'attention'!r}"
        if record.call.kind == "cross" or record.queries is None or record.keys is None:
            return f"{where} leads from or to other positions than those of one text"
        if record.mixers:
            return f"before {where} positions are mixed by {record.mixers[0]}"
        seen = torch.zeros(length, length, dtype=torch.bool)
        queries, keys = record.queries.index, record.keys.index
        used = (record.weights[0] != 0).any(0).cpu()[queries >= 0][:, keys >= 0]
        seen[queries[queries >= 0][:, None], keys[keys >= 0][None]] = used
        known = known | ((seen.float() @ known.float()) > 0)
    return known


@dataclass(frozen=True)
class Claim:
    """What the first example's output is said to rest on.

    Attributes:
        row: which row of the output is meant; None where it has none, or all of it is.
        rests: (position,) bool, the tokens.
    """

    row: int | None
    rests: Tensor

    def of(self, output: Tensor) -> Tensor:
        """The part of the first example's output that is meant."""
        return output[0] if self.row is None else output[0, self.row]


def claimed(recorded: Recorded, output: Tensor, length: int) -> Claim | str:
    """What the output is said to rest on, while the recording goes on; or why that is not known."""
    known, answer = reached(recorded, length), recorded.answer(output, lambda tensor: tensor)
    if isinstance(known, str):
        return known
    if answer.mixers or answer.how not in ("rows", "every position"):
        return "which rows the output was read from is not known"
    if answer.how == "rows" and answer.rows is not None:
        rows = answer.rows.positions[0][answer.rows.weights[0] > 0]
        return Claim(None, known[rows[rows >= 0]].any(0))
    if output.ndim < 3 or output.shape[1] != length:
        return "which of its axes counts the rows is not known"
    row = int((known.sum(1) - length / 2).abs().argmin())  # some tokens matter, and some do not
    return Claim(row, known[row])


def change_tokens(
    ids: Tensor, explain: Callable[[Tensor], Tensor], claim: Claim | str, output: Tensor, free: Tensor,
    generator: torch.Generator,
) -> Finding:  # fmt: skip
    """Give the first example other tokens where its output is said not to rest on them.

    Args:
        ids: (batch, position).
        explain: the model's output as a function of ids.
        claim: what it is said to rest on.
        output: what the model gave out.
        free: (position,) bool, which tokens may be changed without changing masks.
        generator: for the tokens drawn.

    Returns:
        Proved if nothing changed, and the output changes with the tokens that it rests on.
    """
    if isinstance(claim, str):
        return Finding(_NAME, "open", note=claim)
    others, before = ~claim.rests & free, claim.of(output)
    if not bool(others.any()):
        return Finding(_NAME, "open", note="it rests on every token")

    def moved(where: Tensor) -> float:
        changed, last = ids.clone(), int(ids.max())
        drawn = torch.randint(1, last + 1, (len(where),), generator=generator).to(ids)
        drawn = torch.where(drawn == ids[0], drawn % last + 1, drawn)
        changed[0] = torch.where(where.to(ids.device), drawn, ids[0])
        return float((claim.of(explain(changed)) - before).abs().max() / before.abs().max().clamp_min(1e-30))

    error, signal = moved(others), moved(claim.rests & free)
    note = f"{int(others.sum())} of {len(others)} tokens changed"
    if error > tolerance("record", output.dtype):
        return Finding(_NAME, "wrong", error, note)
    if signal < SIGNAL:
        return Finding(_NAME, "open", error, "no token matters")
    return Finding(_NAME, "proved", error, note)
