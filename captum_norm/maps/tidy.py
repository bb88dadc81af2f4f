"""Maps as a tidy table: one row per number, with the call, head, query and key that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_norm.measures import MEASURES
from captum_norm.optional_packages import required

Maps = Any  # AttentionMaps, whose module imports this one

_NUMBERED = ("head", "query", "key")


def tidy_table(maps: Maps, quantities: Sequence[str] | str | None = None) -> Any:
    """The table that ``AttentionMaps.to_pandas`` returns."""
    pandas = required("pandas", "AttentionMaps.to_pandas")
    names = (quantities,) if isinstance(quantities, str) else maps.quantities if quantities is None else quantities
    for name in names:
        getattr(maps, name)  # raises for one that is not held
    parts = [pandas.DataFrame(columns) for name in names for columns in _columns(maps, name)]
    table = pandas.concat(parts, ignore_index=True)
    texts = ("quantity", "name", "kind", "query_token", "key_token")
    numbers = [name for name in _NUMBERED if name in table]
    return table.astype({text: "category" for text in texts if text in table} | dict.fromkeys(numbers, "Int64"))


def _columns(maps: Maps, name: str) -> Iterator[dict[str, Any]]:
    """The columns of each call and example, without the rows and columns of padding."""
    axes = MEASURES[name].axes.split()[1:]
    for i, (call, result) in enumerate(zip(maps.calls, maps.results[name], strict=True)):
        if isinstance(result, str):
            continue
        for example, values in enumerate(result.cpu()):
            kept = {axis: _kept(maps, i, axis, example, size) for axis, size in zip(axes, values.shape, strict=True)}
            for dimension, axis in enumerate(axes):
                values = values.index_select(dimension, kept[axis])
            grid = torch.meshgrid(*kept.values(), indexing="ij")
            places = {axis: index.flatten().tolist() for axis, index in zip(axes, grid, strict=True)}
            sizes = dict(zip(axes, result.shape[1:], strict=True))
            positions = {"query": maps.queries[i], "key": maps.keys[i]}
            yield {
                "quantity": name,
                "call": i,
                "name": call.name,
                "kind": call.kind,
                "example": example,
                **{axis: [_number(maps, axis, place) for place in places[axis]] for axis in axes},
                **{
                    f"{axis}_token": [tokens[place] for place in places[axis]]
                    for axis in axes
                    if axis in positions
                    for tokens in [maps._labels(positions[axis], sizes[axis], example)]
                },
                "value": values.flatten().tolist(),
            }


def _kept(maps: Maps, i: int, axis: str, example: int, size: int) -> Tensor:
    """Which entries of an axis are no padding."""
    mask = {"query": maps.query_masks[i], "key": maps.key_masks[i]}.get(axis)
    keep = torch.ones(size, dtype=torch.bool)
    if mask is not None:
        keep[: mask.shape[1]] = mask[example].cpu()[:size]  # behind the keys may stand the residual
    return keep.nonzero().flatten()


def _number(maps: Maps, axis: str, place: int) -> int:
    """The number of a head or row in the model, where some were chosen."""
    chosen = {"head": maps.head_indices, "query": maps.positions}.get(axis)
    return place if chosen is None else chosen[place]
