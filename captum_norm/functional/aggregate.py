"""How do the maps of many layers become one answer?

A map says how much each output of a layer owes to each of its inputs.  Where one layer's outputs are the next one's
inputs, the product of the maps says what the last layer owes to the first:

    rollout = A_last @ ... @ A_2 @ A_1,        with residual connections  A' = (A + I) / rowsum(A + I).

Source: Abnar and Zuidema (2020), "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928.

Axes: b batch, q query position of the last map, k key position of the first.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from captum_norm.functional.axes import check_axes, check_finite

_MAP = "batch query key"


@torch.no_grad()
def rollout(
    maps: Sequence[Tensor], residual: bool = False, position: int | Sequence[int] | Tensor | None = None
) -> Tensor:
    """What the outputs of the last layer owe to the inputs of the first, through all paths.

    Args:
        maps: one map (batch, query, key) per layer, from the first layer to the last; the queries of one are the keys
            of the next.
        residual: mix each map with the identity, (A + I) / 2, and divide rows by their sum, as the paper does for
            attention weights.
        position: the outputs asked for.  ``None``: all.  An integer, or one per example: that row of the last map
            (negative from the end).  A floating-point tensor (batch, query): the sum of the rows with these weights,
            for example 1 / query for a model that pools by the mean.

    Returns:
        (batch, query, key) or, with ``position``, (batch, key).  float64 if any map is, else float32.  The rows of
        ``position`` cost one vector-matrix product per layer, where all rows cost a matrix product.

    Raises:
        TypeError: if a map is not of floating point.
        ValueError: if there is no map, if two that follow each other disagree in shape, if ``residual`` meets a map
            that is not square, if ``position`` is out of range, or if a map holds NaN or infinity.

    Example:
        The second layer's output 0 looks at position 1, which in the first layer looked at position 0:

        >>> first, second = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
        >>> rollout([first, second])
        tensor([[[1.0000, 0.0000],
                 [0.7500, 0.2500]]])
        >>> rollout([first, second], position=1)
        tensor([[0.7500, 0.2500]])
        >>> rollout([first, second], residual=True, position=0)
        tensor([[0.6250, 0.3750]])
    """
    named = _check_maps("rollout", maps)
    _check_chain(maps, residual)
    dtype = _result_dtype(maps)
    # Attribution may run inside an autocast region, which would take these products to half precision.
    with torch.autocast(maps[0].device.type, enabled=False):
        if position is None:
            rows, rest = _mixed_with_identity(maps[-1].to(dtype, copy=True), residual), maps[:-1]
        else:
            rows, rest = _rows_at(position, maps[-1], dtype), maps
        for layer in reversed(rest):
            rows = _through(rows, layer.to(rows), residual)
    check_finite("rollout", rows, **named)
    return rows if position is None else rows.squeeze(1)


@torch.no_grad()
def mean(maps: Sequence[Tensor]) -> Tensor:
    """The mean of equally shaped maps.

    Args:
        maps: maps (batch, query, key), all of one shape.

    Returns:
        (batch, query, key), float64 if any map is, else float32.

    Raises:
        TypeError: if a map is not of floating point.
        ValueError: if there is no map, if two disagree in shape, or one holds NaN or infinity.

    Example:
        >>> mean([torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])])
        tensor([[[0.5000, 0.5000]]])
    """
    named = _check_maps("mean", maps)
    check_axes("mean", **named)
    total = torch.zeros_like(maps[0], dtype=_result_dtype(maps))
    for a in maps:
        total += a
    return check_finite("mean", total / len(maps), **named)


def _mixed_with_identity(layer: Tensor, residual: bool) -> Tensor:
    if not residual:
        return layer
    return (layer + torch.eye(layer.shape[-1], dtype=layer.dtype, device=layer.device)) / _row_sums(layer)[..., None]


def _through(rows: Tensor, layer: Tensor, residual: bool) -> Tensor:
    """rows @ layer, or rows @ (layer + I) / rowsum without making that matrix."""
    if not residual:
        return rows @ layer
    rows = rows / _row_sums(layer)[:, None]
    return torch.baddbmm(rows, rows, layer)


def _row_sums(layer: Tensor) -> Tensor:
    """Row sums of layer + I, (batch, query)."""
    return layer.sum(-1) + 1


def _rows_at(position: int | Sequence[int] | Tensor, last: Tensor, dtype: torch.dtype) -> Tensor:
    """The outputs asked for as weights on the last map's rows, (batch, 1, query)."""
    batch, query, _ = last.shape
    asked = torch.as_tensor(position, device=last.device)
    if asked.is_floating_point():
        check_axes("rollout", maps=(last, _MAP), position=(asked, "batch query"))
        return asked.to(dtype)[:, None]
    if asked.dtype == torch.bool or asked.shape not in ((), (batch,)):
        raise ValueError(
            f"rollout: position should be an integer, {batch} of them (one per example), or floating-point weights "
            f"(batch, query) = {(batch, query)}; got {asked.dtype} of shape {tuple(asked.shape)}."
        )
    outside = asked[(asked < -query) | (asked >= query)]
    if outside.numel():
        raise ValueError(
            f"rollout: position {outside.flatten()[0].item()} is out of range for {query} query positions "
            f"({-query} to {query - 1})."
        )
    rows = torch.zeros(batch, query, dtype=dtype, device=last.device)
    return rows.scatter_(1, asked.remainder(query).expand(batch)[:, None], 1.0)[:, None]


def _check_maps(caller: str, maps: Sequence[Tensor]) -> dict[str, tuple[Tensor, str]]:
    if len(maps) == 0:
        raise ValueError(f"{caller}: maps is empty; pass at least one map (batch, query, key).")
    named = {f"maps[{n}]": (a, _MAP) for n, a in enumerate(maps)}
    for name, entry in named.items():
        check_axes(caller, **{name: entry})
    return named


def _check_chain(maps: Sequence[Tensor], residual: bool) -> None:
    for n, (lower, upper) in enumerate(pairwise(maps)):
        if lower.shape[0] != upper.shape[0] or lower.shape[1] != upper.shape[2]:
            raise ValueError(
                f"rollout: the queries of maps[{n}] should be the keys of maps[{n + 1}], the layer above it, "
                f"but they are (batch, query, key) = {tuple(lower.shape)} and {tuple(upper.shape)}."
            )
    for n, a in enumerate(maps):
        if residual and a.shape[1] != a.shape[2]:
            raise ValueError(
                f"rollout: residual=True needs square maps, but maps[{n}] is (batch, query, key) = {tuple(a.shape)}; "
                f"cross-attention has no residual connection from its keys."
            )


def _result_dtype(maps: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(a.dtype == torch.float64 for a in maps) else torch.float32
