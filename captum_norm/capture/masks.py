"""Which keys a query may attend to, read off what attention itself was given, whatever name the mask had.

It may where the mask of ``scaled_dot_product_attention`` lets it, or where the softmax was not given a number that
stands for minus infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor as is_batched

from captum_norm.capture.columns import Columns
from captum_norm.operations.entries import all_true, without_repeats

HIDDEN = -5000.0
"""Scores below stand for minus infinity: models write -1e4, -1e9, the least number of their format, or -inf."""

_SHALLOW = -30.0
"""A mask of two numbers, 0 and one below this, is meant as one, too (-100 is common)."""


# So many numbers of masks, and sums of them, may stand in one softmax, each give or take what the scores differ by.
_NUMBERS = 4
_WIDTH = 1000.0
_QUERIES = 32


class UnknownMaskError(Exception):
    """Which tokens a mask has left out cannot be told.  The message says of a module, whose name goes in front, why."""


def allowed_by_scores(scores: Tensor, shallow: Tensor | None = None) -> Tensor | None:
    """Which entries of a softmax's input may be attended to; None where all may.

    Args:
        scores: what the softmax was given.
        shallow: what a shallow mask that was added to them allows.

    Raises:
        UnknownMaskError: if there are as many different scores below ``HIDDEN`` as no masks write, and none of them is
            minus infinity.
    """
    if is_batched(scores):  # under vmap, where a product of weights is refused
        return None
    allowed = _above(scores, HIDDEN)
    if not bool(all_true(allowed)) and not _are_of_masks(scores, allowed):
        allowed = _above(scores, -torch.inf)
        if bool(all_true(allowed)):
            raise UnknownMaskError(
                f"has attention scores below {HIDDEN:.0f}, which may be small or stand for minus infinity: which "
                "tokens a mask has left out is not known. Let the mask write minus infinity (masked_fill(mask, "
                "-torch.inf))."
            )
    if shallow is not None:
        allowed = allowed & shallow
    return None if bool(all_true(without_repeats(allowed))) else allowed


def _above(scores: Tensor, number: float) -> Tensor:
    """``scores > number``; one for all heads, repeated, where it is the same in all, as it is of most masks."""
    if scores.ndim < 4 or not scores.numel():
        return scores > number
    in_all, in_any = scores.amin(1, keepdim=True) > number, scores.amax(1, keepdim=True) > number
    return in_all.expand(scores.shape) if torch.equal(in_all, in_any) else scores > number


def _are_of_masks(scores: Tensor, allowed: Tensor) -> bool:
    """Whether the scores that are not allowed lie around a few numbers, as those of masks do; of some queries."""
    step = max(1, scores.shape[-2] // _QUERIES)
    scores, allowed = scores[..., ::step, :], allowed[..., ::step, :]
    left = scores.masked_fill(allowed | (scores == -torch.inf), 0).float()
    for _ in range(_NUMBERS):
        least = float(left.amin())
        if least == 0:
            return True
        left = left.masked_fill(left <= least + _WIDTH, 0)
    return float(left.amin()) == 0


def allowed_by_mask(mask: Tensor | None, is_causal: bool, queries: int, keys: int) -> Tensor | None:
    """The same of a mask given to ``scaled_dot_product_attention``; None where nothing is hidden but the future."""
    if mask is None:
        return None
    allowed = mask
    if mask.dtype is not torch.bool:
        shallow = two_numbers(mask)
        allowed = mask > HIDDEN if shallow is None else shallow
    if bool(all_true(allowed)):
        return None
    if is_causal:
        allowed = allowed & torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril()
    return allowed.expand(*allowed.shape[:-2], queries, keys) if allowed.ndim > 1 else allowed.expand(queries, keys)


def two_numbers(mask: Tensor) -> Tensor | None:
    """A mask that holds 0 and one number well below it, as what it allows; None if it is another."""
    if not mask.is_floating_point() or not mask.numel():
        return None
    least = mask.min()
    if not HIDDEN <= float(least) <= _SHALLOW or float(mask.max()) != 0.0:
        return None
    allowed = mask == 0
    return allowed if bool((allowed | (mask == least)).all()) else None


def allowed_at_product(columns: Columns | None, weights: Tensor, unchosen: Tensor | None) -> Tensor | None:
    """What a softmax allowed, where its weights meet the values; None where all may be attended to, or nobody knows.

    Args:
        columns: of the weights.
        weights: as they meet the values.
        unchosen: what they would be if none had been left out for being small (:class:`MaskOrigins`), where some were.
    """
    if columns is None:
        return None
    allowed = columns.allowed
    if allowed is not None:
        try:
            for step in columns.steps:
                allowed = step.apply(allowed)
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
            return None
        if allowed.shape != weights.shape:
            return None
    if columns.cut:
        weights = weights if unchosen is None or unchosen.shape != weights.shape else unchosen
        allowed = weights != 0 if allowed is None else allowed & (weights != 0)
    return allowed

