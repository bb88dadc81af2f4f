"""The steps that a model takes with a tensor, repeated on the numbers of its entries to see where each one went."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from captum_norm.operations.operation import Operation

NOT_AN_INPUT = -1
"""The number of an entry that is none of those numbered: padding, a memory key, a class token."""


class Step:
    """One thing the model did to a tensor that we follow.

    Attributes:
        apply: the step itself, on any tensor of the right shape (numbers included, unless ``scales``).
        scales: the step multiplies (a gate, a norm's 1/sigma) instead of moving entries.
    """

    __slots__ = ("_key", "apply", "scales")

    def __init__(
        self, key: Hashable | Callable[[], Hashable], apply: Callable[[Tensor], Tensor], scales: bool = False
    ) -> None:
        self._key, self.apply, self.scales = key, apply, scales

    @property
    def key(self) -> Hashable:
        """Equal for equal steps, so that what was measured once serves every layer; made when first asked for."""
        if isinstance(self._key, FunctionType):
            self._key = self._key()
        return self._key


def step_of(op: Operation, k: int | None) -> Step:
    """The move an operation made, to be made again with numbers (which live on the CPU)."""
    name, func = op.name, op.func
    args, kwargs = op.args[1:], op.kwargs
    if name in ("view_as", "reshape_as", "expand_as"):
        name, args, kwargs = name[:-3], (tuple(op.out.shape),), {}
        func = torch.Tensor.expand if name == "expand" else torch.Tensor.reshape
    elif name == "view" and not (args and isinstance(args[0], torch.dtype)):
        func = torch.Tensor.reshape
    elif name == "pad":
        args, kwargs = (args[0] if args else kwargs["pad"],), {"value": NOT_AN_INPUT}
    elif func is F.unfold:
        return Step(lambda: (name, k, _key(args), _key(tuple(kwargs.items()))), lambda t: _unfolded(t, args, kwargs))
    elif len(op.tensors) > 1:  # an index, which may change later
        args, kwargs = _on_cpu(args), {key: _on_cpu(value) for key, value in kwargs.items()}

    def apply(t: Tensor) -> Tensor:
        moved = func(t, *args, **kwargs)
        return moved if k is None else moved[k]

    return Step(lambda: (name, k, _key(args), _key(tuple(kwargs.items()))), apply)


def _unfolded(t: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Windows of numbers; torch has them for floating point alone, and pads with zeros."""
    return F.unfold((t + 1).double(), *args, **kwargs).long() - 1 if not t.is_floating_point() else F.unfold(t, *args)


def written_index(op: Operation) -> tuple[Any, Hashable]:
    """Where ``x[index] = value`` wrote, for numbers (which live on the CPU), and a key, equal for equal places."""
    index = _on_cpu(op.args[1])
    return index, _key(index)


def _on_cpu(value: Any) -> Any:
    """An argument with its tensors copied to the CPU, as they are now."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _key(value: Any) -> Hashable:
    """Equal for equal arguments; small tensors (indices) by their content."""
    if isinstance(value, tuple) and all(type(item) is int for item in value):
        return value
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, list | tuple):
        return tuple(_key(item) for item in value)
    if isinstance(value, slice):
        return ("slice", _key(value.start), _key(value.stop), _key(value.step))
    return value if isinstance(value, Hashable) else object()
