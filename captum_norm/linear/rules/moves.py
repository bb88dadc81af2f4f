"""Operations that move entries, keep them, or combine entries of one tensor linearly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.dataflow import base_name
from captum_norm.capture.operations import Operation
from captum_norm.capture.rules.elementwise import _FRESH, _QUESTIONS, IDENTITIES
from captum_norm.capture.rules.moves import MOVES
from captum_norm.linear.frozen import RULES, Frozen, Run, call, rule
from captum_norm.linear.rules.operands import is_lazy, operands_of, same, swapping

RULES.update(dict.fromkeys(_QUESTIONS))
RULES.update(dict.fromkeys(_FRESH.split()))
RULES.update(dict.fromkeys(("_set_grad_enabled", "set_grad_enabled", "_set_deterministic", "manual_seed")))

# Linear, and no other operand counts.
_LINEAR = (
    "sum mean neg cumsum roll flip gather index_select take_along_dim masked_select tril triu diff rot90 fliplr flipud "
    "avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d interpolate fold unfold pixel_shuffle "
    "pixel_unshuffle atleast_1d atleast_2d atleast_3d real imag zero conj resolve_conj view_as_complex view_as_real "
    "nanmean channel_shuffle H mH fft rfft irfft ifft fftn fft2 ifft2"
)


@rule(*MOVES, *_LINEAR.split())
def _linear(run: Run, op: Operation) -> Frozen:
    operands = operands_of(run, op)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        return call(op, swapping(operands, xs, same))

    return Frozen(apply, operands, lazy=is_lazy(run, op, operands), moves=base_name(op.name) in MOVES)


@rule(*IDENTITIES)
def _identity(run: Run, op: Operation) -> Any:
    """Another number format, or nothing: ``detach`` keeps what is followed."""
    x = op.args[0]
    if not run.is_live(x):  # x.type_as(live)
        return call(op, same)
    dtype = next((t.dtype for t in op.tensors[1:]), None) if op.name in ("to", "type_as") else None

    def apply(one: Tensor, x: Tensor) -> Tensor:
        if op.name in ("detach", "data", "requires_grad", "alias"):
            return x.view_as(x)
        if dtype is not None:
            return x.to(dtype)
        return call(op, lambda tensor: x)

    root, bent = run.root_of(x)
    return Frozen(apply, (x,), lazy=run.only_value(x), root=root, bent=bent, moves=True)


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout")
def _dropout(run: Run, op: Operation) -> Frozen:
    x = op.args[0]
    if op.argument(1, "p", 0.5) == 0 or not op.argument(2, "training", True):
        root, bent = run.root_of(x)
        return Frozen(lambda one, x: x.view_as(x), (x,), lazy=run.only_value(x), root=root, bent=bent, moves=True)
    with torch.no_grad():
        kept = op.func(torch.ones_like(x), *op.args[1:], **{k: v for k, v in op.kwargs.items() if k != "inplace"})
    return Frozen(lambda one, x: x * kept, (x,))


@rule("multi_head_attention_forward", "embedding_bag")
def _own(run: Run, op: Operation) -> Any:
    return call(op, same)


@rule("embedding")
def _embedding(run: Run, op: Operation) -> Any:
    if run.is_live(op.argument(1, "weight")):
        return _linear(run, op)
    return call(op, same)
