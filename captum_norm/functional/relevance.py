"""What does one output of a model rest on, read from attention weights and their gradients?

    Abar = mean_h max(0, (dL/dalpha_h) * alpha_h)
    R <- R + Abar R                                                    self-attention, R = I to begin with
    R_sq <- R_sq + Rbar_ss^T Abar Rbar_qq                              s attends to another sequence q
    Rbar = I + (R - I) / its row sums                                  (0 where a row of R - I is zero)

Source: Chefer et al. (2021), "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", equations 5 to 10, https://arxiv.org/abs/2103.15679.

Axes: b batch, h head, q query, k key.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_norm.functional.aggregate import passed_on
from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.precision import full_precision
from captum_norm.functional.stacks import check_encoder_decoder, check_square, identity, rows_at

_MAP = "batch head query key"


@torch.no_grad()
def gradient_weights(weights: Tensor, gradients: Tensor) -> Tensor:
    """The attention weights that speak for an output, times how much: mean_h max(0, (dL/dalpha_h) * alpha_h).

    Args:
        weights: attention weights alpha, (batch, head, query, key).
        gradients: the derivative of the output explained with respect to them, in the same shape.

    Returns:
        (batch, query, key), non-negative, in the unit of the output.  float64 if a tensor is float64, else float32.

    Raises:
        TypeError, ValueError: as ``head_norms`` does.

    Example:
        >>> weights = torch.tensor([[[[0.5, 0.5]], [[0.25, 0.75]]]])
        >>> gradients = torch.tensor([[[[2.0, -2.0]], [[4.0, 0.0]]]])
        >>> gradient_weights(weights, gradients)
        tensor([[[1., 0.]]])
    """
    named = {"weights": (weights, _MAP), "gradients": (gradients, _MAP)}
    check_axes("gradient_weights", **named)
    dtype = result_dtype(weights, gradients)
    # Attribution may run inside an autocast region, which products of half precision would not leave.
    with full_precision(weights.device):
        result = (weights.to(dtype) * gradients.to(dtype)).clamp_min_(0).mean(1)
    return check_finite("gradient_weights", result, **named)


@torch.no_grad()
def relevance(maps: Sequence[Tensor], position: int | Sequence[int] | Tensor | None = None) -> Tensor:
    """The relevance of the inputs of the first layer to the outputs of the last: (I + A_l) ... (I + A_1).

    Args:
        maps: one map (batch, position, position) per self-attention layer, from the first to the last, as
            `gradient_weights` gives them.
        position: the outputs asked for, as in ``rollout``.

    Returns:
        (batch, query, key) or, with ``position``, (batch, key).  Nothing is normalised: each output begins with 1 for
        itself.  float64 if any map is, else float32.

    Raises:
        TypeError, ValueError: as ``rollout`` does, and where a map is not square.

    Example:
        >>> first, second = torch.tensor([[[0.0, 0.5], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [0.2, 0.0]]])
        >>> relevance([first, second])
        tensor([[[1.0000, 0.5000],
                 [0.2000, 1.1000]]])
        >>> relevance([first, second], position=1)
        tensor([[0.2000, 1.1000]])
    """
    named = check_square("relevance", maps)
    dtype = result_dtype(*maps)
    with full_precision(maps[0].device):
        rows = rows_at("relevance", position, maps[-1], dtype)
        for layer in reversed(maps):
            rows = passed_on(rows, layer.to(dtype), own=rows)
    check_finite("relevance", rows, **named)
    return rows if position is None else rows.squeeze(1)


@torch.no_grad()
def relevance_encoder_decoder(
    encoder: Sequence[Tensor], decoder: Sequence[Tensor], cross: Sequence[Tensor],
    position: int | Sequence[int] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The relevance of the source and of the target's prefix to the decoder's outputs.

    Args:
        encoder, decoder, position: as in ``rollout_encoder_decoder``.
        cross: the maps of the decoder's cross-attention, (batch, target, source), one per layer.

    Returns:
        Of the source, (batch, target, source), and of the prefix, (batch, target, target); with ``position``
        (batch, source) and (batch, target).

    Raises:
        TypeError, ValueError: as ``rollout_encoder_decoder`` does.

    Example:
        One layer each, of which only the cross-attention speaks for the output:

        >>> none, cross = torch.zeros(1, 2, 2), torch.tensor([[[0.25, 0.0, 0.5], [0.0, 0.0, 0.0]]])
        >>> relevance_encoder_decoder([], [none], [cross], position=0)
        (tensor([[0.2500, 0.0000, 0.5000]]), tensor([[1., 0.]]))
    """
    caller = "relevance_encoder_decoder"
    named = check_encoder_decoder(caller, encoder, decoder, cross, residual=True)
    dtype = result_dtype(*encoder, *decoder, *cross)
    with full_precision(decoder[0].device):
        source = identity(cross[0].mT, dtype) if not encoder else relevance(encoder).to(dtype)
        prefix, from_source = identity(decoder[0], dtype), cross[0].new_zeros(cross[0].shape, dtype=dtype)
        for own, other in zip(decoder, cross, strict=True):
            own = own.to(dtype)
            prefix, from_source = passed_on(own, prefix, own=prefix), passed_on(own, from_source, own=from_source)
            from_source = crossed(prefix, other.to(dtype), source, from_source)
        if position is not None:
            rows = rows_at(caller, position, decoder[-1], dtype)
            prefix, from_source = (rows @ prefix).squeeze(1), (rows @ from_source).squeeze(1)
    check_finite(caller, from_source, **named)
    check_finite(caller, prefix, **named)
    return from_source, prefix


def crossed(own: Tensor, weights: Tensor, other: Tensor, known: Tensor | None = None) -> Tensor:
    """The relevance of another sequence once s has attended to it: R_sq + Rbar_ss^T Abar Rbar_qq, (batch, query, key).

    Args:
        own: R_ss of the queries' sequence so far, (batch, query, query).
        weights: Abar of the call, (batch, query, key).
        other: R_qq of the keys' sequence, (batch, key, key).
        known: R_sq so far, (batch, query, key); None for nothing.
    """
    return passed_on(normalized(own).mT @ weights, normalized(other), known)


def normalized(relevance: Tensor) -> Tensor:
    """I + (R - I) / its row sums, so that what a position took in from others counts as much as itself.

    Args:
        relevance: R, (batch, position, position).
    """
    own = identity(relevance, relevance.dtype)
    taken_in = relevance - own
    sums = taken_in.sum(-1, keepdim=True)
    return own + taken_in / sums.masked_fill(sums == 0, 1)
