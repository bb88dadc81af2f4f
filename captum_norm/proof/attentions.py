"""Are the recorded weights those that the model itself returns?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_norm.capture import AttentionRecord


def compare_attentions(
    returned: Sequence[Tensor], records: Sequence[AttentionRecord], tolerance: float = 1e-5
) -> tuple[int, int]:
    """How many of the returned attentions equal a record's weights, and how many of a record's shape equal none.

    Some models return something else under that name: scores before the softmax are passed over, and a mean over heads
    is compared with the mean.
    """
    left, equal, different = list(records), 0, 0
    for attention in returned:
        if bool((attention < 0).any()) or bool((attention.sum(-1) > 1 + 1e-3).any()):
            continue
        alike = [r for r in left if r.weights.shape == attention.shape]
        one = attention.shape[1] > 1 and torch.equal(attention, attention[:, :1].expand_as(attention))
        match = next((r for r in alike if _apart(r.weights, attention, one) <= tolerance), None)
        if match is not None:
            left = [r for r in left if r is not match]
            equal += 1
        elif alike:
            different += 1
    return equal, different


def _apart(weights: Tensor, attention: Tensor, mean: bool) -> float:
    return float(((weights.mean(1, keepdim=True) if mean else weights) - attention).abs().max())
