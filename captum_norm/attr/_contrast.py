"""Why this output and not that one?  Targets that are a pair, and what they select."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_norm.attr._captum import check_target, selected
from captum_norm.forward.outputs import output_tensor


def selected_contrast(output: Any, target: Any, caller: str) -> Tensor:
    """What ``target`` selects of the output, (batch,), as Captum does, or for a pair the difference of two outputs.

    Args:
        output: what the model returned.
        target: as in Captum; or, of an output (batch, class), a pair (class, foil) or one for each example, and of an
            output (batch, row, class), (row, class, foil).
        caller: who asks, for errors.

    Raises:
        AssertionError, IndexError, TypeError, ValueError: as ``selected``.

    Example:
        >>> selected_contrast(torch.tensor([[1.0, 3.0, 7.0]]), (2, 0), "f")
        tensor([6.])
    """
    found = output_tensor(output)
    pair = None if found is None else _pair(target, found.ndim)
    if found is not None and target is not None:
        with torch._C.DisableTorchFunction():  # a mode that holds a model fixed would find fault with itself
            _check(found.detach(), target, pair, caller)
    if pair is None:
        return selected(output, target, caller)
    return selected(output, pair[0], caller) - selected(output, pair[1], caller)


def _check(found: Tensor, target: Any, pair: tuple[Any, Any] | None, caller: str) -> None:
    try:
        for one in pair or (target,):
            check_target(found, one)
    except IndexError as error:
        if pair is None:
            raise
        shape = tuple(found.shape)
        raise IndexError(
            f"{caller}: target={target!r}, with a class and its foil last, does not fit the output of the model, which "
            f"has the shape {shape}: its classes are 0 to {shape[-1] - 1}."
        ) from error


def _pair(target: Any, axes: int) -> tuple[Any, Any] | None:
    """Target and foil as Captum takes each, or None where there is no foil."""
    if _is_index(target, axes):
        return (target[0], target[1]) if axes == 2 else ((*target[:-2], target[-2]), (*target[:-2], target[-1]))
    if isinstance(target, list) and target and all(_is_index(one, axes) for one in target):
        pairs = [_pair(one, axes) for one in target]
        return [pair[0] for pair in pairs if pair], [pair[1] for pair in pairs if pair]
    return None


def _is_index(target: Any, axes: int) -> bool:
    """Whether a target is an index of one number of an output, with one more entry, the foil."""
    return isinstance(target, tuple) and len(target) == axes and axes > 1 and all(type(n) is int for n in target)


def token_pairs(title: str, target: Any, batch: int) -> list[tuple[int, int | None]]:
    """A token for each example, and its foil if there is one.

    Args:
        title: the method's name.
        target: a token, a pair (token, foil), or one of these for each example, as a list or tensor.
        batch: how many examples.

    Raises:
        TypeError: for anything else.
    """
    target = target.tolist() if isinstance(target, Tensor) else target
    each: Sequence[Any] = target if isinstance(target, list) else [target]
    each = list(each) * batch if len(each) == 1 else each
    pairs = [one if isinstance(one, tuple | list) else (one, None) for one in each]
    pairs = [(pair[0], None) if len(pair) == 1 else tuple(pair) for pair in pairs]
    if len(pairs) != batch or any(len(pair) != 2 or not _are_tokens(pair) for pair in pairs):
        raise TypeError(
            f"{title}: target should be a token's id or a pair (token, foil), for all examples or for each of {batch} "
            f"in a list, got {target!r}."
        )
    return [(int(token), None if foil is None else int(foil)) for token, foil in pairs]


def _are_tokens(pair: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and not isinstance(n, bool) for n in (pair[0], 0 if pair[1] is None else pair[1]))


def logits_of(title: str, output: Any, rows: Tensor, pairs: Sequence[tuple[int, int | None]], length: int) -> Tensor:
    """The logit of each example's token at its row, less that of its foil, (batch,).

    Args:
        title: the method's name.
        output: what the model returned: logits (batch, token) or (batch, row, token).
        rows: (batch,).
        pairs: token and foil of each example.
        length: how many positions the input has.

    Raises:
        TypeError: if there are no logits.
        ValueError: for an output of another shape, or a token that is not in the vocabulary.
    """
    logits = output_tensor(output)
    if logits is None or logits.ndim not in (2, 3) or (logits.ndim == 3 and logits.shape[1] not in (1, length)):
        shape = "" if logits is None else f" {tuple(logits.shape)}"
        raise ValueError(
            f"{title} explains logits, (batch, token) or (batch, position, token), but forward_func returned "
            f"{type(output).__name__}{shape}."
        )
    size = logits.shape[-1]
    wrong = [n for pair in pairs for n in pair if n is not None and not 0 <= n < size]
    if wrong:
        raise ValueError(
            f"{title}: token {wrong[0]} is not in the vocabulary of {size}: a token (or foil) is an id from 0 to "
            f"{size - 1}, as tokenizer.convert_tokens_to_ids gives it."
        )
    example = torch.arange(len(logits), device=logits.device)
    if logits.ndim == 3:
        logits = logits[example, rows.to(logits.device) if logits.shape[1] == length else 0 * example]
    tokens, foils = (torch.tensor([pair[n] or 0 for pair in pairs], device=logits.device) for n in (0, 1))
    found = logits[example, tokens]
    if all(foil is None for _, foil in pairs):
        return found
    has_foil = torch.tensor([float(foil is not None) for _, foil in pairs], device=logits.device, dtype=logits.dtype)
    return found - logits[example, foils] * has_foil
