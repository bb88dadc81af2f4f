"""Norms: 1/sigma is a constant, centring and gamma are linear, beta is a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_norm.linear.frozen import Frozen, rule
from captum_norm.linear.fused import FrozenLayerNorm
from captum_norm.linear.run import FrozenRun
from captum_norm.operations.operation import Operation
from captum_norm.operations.precision import at_least_float32


@rule("layer_norm")
def _layer_norm(run: FrozenRun, op: Operation) -> Any:
    x, shape = op.args[0], list(op.argument(1, "normalized_shape"))
    weight, bias, eps = op.argument(2, "weight"), op.argument(3, "bias"), op.argument(4, "eps", 1e-5)
    weight = None if weight is None else weight.detach()
    axes = tuple(range(-len(shape), 0))

    def fused(one: Tensor, x: Tensor) -> Any:
        return FrozenLayerNorm.apply(  # type: ignore[no-untyped-call]
            x, None if bias is None else bias.detach() * one.to(bias.dtype), shape, weight, eps
        )

    def plain(one: Tensor, x: Tensor) -> Tensor:
        wide = op.args[0].detach().to(at_least_float32(x.dtype))
        scale = (wide.var(axes, correction=0, keepdim=True) + eps).rsqrt().to(x.dtype)
        y = (x - x.mean(axes, keepdim=True)) * scale
        y = y if weight is None else y * weight
        return y if bias is None else y + bias.detach() * one.to(bias.dtype)

    return Frozen(fused if run.fused else plain, (x,), has_constant=bias is not None)


@rule("rms_norm")
def _rms_norm(run: FrozenRun, op: Operation) -> Frozen:
    x, shape, weight, eps = (
        op.args[0],
        op.argument(1, "normalized_shape"),
        op.argument(2, "weight"),
        op.argument(3, "eps"),
    )
    wide = x.detach().to(at_least_float32(x.dtype))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = (wide.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + eps).rsqrt().to(x.dtype)
    scale = scale if weight is None else scale * weight.detach()
    return Frozen(lambda one, x: x * scale, (x,))


@rule("group_norm")
def _group_norm(run: FrozenRun, op: Operation) -> Frozen:
    x, groups = op.args[0], op.argument(1, "num_groups")
    weight, bias, eps = op.argument(2, "weight"), op.argument(3, "bias"), op.argument(4, "eps", 1e-5)
    channel = (-1, *[1] * (x.ndim - 2))
    scale = (x.detach().reshape(len(x), groups, -1).var(-1, correction=0, keepdim=True) + eps).rsqrt()

    def apply(one: Tensor, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], groups, -1)
        y = ((y - y.mean(-1, keepdim=True)) * scale).reshape(x.shape)
        y = y if weight is None else y * weight.detach().view(channel)
        return y if bias is None else y + bias.detach().view(channel) * one.to(bias.dtype)

    return Frozen(apply, (x,), has_constant=bias is not None)


@rule("batch_norm")
def _batch_norm(run: FrozenRun, op: Operation) -> Frozen:
    x, mean, variance = op.args[0], op.argument(1, "running_mean"), op.argument(2, "running_var")
    weight, bias = op.argument(3, "weight"), op.argument(4, "bias")
    if op.argument(5, "training", False) or mean is None or variance is None:
        raise run.refusal(op, "it is training: its mean and variance are of this batch; call model.eval()")
    channel = (-1, *[1] * (x.ndim - 2))
    scale = (variance + op.argument(7, "eps", 1e-5)).rsqrt() * (1 if weight is None else weight.detach())
    shift = (0 if bias is None else bias.detach()) - mean * scale
    return Frozen(lambda one, x: x * scale.view(channel) + shift.view(channel) * one, (x,), has_constant=True)


@rule("normalize")
def _normalize(run: FrozenRun, op: Operation) -> Frozen:
    x = op.args[0]
    p, dim, eps = op.argument(1, "p", 2.0), op.argument(2, "dim", 1), op.argument(3, "eps", 1e-12)
    length = x.detach().norm(p, dim, keepdim=True).clamp_min(eps)
    return Frozen(lambda one, x: x / length, (x,))
