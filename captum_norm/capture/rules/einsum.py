"""``einsum`` is a value product, an output projection or neither, as its letters say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.columns import Columns, is_constant_along
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.rules.alike import place_of
from captum_norm.capture.rules.products import (
    after_product,
    numerators_meet,
    scores_of_product,
    unread_product,
    value_product,
)
from captum_norm.capture.rules.weights import is_weights, mixes_values
from captum_norm.capture.traces import Trace
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import Features
from captum_norm.operations.steps import Step


@rule("einsum")
def _einsum(flow: Dataflow, op: Operation) -> None:
    parsed = _parse_einsum(op)
    if parsed is None:
        return
    operands, letters, res = parsed
    if numerators_meet(flow, op, lambda n, axis: axis is not None and letters[n][axis] in res):
        return
    if len(operands) == 2:
        _product(flow, op, operands, letters, res)
    elif len(operands) > 2:
        _of_three(flow, op, operands, letters, res)


@rule("tensordot")
def _tensordot(flow: Dataflow, op: Operation) -> None:
    """As an einsum: the axes named in ``dims`` have one letter in both operands and are summed."""
    if numerators_meet(flow, op):
        return
    left, right = op.tensors[:2]
    dims = op.argument(2, "dims", 2)
    if isinstance(dims, int):
        dims = range(left.ndim - dims, left.ndim), range(dims)
    if not isinstance(dims, list | tuple) or any(isinstance(axes, Tensor) for axes in dims):
        return
    ours, theirs = ([axis % x.ndim for axis in ([axes] if isinstance(axes, int) else axes)]
                    for axes, x in zip(dims, (left, right), strict=True))  # fmt: skip
    lhs = ascii_lowercase[: left.ndim]
    rhs = list(ascii_uppercase[: right.ndim])
    for our, their in zip(ours, theirs, strict=True):
        rhs[their] = lhs[our]
    res = "".join(c for c in (*lhs, *rhs) if (c in lhs) != (c in rhs))
    _product(flow, op, (left, right), (lhs, "".join(rhs)), res)


def _product(
    flow: Dataflow, op: Operation, operands: Sequence[Tensor], letters: Sequence[str], res: str
) -> None:
    (left, right), (lhs, rhs) = operands, letters
    if is_weights(flow, right) and not is_weights(flow, left):
        left, right, lhs, rhs = right, left, rhs, lhs
    if is_weights(flow, left):
        _einsum_on_weights(flow, left, right, lhs, rhs, res, op.out)
        return
    trace = flow.traces[left]
    if trace is None or not (trace.mixed or trace.projection):
        other = flow.traces[right]
        if other is not None and (other.mixed or other.projection):
            left, right, lhs, rhs, trace = right, left, rhs, lhs, other
    if trace is not None and (trace.mixed or trace.projection):
        _einsum_projection(flow, trace, left, right, lhs, rhs, res, op.out)
        return
    if place_of(flow, left) is None and not flow.is_moved(left, right):
        left, right, lhs, rhs = right, left, rhs, lhs
    start = place_of(flow, left)
    if start is not None:
        place = start.then(_einsum_place(lhs, res, op.out))
        if flow.is_moved(right, left):
            beside = None if _may_be_scores(lhs, rhs, res, op.out) else place_of(flow, right)
            place = after_product(flow, place, beside and beside.then(_einsum_place(rhs, res, op.out)), op.out)
        flow.traces[op.out] = Trace(place=place, scores=_scores(flow, left, right, lhs, rhs, res, op.out))


def _may_be_scores(lhs: str, rhs: str, res: str, out: Tensor) -> bool:
    """Whether a query meets the one key of its window: each has an axis of its own, of one."""
    ours, theirs = (set(lhs) - set(rhs)) & set(res), (set(rhs) - set(lhs)) & set(res)
    return bool(ours and theirs) and all(out.shape[res.index(letter)] == 1 for letter in ours | theirs)


def _scores(flow: Dataflow, left: Tensor, right: Tensor, lhs: str, rhs: str, res: str, out: Tensor) -> Columns | None:
    """The keys' axis of queries times keys: a letter that the queries do not have."""
    for letter in (c for c in res if c in rhs and c not in lhs):
        found = scores_of_product(flow, left, right, rhs.index(letter), out, res.index(letter))
        if found is not None:
            return found
    return None


