"""Attention in one operation: the weights are constants, what goes through is the values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_norm.capture import attention_weights
from captum_norm.linear.frozen import Frozen, rule
from captum_norm.linear.fused import FrozenAttention
from captum_norm.linear.rules.operands import same
from captum_norm.linear.run import FrozenRun
from captum_norm.operations.operation import Operation


@rule("scaled_dot_product_attention")
def _attention(run: FrozenRun, op: Operation) -> Any:
    """The weights are constants; what goes through is the values."""
    query, key, value = (op.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    if not run.is_live(value):
        return op.again(same)
    if op.argument(4, "dropout_p", 0.0):
        raise run.refusal(op, "it drops out weights that it does not return; call model.eval()")
    mask, is_causal, scale = (
        op.argument(3, "attn_mask"),
        bool(op.argument(5, "is_causal", False)),
        op.kwargs.get("scale"),
    )
    mask = None if mask is None else mask.detach()
    more = {name: op.kwargs[name] for name in ("scale", "enable_gqa") if name in op.kwargs}
    q, k = query.detach(), key.detach()

    def fused(one: Tensor, v: Tensor) -> Any:
        return FrozenAttention.apply(v, q, k, mask, is_causal, scale, op.func, more)  # type: ignore[no-untyped-call]

    weights: list[Tensor] = []

    def plain(one: Tensor, v: Tensor) -> Tensor:
        weights[:] = weights or [attention_weights(q, k, mask, is_causal, scale).to(v.dtype)]
        groups = weights[0].shape[-3] // v.shape[-3] if v.ndim > 2 else 1
        return weights[0] @ (v.repeat_interleave(groups, -3) if groups > 1 else v)

    return Frozen(fused if run.fused else plain, (value,), mixes=True)
