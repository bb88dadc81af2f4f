"""What the maps of several layers have in common: their shapes, their dtype, and which rows of the last are asked for.

Axes: b batch, q query, k key.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from captum_norm.functional.axes import check_axes

_MAP = "batch query key"


def rows_at(caller: str, position: int | Sequence[int] | Tensor | None, last: Tensor, dtype: torch.dtype) -> Tensor:
    """The outputs asked for as weights on the last map's rows, (batch, 1, query); for all, (batch, query, query)."""
    if position is None:
        return identity(last, dtype)
    batch, query, _ = last.shape
    asked = torch.as_tensor(position, device=last.device)
    if asked.is_floating_point():
        check_axes(caller, maps=(last, _MAP), position=(asked, "batch query"))
        return asked.to(dtype)[:, None]
    if asked.dtype == torch.bool or asked.shape not in ((), (batch,)):
        raise ValueError(
            f"{caller}: position should be an integer, {batch} of them (one per example), or floating-point weights "
            f"(batch, query) = {(batch, query)}; got {asked.dtype} of shape {tuple(asked.shape)}."
        )
    outside = asked[(asked < -query) | (asked >= query)]
    if outside.numel():
        raise ValueError(
            f"{caller}: position {outside.flatten()[0].item()} is out of range for {query} query positions "
            f"({-query} to {query - 1})."
        )
    rows = torch.zeros(batch, query, dtype=dtype, device=last.device)
    return rows.scatter_(1, asked.remainder(query).expand(batch)[:, None], 1.0)[:, None]


def identity(like: Tensor, dtype: torch.dtype) -> Tensor:
    """I for each example and position: like (batch, position, ...)."""
    return torch.eye(like.shape[1], dtype=dtype, device=like.device).expand(len(like), -1, -1)


def check_square(caller: str, maps: Sequence[Tensor]) -> dict[str, tuple[Tensor, str]]:
    """All maps of one sequence by name: (batch, position, position), of one size."""
    named = {name: (a, "batch position position") for name, (a, _) in check_maps(caller, maps).items()}
    check_axes(caller, **named)
    return named


def check_maps(caller: str, maps: Sequence[Tensor]) -> dict[str, tuple[Tensor, str]]:
    """All maps by name, with their axes; there is at least one."""
    if len(maps) == 0:
        raise ValueError(f"{caller}: maps is empty; pass at least one map (batch, query, key).")
    named = {f"maps[{n}]": (a, _MAP) for n, a in enumerate(maps)}
    for name, entry in named.items():
        check_axes(caller, **{name: entry})
    return named


def check_encoder_decoder(
    caller: str, encoder: Sequence[Tensor], decoder: Sequence[Tensor], cross: Sequence[Tensor], residual: bool
) -> dict[str, tuple[Tensor, str]]:
    """All maps by name, with axes that must agree."""
    if len(decoder) == 0 or len(decoder) != len(cross):
        raise ValueError(
            f"{caller}: each decoder layer has a map of self-attention and one of cross-attention, but there are "
            f"{len(decoder)} in decoder and {len(cross)} in cross."
        )
    last = "source" if residual else "source+residual"
    named = {f"encoder[{n}]": (a, "batch source source") for n, a in enumerate(encoder)}
    named |= {f"decoder[{n}]": (a, "batch target target") for n, a in enumerate(decoder)}
    named |= {f"cross[{n}]": (a, f"batch target {last}") for n, a in enumerate(cross)}
    sizes = check_axes(caller, **named)
    if not residual and encoder and sizes[last] != sizes["source"] + 1:
        raise ValueError(
            f"{caller}: cross should have a column for each of {sizes['source']} source positions and a last one for "
            f"the residual, but has {sizes[last]}; maps without residuals need residual=True."
        )
    return named


def check_chain(caller: str, maps: Sequence[Tensor], residual: bool) -> None:
    """Each map's queries are the keys of the next."""
    for n, (lower, upper) in enumerate(pairwise(maps)):
        if lower.shape[0] != upper.shape[0] or lower.shape[1] != upper.shape[2]:
            raise ValueError(
                f"{caller}: the queries of maps[{n}] should be the keys of maps[{n + 1}], the layer above it, "
                f"but they are (batch, query, key) = {tuple(lower.shape)} and {tuple(upper.shape)}."
            )
    for n, a in enumerate(maps):
        if residual and a.shape[1] != a.shape[2]:
            raise ValueError(
                f"{caller}: residual=True needs square maps, but maps[{n}] is (batch, query, key) = {tuple(a.shape)}; "
                f"cross-attention has no residual connection from its keys."
            )
