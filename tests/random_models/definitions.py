"""What each method must answer, by its definition, from what is true of the model.

An answer is one tensor (batch, position) for each input.  Where a method is not defined, there is none, and only a
refusal is right:

- ``AttentionNorm``, ``AttentionWeights``: the mean over the calls of which the output is made of the row that it reads;
  a position counts as itself behind whatever mixes positions, as long as rows stay rows.  An encoder-decoder's source
  is read by cross-attention.
- ``AttentionBlockNorm``: the same mean of what a key makes of a query through attention, residual and norms; not where
  several calls are one block's.
- ``AttentionRollout``: a sum of several things of equal standing (attention parts side by side, skips) gives each the
  same share, an attention part that of its row sum.
- ``ALTI``: along one chain of blocks.
- ``DecompX``: wherever the model is linear with weights, divisors, gates and act(z)/z held fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.random_models.truth import Call, Truth

Answer = tuple[Tensor, ...]
METHODS = ("AttentionNorm", "AttentionWeights", "AttentionBlockNorm", "AttentionRollout", "ALTI", "DecompX")


def definitions(truth: Truth) -> dict[str, Answer | None]:
    """The right answer of each method; None where only a refusal is right."""
    return {
        "AttentionNorm": mean_of_calls(truth, [call.summed_norms() for call in truth.calls]),
        "AttentionWeights": mean_of_calls(truth, [call.weights.mean(1) for call in truth.calls]),
        "AttentionBlockNorm": mean_of_calls(truth, [call.block_norms for call in truth.calls]),
        "AttentionRollout": _by_input(truth, truth.reach),
        "ALTI": _by_input(truth, truth.alti),
        "DecompX": _by_input(truth, truth.shares),
    }


def mean_of_calls(truth: Truth, maps: Sequence[Tensor | None]) -> Answer | None:
    """The mean over calls of the row that is read, at the input positions of the keys."""
    if truth.rows is None:
        return None
    used = [(call, scores) for number, (call, scores) in enumerate(zip(truth.calls, maps, strict=True))
            if number in truth.used]  # fmt: skip
    last, found = len(truth.lengths) - 1, []
    for source in range(len(truth.lengths)):
        crossing = [one for one in used if one[0].key_source == source != one[0].query_source]
        own = [one for one in used if one[0].key_source == one[0].query_source == source == last]
        rows = [_row(truth, call, scores) for call, scores in crossing or own]
        if not rows or any(row is None for row in rows):
            return None
        found.append(sum(rows) / len(rows) * _real(truth, source))
    return tuple(found)


def _row(truth: Truth, call: Call, scores: Tensor | None) -> Tensor | None:
    """(batch, position): the row that is read of one map."""
    if scores is None or call.query_index is None or call.key_index is None:
        return None
    assert truth.rows is not None
    batch, length = len(scores), truth.lengths[call.key_source]
    row = torch.zeros(batch, length, dtype=torch.float64)
    for example in range(batch):
        for q, position in enumerate(call.query_index.tolist()):
            for k, key in enumerate(call.key_index.tolist()):
                if key >= 0:
                    row[example, key] += truth.rows[example, truth.prefix + position] * scores[example, q, k]
    return row


def _by_input(truth: Truth, row: Tensor | None) -> Answer | None:
    """(batch, token) cut into the inputs."""
    if row is None:
        return None
    parts = row.split(list(truth.lengths), 1)
    return tuple(part * _real(truth, source) for source, part in enumerate(parts))


def _real(truth: Truth, source: int) -> Tensor:
    return truth.real.double() if source == len(truth.lengths) - 1 else torch.ones(1, dtype=torch.float64)
