"""What a rule does with the operands of its operation: which are live, and what stands for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_norm.linear.run import FrozenRun
from captum_norm.operations.kinds import OperationKind, Property, names_of, names_with
from captum_norm.operations.operation import Operation

# Cheap enough to be put off: what is built on a value that may never be needed in linear form.
_LIGHT = names_of(OperationKind.MOVE, OperationKind.IDENTITY) | names_with(Property.LIGHT)


def operands_of(run: FrozenRun, op: Operation) -> tuple[Tensor, ...]:
    """The live operands, each once, in order."""
    return tuple({id(tensor): tensor for tensor in op.tensors if run.is_live(tensor)}.values())


def swapping(operands: tuple[Tensor, ...], xs: tuple[Tensor, ...], other: Callable[[Tensor], Tensor]) -> Any:
    """A function from the operands to what stands for them, and from other tensors to ``other(tensor)``."""
    known = {id(tensor): x for tensor, x in zip(operands, xs, strict=True)}
    return lambda tensor: known[id(tensor)] if id(tensor) in known else other(tensor)


def same(tensor: Tensor) -> Tensor:
    """The tensor as a constant."""
    return tensor.detach()


def scaled_by(one: Tensor, op: Operation) -> Callable[[Tensor], Tensor]:
    """Floating constants times ``one``; index tensors as they are."""
    overwritten = op.args[0] if op.writes else None

    def scaled(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if tensor is not overwritten:
            return tensor.detach() * one.to(tensor.dtype)
        constant = tensor.detach().clone()
        finite = constant.isfinite()
        if bool(finite.all()):
            return constant * one.to(tensor.dtype)
        # What memory held that was never written is no bias, and nothing times NaN would be NaN.
        return torch.where(finite, constant.masked_fill(~finite, 0) * one.to(tensor.dtype), constant)

    return scaled


def is_lazy(run: FrozenRun, op: Operation, operands: tuple[Tensor, ...]) -> bool:
    """Whether the linear form of a light operation on a value only is put off, too."""
    return op.name in _LIGHT and any(run.only_value(tensor) for tensor in operands)


def scaled_number(value: Any, one: Tensor) -> Any:
    """A number times ``one``; 0 and infinities (masks) as they are."""
    if (
        isinstance(value, bool | Tensor)
        or not isinstance(value, int | float)
        or value == 0
        or abs(value) == float("inf")
    ):
        return value
    return value * one
