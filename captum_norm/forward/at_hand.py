"""What a function has at hand beside its arguments, and so is there before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import CellType
from typing import Any

from torch import Tensor


def held_by(forward_func: Callable[..., Any]) -> list[Any]:
    """What a function encloses, names, has as defaults or is bound to; nothing for other callables.

    Example:
        >>> table = [1, 2]
        >>> [value for value in held_by(lambda row, more=3: table[row] + more) if value in (table, 3)]
        [[1, 2], 3]
    """
    function: Any = forward_func
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    enclosed = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    named = [function.__globals__.get(name) for name in code.co_names]
    return [*enclosed, *named, *(function.__defaults__ or ()), getattr(function, "__self__", None)]


def tensors_beside(forward_func: Callable[..., Any], given: Iterable[Any]) -> list[Tensor]:
    """The tensors that are there before a function runs: what it is given, keeps, or encloses (in a mapping, too)."""
    held = (*given, *getattr(forward_func, "fixed", {}).values(), *held_by(forward_func))
    inside = [list(one.values()) if isinstance(one, Mapping) else one for one in held]
    flat = [item for one in inside for item in (one if isinstance(one, list | tuple) else (one,))]
    return [value for value in flat if isinstance(value, Tensor)]
