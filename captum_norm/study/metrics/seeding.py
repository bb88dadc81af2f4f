"""Random numbers that belong to a text and not to the batch that it is in.

A text's generator starts from its token ids and a seed.  So its draws are the same alone and in any padded batch, and
every method is measured under the same noise.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Generator, Tensor

from captum_norm.study.metrics.scored_texts import Scored


def generators(scored: Scored, seed: int) -> list[Generator]:
    """One generator for each example, on the CPU.

    Example:
        >>> ids, ones = torch.tensor([[7, 8], [7, 8]]), torch.ones(2, 2)
        >>> first, second = generators(Scored({"input_ids": ids}, ones, torch.zeros(2).long(), ones.bool()), seed=0)
        >>> torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))
        True
    """
    content = next(iter(scored.inputs.values()))
    return [_generator(row, removable, seed) for row, removable in zip(content, scored.removable, strict=True)]


def _generator(row: Tensor, removable: Tensor, seed: int) -> Generator:
    row = row.detach().cpu()
    kept = row[removable] if row.shape[:1] == removable.shape else row
    digest = hashlib.blake2b(f"{seed}:{kept.tolist()}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
