"""Operations that move entries, keep them, or combine entries of one tensor linearly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_norm.linear.frozen import RULES, Frozen, rule
from captum_norm.linear.rules.operands import is_lazy, operands_of, same, swapping
from captum_norm.linear.run import FrozenRun
from captum_norm.operations.kinds import OperationKind, Property, names_of, names_with
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.steps import strided_step

RULES.pass_over(OperationKind.QUESTION, OperationKind.SETTING, OperationKind.FRESH)

_MOVES = names_of(OperationKind.MOVE)
_LIKE = names_with(Property.LIKE)


@rule(OperationKind.MOVE, OperationKind.REDUCTION, OperationKind.COMBINATION, "zero")
def _linear(run: FrozenRun, op: Operation) -> Any:
    operands, moves = operands_of(run, op), base_name(op.name) in _MOVES
    if op.name in _LIKE and not run.is_live(op.args[0]):  # an index.expand_as(live)
        return op.again(same)
    if moves and op.in_place:
        return run.moved_in_place(op)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        return op.again(swapping(operands, xs, same))

    return Frozen(apply, operands, lazy=is_lazy(run, op, operands), moves=moves)


@rule("as_strided")
def _as_strided(run: FrozenRun, op: Operation) -> Frozen:
    """Strides count in memory, which what stands for a tensor is not laid out in."""
    operands, step = operands_of(run, op), strided_step(op)
    return Frozen(lambda one, x: step.apply(x), operands, lazy=is_lazy(run, op, operands), moves=True)


@rule(OperationKind.EXIT)
def _leaves_sight(run: FrozenRun, op: Operation) -> Any:
    if not op.tensors[0].is_floating_point() and not op.tensors[0].is_complex():  # a count, a choice
        return op.func(*op.args, **op.kwargs)
    raise run.refusal(op, "its numbers go on out of sight; write what is computed of them in torch operations")


@rule(OperationKind.FILLED)
def _filled(run: FrozenRun, op: Operation) -> Any:
    if any(map(run.is_live, op.tensors[1:])):
        raise run.refusal(op, "its numbers go on as a constant; expand them instead")
    return op.func(*op.args, **op.kwargs)


@rule("data_")
def _another_tensor(run: FrozenRun, op: Operation) -> Any:
    raise run.refusal(op, "it puts another tensor in the place of one; give that one on instead")


@rule(OperationKind.IDENTITY)
def _identity(run: FrozenRun, op: Operation) -> Any:
    """Another number format, or nothing: ``detach`` keeps what is followed."""
    x = op.args[0]
    if not run.is_live(x):  # x.type_as(live)
        return op.again(same)
    with torch.no_grad():
        value = op.again(same) if len(op.args) > 1 or op.kwargs else x
    if not (value.is_floating_point() or value.is_complex()):  # integers, which may choose or come back as numbers
        return value
    dtype = next((t.dtype for t in op.tensors[1:]), None) if op.name in ("to", "type_as") else None

    def apply(one: Tensor, x: Tensor) -> Tensor:
        if base_name(op.name) in ("detach", "data", "requires_grad", "alias"):
            return x.view_as(x)
        if dtype is not None:
            return x.to(dtype)
        return op.again(lambda tensor: x)

    root, bent = run.root_of(x)
    return Frozen(apply, (x,), lazy=run.only_value(x), root=root, bent=bent, moves=True)


@rule(OperationKind.DROPOUT)
def _dropout(run: FrozenRun, op: Operation) -> Frozen:
    x = op.args[0]
    if not op.drops_out:
        root, bent = run.root_of(x)
        return Frozen(lambda one, x: x.view_as(x), (x,), lazy=run.only_value(x), root=root, bent=bent, moves=True)
    with torch.no_grad():
        kept = op.func(torch.ones_like(x), *op.args[1:], **{k: v for k, v in op.kwargs.items() if k != "inplace"})
    return Frozen(lambda one, x: x * kept, (x,))


@rule(OperationKind.COMPOSITE, "embedding_bag")
def _own(run: FrozenRun, op: Operation) -> Any:
    return op.again(same)


@rule("embedding")
def _embedding(run: FrozenRun, op: Operation) -> Any:
    if run.is_live(op.argument(1, "weight")):
        return _linear(run, op)
    return op.again(same)
