"""What is held fixed as a whole: gates, scales, routing."""

from __future__ import annotations

from typing import Any

import torch

from captum_norm.capture.operations import Operation
from captum_norm.linear.frozen import Run, call, rule
from captum_norm.linear.rules.operands import same

# Computed from what is followed, and held fixed: gates, scales, routing.
_CONSTANT = (
    "softmax log_softmax softmin sigmoid logsigmoid exp exp2 expm1 log log1p log2 logsumexp erf erfc sin cos sqrt "
    "rsqrt reciprocal rdiv norm std var var_mean std_mean topk sort argsort argmax argmin max min amax amin aminmax "
    "cumprod prod cummax cummin median kthvalue one_hot bincount histc floor ceil round sign floor_divide remainder "
    "fmod isnan isinf isfinite linalg_vector_norm vector_norm linalg_norm cdist searchsorted bucketize unique nonzero "
    "multinomial bernoulli cosine_similarity gumbel_softmax hardsigmoid relu6_gate count_nonzero trunc fill "
    "atan2 atan logical_and logical_or logical_not bitwise_not bitwise_and bitwise_or __invert__ __and__ __or__ "
    "__rpow__ entropy"
)


@rule(*_CONSTANT.split())
def _constant(run: Run, op: Operation) -> Any:
    """Held fixed as a whole."""
    with torch.no_grad():
        return call(op, same)
