"""Which input position each query and each key of an attention call is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch import Tensor

from captum_norm.capture.call import ONE_EXAMPLE, POSITIONS_FIRST, Positions
from captum_norm.capture.layout import Layout
from captum_norm.operations.places import Anchor, Place
from captum_norm.operations.steps import NOT_AN_INPUT


class PositionReader:
    """Evaluates places into :class:`Positions`, once for all layers that share a structure."""

    def __init__(self, remembered: int = 64) -> None:
        self._known: OrderedDict[Hashable, tuple[Positions | None, str, Place]] = OrderedDict()
        self._remembered = remembered

    def read(
        self, place: Place | None, lead: tuple[int, ...], shape: torch.Size, layout: Layout, axis: str
    ) -> tuple[Positions | None, str]:
        """Positions of the query or key axis, or None and the reason.

        Args:
            place: where the weights (axis "query") or values (axis "key") come from, as they entered the product.
            lead: leading axes of the product.
            shape: the tensor's own shape, (..., query or key, features).
            layout: where (batch, head, query) lie.
            axis: "query" or "key".
        """
        if place is None:
            return None, f"the {axis} axis could not be followed back to an input"
        key = (place.key, lead, tuple(shape), id(layout), axis)
        if key not in self._known:
            rows, reason = numbers_of(place, lead, shape, layout, axis)
            found = (None, reason) if rows is None else positions_of(rows, place.anchor, axis)
            self._known[key] = (*found, place)
            if len(self._known) > self._remembered:
                self._known.popitem(last=False)
        positions, reason, _ = self._known[key]
        return positions, reason


def numbers_of(
    place: Place, lead: tuple[int, ...], shape: torch.Size, layout: Layout, axis: str
) -> tuple[Tensor | None, str]:
    """The anchor's number of each query or key, (batch, head, query or key), or None and the reason; as ``read``."""
    numbers = place.of_features(1).numbers()
    if numbers is None:
        return None, f"the {axis} positions were taken apart on the way: an operation reads several at once"
    try:
        numbers = numbers.expand(*lead, shape[-2], 1).reshape(-1, shape[-2])
    except RuntimeError:
        return None, f"the {axis}s are shaped otherwise than the inputs they come from"
    rows = numbers[layout.rows[:, :, 0]]  # (batch, head, query or key)
    if axis == "query":
        rows = rows.gather(-1, layout.queries)
    return rows, ""


def positions_of(rows: Tensor, anchor: Anchor, axis: str) -> tuple[Positions | None, str]:
    """(batch, head, position) numbers as Positions, where every example and head has the same ones."""
    inputs = rows >= 0
    batch, index = rows // anchor.length, rows % anchor.length
    if anchor.shape[0] != 1:  # an anchor of batch 1 is shared by every example
        own = torch.arange(len(rows), device="cpu")[:, None, None]
        if len(rows) == 1 and inputs.any() and len(set(batch[inputs].tolist())) == 1:
            return None, f"{ONE_EXAMPLE}: give it one example at a time"
        if len(rows) != anchor.shape[0] or ((batch != own) & inputs).any():
            return None, (
                f"its {axis}s come in {len(rows)} groups of {rows.shape[-1]}, "
                f"the inputs are {anchor.shape[0]} examples of {anchor.length}{_way_out(rows, anchor)}"
            )
    index = torch.where(inputs, index, NOT_AN_INPUT)
    if not torch.equal(index, index[:1, :1].expand_as(index)):
        if torch.equal(index, index[:, :1].expand_as(index)):
            return None, f"examples order their {axis}s differently: give it one example at a time"
        return None, f"heads order their {axis}s differently"
    grid = anchor.grid if len(anchor.grid) > 1 else None
    told = torch.where(inputs, index, rows)
    alike = torch.equal(told, told[:1, :1].expand_as(told))
    return Positions(anchor.source, index[0, 0].clone(), grid, told[0, 0].clone() if alike else None), ""


def _way_out(rows: Tensor, anchor: Anchor) -> str:
    """What helps where a model counts positions first, as torch's own do by default, takes examples one behind the
    other, or attends within windows."""
    examples = torch.arange(len(rows), device="cpu")[:, None, None]
    turned = (len(rows), rows.shape[-1]) == (anchor.length, anchor.shape[0]) and anchor.position_axes == (1,)
    if turned and torch.equal(rows % anchor.length, examples.expand_as(rows)):
        return (
            f" ({POSITIONS_FIRST}: explain the function lambda x: model(x.transpose(0, 1)).transpose(0, 1), on "
            "inputs.transpose(0, 1))"
        )
    if anchor.length == 1 and rows[:, 0].numel() == anchor.shape[0]:
        return (
            " (one behind the other, without an axis of examples: give it one at a time, to the function "
            "lambda x: model(x[0])[None], on inputs[None])"
        )
    if len(rows) == 1 and rows.shape[-1] == anchor.shape[0] * anchor.length:
        return " (one behind the other in one row: give it one example at a time)"
    return " (within windows)" if len(rows) > anchor.shape[0] and not len(rows) % anchor.shape[0] else ""
