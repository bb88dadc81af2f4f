"""Whose representation is explained: from what `position` asks to rows of a map.

Axes: b batch, r row asked for, q query, k key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, SupportsIndex, cast

import torch
from torch import Tensor

from captum_norm.forward import Position, real_tokens, resolve_position
from captum_norm.forward.position import as_indices, resolve_rows

PositionType = SupportsIndex | Sequence[int] | Tensor | Literal["mean", "all"] | None


def same_position(one: PositionType, other: PositionType) -> bool:
    """Whether two positions are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


class Rows:
    """The rows of a map that ``position`` asks for.

    Args:
        position: None (the last real token where attention is causal, else the first), an index into the query axis
            (negative from its end), one index per example, several per example, a tensor (batch, row), ``"mean"`` over
            the real tokens, or ``"all"``.

    Attributes:
        position: as given.
        few: whether a row or two are enough, so that no other row needs to be computed.
        all: whether every row is asked for.
        several: whether more than one row of each example is asked for, and so given one by one.

    Raises:
        TypeError: if ``position`` is of another kind; bool is.
        ValueError: if it is another word.

    Example:
        >>> Rows(-1).chosen(batch=2, queries=5, real=None, causal=False)
        tensor([[4],
                [4]])
    """

    def __init__(self, position: PositionType) -> None:
        if isinstance(position, str) and position not in ("mean", "all"):
            raise ValueError(f'position should be an index, one per example, "mean" or "all", got {position!r}.')
        self.position = position
        self.few = not isinstance(position, str) and not _are_weights(position)
        self.all = isinstance(position, str) and position == "all"
        self.several = self.all
        self._of_each: Tensor | None = None
        if isinstance(position, Tensor) and position.ndim == 2 and not _are_weights(position):
            self.several, self._of_each = True, as_indices(position.flatten()).view_as(position)
        elif self.few and position is not None:
            as_indices(position)  # refused here: within an operator that the model runs, torch hides a TypeError

    def candidates(
        self, batch: int, queries: int, real: Tensor | None, looks_ahead: bool = False, text: Tensor | None = None
    ) -> Tensor:
        """The rows that may be asked for, before it is known whether the model is causal.

        Args:
            batch: size of the batch.
            queries: length of the query axis.
            real: (batch, query) bool, True at real tokens; None where all are real.
            looks_ahead: it is known that the model is not causal.
            text: the rows that are positions of the input, where others (virtual tokens, a picture's) are not.

        Returns:
            (batch, row) long, where row is the one asked for, or for None the first real token and, unless
            ``looks_ahead``, the last.
        """
        if text is not None:
            of_text = None if real is None else real[:, text.to(real.device)]
            return text[self.candidates(batch, len(text), of_text, looks_ahead).cpu()]
        if self.position is None:
            causals = (False,) if looks_ahead else (False, True)
            ends = [resolve_position(None, real, batch, queries, causal=causal) for causal in causals]
            return torch.stack(ends, dim=1)
        return self.chosen(batch, queries, None, causal=False)

    @property
    def numbers(self) -> Tensor | None:
        """The numbers that were given, (n, row) for n examples; None where none were."""
        if self._of_each is not None or self.position is None or not self.few:
            return self._of_each
        return as_indices(self.position).view(-1, 1)

    def with_numbers(self, numbers: Tensor) -> Rows:
        """The same with other numbers, (batch, row)."""
        return Rows(numbers if self.several else numbers[:, 0])

    def pick(self, scores: Tensor, real: Tensor | None, text: Tensor | None = None) -> Tensor:
        """``"mean"`` or ``"all"`` of a whole map.

        Args:
            scores: (batch, query, key).
            real: (batch, query) bool, True at real tokens; None where all are real.
            text: as for :meth:`candidates`.

        Returns:
            (batch, key); (batch, query, key) for ``"all"``, with zeros in padding rows.
        """
        batch, queries, _ = scores.shape
        if not self.all:
            shares = self.shares(batch, queries, real, text).to(scores)
            return torch.einsum("bq,bqk->bk", shares, scores.masked_fill(shares[..., None] == 0, 0))
        if text is not None:
            of_text = None if real is None else real[:, text.to(real.device)]
            return self.pick(scores[:, text.to(scores.device)], of_text)
        mask = real_tokens(real, batch, queries).to(scores.device)[..., None]
        return scores.masked_fill(~mask, 0)

    def shares(self, batch: int, queries: int, real: Tensor | None, text: Tensor | None = None) -> Tensor:
        """How much of each row a mean takes, (batch, query) in float64 on the CPU; arguments as for :meth:`pick`."""
        if isinstance(self.position, Tensor):
            return self.position.double().cpu()
        if text is None:
            counted = real_tokens(real, batch, queries).double().cpu()
        else:
            of_text = real_tokens(None if real is None else real[:, text.to(real.device)], batch, len(text))
            counted = torch.zeros(batch, queries, dtype=torch.float64)
            counted[:, text.cpu()] = of_text.double().cpu()
        return counted / counted.sum(1, keepdim=True)

    def pick_from_candidates(
        self, scores: Tensor, queries: int, real: Tensor | None, causal: bool, text: Tensor | None = None
    ) -> Tensor:
        """The rows asked for, (batch, key) or several, of scores (batch, row, key) that hold the :meth:`candidates`.

        Raises:
            TypeError, ValueError: as :meth:`chosen`.
        """
        self.chosen(len(scores), queries, real, causal, text)
        return scores if self.several else scores[:, -1 if causal and self.position is None else 0]

    def chosen(self, batch: int, queries: int, real: Tensor | None, causal: bool, text: Tensor | None = None) -> Tensor:
        """The rows that are asked for, where it is not ``"mean"`` or ``"all"``.

        Args:
            batch: size of the batch.
            queries: length of the query axis.
            real: (batch, query) bool, True at real tokens; None where all are real.
            causal: whether every self-attention call of these queries is causal.
            text: as for :meth:`candidates`.

        Returns:
            (batch, row) long, one row unless the position gives several.

        Raises:
            TypeError: if the position is no integer.
            ValueError: if a row asked for is out of range or padding.
        """
        if text is not None:
            of_text = None if real is None else real[:, text.to(real.device)]
            return text[self.chosen(batch, len(text), of_text, causal).cpu()]
        if self._of_each is not None:
            return resolve_rows(self._of_each, real, batch, queries)
        return resolve_position(cast(Position, self.position), real, batch, queries, causal)[:, None]


def _are_weights(position: PositionType) -> bool:
    """How much of each row is meant, (batch, query): what an output was seen to read, never what a user gives."""
    return isinstance(position, Tensor) and position.is_floating_point() and position.ndim == 2


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of the second last axis, chosen per example: tensor (batch, ..., query, key), rows (batch, row)."""
    index = rows.to(tensor.device).view(len(rows), *[1] * (tensor.ndim - 3), -1, 1)
    return tensor.gather(-2, index.expand(*tensor.shape[:-2], -1, tensor.shape[-1]))
