"""A span of positions, as it is given and as weights of rows; and what its scores hand on.

Spans are half-open, as in ``range``.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SpanType = tuple[int, int] | Sequence[tuple[int, int]]
"""(start, stop), or a pair for each example."""


def span_weights(name: str, span: SpanType, given: Tensor, weights: Any = None) -> Tensor:
    """The weight of each input position in a span, (batch, position).

    Args:
        name: what the span is called.
        span: (start, stop), or a pair for each example.
        given: the input, (batch, position, ...).
        weights: of the span's rows; None: 1.

    Raises:
        TypeError, ValueError: for what is no span of this input, or weights that are not those of its rows.
    """
    batch, length = given.shape[:2]
    try:
        given_pairs: Any = span if _are_pairs(span) else [span]
        pairs = [tuple(operator.index(end) for end in pair) for pair in given_pairs]
    except TypeError:
        pairs = []
    if any(len(pair) != 2 for pair in pairs) or len(pairs) not in (1, batch):
        raise TypeError(
            f"SpanTrace: {name} should be (start, stop), or such a pair for each of {batch} examples, got {span!r}."
        )
    found = torch.zeros(batch, length, dtype=torch.float64)
    for example, (start, stop) in enumerate(pairs * (batch // len(pairs))):
        if not 0 <= start < stop <= length:
            raise ValueError(
                f"SpanTrace: {name} ({start}, {stop}) holds no rows of an input of {length} positions: start and stop "
                f"count from 0, and 0 <= start < stop <= {length}."
            )
        found[example, start:stop] = 1 if weights is None else _row_weights(weights, example, stop - start)
    return found


def _are_pairs(span: Any) -> bool:
    return isinstance(span, Sequence) and len(span) > 0 and isinstance(span[0], Sequence)


def _row_weights(weights: Any, example: int, rows: int) -> Tensor:
    """The weights of an example's rows, with the sum 1."""
    given = torch.as_tensor(weights, dtype=torch.float64).cpu()
    one = given[example] if given.ndim == 2 and example < len(given) else given
    if one.shape != (rows,) or not bool((one >= 0).all()) or not 0 < float(one.sum()) < torch.inf:
        raise ValueError(
            f"SpanTrace: weights should be {rows} numbers of 0 or more, not all 0, one for each row of the span, got "
            f"{tuple(given.shape)}: {one.tolist()}."
        )
    return one / one.sum()


def share_of(tokens: Tensor, of: Tensor) -> Tensor:
    """How much of each example's scores falls to some positions, (batch,)."""
    total = tokens.sum(1)
    return torch.where(total == 0, 0, (tokens * of).sum(1) / total)


def normalised(u: Tensor) -> Tensor:
    """Weights (batch, position) with the sum 1, or 0 where there are none."""
    total = u.sum(1, keepdim=True)
    return u / total.masked_fill(total == 0, 1)


def before_the_end(thought: Tensor) -> Tensor:
    """1 at the positions before the end of a span that are not in it, (batch, position)."""
    inside = (thought > 0).to(thought)
    return (inside.flip(1).cumsum(1).flip(1) > 0).to(thought) * (1 - inside)
