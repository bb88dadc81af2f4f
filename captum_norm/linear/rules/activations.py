"""Activations: a line for each entry, however the function is written.

A function of one live tensor entry by entry is followed back to that tensor, its *root*, through products and sums with
itself: gelu written out as 0.5 x (1 + tanh(...)) is one function of x, and its line one factor of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_norm.linear.frozen import Frozen, rule
from captum_norm.linear.fused import Line
from captum_norm.linear.rules.operands import same
from captum_norm.linear.run import FrozenRun
from captum_norm.operations.kinds import OperationKind, Property, names_with
from captum_norm.operations.operation import Operation, base_name

# Functions entry by entry, which are none of the usual activations, and which may be one.
_THROUGH_THE_ORIGIN = ("sin", "tan", "sinh", "atan", "erf", "expm1", "log1p", "round", "trunc", "floor", "ceil")
_A_LINE_FAR_FROM_IT = ("logsigmoid", "log_sigmoid")

# ReLU's line does not stand for these.
_SATURATING = names_with(Property.SATURATES) | frozenset((*_THROUGH_THE_ORIGIN, *_A_LINE_FAR_FROM_IT))


@rule(OperationKind.ACTIVATION, *_THROUGH_THE_ORIGIN, *_A_LINE_FAR_FROM_IT)
def _activation(run: FrozenRun, op: Operation) -> Any:
    x = op.args[0]
    if not isinstance(x, Tensor) or not run.is_live(x) or _is_a_root(op):
        return op.again(same)
    root, _ = run.root_of(x)
    return bent_form(run, op, x if root is None or root.shape != x.shape else root)


def _is_a_root(op: Operation) -> bool:
    """Whether it is a power as what divides a norm is, such as x ** -0.5: held fixed, as ``rsqrt`` is."""
    exponent = op.argument(1, "exponent") if base_name(op.name) == "pow" else None
    return exponent is not None and not isinstance(exponent, Tensor) and exponent < 1


def bent_form(run: FrozenRun, op: Operation, root: Tensor) -> Frozen:
    """A function of ``root`` entry by entry: a line for each entry."""
    with torch.no_grad():
        value = op.again(same)
    if value.shape != root.shape:
        raise run.refusal(op, "its result has another shape than what it is a function of")
    value = value.clone() if any(value.data_ptr() == t.data_ptr() for t in op.tensors) else value
    bent = value.detach()  # shares memory: what is done to the value in place is part of the function
    line = run.conventions.activation
    line = "ZO" if line == "ReLU" and base_name(op.name) in _SATURATING else line
    tangent = run.tangent_of(op, root, value) if line == "LA" else None

    def apply(one: Tensor, x: Tensor) -> Tensor:
        z, y = root.detach(), bent
        if line == "ZO":
            slope = torch.where(z == 0, 0, y.to(z.dtype) / z)
            if run.fused and y.dtype is z.dtype:
                return Line.apply(x, slope, y)  # type: ignore[no-untyped-call]
            return (x * slope).to(y.dtype)  # the root may be in a wider format than what was made of it
        slope = (z > 0).to(z.dtype) if tangent is None else tangent()
        return (x * slope + (y - z * slope) * one.to(z.dtype)).to(y.dtype)

    return Frozen(apply, (root,), line != "ZO", lazy=True, value=value, root=root, bent=True)


@rule("prelu")
def _prelu(run: FrozenRun, op: Operation) -> Frozen:
    return bent_form(run, op, op.args[0])


def common_root(run: FrozenRun, op: Operation, operands: tuple[Tensor, ...]) -> tuple[Tensor | None, bool]:
    """The live tensor of which all operands are functions entry by entry, and whether one of these is not linear."""
    found = [run.root_of(tensor) for tensor in operands]
    roots = {id(root) for root, _ in found}
    root = found[0][0]
    tensors = [t for t in op.tensors if not any(t is operand for operand in operands)]
    if len(roots) > 1 or root is None or any(t.ndim for t in tensors) or any(t.shape != root.shape for t in operands):
        return None, False
    bent = any(is_bent for _, is_bent in found)
    if not bent and len(operands) == 1 and op.name in ("add", "sub", "rsub"):
        return None, False  # x + 1: a bias
    return root, bent
