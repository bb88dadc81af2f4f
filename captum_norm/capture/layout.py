"""Which entry of a tensor is which: measured by sending index tensors through the reshapes the model itself made.

A model may keep its heads as (batch, head, query, ...), (batch * head, query, ...), (query, batch, head, ...) or in
windows.  Instead of knowing these layouts, we number the entries of the mixed values, repeat the recorded
:class:`~captum_norm.operations.steps.Step` s on the numbers, and read off where each ended up.  The same steps tell
which input position a key is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from captum_norm.operations.steps import NOT_AN_INPUT, Step


class LayoutError(ValueError):
    """The layout cannot be expressed as (batch, head, query, key); the message says why."""


@dataclass(frozen=True)
class Layout:
    """Where each (batch, head, query) of one attention call lies in the tensors the model used.

    Attributes:
        rows: (batch, head, query) long, which row of the flattened leading axes of the weights.
        queries: (batch, head, query) long, which query of that row.
        tokens: (batch, query) long, which row of the projection's flattened input.
        columns: (head, head_dim) long, which column of the projection's input.
        rest: (column,) long, columns of the projection's input that hold something else.
        in_order: the weights, flattened, are already in (batch, head, query) order.
        columns_in_order: the columns are those of head 0, then those of head 1, ..., and nothing else.
        values_in_order: so are the values in (batch, head).
    """

    rows: Tensor
    queries: Tensor
    tokens: Tensor
    columns: Tensor
    rest: Tensor
    in_order: bool
    columns_in_order: bool
    values_in_order: bool

    @cached_property
    def tokens_in_order(self) -> bool:
        """Whether the projection's rows are those of example 0, then those of example 1, ...."""
        return torch.equal(self.tokens.flatten(), torch.arange(self.tokens.numel(), device=self.tokens.device))

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, heads, queries = self.rows.shape
        return batch, heads, queries

    def weights(self, weights: Tensor, lead: Sequence[int]) -> Tensor:
        """The model's weights (*lead, query, key) as (batch, head, query, key)."""
        query, key = weights.shape[-2:]
        if self.in_order and weights.numel() == math.prod(lead) * query * key:
            return weights.reshape(*self.shape, key)
        flat = weights.expand(*lead, query, key).reshape(-1, query, key)
        return flat[self.rows.to(flat.device), self.queries.to(flat.device)]

    def values(self, values: Tensor, lead: Sequence[int]) -> Tensor:
        """The model's values (*lead, key, head_dim) as (batch, head, key, head_dim)."""
        key, head_dim = values.shape[-2:]
        flat = values.expand(*lead, key, head_dim)
        if self.values_in_order:
            return flat.reshape(*self.shape[:2], key, head_dim)
        return flat.reshape(-1, key, head_dim)[self.rows[:, :, 0].to(flat.device)]

    def heads(self, W: Tensor) -> Tensor:
        """The projection's matrix (column, model) as W_O, (head, head_dim, model); a view where it can be one."""
        if self.columns_in_order:
            return W.view(*self.columns.shape, W.shape[-1])
        return W[self.columns.to(W.device)]

    def mixed(self, x: Tensor) -> Tensor:
        """The projection's input (..., column) as (batch, head, query, head_dim)."""
        flat = x.reshape(-1, x.shape[-1])
        rows = self.tokens.to(x.device)[:, None, :, None]
        return flat[rows, self.columns.to(x.device)[None, :, None, :]]


def measure(lead: Sequence[int], query: int, head_dim: int, steps: Sequence[Step], width: int) -> Layout:
    """The layout of mixed values all of whose examples have as many queries; arguments and errors as for ``measured``.

    Raises:
        LayoutError: also where they have not.
    """
    layouts = measured(lead, query, head_dim, steps, width)
    if len(layouts) > 1:
        counts = [of_some.shape[2] for of_some in layouts for _ in range(of_some.shape[0])]
        raise LayoutError(f"examples have different numbers of queries, {counts[:8]}")
    return layouts[0]


