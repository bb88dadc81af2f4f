"""Operations that are others in one: each written out in those, for whoever has rules for these.

A gated linear unit, an interpolation, the larger of two numbers and the largest of several are no functions of their
own: what holds for their parts holds for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_norm.operations.operation import base_name


def written_out(name: str) -> Callable[..., Any] | None:
    """The function that does what an operation does by others; None for one that is not written out.

    Example:
        >>> glu, x = written_out("glu"), torch.tensor([1.0, 2.0, 0.0, 0.0])
        >>> glu(x), torch.nn.functional.glu(x)
        (tensor([0.5000, 1.0000]), tensor([0.5000, 1.0000]))
    """
    function = _WRITTEN_OUT.get(base_name(name))
    if function is None:
        return None

    def named(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{_AS_NUMPY_SAYS.get(key, key): value for key, value in kwargs.items()})

    def in_place(into: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return into.copy_(named(into, *args, **kwargs))

    return named if base_name(name) == name else in_place


def _lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return weight * (end - input) + input


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return value * (tensor1 * tensor2) + input


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return value * (tensor1 / tensor2) + input


def _vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    return ((x.conj() if x.is_complex() else x) * y).sum(dim)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    first, second = input.chunk(2, dim)
    return first * second.sigmoid()


def _maximum(input: Tensor, other: Tensor) -> Tensor:
    return torch.where(input >= other, input, other)


def _minimum(input: Tensor, other: Tensor) -> Tensor:
    return torch.where(input <= other, input, other)


def _amax(input: Tensor, dim: int | tuple[int, ...] = (), keepdim: bool = False) -> Tensor:
    return _chosen(input, dim, keepdim, torch.argmax)


def _amin(input: Tensor, dim: int | tuple[int, ...] = (), keepdim: bool = False) -> Tensor:
    return _chosen(input, dim, keepdim, torch.argmin)


def _float_power(input: Tensor, exponent: Tensor | float) -> Tensor:
    return torch.pow(input.double(), exponent)


def _var_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return input.var(*args, **kwargs), _mean_beside(input, *args, **kwargs)


def _std_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return input.std(*args, **kwargs), _mean_beside(input, *args, **kwargs)


def _mean_beside(
    input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float = 1
) -> Tensor:
    """The mean over the axes of a deviation; ``dim`` may be its ``unbiased``, by position."""
    dim = tuple(range(input.ndim)) if dim is None or isinstance(dim, bool) else dim
    return input.mean(dim, keepdim)


def _nansum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    numbers = torch.where(input.isnan(), 0.0, input)
    return numbers.sum(dtype=dtype) if dim is None else numbers.sum(dim, keepdim, dtype=dtype)


def _max(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
    return _one_of(input, dim if other is None else other, keepdim, _maximum, torch.argmax, torch.return_types.max)


def _min(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
    return _one_of(input, dim if other is None else other, keepdim, _minimum, torch.argmin, torch.return_types.min)


def _one_of(
    input: Tensor, dim: Any, keepdim: bool, of_two: Callable[..., Tensor], index_of: Callable[..., Tensor], pair: Any
) -> Any:
    """The three forms of ``max``: of two tensors, of all entries, and along an axis with the indices."""
    if isinstance(dim, Tensor):
        return of_two(input, dim)
    if dim is None:
        return _chosen(input, (), False, index_of)
    index = index_of(input, dim, True)
    values = input.gather(dim, index)
    return pair((values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim)))


def _chosen(
    input: Tensor, dim: int | tuple[int, ...], keepdim: bool, index_of: Callable[..., Tensor]
) -> Tensor:
    """The entries that are largest or smallest along some axes; along all, without any."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim) or tuple(range(input.ndim))
    dims = tuple(axis % input.ndim for axis in dims)
    for axis in dims:
        input = input.gather(axis, index_of(input, axis, True))
    for axis in sorted(dims, reverse=True) if not keepdim else ():
        input = input.squeeze(axis)
    return input


def _aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axes = () if dim is None else dim
    both = (_chosen(input, axes, keepdim, torch.argmin), _chosen(input, axes, keepdim, torch.argmax))
    return torch.return_types.aminmax(both)


def _topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return _picked(torch.topk, input, dim, k, dim, largest, sorted)


def _sort(input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> Any:
    return _picked(partial(torch.sort, dim=dim, descending=descending, stable=stable), input, dim)


def _msort(input: Tensor) -> Tensor:
    values: Tensor = _sort(input, 0, stable=True)[0]
    return values


def _kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return _picked(torch.kthvalue, input, dim, k, dim, keepdim)


def _cummax(input: Tensor, dim: int) -> Any:
    return _picked(torch.cummax, input, dim, dim)


def _cummin(input: Tensor, dim: int) -> Any:
    return _picked(torch.cummin, input, dim, dim)


def _mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    return _picked(torch.mode, input, dim, dim, keepdim)


def _median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return _middle(torch.median, input, dim, keepdim)


def _nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return _middle(torch.nanmedian, input, dim, keepdim)


def _middle(of: Callable[..., Any], input: Tensor, dim: int | None, keepdim: bool) -> Any:
    return _picked(of, input.flatten(), 0, 0)[0] if dim is None else _picked(of, input, dim, dim, keepdim)


def _picked(of: Callable[..., Any], input: Tensor, dim: int, *args: Any) -> Any:
    """What an operation picks along an axis: its indices are its own, and its values the entries at these."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        found = of(input, *args)
    reduced = found.indices.ndim < input.ndim
    values = input.gather(dim, found.indices.unsqueeze(dim) if reduced else found.indices)
    return type(found)((values.squeeze(dim) if reduced else values, found.indices))


SUMS_OF_PRODUCTS = frozenset({"addcmul", "addcdiv", "vecdot"})
"""Those of which positions, states and factors are followed through their parts: a norm with its bias, a scale."""

_AS_NUMPY_SAYS = {"axis": "dim", "keepdims": "keepdim"}
_WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "lerp": _lerp, "addcmul": _addcmul, "addcdiv": _addcdiv, "glu": _glu, "maximum": _maximum, "minimum": _minimum,
    "amax": _amax, "amin": _amin, "max": _max, "min": _min,
    "aminmax": _aminmax, "topk": _topk, "sort": _sort, "msort": _msort, "kthvalue": _kthvalue, "median": _median,
    "nanmedian": _nanmedian, "mode": _mode, "cummax": _cummax, "cummin": _cummin,
    "vecdot": _vecdot, "nansum": _nansum, "var_mean": _var_mean, "std_mean": _std_mean, "float_power": _float_power,
}  # fmt: skip
