"""Products: with a constant they are linear; of two live tensors, half goes to each or all to one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captum_norm.linear.frozen import Frozen, rule
from captum_norm.linear.rules.activations import bent_form, common_root
from captum_norm.linear.rules.operands import is_lazy, operands_of, same, swapping
from captum_norm.linear.run import FrozenRun
from captum_norm.operations.formats import INT8_PRODUCTS, QUANTISED_MAPS, ROUNDINGS, as_applied, is_plain
from captum_norm.operations.operation import Operation
from captum_norm.operations.precision import tolerance


@rule("mul")
def _mul(run: FrozenRun, op: Operation) -> Frozen:
    operands = operands_of(run, op)
    twice = len(operands) == 1 and len(op.tensors) > 1 and op.tensors[0] is op.tensors[1]
    root, bent = common_root(run, op, operands)
    if root is not None and (twice or bent or len(operands) > 1):
        return bent_form(run, op, root)
    if len(operands) > 1 or twice:
        return _product(run, op)

    def apply(one: Tensor, x: Tensor) -> Any:
        return op.again(swapping(operands, (x,), same))

    return Frozen(apply, operands, lazy=is_lazy(run, op, operands), root=root)


@rule("div")
def _div(run: FrozenRun, op: Operation) -> Any:
    """Whatever divides is a constant."""
    x = op.args[0]
    if not isinstance(x, Tensor) or not run.is_live(x) or op.kwargs.get("rounding_mode"):
        return op.again(same)
    root, bent = run.root_of(x)
    scalar = not isinstance(op.args[1], Tensor) or op.args[1].ndim == 0
    divisor = op.args[1].detach() if isinstance(op.args[1], Tensor) else op.args[1]

    def apply(one: Tensor, x: Tensor) -> Any:
        return x / divisor

    return Frozen(apply, (x,), lazy=run.only_value(x), root=root if scalar else None, bent=bent and scalar)


def _product(run: FrozenRun, op: Operation) -> Frozen:
    """A product of two live tensors."""
    a, b = op.tensors[:2]
    bent = [run.root_of(tensor)[1] for tensor in (a, b)]
    if run.conventions.product == "gate" and bent[0] != bent[1]:
        gate, x = (a, b) if bent[0] else (b, a)

        def gated(one: Tensor, x: Tensor) -> Tensor:
            return x * gate.detach()

        return Frozen(gated, (x,))
    return _halves(run, op, a, b)


def _halves(run: FrozenRun, op: Operation, a: Tensor, b: Tensor, lazy: bool = False) -> Frozen:
    """Half of a bilinear operation to each of its two live operands."""
    values = a.detach(), b.detach()

    def apply(one: Tensor, x: Tensor, y: Tensor) -> Any:
        left, right = list(op.args), list(op.args)
        first, second = (next(_positions_of(op.args, t, k)) for k, t in ((0, a), (int(a is b), b)))
        for args, one_of, other in ((left, x, values[1]), (right, values[0], y)):
            _set_argument(args, first, one_of)
            _set_argument(args, second, other)
        return 0.5 * (op.again(lambda t: t, left) + op.again(lambda t: t, right))

    return Frozen(apply, (a, b), lazy=lazy)


def _positions_of(args: tuple[Any, ...], tensor: Tensor, skip: int) -> Iterator[tuple[int, ...]]:
    """Where a tensor stands among the arguments: (index,) or (index, index in a list)."""
    positions: list[tuple[int, ...]] = [(i,) for i, value in enumerate(args) if value is tensor]
    positions += [
        (i, j) for i, v in enumerate(args) if isinstance(v, list | tuple) for j, item in enumerate(v) if item is tensor
    ]
    yield positions[skip]


def _set_argument(args: list[Any], place: tuple[int, ...], value: Any) -> None:
    if len(place) == 1:
        args[place[0]] = value
    else:
        args[place[0]] = [*args[place[0]][: place[1]], value, *args[place[0]][place[1] + 1 :]]


@rule("linear")
def _affine(run: FrozenRun, op: Operation) -> Any:
    x, weight, bias = op.args[0], op.argument(1, "weight"), op.argument(2, "bias")
    if not run.is_live(x) or run.is_live(weight):
        return _products(run, op)
    if not is_plain(weight):
        return _in_own_format(run, op, as_applied(lambda t: op.func(t, weight), x.detach())[0], bias)
    W = weight.detach()

    def apply(one: Tensor, x: Tensor) -> Any:
        return op.func(x, W, None if bias is None else bias.detach() * one.to(bias.dtype))

    return Frozen(apply, (x,), has_constant=bias is not None, lazy=run.lazy_maps)


@rule(*QUANTISED_MAPS)
def _quantised(run: FrozenRun, op: Operation) -> Any:
    x = op.args[0]
    if not run.is_live(x):
        return op.again(same)
    W, bias = as_applied(lambda t: op.func(t, *op.args[1:], **op.kwargs), x.detach())
    return _in_own_format(run, op, W, bias)


@rule(*ROUNDINGS, *INT8_PRODUCTS)
def _rounding(run: FrozenRun, op: Operation) -> Any:
    raise run.refusal(op, "it rounds what is multiplied; dequantise the model, or quantise weights only")


def _in_own_format(run: FrozenRun, op: Operation, W: Tensor, bias: Tensor | None) -> Frozen:
    """x W + b, where that is what a weight in a format of its own makes of x, but for rounding of the products.

    Raises:
        NotFrozenError: where the format rounds x, too, so that no linear map gives the model's own numbers.
    """
    x = op.args[0].detach()
    with torch.no_grad():
        actual = op.again(same)
        linear = x @ W + (0 if bias is None else bias)
        error = float((linear - actual).abs().max() / actual.abs().max().clamp_min(torch.finfo(x.dtype).tiny))
    if error > tolerance("contributions", x.dtype):
        raise run.refusal(
            op,
            f"its weight is in a number format that rounds what it multiplies, too, which changes the result by "
            f"{error:.0e} of its size; dequantise the model, or quantise weights only",
        )

    def apply(one: Tensor, x: Tensor) -> Any:
        return x @ W if bias is None else x @ W + bias.detach() * one.to(bias.dtype)

    return Frozen(apply, (op.args[0],), has_constant=bias is not None, lazy=run.lazy_maps)


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(run: FrozenRun, op: Operation) -> Any:
    x, bias = op.args[0], op.argument(2, "bias")

    def apply(one: Tensor, x: Tensor) -> Any:
        if bias is None:
            return op.again(swapping((op.args[0],), (x,), same))
        return op.again(swapping((op.args[0], bias), (x, bias.detach() * one.to(bias.dtype)), same))

    return Frozen(apply, (x,), has_constant=bias is not None)


@rule("addmm", "baddbmm", "addbmm", "addmv")
def _added_product(run: FrozenRun, op: Operation) -> Any:
    added, a, b = (
        op.args[0],
        op.argument(1, "mat1", op.kwargs.get("batch1")),
        op.argument(2, "mat2", op.kwargs.get("batch2")),
    )
    operands = operands_of(run, op)
    factors = [t for t in (a, b) if run.is_live(t)]

    def apply(one: Tensor, *xs: Tensor) -> Any:
        known = {id(t): x for t, x in zip(operands, xs, strict=True)}
        bias = known.get(id(added), added.detach() * one.to(added.dtype))
        kwargs = {key: value for key, value in op.kwargs.items() if key in ("beta", "alpha")}
        if len(factors) < 2:
            return op.func(bias, known.get(id(a), a.detach()), known.get(id(b), b.detach()), **kwargs)
        first = op.func(bias, known[id(a)] * 0.5, b.detach(), **kwargs)
        return op.func(first, a.detach() * 0.5, known[id(b)], **{**kwargs, "beta": 1})

    return Frozen(apply, operands, has_constant=not run.is_live(added), lazy=len(factors) > 1)


@rule("matmul", "rmatmul", "einsum", "mv", "dot", "outer", "grouped_mm", "_grouped_mm", "tensordot", "kron")
def _products(run: FrozenRun, op: Operation) -> Any:
    """A product with a constant is linear; of two live tensors (queries and keys) half goes to each."""
    operands = operands_of(run, op)
    if len(operands) > 2:
        raise run.refusal(op, f"it multiplies {len(operands)} tensors that all depend on the inputs")
    if len(operands) == 2:
        return _halves(run, op, *operands, lazy=True)
    if sum(tensor is operands[0] for tensor in op.tensors) > 1:
        return _halves(run, op, operands[0], operands[0], lazy=True)
    other = next((t for t in op.tensors if t is not operands[0]), None)

    def apply(one: Tensor, x: Tensor) -> Any:
        return op.again(swapping(operands, (x,), same))

    # A product with something that is no parameter mixes: attention weights meet values.
    mixes = other is not None and not isinstance(other, torch.nn.Parameter) and other.ndim > 2
    return Frozen(apply, operands, mixes=mixes)


@rule("bilinear")
def _bilinear(run: FrozenRun, op: Operation) -> Any:
    raise run.refusal(op, "a bilinear layer multiplies its two inputs")
