"""Whose row is explained: from what ``position`` asks to one row of each example.

Axes: b batch, s sequence.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

Position = SupportsIndex | Sequence[int] | Tensor | Literal["mean"] | None


def real_tokens(mask: Tensor | None, batch: int, length: int) -> Tensor:
    """Which tokens are no padding.

    Args:
        mask: attention mask, 1 at real tokens, (batch, sequence), or (n, sequence) for n examples that were repeated
            in place; None where all are real.
        batch: number of examples.
        length: number of tokens.

    Returns:
        (batch, length) bool.

    Raises:
        ValueError: if the mask has other sizes, or an example has no real token.

    Example:
        >>> real_tokens(torch.tensor([[0, 1, 1]]), batch=1, length=3)
        tensor([[False,  True,  True]])
    """
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool)
    if mask.ndim != 2 or mask.shape[1] != length or batch % len(mask):
        raise ValueError(
            f"the attention mask should be (batch, sequence) = ({batch}, {length}), got shape {tuple(mask.shape)}."
        )
    real = (mask > 0).repeat_interleave(batch // len(mask), dim=0)
    empty = (~real.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the attention mask of example {empty[0]} marks no token as real: nothing to explain.")
    return real


def resolve_position(position: Position, mask: Tensor | None, batch: int, length: int, causal: bool) -> Tensor:
    """The row that ``position`` means in each example.

    Args:
        position: None, an index (negative from the end), or one index per example.  Fewer than the batch, if the batch
            is a multiple of them, are repeated in place, as NoiseTunnel and sensitivity_max repeat the examples.
        mask: attention mask, 1 at real tokens, (batch, sequence); None where all are real.
        batch: number of examples.
        length: number of rows to choose from.
        causal: whether None means the last real token, instead of the first.

    Returns:
        (batch,) long, 0 to length - 1.

    Raises:
        TypeError: if ``position`` is of another kind; bool is.
        ValueError: if it has another length, is out of range, or is padding.

    Example:
        >>> resolve_position(None, torch.tensor([[1, 1, 1], [1, 1, 0]]), batch=2, length=3, causal=True)
        tensor([2, 1])
        >>> resolve_position(-1, None, batch=2, length=3, causal=True)
        tensor([2, 2])
    """
    if position is None and mask is None:
        return torch.full((batch,), length - 1 if causal else 0)
    if position is None:
        real = real_tokens(mask, batch, length)
        return length - 1 - real.flip(1).int().argmax(1) if causal else real.int().argmax(1)
    return resolve_rows(as_indices(position).view(-1, 1), mask, batch, length)[:, 0]


def resolve_rows(positions: Tensor, mask: Tensor | None, batch: int, length: int) -> Tensor:
    """The rows that several positions mean in each example.

    Args:
        positions: (n, row) long, of n examples that were repeated in place; arguments else as for
            :func:`resolve_position`.

    Returns:
        (batch, row) long, 0 to length - 1.

    Raises:
        ValueError: if they are of another number of examples, or one is out of range or padding.

    Example:
        >>> resolve_rows(torch.tensor([[0, -1]]), None, batch=2, length=3)
        tensor([[0, 2],
                [0, 2]])
    """
    real = real_tokens(mask, batch, length)
    if batch % len(positions):
        raise ValueError(
            f"position has {len(positions)} entries for a batch of {batch}: give one index, or one per example."
        )
    rows = in_range(positions.to(real.device).repeat_interleave(batch // len(positions), dim=0), length)
    padding = (~real.gather(1, rows)).nonzero().tolist()
    if padding:
        example, row = padding[0]
        raise ValueError(
            f"position {int(rows[example, row])} of example {example} is padding: its real tokens are "
            f"{real[example].nonzero().flatten().tolist()}. Give one position per example, or none for the token that "
            "the kind of model suggests."
        )
    return rows


def check_kind(position: Any) -> None:
    """Refuse what can be no position: a word other than "mean", or something that is no integer."""
    if isinstance(position, str):
        if position != "mean":
            raise ValueError(
                f'HFForward: position should be None, an index, one index per example or "mean", got {position!r}.'
            )
    elif position is not None:
        as_indices(position)


def as_indices(position: Any) -> Tensor:
    """A 0-d or 1-d long tensor on the CPU."""
    if isinstance(position, Tensor):
        indices = position.detach().cpu()
        if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
            raise _no_position(position)
    else:
        entries: Any = position if isinstance(position, Sequence) else getattr(position, "tolist", lambda: position)()
        several = isinstance(entries, Sequence) and not isinstance(entries, str)
        if any(isinstance(entry, bool) for entry in (entries if several else [entries])):
            raise _no_position(position)
        try:
            indices = torch.tensor([operator.index(e) for e in entries] if several else operator.index(entries))
        except TypeError:
            raise _no_position(position) from None
    if indices.ndim > 1 or indices.numel() == 0:
        raise _no_position(position)
    return indices.long()


def _no_position(found: Any) -> TypeError:
    return TypeError(
        f'position should be None, an integer, one integer per example or "mean", got {found!r}. '
        "(The class to explain is target.)"
    )


def in_range(indices: Tensor, length: int) -> Tensor:
    """Indices counted from the start, 0 to length - 1; an index outside is refused."""
    wrong = indices[(indices < -length) | (indices >= length)].flatten().tolist()
    if wrong:
        raise ValueError(
            f"position {wrong[0]} is out of range: there are {length} positions, 0 to {length - 1} "
            f"(or -1 to {-length} from the end)."
        )
    return indices % length


def followed(position: Any, batch: int, unchanged: Iterable[Tensor]) -> Any:
    """Positions given one per example, repeated as Captum repeated the examples.

    Captum repeats in place (NoiseTunnel, sensitivity_max) or end to end (IntegratedGradients, FeatureAblation); which
    of them shows in the tensors that it repeated and did not change.

    Args:
        position: as for :func:`resolve_position`.
        batch: number of examples, after repetition.
        unchanged: the tensors (batch, ...) that show it, such as ids and masks.

    Returns:
        ``position``, or (batch,) long where it had to be repeated.

    Raises:
        ValueError: if the batch is no multiple of the positions, or does not show how it was repeated.

    Example:
        >>> followed([5, 7], 4, [torch.tensor([[1], [2], [1], [2]])])
        tensor([5, 7, 5, 7])
    """
    indices = None if position is None else as_indices(position)
    if indices is None or indices.ndim == 0 or len(indices) == batch:
        return position
    found = f"position has {len(indices)} entries for a batch of {batch}"
    remedy = (
        "Give one index, or one per example; where Captum cuts or repeats the batch, pass them along as a tensor, the "
        "last of additional_forward_args, as HFForward.inputs(encoding) does."
    )
    if batch % len(indices):
        raise ValueError(f"{found}. {remedy}")
    times = batch // len(indices)
    in_place, end_to_end = indices.repeat_interleave(times), indices.repeat(times)
    if torch.equal(in_place, end_to_end):
        return in_place
    votes = {vote for tensor in unchanged for vote in _votes(tensor, times)}
    if len(votes) != 1:
        raise ValueError(f"{found}, and the ids and masks do not show how the batch was repeated. {remedy}")
    return in_place if votes == {"in place"} else end_to_end


def _votes(tensor: Tensor, times: int) -> list[str]:
    """How the rows of a tensor were repeated; empty where they show both ways, or neither (a changed input)."""
    in_place = _same(tensor.reshape(-1, times, *tensor.shape[1:]), axis=1)
    if in_place == _same(tensor.reshape(times, -1, *tensor.shape[1:]), axis=0):
        return []
    return ["in place" if in_place else "end to end"]


def _same(rows: Tensor, axis: int) -> bool:
    return torch.equal(rows, rows.narrow(axis, 0, 1).expand_as(rows))
