"""Which calls, heads and rows does ``attention_maps`` keep?  What it was asked for, checked; a record cut to that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from captum_norm.capture import AttentionCall, AttentionRecord, in_float32


@dataclass(frozen=True)
class Selection:
    """Which calls, heads and rows of the query axis to keep; None: all."""

    layers: tuple[int | str, ...] | None
    heads: tuple[int, ...] | None
    rows: tuple[int, ...] | None

    @property
    def count_from_the_end(self) -> bool:
        """Whether a call is chosen by a negative index."""
        return any(isinstance(choice, int) and choice < 0 for choice in self.layers or ())

    def from_the_front(self, total: int) -> Selection:
        """The same with every call counted from the first of ``total``."""
        choices = self.layers or ()
        for choice in choices:
            if isinstance(choice, int) and not -total <= choice < total:
                raise ValueError(f"attention_maps: layers holds {choice}, but the model makes {total} attention calls.")
        return replace(self, layers=tuple(c + total if isinstance(c, int) and c < 0 else c for c in choices))

    def matching(self, index: int, call: AttentionCall) -> set[int | str]:
        """Which of the choices mean this call: its index, its module's name, or the name of a module around it."""
        return {
            choice
            for choice in self.layers or ()
            if choice == index or (isinstance(choice, str) and f"{call.name}.".startswith(f"{choice}."))
        }

    def cut(self, record: AttentionRecord) -> tuple[AttentionRecord, AttentionRecord]:
        """The record cut to the rows, and the same cut to the heads too; float32 at least."""
        if self.rows is not None:
            rows = _picked("positions", self.rows, record.shape[2], "rows", record.call)
            record = record.at(torch.tensor(rows).expand(record.shape[0], -1))
        record = in_float32(record)
        if self.heads is None:
            return record, record
        heads = _picked("head_indices", self.heads, record.weights.shape[1], "heads", record.call)
        return record, _cut_to_heads(record, heads)


def chosen_layers(layers: Sequence[int | str] | int | str | None) -> tuple[int | str, ...] | None:
    """Indices or names of attention calls, one or several, as a tuple.

    Raises:
        TypeError: for anything else, or none.
    """
    if layers is None:
        return None
    choices = _several(layers, int | str)
    if not choices or not all(_is(choice, int | str) for choice in choices):
        raise TypeError(f"attention_maps: layers should be indices or names of attention calls, got {layers!r}.")
    return choices


def chosen_indices(name: str, indices: Sequence[int] | int | None) -> tuple[int, ...] | None:
    """One index or several as a tuple.

    Raises:
        TypeError: for anything else, or none, under the ``name`` of the argument.
    """
    if indices is None:
        return None
    chosen = _several(indices, int)
    if not chosen or not all(_is(index, int) for index in chosen):
        raise TypeError(f"attention_maps: {name} should be one or more ints, got {indices!r}.")
    return chosen


def _several(given: Any, kinds: Any) -> tuple[Any, ...]:
    """One or several as a tuple; of nothing that is either, none."""
    if _is(given, kinds):
        return (given,)
    return tuple(given) if isinstance(given, Iterable) else ()


def _is(one: Any, kinds: Any) -> bool:
    """Whether it is of these kinds; True and False are no numbers."""
    return isinstance(one, kinds) and not isinstance(one, bool)


def _cut_to_heads(record: AttentionRecord, heads: list[int]) -> AttentionRecord:
    return replace(
        record,
        weights=record.weights[:, heads],
        values=record.values[:, heads],
        W_O=record.W_O[heads],
        gate=None if record.gate is None else record.gate[:, heads],
    )


def _picked(name: str, chosen: Sequence[int], size: int, what: str, call: AttentionCall) -> list[int]:
    """Non-negative indices, or an error that names the call."""
    outside = [index for index in chosen if not -size <= index < size]
    if outside:
        raise ValueError(
            f"attention_maps: {name} holds {outside[0]}, but {call.name!r} has {size} {what}. "
            "Choose others, or choose the calls they exist in with layers=."
        )
    return [index % size for index in chosen]
