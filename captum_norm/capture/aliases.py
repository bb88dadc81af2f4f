"""What is known of a tensor when another one that shares its memory is overwritten.

``y[:, 0].copy_(x)`` changes what y holds, and every other view of it.  What was known of these is wrong from then on,
unless the numbers that were written belong to the same positions as those that were there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_norm.capture.columns import Columns
from captum_norm.capture.traces import Trace, Traces
from captum_norm.operations.formats import holds_numbers
from captum_norm.operations.places import Place, Settled
from captum_norm.operations.steps import NOT_AN_INPUT
from captum_norm.operations.storages import is_same_view


def follow_traces(into: Tensor, before: Trace | None, traces: Traces) -> None:
    """Bring the traces of all tensors in the memory of one up to date, which was overwritten.

    Args:
        into: the tensor that was overwritten.
        before: its trace before that.
        traces: of all tensors, the new one of ``into`` included.
    """
    after = traces[into]
    for alias in traces.beside(into):
        if is_same_view(alias, into):
            traces[alias] = after
            continue
        known = traces[alias] or Trace()
        place = _of_ids(alias, known.place, into, None if after is None else after.place)
        traces[alias] = Trace(place=place) if place else _still(known, before or Trace(), after or Trace())


def _of_ids(alias: Tensor, known: Place | None, into: Tensor, now: Place | None) -> Place | None:
    """Where ids lie of which a part was written through another view of their memory; None where it is not known."""
    if known is None or now is None or known.anchor is not now.anchor:
        return None
    if holds_numbers(alias) or alias.dtype != into.dtype or not alias.numel():
        return None
    before, written = known.numbers(), now.numbers()
    if before is None or written is None or before.shape != alias.shape or written.shape != into.shape:
        return None
    first = min(alias.storage_offset(), into.storage_offset())
    memory = torch.full((max(_end(alias), _end(into)) - first,), NOT_AN_INPUT, device="cpu")
    once = [count if stride else 1 for count, stride in zip(alias.shape, alias.stride(), strict=True)]  # if expanded
    ours = memory.as_strided(once, alias.stride(), alias.storage_offset() - first)
    ours.copy_(before[tuple(slice(count) for count in once)])
    memory.as_strided(into.shape, into.stride(), into.storage_offset() - first).copy_(written)
    return Place(known.anchor, (Settled(ours.expand(alias.shape).clone()),), known.mixers | now.mixers)


def _end(tensor: Tensor) -> int:
    """Where the memory of a tensor ends, in entries of its storage."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + sum((count - 1) * stride for count, stride in sizes) + 1


def _still(known: Trace, before: Trace, after: Trace) -> Trace:
    """What is still known of an alias: its place, where what was overwritten is where it was, and that it is scores or
    weights, where that still is."""
    place, was, now = known.place, before.place, after.place
    stays = place is not None and was is not None and now is not None and _is_same_place(was, now)
    return Trace(
        weights=_changed(known.weights, before.weights, after.weights),
        place=place.mixed_by(now.mixers) if place is not None and now is not None and stays else None,
        scores=_changed(known.scores, before.scores, after.scores),
    )


def _is_same_place(was: Place, now: Place) -> bool:
    if was.key == now.key:
        return True
    then, numbers = was.numbers(), now.numbers()
    return was.anchor is now.anchor and then is not None and numbers is not None and torch.equal(then, numbers)


def _changed(known: Columns | None, before: Columns | None, after: Columns | None) -> Columns | None:
    return None if known is None or before is None or after is None else known.changed_as(after)
