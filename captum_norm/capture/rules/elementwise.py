"""Elementwise and all other operations: what is still known of their results."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.dataflow import ANY_OTHER, RULES, Dataflow, base_name, rule
from captum_norm.capture.layout import Step
from captum_norm.capture.operations import Operation
from captum_norm.capture.places import Place, broadcast
from captum_norm.capture.traces import Mixed, Projection, SoftmaxPart, Trace

# Questions about a tensor, not operations on it.
_QUESTIONS = (
    "shape dtype device layout ndim requires_grad is_leaf grad grad_fn is_cuda is_cpu is_meta is_sparse "
    "is_quantized is_nested is_mps is_xla is_mkldnn size dim stride numel data_ptr storage untyped_storage "
    "storage_offset itemsize nbytes names is_contiguous is_floating_point is_complex is_inference element_size "
    "get_device __len__ __bool__ __hash__ __repr__ __format__ item tolist numpy all any equal allclose eq ne lt gt "
    "le ge is_same_size _version register_hook backward retain_grad finfo iinfo set_ is_conj is_neg"
).split()
RULES.update(dict.fromkeys(_QUESTIONS))
# New numbers in the shape of old ones: whatever is then written into them is another sequence (BART's shifted ids).
_FRESH = (
    "new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like randn_like "
    "randint_like"
)
RULES.update(dict.fromkeys(_FRESH.split()))

# Returns the same numbers, or the same up to the number format.
IDENTITIES = frozenset(
    (
        "to type type_as float half bfloat16 double clone detach alias nan_to_num requires_grad_ cuda cpu data "
        "_to_copy view_dtype positive"
    ).split()
)
# Linear in one operand while the others are held fixed.
SCALES = frozenset(("mul", "div", "masked_fill", "where"))
# Elementwise on attention weights: what comes out is what multiplies the values.
_ON_WEIGHTS = frozenset(("mul div masked_fill where clamp dropout alpha_dropout setitem add sub relu").split())
# Same shape in and out, but positions change places in a way we do not follow.
_SHUFFLES = frozenset(
    (
        "sort argsort gather take take_along_dim scatter scatter_add index_add index_copy cumsum cumprod flipud "
        "fliplr rot90 topk masked_select masked_scatter msort cummax cummin"
    ).split()
)


@rule("multi_head_attention_forward")
def _nothing(flow: Dataflow, op: Operation) -> None:
    """Its own operations have been seen one by one."""


@rule("setitem", "copy", "fill", "zero", "index_copy", "index_put", "index_fill", "scatter")
def _overwrite(flow: Dataflow, op: Operation) -> None:
    """A tensor is overwritten in part or in whole: weights stay the weights that are used, the rest is unknown."""
    if op.tensors and (op.in_place or op.name == "setitem"):
        trace = flow.traces[op.tensors[0]]
        if trace is not None:
            place = trace.place if op.name == "setitem" else None
            flow.traces[op.tensors[0]] = Trace(weights=trace.weights, place=place)


@rule("dropout", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d")
def _dropout(flow: Dataflow, op: Operation) -> None:
    x = op.tensors[0]
    trace = flow.traces[x]
    if trace is None:
        return
    if op.out is x:
        return
    drops = bool(op.argument(2, "training", True)) and op.argument(1, "p", 0.5) > 0
    flow.traces[op.out] = trace._replace(mixed=(), projection=None) if drops else trace


@rule(ANY_OTHER)
def carry(flow: Dataflow, op: Operation) -> None:
    """Any other operation: what it keeps of what is known of its operands."""
    operands = [(tensor, trace) for tensor in op.tensors if (trace := flow.traces[tensor]) is not None]
    if not operands or (op.name in IDENTITIES and op.out is op.args[0]):
        return
    name = base_name(op.name)
    if not any(trace.in_attention for _, trace in operands):  # most operations of a model
        for out in op.outputs:
            flow.traces[out] = Trace(place=_same_place(name, operands, out))
        return
    if name in IDENTITIES:  # x.type_as(other) is x
        operands = [(tensor, trace) for tensor, trace in operands if tensor is op.tensors[0]]
    for out in op.outputs:
        flow.traces[out] = Trace(
            weights=_still_weights(name, operands, out),
            mixed=_scaled(flow, op, name, operands, out),
            projection=_still_projection(op, name, operands, out),
            place=_same_place(name, operands, out),
            softmax_part=_softmax_part(name, operands, out),
        )


Operands = list[tuple[Tensor, Trace]]


def _still_weights(name: str, operands: Operands, out: Tensor) -> bool:
    if name not in _ON_WEIGHTS and name not in IDENTITIES:
        return False
    return any(trace.weights and tensor.shape == out.shape for tensor, trace in operands)


def _softmax_part(name: str, operands: Operands, out: Tensor) -> SoftmaxPart:
    if name not in _ON_WEIGHTS and name not in IDENTITIES:
        return ""
    for tensor, trace in operands:
        if trace.softmax_part and tensor.shape == out.shape:
            return trace.softmax_part
        if name == "mul" and trace.weights and tensor.ndim >= 4 and tensor.shape[-1] == 1 < out.shape[-1]:
            return "spread weights"
    return ""


def _scaled(flow: Dataflow, op: Operation, name: str, operands: Operands, out: Tensor) -> tuple[Mixed, ...]:
    mixed = [(tensor, trace) for tensor, trace in operands if trace.mixed]
    if len(mixed) != 1 or mixed[0][0].shape != out.shape:
        return ()
    tensor, trace = mixed[0]
    if name in IDENTITIES:
        return trace.mixed
    if name not in SCALES or not _is_linear_in(op, name, tensor):
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
    if projection is None or name in IDENTITIES:
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


def _same_place(name: str, operands: Operands, out: Tensor) -> Place | None:
    """The positions of the operand that has them all; named sources first, then what was embedded first."""
    if name in _SHUFFLES:
        return None
    full = [t.place for tensor, t in operands if t.place is not None and tensor.shape == out.shape]
    if full:
        return min(full, key=lambda place: (*place.anchor.preference, len(place.steps)))
    for tensor, trace in operands:
        if trace.place is not None and _broadcasts(tensor.shape, out.shape):
            return trace.place.then(broadcast(out.shape))
    return None


def _broadcasts(small: torch.Size, large: torch.Size) -> bool:
    """(batch, position, 1) to (batch, position, model), but not a reduction and not a lower rank."""
    return len(small) == len(large) and all(a in (1, b) for a, b in zip(small, large, strict=True))
