"""The steps that a model takes with a tensor, repeated on the numbers of its entries to see where each one went."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from captum_norm.operations.operation import Operation, base_name

Sizes = tuple[int, ...]

NOT_AN_INPUT = -1
"""The number of an entry that is none of those numbered: padding, a memory key, a class token."""


class Step:
    """One thing the model did to a tensor that we follow.

    Attributes:
        apply: the step itself, on any tensor of the right shape (numbers included, unless ``scales``).
        scales: the step multiplies (a gate, a norm's 1/sigma) instead of moving entries.
        is_shared: equal steps are this one object, whichever operation took it.
    """

    __slots__ = ("_key", "apply", "is_shared", "scales")

    def __init__(
        self, key: Hashable | Callable[[], Hashable], apply: Callable[[Tensor], Tensor], scales: bool = False,
        is_shared: bool = False,
    ) -> None:  # fmt: skip
        self._key, self.apply, self.scales, self.is_shared = key, apply, scales, is_shared

    @property
    def key(self) -> Hashable:
        """Equal for equal steps, so that what was measured once serves every layer; made when first asked for."""
        if isinstance(self._key, FunctionType):
            self._key = self._key()
        return self._key


def step_of(op: Operation, k: int | None) -> Step:
    """The move an operation made, to be made again with numbers (which live on the CPU)."""
    name, func = base_name(op.name), op.new_tensor_form()
    args, kwargs = op.args[1:], op.kwargs
    if name in _PLAIN and len(op.tensors) == 1 and not kwargs:
        try:
            return _plain_step(name, func, args, k)
        except TypeError:  # a list of sizes among its arguments
            pass
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


# Told by numbers alone, so that each layer's step is the same object, and so is the place behind it.
_PLAIN = frozenset("view reshape transpose permute flatten unsqueeze squeeze t mT contiguous".split())


@lru_cache(maxsize=1024)
def _plain_step(name: str, func: Callable[..., Any], args: tuple[Any, ...], k: int | None) -> Step:
    if not all(isinstance(item, int | tuple) for item in args):
        raise TypeError("not told by numbers alone")
    func = torch.Tensor.reshape if name == "view" else func

    def apply(t: Tensor) -> Tensor:
        moved = func(t, *args)
        return moved if k is None else moved[k]

    return Step((name, k, _key(args), ()), apply, is_shared=True)


def strided_step(op: Operation) -> Step:
    """The move that ``as_strided`` made: strides count in memory, which numbers are not laid out in."""
    x, size, stride = op.tensors[0], tuple(op.argument(1, "size")), tuple(op.argument(2, "stride"))
    given = op.argument(3, "storage_offset")
    offset = 0 if given is None else given - x.storage_offset()
    layout = (tuple(x.shape), tuple(x.stride()), size, stride, offset)

    def apply(t: Tensor) -> Tensor:
        return t.reshape(-1)[_strided_entries(*layout).to(t.device)]

    return Step(("as_strided", *layout), apply)


def _strided_entries(shape: Sizes, stride: Sizes, new_shape: Sizes, new_stride: Sizes, offset: int) -> Tensor:
    """Which entry of a tensor of ``shape`` and ``stride`` each entry of a view with new ones is."""
    reach = [sum((n - 1) * step for n, step in zip(*pair, strict=True))
             for pair in ((shape, stride), (new_shape, new_stride))]  # fmt: skip
    memory = torch.full((max(reach[0], reach[1] + offset) + 1,), -1, device="cpu")
    memory.as_strided(shape, stride).copy_(torch.arange(math.prod(shape), device="cpu").view(shape))
    entries = memory.as_strided(new_shape, new_stride, offset)
    if offset < 0 or bool((entries < 0).any()):
        raise ValueError("as_strided reads memory beside the tensor it is given")
    return entries


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
