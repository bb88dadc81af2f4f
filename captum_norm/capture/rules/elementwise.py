"""Elementwise and all other operations: what is still known of their results."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.columns import UNKNOWN_COLUMNS, Columns
from captum_norm.capture.dataflow import RULES, Dataflow, rule
from captum_norm.capture.rules.alike import Operands, broadcasts, place_after, told_after
from captum_norm.capture.traces import Mixed, Projection, SoftmaxPart, Trace
from captum_norm.operations.kinds import OperationKind, Property, names_of, names_with
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import broadcast
from captum_norm.operations.steps import Step

RULES.pass_over(OperationKind.QUESTION, OperationKind.EXIT, OperationKind.SETTING, OperationKind.COMPOSITE)
# Whatever is written there later is another sequence (BART's shifted ids).
RULES.pass_over(OperationKind.FRESH, OperationKind.FILLED)

_IDENTITIES = names_of(OperationKind.IDENTITY)
# Linear in one operand while the others are held fixed.
_SCALES = names_of(OperationKind.SCALE, OperationKind.CHOICE)
_SHUFFLES = names_with(Property.SHUFFLES)
_ON_WEIGHTS = names_with(Property.KEEPS_WEIGHTS) | _IDENTITIES


@rule(OperationKind.DROPOUT)
def _dropout(flow: Dataflow, op: Operation) -> None:
    x = op.tensors[0]
    if op.drops_out:
        flow.drops_out(op.argument(1, "p", 0.5))
    trace = flow.traces[x]
    if trace is None or op.out is x:
        return
    flow.traces[op.out] = trace._replace(mixed=(), projection=None) if op.drops_out else trace


@RULES.any_other
@rule(
    OperationKind.IDENTITY, OperationKind.CHOICE, OperationKind.COMBINATION, OperationKind.ACTIVATION,
    OperationKind.FUNCTION, "mul", "rsub", "radd", "embedding_bag", "group_norm", "batch_norm", "normalize",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "addbmm", "addmv", "bilinear", "dot", "kron", "mv", "outer",
)  # fmt: skip
def carry(flow: Dataflow, op: Operation) -> None:
    """What an operation without a step of its own keeps of what is known of its operands."""
    operands = [(tensor, trace) for tensor in op.tensors if (trace := flow.traces[tensor]) is not None]
    if not operands or (op.name in _IDENTITIES and op.out is op.args[0]):
        return
    name = base_name(op.name)
    if not any(trace.in_attention for _, trace in operands):  # most operations of a model
        for out in op.outputs:
            place = place_after(flow, op, name, operands, out)
            flow.traces[out] = Trace(place=place, scores=_still_scores(flow, op, operands, out))
        return
    reading = [mixed.mixture for _, trace in operands for mixed in trace.mixed]
    if name in _IDENTITIES:  # x.type_as(other) is x
        operands = [(tensor, trace) for tensor, trace in operands if tensor is op.tensors[0]]
    for out in op.outputs:
        flow.traces[out] = Trace(
            weights=_still_weights(flow, op, name, operands, out),
            mixed=_scaled(flow, op, name, operands, out),
            projection=_still_projection(op, name, operands, out),
            place=place_after(flow, op, name, operands, out),
            softmax_part=_softmax_part(name, operands, out),
            scores=_still_scores(flow, op, operands, out),
        )
        _still_allowed(flow, op, name, operands, out)
        if reading and not (flow.traces[out] or Trace()).in_attention:
            flow.lose(reading)


def _still_weights(
    flow: Dataflow, op: Operation, name: str, operands: Operands, out: Tensor
) -> Columns | None:
    """Whatever is done to weights entry by entry, it makes what then multiplies the values."""
    weights = [(tensor, trace.weights) for tensor, trace in operands if trace.weights is not None]
    if not weights or not out.is_floating_point() or any(t.mixed or t.projection for _, t in operands):
        return None  # a gate on mixed values may be a softmax, too
    for tensor, columns in weights:
        if tensor.shape == out.shape:
            if name in _SHUFFLES:
                return UNKNOWN_COLUMNS
            return _after_masks(flow, op, name, tensor, columns)
    for tensor, columns in weights:  # one map of weights, scaled for each head
        if broadcasts(tensor.shape, out.shape) and tensor.shape[-1] == out.shape[-1] and columns.axis is not None:
            return columns.then(broadcast(out.shape))
    return None


def _still_scores(flow: Dataflow, op: Operation, operands: Operands, out: Tensor) -> Columns | None:
    """Scaled, masked or biased scores have the keys where they had them."""
    for tensor, trace in operands:
        if trace.scores is not None and tensor.shape == out.shape:
            return told_after(flow, op, tensor, trace.scores)
    return None


def _still_allowed(flow: Dataflow, op: Operation, name: str, operands: Operands, out: Tensor) -> None:
    """What a softmax written by hand allows, masked or not between its exponentials and their sum."""
    for tensor, trace in operands:
        columns = flow.exponentials[tensor] if trace.softmax_part and tensor.shape == out.shape else None
        if columns is not None:
            flow.exponentials[out] = _after_masks(flow, op, name, tensor, columns)


def _after_masks(flow: Dataflow, op: Operation, name: str, x: Tensor, columns: Columns) -> Columns:
    """The columns of weights x after an operation that may be a mask, or a pattern that the model holds."""
    columns = told_after(flow, op, x, columns)
    if any(flow.is_held(other) for other in op.tensors if other is not x):
        return columns.after_a_pattern()
    return columns.after_a_mask() if _masks(flow, op, name, x) else columns


def _masks(flow: Dataflow, op: Operation, name: str, x: Tensor) -> bool:
    """Whether zeros are put into x, or it is multiplied by a mask of zeros and ones, that is not made of x itself."""
    if flow.masks.hides_by_size(op):
        return False
    others = [tensor for tensor in op.tensors if tensor is not x]
    if name in ("masked_fill", "where"):
        return _is_linear_in(op, name, x)
    if name != "mul" or len(others) != 1 or others[0].ndim < 2:
        return False
    return others[0].dtype is torch.bool or bool(((others[0] == 0) | (others[0] == 1)).all())


def _softmax_part(name: str, operands: Operands, out: Tensor) -> SoftmaxPart:
    apart = [trace for _, trace in operands if trace.scores is not None or trace.softmax_part == "exponential"]
    if any(trace.scores is not None for trace in apart) and not any(trace.is_numerator for trace in apart):
        return ""  # scores times a decay that is an exponential of something else
    for tensor, trace in operands if name in _ON_WEIGHTS else ():
        if trace.softmax_part and tensor.shape == out.shape:
            return trace.softmax_part
        is_spread = name == "mul" and tensor.ndim >= 4 and tensor.shape[-1] == 1 < out.shape[-1]
        if is_spread and (trace.weights is not None or trace.is_numerator):
            return "spread weights"
    made = any(trace.is_numerator and tensor.shape == out.shape for tensor, trace in operands)
    return "numerator" if made and out.is_floating_point() else ""


def _scaled(flow: Dataflow, op: Operation, name: str, operands: Operands, out: Tensor) -> tuple[Mixed, ...]:
    mixed = [(tensor, trace) for tensor, trace in operands if trace.mixed]
    if len(mixed) != 1 or mixed[0][0].shape != out.shape:
        return ()
    tensor, trace = mixed[0]
    if name in _IDENTITIES:
        return trace.mixed
    if name not in _SCALES or not _is_linear_in(op, name, tensor):
        return ()
    args = [_frozen(value) for value in op.args]
    position = next((i for i, value in enumerate(op.args) if value is tensor), None)
    if position is None:
        return ()

    def apply(t: Tensor) -> Tensor:
        return op.func(*(t if i == position else value for i, value in enumerate(args)), **op.kwargs)

    return tuple(Mixed(m.mixture, (*m.steps, Step((name, object()), apply, True))) for m in trace.mixed)


def _frozen(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _is_linear_in(op: Operation, name: str, tensor: Tensor) -> bool:
    """Whether the operation scales ``tensor`` and adds nothing."""
    if name == "div":
        return op.args[0] is tensor and op.kwargs.get("rounding_mode") is None
    if name == "masked_fill":
        return op.args[0] is tensor and not torch.as_tensor(op.argument(2, "value")).any()
    if name == "where":
        others = [value for value in op.args[1:] if value is not tensor]
        return len(others) == 1 and not torch.as_tensor(others[0]).any()
    return True


def _still_projection(op: Operation, name: str, operands: Operands, out: Tensor) -> Projection | None:
    """A branch of W_O stays one under identities and products with a number or one number per feature."""
    branches = [(tensor, trace.projection) for tensor, trace in operands if trace.projection is not None]
    if len(branches) != 1 or branches[0][0].shape != out.shape:
        return None
    tensor, projection = branches[0]
    if projection is None or name in _IDENTITIES:
        return projection
    if name not in ("mul", "div") or (name == "div" and op.args[0] is not tensor):
        return None
    factor = next((value for value in op.args[:2] if value is not tensor), None)
    if isinstance(factor, Tensor):
        if math.prod(factor.shape[:-1]) != 1:
            return None
        factor = factor.detach().reshape(-1) if factor.ndim else factor.detach()
    if factor is None:
        return None
    divide = name == "div"
    return projection.times(lambda matrix: matrix / factor if divide else matrix * factor)
