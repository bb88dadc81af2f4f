"""What the masks of a running model were made of: selections of positions, or the very numbers that they hide.

A mask by which every token sees itself says nothing of a single token of padding behind a text; the selection of
positions that it was made of does.  A mask that leaves out the smallest scores hides no padding at all.

Axes: b batch, q query, k key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.masks import HIDDEN, UnknownMaskError
from captum_norm.capture.reach import INPUT, Reach
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, Property, names_of, names_with
from captum_norm.operations.operation import Operation, base_name

COMPARISONS = frozenset({"eq", "ne", "lt", "gt", "le", "ge"})

_NO_MASKS = names_of(
    OperationKind.MAP, OperationKind.PRODUCT, OperationKind.EMBEDDING, OperationKind.ATTENTION, OperationKind.NORM
)
_BY_SIZE = COMPARISONS | {"topk", "sort", "argsort", "max", "min", "argmax", "argmin", "kthvalue", "median"}
_MOVES = names_of(OperationKind.MOVE) | {"gather", "take_along_dim"}
_LIKE = names_with(Property.LIKE)
_ADDED_TO = frozenset({"addmm", "addbmm", "baddbmm", "addmv"})
_HIDING = names_of(OperationKind.CHOICE, OperationKind.SUM, OperationKind.SCALE) | {"setitem"}
_TAKES = {"topk", "sort", "gather", "take_along_dim"}
_SCATTERS = {"scatter", "index_put", "index_copy", "index_fill", "masked_scatter"}

_OVERWRITTEN = torch.empty(0, device="cpu")


class MaskOrigins:
    """Follows masks from operation to operation.

    Args:
        reach: what each tensor was made of.
        is_given: whether something given to the model has a part in a tensor.
    """

    def __init__(self, reach: Reach, is_given: Callable[[Tensor], bool]) -> None:
        self._reach, self._is_given = reach, is_given
        self._selections: Facts[tuple[Tensor, ...]] = Facts()
        self._chosen: Facts[bool] = Facts()
        self._unchosen: Facts[Tensor] = Facts()
        self._taken_from: Facts[Tensor] = Facts()  # all numbers of which some were taken for their size
        self._any_selection = self._any_chosen = False

    def see(self, op: Operation, is_weights: bool = False) -> None:
        """Take in one operation; whether it made attention weights."""
        if self._any_selection or torch.bool in [tensor.dtype for tensor in op.tensors]:
            self._see_selections(op, is_weights)
        if self._any_chosen or op.name in _BY_SIZE:
            self._see_choices(op, is_weights)

    def follow(self, into: Tensor, known: Facts[Any]) -> None:
        """What was written into a tensor was written into the ``known`` ones that share its memory."""
        selections, unchosen = self._selections[into] or (), self._unchosen[into]
        for alias in known.beside(into) if selections or unchosen is not None or into in self._chosen else ():
            if selections:
                both = {id(one): one for one in (*(self._selections[alias] or ()), *selections)}
                self._selections[alias] = tuple(both.values())
            if unchosen is not None:
                self._unchosen[alias] = _OVERWRITTEN
            if into in self._chosen:
                self._chosen[alias] = True

    def selections(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The selections that these tensors were made of, each (batch, position) bool."""
        if not self._any_selection:
            return ()
        found = {id(one): one for tensor in tensors for one in self._selections[tensor] or ()}
        return tuple(one.reshape(len(one), -1) for one in found.values())

    def is_chosen(self, mask: Tensor) -> bool:
        """Whether a mask was made of the sizes of such numbers as it hides."""
        return self._any_chosen and mask in self._chosen

    def hides_by_size(self, op: Operation) -> bool:
        """Whether an operation hides numbers by a mask that was made of such numbers: all but the largest."""
        return self._any_chosen and any(tensor in self._chosen for tensor in _operands(op))

    def unchosen(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """What scores or weights would be if none had been left out for being small; None where none was.

        Raises:
            UnknownMaskError: if they were overwritten.
        """
        if not self._any_chosen:
            return None
        found = next((self._unchosen[one] for one in tensors if self._unchosen[one] is not None), None)
        if found is _OVERWRITTEN:
            raise UnknownMaskError(
                "overwrites attention scores or weights where they are small: which tokens a mask had left out before "
                "is not known. Write them into a new tensor (masked_fill, where)."
            )
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._selections.clear()
        self._chosen.clear()
        self._unchosen.clear()
        self._taken_from.clear()

    def _see_selections(self, op: Operation, is_weights: bool) -> None:
        found: dict[int, Tensor] = {}
        is_added = not is_weights and base_name(op.name) in _ADDED_TO  # a mask is no factor of the product
        for tensor in op.tensors[:1] if is_added else _operands(op):
            known = self._selections[tensor] if self._any_selection else None
            if known is None and tensor.dtype is torch.bool and self._is_selection(tensor):
                known = self._selections[tensor] = (tensor,)
                self._any_selection = True
            if known:
                found.update((id(one), one) for one in known)
        if found and (is_weights or is_added or base_name(op.name) not in _NO_MASKS):
            for out in op.written:
                self._selections[out] = tuple(found.values())

    def _is_selection(self, mask: Tensor) -> bool:
        """Whether a mask may select positions of each example.

        One of as many examples as positions that is made of nothing given is of queries and keys, as a causal mask is.
        """
        if mask.ndim < 2 or mask.shape[-1] == 1 or mask.numel() != mask.shape[0] * mask.shape[-1]:
            return False
        return mask.shape[0] != mask.shape[-1] or self._is_given(mask)

    def _see_choices(self, op: Operation, is_weights: bool) -> None:
        states = [one for one in _operands(op) if one.is_floating_point() and self._reach.of(one) > INPUT]
        by_size = self.hides_by_size(op)
        if by_size and not states and self._only_moves(op):
            return
        for out in op.written:
            if (not out.is_floating_point() and states) or (by_size and not states):
                self._chosen[out] = self._any_chosen = True
            elif states and base_name(op.name) in _TAKES and (by_size or op.name in _BY_SIZE):
                self._taken_from[out] = states[0] if self._unchosen[states[0]] is None else self._unchosen[states[0]]
            elif states and (base_name(op.name) in _HIDING or (by_size and _scatters_scores(op, out, is_weights))):
                self._hide(op, states, out, by_size)

    def _only_moves(self, op: Operation) -> bool:
        """Whether rows of a mask, which hides nothing for its size, are taken in the order of such sizes.

        Rows that mark one entry each are no such mask: taken by an index, they mark what was chosen.
        """
        mask = op.tensors[0]
        if base_name(op.name) not in _MOVES or mask in self._chosen or not mask.numel():
            return False
        return bool(((mask != mask.amin(-1, keepdim=True)).sum(-1) != 1).any())

    def _hide(self, op: Operation, states: list[Tensor], out: Tensor, by_size: bool) -> None:
        """Scores or weights of which some are hidden, or that are changed after some have been."""
        known = [self._unchosen[one] for one in states]
        taken_from = [self._taken_from[one] for one in states]
        whole = next((one for one in taken_from if one is not None and one.shape == out.shape), None)
        if any(one is _OVERWRITTEN for one in (*known, *taken_from)):
            self._unchosen[out] = _OVERWRITTEN
        elif by_size and whole is not None:  # put back where they were taken from, beside what hides the others
            self._unchosen[out] = whole
        elif by_size and op.writes:
            self._unchosen[out] = _OVERWRITTEN
        elif by_size:
            before = next((one for one in states if one.shape == out.shape), None)
            if before is None and base_name(op.name) in _SCATTERS:
                before = _OVERWRITTEN
            self._unchosen[out] = before if before is None or self._unchosen[before] is None else self._unchosen[before]
        elif any(one is not None for one in known):
            self._unchosen[out] = op.again(lambda one: one if self._unchosen[one] is None else self._unchosen[one])
        elif any(one is not None for one in taken_from):
            self._taken_from[out] = self._of_all(op)

    def _of_all(self, op: Operation) -> Tensor:
        """What an operation on numbers that were taken for their size makes of all of which they were taken."""
        try:
            return op.again(lambda one: one if self._taken_from[one] is None else self._taken_from[one])
        except RuntimeError:  # with a number for each that was taken
            return _OVERWRITTEN


def _scatters_scores(op: Operation, out: Tensor, is_weights: bool) -> bool:
    """Whether an operation puts some scores into a tensor of what hides the others, or hides some."""
    return base_name(op.name) in _SCATTERS and not is_weights and bool((out <= HIDDEN).any())


def _operands(op: Operation) -> list[Tensor]:
    """The tensors of which the numbers are read."""
    return op.tensors[:1] if base_name(op.name) in _LIKE else op.tensors


def without_padding(
    seen: Tensor, selections: Sequence[Tensor], used: Tensor | None = None, own: Tensor | None = None
) -> tuple[Tensor, bool]:
    """What queries may attend to without the padding that sees itself alone, or is hidden together with small weights.

    A selection tells padding where each token in it, or each outside of it, is seen by no other token in any example;
    one of all tokens tells that there is none.

    Args:
        seen: (b, q, k) bool, which keys each query may attend to.
        selections: of what the mask was made, each (b, k), or (b, q) of the queries' own keys.
        used: (b, q, k) bool, which of them it does attend to, where masks left out others for being small.
        own: (q,), which key each query is itself, where there are keys that are none of them; else in order.

    Returns:
        The same (b, q, k), and whether a selection tells.

    Example:
        >>> causal = torch.ones(3, 3).tril().bool()[None]
        >>> seen, _ = without_padding(causal, [torch.tensor([[True, True, False]])])
        >>> seen[0, -1]
        tensor([ True,  True, False])
    """
    query, key = seen.shape[1:]
    if own is None and query != key:
        return seen, False
    own = torch.arange(key, device=seen.device) if own is None else own.to(seen.device)
    itself = own[:, None] == torch.arange(key, device=seen.device)
    tells, by_others = False, ((seen if used is None else used) & ~itself).any(1)[:, own]
    for selection in selections:
        if selection.shape == (len(seen), key):
            selection = selection[:, own.to(selection.device)]
        if selection.shape != by_others.shape:
            continue
        sides = [side for side in (selection, ~selection) if bool(side.any()) and not bool((side & by_others).any())]
        sides = [side for side in sides if not bool(side.all(1).any())]
        tells |= len(sides) == 1 or bool(selection.all())
        if len(sides) == 1:
            hidden = torch.zeros_like(seen[:, 0])
            hidden[:, own] = sides[0]
            seen = seen & ~hidden[:, None]
    return seen, tells
