"""Do two lists of scores order their entries alike?  Spearman's rank correlation, ties by their average rank.

ρ = Pearson correlation of the ranks;  1: the same order, -1: the reverse, 0: no relation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(scores: Tensor) -> Tensor:
    """Ranks from 1 along the last axis; equal scores share the mean of the ranks they take up.

    Args:
        scores: (..., entry), any real dtype.

    Returns:
        (..., entry), float64.

    Example:
        >>> average_ranks(torch.tensor([0.2, 0.9, 0.2, 0.5]))
        tensor([1.5000, 4.0000, 1.5000, 3.0000], dtype=torch.float64)
    """
    scores = scores.contiguous()
    in_order = scores.sort(dim=-1).values
    # How many are smaller, and how many are smaller or equal: equal scores take the places in between.
    smaller = torch.searchsorted(in_order, scores)
    not_larger = torch.searchsorted(in_order, scores, right=True)
    return (smaller + not_larger + 1).double() / 2


def spearman(a: Tensor, b: Tensor, among: Tensor | None = None) -> Tensor:
    """Spearman's ρ of two score lists along the last axis.

    Args:
        a: (..., entry).
        b: the same shape.
        among: bool, broadcastable to it: which entries are ordered, the others being left out; None for all.

    Returns:
        (...), float64, in [-1, 1]; NaN where a list has fewer than two entries or is constant, for it has no order.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> spearman(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 30.0, 20.0, 40.0]))
        tensor(0.8000, dtype=torch.float64)
    """
    if a.shape != b.shape:
        raise ValueError(f"spearman: a is {tuple(a.shape)} but b is {tuple(b.shape)}; they should be of one shape.")
    if among is None:
        centred = [ranks - ranks.mean(dim=-1, keepdim=True) for ranks in map(average_ranks, (a, b))]
    else:  # what is left out stands behind all others, and counts for nothing
        found = [average_ranks(scores.masked_fill(~among, torch.inf)).masked_fill_(~among, 0) for scores in (a, b)]
        means = [ranks.sum(-1, keepdim=True) / among.sum(-1, keepdim=True) for ranks in found]
        centred = [(ranks - mean).masked_fill_(~among, 0) for ranks, mean in zip(found, means, strict=True)]
    spread = [ranks.square().sum(dim=-1) for ranks in centred]
    return (centred[0] * centred[1]).sum(dim=-1) / (spread[0] * spread[1]).sqrt()
