"""States that were rounded to integers, from which they may not come back as numbers: they would count as a bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import Operation, base_name

_TO_INTEGERS = frozenset(("int", "long", "short", "char", "byte"))
_COMPUTE = (OperationKind.SUM, OperationKind.SCALE, OperationKind.REDUCTION, OperationKind.PRODUCT, OperationKind.MAP)


class RoundedStates:
    """Follows states through formats of integers.

    Args:
        is_live: whether a tensor depends on what is followed.
    """

    def __init__(self, is_live: Callable[[Tensor], bool]) -> None:
        self._is_live = is_live
        self._integers: Facts[bool] = Facts()

    def are_read_by(self, op: Operation) -> bool:
        """Whether an operation reads integers that states were rounded to."""
        return bool(self._integers.numbers) and any(tensor in self._integers for tensor in op.tensors)

    def come_back(self, op: Operation, out: Any, of_integers: bool) -> bool:
        """Take in what an operation gave out; whether it is numbers, computed of the integers that it read."""
        kind = kind_of(op.name)
        cast = kind is OperationKind.IDENTITY or base_name(op.name) in _TO_INTEGERS
        x = op.tensors[0] if cast and op.tensors else None
        if not of_integers and (x is None or not x.is_floating_point() or not self._is_live(x)):
            return False
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if not isinstance(tensor, Tensor) or tensor.dtype is torch.bool:
                continue
            if not tensor.is_floating_point():
                self._integers[tensor] = True
            elif of_integers and (cast or kind in _COMPUTE) and not self._is_live(tensor):
                return True
        return False

    def clear(self) -> None:
        """Forget everything."""
        self._integers.clear()
