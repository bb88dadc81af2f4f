"""What holds of the entries of a tensor, asked where that costs least."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def all_true(mask: Tensor, axis: int | None = None) -> Tensor:
    """``mask.all(axis)`` of a bool tensor: as numbers of one byte its entries take a tenth of the time on a CPU.

    Example:
        >>> all_true(torch.tensor([[True, True], [True, False]]), -1)
        tensor([ True, False])
    """
    if not mask.numel():
        return mask.all() if axis is None else mask.all(axis)
    numbers = mask.view(torch.uint8)
    return (numbers.amin() if axis is None else numbers.amin(axis)).view(torch.bool)


def any_true(mask: Tensor, axis: int | None = None) -> Tensor:
    """``mask.any(axis)``, likewise.

    Example:
        >>> any_true(torch.tensor([[False, True], [False, False]]), -1)
        tensor([ True, False])
    """
    if not mask.numel():
        return mask.any() if axis is None else mask.any(axis)
    numbers = mask.view(torch.uint8)
    return (numbers.amax() if axis is None else numbers.amax(axis)).view(torch.bool)


def without_repeats(tensor: Tensor) -> Tensor:
    """A view with one entry along each axis along which memory has one, as behind ``expand``; it broadcasts back.

    Example:
        >>> without_repeats(torch.arange(3).expand(4, 5, 3)).shape
        torch.Size([1, 1, 3])
    """
    for axis, stride in enumerate(tensor.stride()):
        if not stride and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def varies_along(tensor: Tensor, axes: Sequence[int]) -> bool:
    """Whether entries differ along any of these axes.

    Example:
        >>> varies_along(torch.tensor([[1, 1], [2, 2]]), (0,)), varies_along(torch.tensor([[1, 1], [2, 2]]), (1,))
        (True, False)
    """
    if not tensor.numel():
        return False
    return any(
        tensor.stride(axis) and not torch.equal(tensor, tensor.narrow(axis, 0, 1).expand_as(tensor)) for axis in axes
    )
