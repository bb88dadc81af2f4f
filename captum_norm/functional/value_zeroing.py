"""How far does an output of a layer turn when one input's value vectors are set to zero?

    s_ij = 1 - cos(y_i without the values of j, y_i),        divided by the sum of its row

y is the output of the whole layer, residuals, norms and feed-forward part included, computed anew from the layer's own
input with the attention weights as they were.  Taken through the layers by a plain product: residuals are inside.

Source: Mohebbi et al. (2023), "Quantifying Context Mixing in Transformers", section 3, https://arxiv.org/abs/2301.12971.

Axes: b batch, q query (i), k key (j), d model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.stacks import check_maps


@torch.no_grad()
def value_zeroing(changed: Tensor, output: Tensor) -> Tensor:
    """The cosine distance of each output to what it is without the values of a key, 1 - cos.

    Computed as half the squared distance of the unit vectors, which is the same and keeps small distances exact.

    Args:
        changed: what the layer gives out without the values of key j, for each j, (key, batch, query, model).
        output: what the layer gives out, (batch, query, model).

    Returns:
        (batch, query, key), from 0 (no change of direction) to 2; 1 where one of the two outputs is zero.  float64 if
        a tensor is float64, else float32.

    Raises:
        TypeError, ValueError: as ``head_norms`` does.

    Example:
        >>> output = torch.tensor([[[3.0, 0.0]]])
        >>> changed = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).view(3, 1, 1, 2)
        >>> value_zeroing(changed, output)
        tensor([[[0., 1., 1.]]])
    """
    named = {"changed": (changed, "key batch query model"), "output": (output, "batch query model")}
    check_axes("value_zeroing", **named)
    dtype = result_dtype(changed, output)
    changed, output = changed.to(dtype), output.to(dtype)
    lengths, length = vector_norm(changed, dim=-1, keepdim=True), vector_norm(output, dim=-1, keepdim=True)
    apart = changed / lengths.masked_fill(lengths == 0, 1) - output / length.masked_fill(length == 0, 1)
    # A zero vector has no direction: it stands at right angles to all others, as in the usual 1 - cos.
    distances = apart.square().sum(-1) / (2 - (lengths == 0).to(dtype) - (length == 0).to(dtype)).clamp_min(1)[..., 0]
    return check_finite("value_zeroing", distances.permute(1, 2, 0).contiguous(), **named)


@torch.no_grad()
def value_zeroing_shares(scores: Sequence[Tensor], real: Tensor | None = None) -> list[Tensor]:
    """The scores of one layer as shares of their row: rows of all maps together add up to 1.

    Args:
        scores: a map (batch, query, key) for each attention call of the layer: one, or in a decoder that attends to a
            source two.
        real: (batch, query) bool, True at real tokens; rows of others may be zero without a word.  None: all.

    Returns:
        The maps, each divided by the sum of its row over all of them.  A row of zeros, which no key changes, stays.

    Raises:
        TypeError: if a map is not of floating point.
        ValueError: if there is no map, if batch or query disagree, or a map holds NaN, infinity or negative numbers.

    Warns:
        UserWarning: if the row of a real token is zero.

    Example:
        >>> value_zeroing_shares([torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0]]])])
        [tensor([[[0.2500, 0.5000]]]), tensor([[[0.2500]]])]
    """
    caller = "value_zeroing_shares"
    named = {name: (a, f"batch query key_{name}") for name, (a, _) in check_maps(caller, scores).items()}
    check_axes(caller, **named)
    for name, entry in named.items():
        check_finite(caller, entry[0], **{name: entry})
        if entry[0].numel() and entry[0].min() < 0:
            raise ValueError(f"value_zeroing_shares: {name} holds negative numbers, the least {entry[0].min().item()}.")
    sums = torch.stack([a.sum(-1) for a in scores]).sum(0)
    zero = sums == 0
    silent = zero if real is None else zero & real.to(zero.device)
    if silent.any():
        example, query = silent.nonzero()[0].tolist()
        warnings.warn(
            f"value_zeroing_shares: {int(silent.sum())} rows are zero, the first at (batch, query) = "
            f"{(example, query)}: no key changes these outputs. They have no shares and stay zero.",
            stacklevel=2,
        )
    return [a / sums.masked_fill(zero, 1)[..., None] for a in scores]