def _parse_einsum(op: Operation) -> tuple[list[Tensor], list[str], str] | None:
    """The operands with their letters, and those of the result; ``...`` is written out with letters of its own."""
    if not op.args:
        return None
    operands, equation = op.tensors, op.args[0]
    if not isinstance(equation, str):
        equation = _equation(op.args)
    equation = equation.replace(" ", "")
    inputs, _, res = equation.partition("->")
    letters = inputs.split(",")
    if len(letters) != len(operands):
        return None
    if "->" not in equation:  # letters that stand once, in order
        once = sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1)
        res = ("..." if "..." in inputs else "") + "".join(once)
    spare = [c for c in ascii_uppercase if c not in equation]
    pairs = list(zip(letters, operands, strict=True))
    widths = [tensor.ndim - len(s.replace("...", "")) if "..." in s else 0 for s, tensor in pairs]
    dots = spare[: max(widths)]
    letters = [s.replace("...", "".join(dots[len(dots) - n :])) for s, n in zip(letters, widths, strict=True)]
    return operands, letters, res.replace("...", "".join(dots))


def _equation(args: tuple[Any, ...]) -> str:
    """einsum(x, [0, 1], y, [1, 2], [0, 2]) as einsum("ab,bc->ac", x, y)."""

    def letters(axes: Any) -> str:
        return "".join("..." if axis is Ellipsis else (ascii_lowercase + ascii_uppercase)[axis] for axis in axes)

    axes = [letters(one) for one in args[1::2]]
    return ",".join(axes) + ("->" + letters(args[-1]) if len(args) % 2 else "")


def _of_three(flow: Dataflow, op: Operation, operands: list[Tensor], letters: list[str], res: str) -> None:
    """Weights, values and W_O at once: the mixed values that the model did not keep are computed beside it."""
    weights = [n for n, x in enumerate(operands) if is_weights(flow, x)]
    if not weights:
        return
    trace = flow.traces[operands[weights[0]]]
    column = None if trace is None or trace.weights is None else trace.weights.axis
    key = None if column is None else letters[weights[0]][column]
    others = [n for n in range(len(operands)) if n not in weights]
    values = [n for n in others if key is not None and key in letters[n]]
    if len(operands) != 3 or len(weights) != 1 or len(values) != 1:
        unread_product(flow, op, "its weights meet several tensors in one einsum; write it as products of two")
        return
    w, v = weights[0], values[0]
    o = next(n for n in others if n != v)
    kept = [c for c in dict.fromkeys(letters[w] + letters[v]) if c in res or c in letters[o]]
    if flow.differentiable:
        problem = "weights, values and W_O meet in one einsum, where no gradient of the weights is left to be taken"
        unread_product(flow, op, problem + "; write the value product by itself")
        return
    mixed = torch.einsum(f"{letters[w]},{letters[v]}->{''.join(kept)}", operands[w].detach(), operands[v].detach())
    _einsum_on_weights(flow, operands[w], operands[v], letters[w], letters[v], "".join(kept), mixed)
    trace = flow.traces[mixed]
    if trace is not None and trace.mixed:
        _einsum_projection(flow, trace, mixed, operands[o], "".join(kept), letters[o], res, op.out)


def _einsum_on_weights(
    flow: Dataflow, weights: Tensor, values: Tensor, lhs: str, rhs: str, res: str, out: Tensor
) -> None:
    summed = [c for c in lhs if c in rhs and c not in res]
    if len(summed) != 1 or not mixes_values(flow, weights, lhs.index(summed[0]), values, rhs.index(summed[0])):
        _einsum_of_weights(flow, weights, lhs, res, out)
        return
    key = summed[0]
    only_weights, only_values = [c for c in lhs if c not in rhs and c in res], [c for c in rhs if c not in lhs]
    if not only_weights or not only_values:
        return
    # Letters that only one of the two has, beyond one each, are batch axes that the other one lacks.
    query, head_dim = _letter_of_queries(flow, weights, lhs, only_weights), only_values[-1]
    shared = [c for c in res if c not in (query, head_dim)]
    turned = flow.step(weights, _letters(lhs, [*shared, query, key]))
    moved = flow.step(values, _letters(rhs, [*shared, key, head_dim]))
    steps: tuple[Step, ...] = ()
    result = [*shared, query, head_dim]
    if "".join(result) != res:
        axes = [result.index(c) for c in res]
        steps = (Step(("permute", *axes), lambda t: t.permute(axes)),)
    shape = torch.Size([out.shape[res.index(c)] for c in result])
    value_product(flow, turned, moved, out, shape, steps)


