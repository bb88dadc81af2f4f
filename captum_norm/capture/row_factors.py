"""What the rows of a state were multiplied with behind attention: a mean over them is read by these weights.

``(state * weights).sum(1)`` reads a row by its weight, whatever is done to the product on the way to the sum.  A norm
makes all rows alike again, attention makes new ones, and in a sum with a state that has no weights each row is one.

Axes: b batch, n row, d feature.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.reach import INPUT, Reach
from captum_norm.capture.traces import Traces
from captum_norm.operations.entries import varies_along
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import Place, Places
from captum_norm.operations.storages import is_same_view

Factor = float | Tensor
"""A number, or a tensor that is broadcast to the state; ``UNKNOWN`` where rows were weighed in a way not followed."""

UNKNOWN = torch.empty(0, device="cpu")

_KEEP = (OperationKind.IDENTITY, OperationKind.DROPOUT)
_REPLAYED = (OperationKind.MOVE, OperationKind.JOIN, OperationKind.CHOICE, OperationKind.WRITE)
_CHOOSING = (OperationKind.CHOICE, OperationKind.WRITE)
_NEW_ROWS = (OperationKind.NORM, OperationKind.SOFTMAX, OperationKind.ATTENTION)
_NOT_BY_ROW = {"group_norm", "batch_norm"}
_GROW_ALIKE = {"relu", "leaky_relu", "prelu", "abs"}  # f(cx) = c f(x) for c >= 0
_ADD_PRODUCTS = {name + end for name in ("addcmul", "addcdiv", "lerp") for end in ("", "_")}
_AXES = 3
"""States of more axes are queries that are turned, as a rule, and no sum is taken over them: no factor is kept."""
_TOLD_BY = 8
"""How many rows tell whether all have one length: what divides them by theirs is a norm, and no weight."""


class RowFactors:
    """Follows what rows are multiplied with from operation to operation.

    Args:
        traces, reach, places: what is known of the running model.
    """

    def __init__(self, traces: Traces, reach: Reach, places: Places) -> None:
        self._traces, self._reach, self._places = traces, reach, places
        self._of: Facts[Factor] = Facts()
        self._features: dict[Hashable, tuple[list[int], Place]] = {}

    def __getitem__(self, state: Tensor) -> Factor | None:
        return self._of[state]

    def see(self, op: Operation) -> None:
        """Take in one operation."""
        kind = kind_of(op.name)
        if kind is OperationKind.SCALE:
            after: Any = self._scaled(op)
        elif op.name in _ADD_PRODUCTS:
            after = UNKNOWN
        elif not self._of.numbers.isdisjoint(map(id, op.tensors)) and any(one in self._of for one in op.tensors):
            after = self._after(op, kind)
        elif kind in _CHOOSING:
            after = self._kept(op)
        elif not op.overwritten:
            return
        else:
            after = None
        outs = [out for out in op.written if out.is_floating_point()]
        each = after if isinstance(after, list) and len(after) == len(outs) else [after] * len(outs)
        for out, factor in zip(outs, each, strict=True):
            self._of[out] = factor
        for into in op.overwritten:
            self._follow(into)

    def clear(self) -> None:
        """Forget everything."""
        self._of.clear()
        self._features.clear()

    def _follow(self, into: Tensor) -> None:
        """Rows of other tensors in the memory of one that was overwritten."""
        factor = self._of[into]
        for alias in self._traces.beside(into):
            if is_same_view(alias, into):
                self._of[alias] = factor
            elif factor is not None or self._of[alias] is not None:
                self._of[alias] = UNKNOWN

    def _place(self, tensor: Tensor) -> Place | None:
        trace = self._traces[tensor]
        return None if trace is None else trace.place

    def _is_state(self, tensor: Tensor) -> bool:
        return tensor.is_floating_point() and (self._place(tensor) is not None or self._reach.of(tensor) > INPUT)

    # ---- products entry by entry

    def _scaled(self, op: Operation) -> Factor | None:
        place = self._place(op.out) if isinstance(op.out, Tensor) else None
        if place is None or len(op.args) < 2:
            by_some = bool(op.overwritten) and any(one.numel() > 1 for one in op.tensors[1:])
            return UNKNOWN if by_some or any(_varies(self._of[one]) for one in op.tensors) else None
        if op.out.ndim > _AXES and all(isinstance(one, Tensor) and one.numel() > 1 for one in op.args[:2]):
            return UNKNOWN
        features = self._feature_axes(op.out, place)
        states = list[Factor | None]()
        factor: Factor = 1.0
        for operand in op.args[:2]:
            is_divisor = operand is op.args[1] and base_name(op.name) == "div"
            by = self._row_factor(operand, op.out, features) if isinstance(operand, Tensor) else operand
            if by is None:
                states.append(UNKNOWN if is_divisor else self._of[operand])
                continue
            if isinstance(by, Tensor) and _varies(by):
                if self._is_state(operand) and _have_one_length(op.out, features):
                    return None
                # Rows of zeros are seen where they are summed; features of rows that were left out are not.
                if bool(((by == 0) | (by == 1)).all()) and not varies_along(by, features):
                    continue
            factor = factor / by if is_divisor else factor * by
        if len(states) != 1:
            return UNKNOWN if any(map(_varies, states)) else None
        [before] = states
        if before is UNKNOWN or (isinstance(factor, float) and factor == 1):
            return before
        return factor if before is None else before * factor

    def _row_factor(self, operand: Tensor, out: Tensor, features: list[int]) -> Factor | None:
        """What an operand multiplies rows with; 1 where it does not, None where it is a state itself."""
        if operand.numel() == 1 and out.numel() > 1:
            return operand.detach()
        whole = operand.detach().expand(out.shape) if operand.ndim <= out.ndim else operand
        if whole.shape != out.shape:
            return None
        varies = [whole.shape[axis] > 1 and whole.stride(axis) != 0 for axis in range(whole.ndim)]
        by_row = any(varies[axis] for axis in range(whole.ndim) if axis not in features)
        if not by_row:
            return 1.0
        # Examples count as features where all have the same rows (latents), which is why one axis is not enough.
        by_feature = all(varies[axis] for axis in features if out.shape[axis] > 1)
        if by_feature and self._is_state(operand):
            return None
        return whole

    def _feature_axes(self, out: Tensor, place: Place) -> list[int]:
        key = (place.key, out.ndim)
        if key not in self._features:
            axes = [axis for axis in range(out.ndim) if self._places.holds_one(place, (axis,))]
            self._features[key] = axes, place  # which the key holds ids of
        return self._features[key][0]

    # ---- everything else

    def _after(self, op: Operation, kind: OperationKind | None) -> Any:
        """The factor behind an operation on something that has one; a list for several results."""
        known = [factor for tensor in op.tensors if (factor := self._of[tensor]) is not None]
        name = base_name(op.name)
        first = self._of[op.tensors[0]]
        if kind in _KEEP or name == "neg":
            return first
        if kind in _REPLAYED:
            found, kept = self._replayed(op, known), self._kept(op) if kind in _CHOOSING else None
            return found if kept is None else UNKNOWN if found is UNKNOWN or kept is UNKNOWN else found * kept
        if kind is OperationKind.SUM:
            return self._of_sum(op)
        if kind is OperationKind.PRODUCT and sum(map(self._is_state, op.tensors)) > 1:
            return None
        if kind in _NEW_ROWS and name not in _NOT_BY_ROW:
            return None
        if not any(map(_varies, known)):
            return None
        if name == "linear" or (name == "matmul" and op.tensors[0] in self._of and op.tensors[1].ndim == 2):
            return _along_features(first)
        if name in _GROW_ALIKE and isinstance(first, Tensor) and first is not UNKNOWN and bool((first >= 0).all()):
            return first
        return UNKNOWN

    def _of_sum(self, op: Operation) -> Factor | None:
        factors = [self._of[tensor] for tensor in op.tensors if self._is_state(tensor)]
        if not factors or any(factor is None for factor in factors):
            return None
        first = factors[0]
        return first if all(_is_one(first, other) for other in factors[1:]) else UNKNOWN

    def _replayed(self, op: Operation, known: list[Factor]) -> Any:
        """The same done to the factors."""
        states = [tensor for tensor in op.tensors if self._is_state(tensor)]
        if len(known) == len(states) and not any(map(_varies, known)) and all(_is_one(known[0], one) for one in known):
            return known[0]
        if any(factor is UNKNOWN for factor in known) or _has_numbers(op):
            return UNKNOWN

        def factor(tensor: Tensor) -> Factor:
            by = self._of[tensor]
            return 1.0 if by is None else by

        found = _again(op, factor)
        return list(found) if isinstance(found, list | tuple) else found

    def _kept(self, op: Operation) -> Factor | None:
        """Which entries are still those of a state, where an operation left out some features of some rows; else None.

        Whole rows that are left out are zeros as a rule, and are seen where they are summed.
        """
        out = op.overwritten[0] if op.overwritten else op.out
        place = self._place(out) if isinstance(out, Tensor) else None
        if place is None or out.ndim > _AXES:
            return None
        features = self._feature_axes(out, place)
        if kind_of(op.name) is OperationKind.CHOICE:
            masks = [one.expand(out.shape) for one in op.tensors if one.dtype == torch.bool and one.ndim <= out.ndim]
            if not any(varies_along(one, features) for one in masks):
                return None
        kept = _again(op, lambda tensor: float(self._is_state(tensor)))
        if kept is UNKNOWN or not isinstance(kept, Tensor) or kept.shape != out.shape:
            return UNKNOWN
        rows = [axis for axis in range(out.ndim) if axis not in features]
        return kept if varies_along(kept, features) and varies_along(kept, rows) else None


def _again(op: Operation, factor: Callable[[Tensor], Factor]) -> Any:
    """The result of an operation on the factors of what it reads; UNKNOWN where it cannot be repeated on these."""

    def swap(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.empty_like(tensor).copy_(torch.as_tensor(factor(tensor)))

    try:
        with torch.no_grad():
            return op.again(swap)
    except (RuntimeError, TypeError):
        return UNKNOWN


def _varies(factor: Factor | None) -> bool:
    """Whether rows may differ in it."""
    return isinstance(factor, Tensor) and factor.numel() != 1


def _is_one(one: Factor | None, other: Factor | None) -> bool:
    if one is other:
        return one is not UNKNOWN
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _along_features(factor: Factor | None) -> Factor | None:
    """What rows were multiplied with where a linear map has mixed their features."""
    if not isinstance(factor, Tensor) or factor is UNKNOWN or not factor.ndim:
        return factor
    first = factor[..., :1]
    return first if bool((factor == first).all()) else UNKNOWN


def _have_one_length(out: Tensor, features: list[int]) -> bool:
    """Whether the rows that are not zero have one length: those that a norm gives out."""
    if not features:
        return False
    last = out.detach().movedim(features, list(range(-len(features), 0))).flatten(-len(features))
    while last.ndim > 2:
        last = last[0] if len(last) == 1 or last.shape[1] > 1 else last[:, 0]
    some = last[:: -(-len(last) // _TOLD_BY)]
    lengths = [length for length in torch.linalg.vector_norm(some.float(), dim=-1).tolist() if length]
    return bool(lengths) and max(lengths) - min(lengths) <= 1e-2 * max(lengths)


def _has_numbers(op: Operation) -> bool:
    """Whether numbers other than zero, which are no index, are written in place of rows."""
    if kind_of(op.name) is OperationKind.MOVE:
        return False
    values = (*op.args[1:], *op.kwargs.values())
    return any(isinstance(value, float) and value != 0 for value in values)