def measured(lead: Sequence[int], query: int, head_dim: int, steps: Sequence[Step], width: int) -> list[Layout]:
    """Number every entry of the mixed values, (*lead, query, head_dim), and see where ``steps`` put it.

    Args:
        lead: the axes before query: (batch, head), (batch * head,), ...
        query: number of queries.
        head_dim: size of a value.
        steps: what the model did between mixing and projection.
        width: last axis of the projection's input.

    Returns:
        One layout for all examples, or for those with as many queries: where some rows are overwritten by another
        call's, as those of global tokens are beside windows, groups have different numbers of them.

    Raises:
        LayoutError: where an output row mixes queries, or heads are cut across rows.
    """
    count = math.prod(lead) * query * head_dim
    dtype = torch.int32 if count <= torch.iinfo(torch.int32).max else torch.int64
    numbers = torch.arange(count, dtype=dtype, device="cpu").view(*lead, query, head_dim)
    for step in steps:
        if not step.scales:
            numbers = _moved(numbers, step)
    if numbers.shape[-1] != width:
        raise LayoutError(f"the projection reads rows of {width}, mixed values come in rows of {numbers.shape[-1]}")
    numbers, ours, own = _with_own(numbers.reshape(-1, width))
    columns = own.nonzero()[:, 0][numbers[0, own].argsort()]
    if len(columns) % head_dim:
        raise LayoutError(f"{len(columns)} columns of mixed values are no multiple of the head size {head_dim}")
    columns_in_order = torch.equal(columns, torch.arange(width, device="cpu"))
    columns = columns.view(-1, head_dim)
    start = _first_of_vectors(numbers, columns, columns_in_order).long() // head_dim  # (token, head)
    rows, queries = start // query, start % query
    rest, layouts = (~own).nonzero()[:, 0], []
    for tokens in _by_batch(rows[:, 0]):
        of_rows, of_queries = rows[tokens].transpose(1, 2), queries[tokens].transpose(1, 2)
        if not torch.equal(of_rows, of_rows[..., :1].expand_as(of_rows)):
            raise LayoutError("one example's queries read their values from different places")
        order = (of_rows * query + of_queries).flatten()
        in_order = torch.equal(order, torch.arange(math.prod(lead) * query, device="cpu"))
        values_in_order = torch.equal(of_rows[..., 0].flatten(), torch.arange(math.prod(lead), device="cpu"))
        layouts.append(
            Layout(of_rows, of_queries, ours[tokens], columns, rest, in_order, columns_in_order, values_in_order)
        )
    return layouts


def indices(lead: Sequence[int], query: int, head_dim: int, steps: Sequence[Step]) -> dict[Hashable, set[int]]:
    """On which axes a row of the mixed values is at one index, as one of many that were stacked, and at which they are.

    Args:
        lead, query, head_dim, steps: as for :func:`measured`.

    Returns:
        For each axis at one index of which each row of ``lead`` lies, instead of along it, the indices of all rows. An
        axis is told by how many steps before the projection it is, its tensor's shape and its number.
    """
    numbers = torch.arange(math.prod(lead) * query * head_dim, device="cpu").view(*lead, query, head_dim)
    moves = [step for step in steps if not step.scales]
    found: dict[Hashable, set[int]] = {}
    for behind in range(len(moves), -1, -1):
        places = (numbers != NOT_AN_INPUT).nonzero()
        rows = numbers[tuple(places.T)] // (query * head_dim)
        for axis, of_axis in enumerate(places.T):
            pairs = torch.unique(torch.stack([rows, of_axis]), dim=1)
            if len(torch.unique(rows)) == pairs.shape[1]:
                found[behind, numbers.shape, axis] = set(of_axis.tolist())
        numbers = _moved(numbers, moves[-behind]) if behind else numbers
    return found


def _with_own(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of numbers (row, column) that hold any, which these are, and which columns hold numbers in each."""
    if int(numbers.amin()) != NOT_AN_INPUT:
        return numbers, torch.arange(len(numbers), device="cpu"), torch.ones(numbers.shape[1], dtype=torch.bool)
    ours = (numbers != NOT_AN_INPUT).any(-1).nonzero()[:, 0]  # other rows may belong to another call (packed images)
    numbers = numbers[ours]
    own = numbers[0] != NOT_AN_INPUT
    if not torch.equal(numbers != NOT_AN_INPUT, own.expand_as(numbers)):
        raise LayoutError("some output rows hold mixed values in columns where others hold something else")
    return numbers, ours, own


def _first_of_vectors(numbers: Tensor, columns: Tensor, in_order: bool) -> Tensor:
    """The first number of each head's vector in each row, (row, head); columns (head, head_dim) say where it stands.

    The rest is looked at some rows at a time: all of it at once would be larger than what the model computes.
    """
    behind, step = torch.arange(columns.shape[1], dtype=numbers.dtype, device="cpu"), max(1, _SOME // numbers.shape[1])
    for start in range(0, len(numbers), step):
        some = numbers[start : start + step]
        vectors = (some if in_order else some[:, columns.flatten()]).view(-1, *columns.shape)
        if (vectors[..., :1] % len(behind)).any() or not torch.equal(vectors, vectors[..., :1] + behind):
            raise LayoutError("the columns of one head are not one value vector in every row")
    return numbers[:, columns[:, 0]]


_SOME = 1 << 18  # numbers, 1 MiB


def _moved(numbers: Tensor, step: Step) -> Tensor:
    try:
        return step.apply(numbers)
    except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise LayoutError(
            f"a move on the way to W_O, {step.key}, cannot be repeated ({error}). Block-sparse attention is written in "
            "pieces of many shapes; load it in its dense form where it has one (attention_type='original_full')"
        ) from error


def _by_batch(rows: Tensor) -> list[Tensor]:
    """Output rows grouped by the values their first head reads, as many each: (batch, query), in their own order.

    That is the order of the product's queries, unless the model took these in another one and put their results back.
    """
    order = rows.argsort(stable=True)
    _, counts = torch.unique(rows, return_counts=True)
    if bool((counts == counts[0]).all()):
        return [order.view(len(counts), -1)]
    groups = torch.split(order, counts.tolist())
    return [torch.stack([g for g in groups if len(g) == count]) for count in sorted(set(counts.tolist()), reverse=True)]
