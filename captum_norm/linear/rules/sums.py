"""Operations that add, or put side by side: whatever is constant in them is a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_norm.linear.frozen import Frozen, rule
from captum_norm.linear.rules.activations import bent_form, common_root
from captum_norm.linear.rules.operands import is_lazy, operands_of, scaled_by, scaled_number, swapping
from captum_norm.linear.run import FrozenRun
from captum_norm.operations.kinds import OperationKind
from captum_norm.operations.operation import Operation


@rule(
    OperationKind.JOIN, "where", "setitem", "copy", "index_add", "index_copy", "index_put", "scatter", "scatter_add",
    "masked_scatter", "complex",
)  # fmt: skip
def _sum(run: FrozenRun, op: Operation) -> Frozen:
    """Linear in all live operands together; constant operands are biases."""
    operands = operands_of(run, op)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        scale = scaled_by(one, op)
        args = op.args
        if op.name == "where" and len(args) > 2:
            args = (args[0], *(scaled_number(value, one) for value in args[1:]))
        return op.again(swapping(operands, xs, scale), args)

    return Frozen(apply, operands, has_constant=True, lazy=is_lazy(run, op, operands))


@rule("masked_fill")
def _masked_fill(run: FrozenRun, op: Operation) -> Any:
    operands = operands_of(run, op)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        value = op.argument(2, "value")
        value = value.detach() * one.to(value.dtype) if isinstance(value, Tensor) else scaled_number(value, one)
        x, mask = op.args[0], op.argument(1, "mask")
        x = xs[0] if run.is_live(x) else x.detach() * one
        return torch.where(mask, value.to(x.dtype) if isinstance(value, Tensor) else value, x)

    return Frozen(apply, operands, has_constant=True, lazy=is_lazy(run, op, operands))


@rule("add", "sub", "rsub", "radd")
def _add(run: FrozenRun, op: Operation) -> Frozen:
    operands = operands_of(run, op)
    root, bent = common_root(run, op, operands)
    if bent and root is not None:  # a sum within an activation that is written out: 1 + tanh(...)
        return bent_form(run, op, root)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        args = (*(scaled_number(value, one) for value in op.args[:2]), *op.args[2:])
        return op.again(swapping(operands, xs, scaled_by(one, op)), args)

    constant = len(operands) < 2
    return Frozen(apply, operands, has_constant=constant, lazy=is_lazy(run, op, operands), root=root)