def _einsum_of_weights(flow: Dataflow, weights: Tensor, lhs: str, res: str, out: Tensor) -> None:
    """A map over heads gives weights again, unless it reads their keys."""
    trace = flow.traces[weights]
    if trace is None or trace.weights is None:
        return
    step, column = _einsum_place(lhs, res, out), trace.weights.axis
    keeps_keys = column is not None and lhs[column] in res
    place = trace.place and trace.place.then(step)
    flow.traces[out] = Trace(trace.weights.then(step) if keeps_keys else None, place=place)


def _letter_of_queries(flow: Dataflow, weights: Tensor, lhs: str, candidates: list[str]) -> str:
    """The letter along which the positions of weights vary; the last one where nobody knows."""
    trace = flow.traces[weights]
    numbers = None if len(candidates) == 1 or trace is None or trace.place is None else trace.place.numbers()
    if numbers is not None:
        varying = [c for c in candidates if not is_constant_along(numbers, lhs.index(c))]
        if len(varying) == 1:
            return varying[0]
    return candidates[-1]


def _letters(have: str, want: list[str]) -> Step:
    """Permute axes named by the letters ``have`` to ``want``; a letter that is missing becomes an axis of one."""
    axes = [have.index(c) for c in want if c in have]
    missing = [axis for axis, c in enumerate(want) if c not in have]

    def apply(t: Tensor) -> Tensor:
        t = t.permute(axes)
        for axis in missing:
            t = t.unsqueeze(axis)
        return t

    return Step(("letters", have, tuple(want)), apply)


def _einsum_projection(
    flow: Dataflow, trace: Trace, x: Tensor, W: Tensor, lhs: str, rhs: str, res: str, out: Tensor
) -> None:
    """x (..., columns) times W (columns, model): all columns at once, or head by head with the sum still to come."""
    columns = [c for c in lhs if c in rhs and c not in res]
    heads = [c for c in lhs if c in rhs and c in res]
    model = [c for c in rhs if c not in lhs]
    rows = [c for c in lhs if c not in rhs]
    if not columns or len(model) != 1 or len(heads) > 1 or (heads and not trace.mixed):
        return
    inner = heads + columns
    axes, start = [lhs.index(c) for c in rows + inner], len(rows)
    step = Step(("einsum projection", *axes, start), lambda t: t.permute(axes).flatten(start))
    flat = step.apply(x)
    matrix = W.permute([rhs.index(c) for c in inner + model]).flatten(0, -2)
    flow.traces[flat] = trace.after(step)
    if not heads:
        y = out.permute([res.index(c) for c in rows + model])
        flow.project(flat, matrix, None, y, W)
        flow.traces[out] = flow.traces[y] or Trace()
        return
    moved = flow.traces[flat]
    parts = None if moved is None else flow.projections.branch(moved.mixed, flat, matrix, None, W)
    if parts is not None:
        flow.traces[out] = Trace(projection=replace(parts, parts_axis=res.index(heads[0])))


def _einsum_place(lhs: str, res: str, out: Tensor) -> Step:
    """Positions of a general einsum: those of one operand, along the letters that survive."""
    kept = [c for c in lhs if c in res]
    lost = [lhs.index(c) for c in lhs if c not in res]
    shape = tuple(out.shape)

    def apply(numbers: Tensor) -> Tensor:
        for axis in sorted(lost, reverse=True):
            numbers = Features(1).apply(numbers.movedim(axis, -1))[..., 0]
        remaining = [c for i, c in enumerate(lhs) if i not in lost]
        numbers = numbers.permute([remaining.index(c) for c in res if c in kept])
        for axis, letter in enumerate(res):
            if letter not in kept:
                numbers = numbers.unsqueeze(axis)
        return numbers.expand(shape)

    return Step(("einsum place", lhs, res, shape), apply)
