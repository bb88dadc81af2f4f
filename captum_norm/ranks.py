"""Do two lists of scores order their entries alike?  Spearman's rank correlation, ties by their average rank.

ρ = Pearson correlation of the ranks;  1: the same order, -1: the reverse, 0: no relation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(scores: Tensor, among: Tensor | None = None) -> Tensor:
    """Ranks from 1 along the last axis; equal scores share the mean of the ranks they take up.

    Args:
        scores: (..., entry), any real dtype.
        among: bool, broadcastable to it or the other way round: which entries are ordered; None for all.

    Returns:
        (..., entry), float64; 0 for entries that are left out.

    Example:
        >>> average_ranks(torch.tensor([0.2, 0.9, 0.2, 0.5]))
        tensor([1.5000, 4.0000, 1.5000, 3.0000], dtype=torch.float64)
        >>> average_ranks(torch.tensor([0.2, 0.9, 0.2, 0.5]), torch.tensor([True, True, False, True]))
        tensor([1., 3., 0., 2.], dtype=torch.float64)
    """
    in_order, order = scores.sort(dim=-1)
    among = torch.ones_like(scores, dtype=torch.bool) if among is None else among
    order, among = torch.broadcast_tensors(order, among)  # type: ignore[no-untyped-call]
    counted = among.gather(-1, order).double()
    upto = counted.cumsum(-1)
    ranks = upto
    if bool((in_order[..., 1:] == in_order[..., :-1]).any()):
        first = torch.searchsorted(in_order, in_order).expand_as(order)
        last = torch.searchsorted(in_order, in_order, right=True).expand_as(order) - 1
        ranks = (upto.gather(-1, last) + (upto - counted).gather(-1, first) + 1) / 2
    return torch.zeros_like(ranks).scatter_(-1, order, ranks * counted)


def spearman(a: Tensor, b: Tensor, among: Tensor | None = None) -> Tensor:
    """Spearman's ρ of two score lists along the last axis.

    Args:
        a: (..., entry).
        b: the same shape.
        among: bool, broadcastable to it or the other way round: which entries are ordered, the others being left out;
            None for all.

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
    among = torch.ones_like(a, dtype=torch.bool) if among is None else among
    # Ranks add up to what as many entries always have, ties or none: the mean is half of one more than there are.
    mean = (among.sum(-1, keepdim=True) + 1).double() / 2
    centred = [(average_ranks(scores, among) - mean).masked_fill_(~among, 0) for scores in (a, b)]
    spread = [ranks.square().sum(dim=-1) for ranks in centred]
    return (centred[0] * centred[1]).sum(dim=-1) / (spread[0] * spread[1]).sqrt()
