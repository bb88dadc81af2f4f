"""Which heads are one attention call: those that enter one projection as blocks of rows and columns of its input.

A model may mix the values of each head by itself (heads as modules of their own), of some queries at a time (chunks),
or of one example after the other, and join what comes out before one projection.  Blocks with the same keys that lie
side by side are one call; blocks with keys of their own (packed documents) stay calls of their own.

Axes: b batch, h head, q query, k key, e head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_norm.capture.call import InexactCaptureError
from captum_norm.capture.heads import Heads
from captum_norm.capture.held import HeadValues
from captum_norm.capture.layout import Layout
from captum_norm.capture.positions import numbers_of
from captum_norm.capture.rows import Arranged, Whole
from captum_norm.operations.places import Anchor, Place

Arrange = Callable[[Sequence[Tensor]], Tensor]
"""From a tensor (b, h, q, ...) of each part to that of the whole call."""

# Of so many queries weights are compared; those of all keys add up to more than this.
_FIRST = 8
_ALL = 0.99


@dataclass(frozen=True, eq=False)
class Numbered:
    """Which input position each query or key is.

    Attributes:
        rows: (b, h, q or k) numbers that the anchor gave, or None.
        anchor: where they were counted, or None.
        unknown: why rows is None, in words for an error message.
    """

    rows: Tensor | None
    anchor: Anchor | None
    unknown: str = ""

    def along(self, axis: int, others: Sequence[Numbered]) -> Numbered:
        """These and others side by side; unknown if any is."""
        rows = []
        for numbered in (self, *others):
            if numbered.rows is None or numbered.anchor is not self.anchor:
                return Numbered(None, None, numbered.unknown or "its parts come from different inputs")
            rows.append(numbered.rows)
        return replace(self, rows=torch.cat(rows, axis))

    def same(self, other: Numbered) -> bool:
        """Whether both are known and equal, or neither is known."""
        if self.rows is None or other.rows is None:
            return self.rows is other.rows
        return self.anchor is other.anchor and torch.equal(self.rows[:, :1], other.rows[:, :1])


@dataclass(frozen=True, eq=False)
class Joined:
    """Heads that are one call, or on the way to it.

    Attributes:
        parts: what it is made of.
        tokens: (b, q) which row of the projection's output.
        columns: for each head in order, which product and which columns.
        weights, values, W_O, gate: as in a record.
        queries, keys: which input positions they are.
        arrange: puts tensors of the parts in the order of the call.
        over_keys: the same for tensors (b, h, q, k), where parts have keys of their own that are spread.
        own: (b, q) which key each query is itself, where its position is several keys.
    """

    parts: tuple[Heads, ...]
    tokens: Tensor
    columns: tuple[Hashable, ...]
    weights: Arranged | Whole
    values: HeadValues
    W_O: Tensor
    gate: Tensor | None
    queries: Numbered
    keys: Numbered
    arrange: Arrange
    over_keys: Arrange | None = None
    own: Tensor | None = None

    @classmethod
    def of(cls, part: Heads, others: bool) -> Joined:
        """One part by itself; its positions are asked for only where there are others."""
        columns = tuple((part.root, tuple(head)) for head in part.layout.columns.tolist()) if others else ()
        mixture, layout = part.mixture, part.layout
        if not others:
            return cls(
                (part,), layout.tokens, columns, part.weights, part.values, part.W_O, part.gate, _UNASKED, _UNASKED,
                lambda tensors: tensors[0],
            )  # fmt: skip
        queries = _numbered(mixture.weights_place, mixture.lead, mixture.weights.shape, layout, "query")
        keys = _numbered(mixture.values_place, mixture.lead, mixture.values.shape, layout, "key")
        return cls(
            (part,), layout.tokens, columns, part.weights, part.values, part.W_O, part.gate, queries, keys,
            lambda tensors: tensors[0],
        )  # fmt: skip

    @property
    def layout(self) -> Layout:
        """Where (batch, query) lie among the rows of what W_O wrote."""
        first = self.parts[0].layout
        if len(self.parts) == 1 and self.over_keys is None:
            return first
        rows = torch.zeros(self.weights.shape[:3], dtype=torch.long)
        return replace(first, rows=rows, queries=rows, tokens=self.tokens, rest=first.rest[:0])

    def meets(self, other: Joined) -> bool:
        """Whether W_O writes both into the same rows."""
        return bool(torch.isin(self.tokens, other.tokens).any())

    @property
    def examples(self) -> tuple[int, ...]:
        """The example that each row of the batch reads its keys from; empty where that is not known."""
        if self.keys.rows is None or self.keys.anchor is None:
            return ()
        return tuple((self.keys.rows[:, 0, 0] // self.keys.anchor.length).tolist())

    @property
    def indices(self) -> dict[Hashable, set[int]]:
        """As for one part: for each axis at whose indices the rows of all parts are, these."""
        parts = [part.indices for part in self.parts]
        shared = set(parts[0]).intersection(*parts[1:])
        return {axis: set().union(*(part[axis] for part in parts)) for axis in shared}


_UNASKED = Numbered(None, None)


def _numbered(place: Place | None, lead: tuple[int, ...], shape: torch.Size, layout: Layout, axis: str) -> Numbered:
    if place is None:
        return Numbered(None, None, f"the {axis} axis could not be followed back to an input")
    rows, unknown = numbers_of(place, lead, shape, layout, axis)
    return Numbered(rows, None if rows is None else place.anchor, unknown)


def apart(parts: Sequence[Heads], over_windows: bool = False) -> list[Joined]:
    """Each of these heads of one projection by itself.

    Args:
        parts: the heads.
        over_windows: heads that attend within windows are asked for their positions, though there are no others.

    Raises:
        InexactCaptureError: if some of them are the same.
    """
    firsts = [(part.mixture, part.first) for part in parts] if len(parts) > 1 else []
    if len(set(firsts)) < len(firsts):
        alike = (other for n, one in enumerate(parts) for other in parts[:n] if _are_added_up(one, other))
        if next(alike, None) is not None:
            raise InexactCaptureError(
                "its mixed values y are added to themselves before W_O, scaled in two ways (y - y * g), and such a sum "
                "of two is not read: write the factor once, y * (1 - g)"
            )
        raise InexactCaptureError("the same heads enter W_O in two different layouts")
    return [Joined.of(part, len(parts) > 1 or (over_windows and _in_groups(part))) for part in parts]


def _are_added_up(one: Heads, other: Heads) -> bool:
    """Whether the same heads are added to themselves: they meet W_O once, in the same rows and columns of its input."""
    same = one.root == other.root and (one.mixture, one.first) == (other.mixture, other.first)
    ours, theirs = one.layout, other.layout
    return same and torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.columns, theirs.columns)


def meets_values_twice(parts: Sequence[Heads]) -> bool:
    """Whether the same weights meet several values that are added up into the same entries of W_O's input.

    Heads of one softmax that are subtracted (differential attention) are other weights.
    """
    for number, one in enumerate(parts):
        for other in parts[:number]:
            ours, theirs = one.mixture.softmaxes, other.mixture.softmaxes
            if one.root != other.root or not any(softmax in theirs for softmax in ours):
                continue
            rows = bool(torch.isin(one.layout.tokens, other.layout.tokens).any())
            columns = bool(torch.isin(one.layout.columns, other.layout.columns).any())
            if rows and columns and _are_same_weights(one, other):
                return True
    return False


def _are_same_weights(one: Heads, other: Heads) -> bool:
    """Whether two parts have the same weights, as far as the first queries tell, or each all keys, and one no input.

    Those of some keys and those of others, as of windows and global tokens, add up to one together.
    """
    if one.mixture is other.mixture or one.weights.shape[-1] != other.weights.shape[-1]:
        return False
    ours, theirs = (part.weights.at(slice(0, _FIRST)) for part in (one, other))
    if not (one.mixture.reach[1] and other.mixture.reach[1]):
        return bool(ours.sum(-1).amin() > _ALL) and bool(theirs.sum(-1).amin() > _ALL)
    return ours.shape == theirs.shape and torch.equal(ours, theirs)


def _in_groups(part: Heads) -> bool:
    """Whether attention ran in more groups than there are examples, as within windows."""
    place = part.mixture.values_place
    return place is not None and part.layout.tokens.shape[0] > place.anchor.shape[0]


def joined(alone: Sequence[Joined]) -> list[Joined]:
    """The calls that these heads are.

    Raises:
        InexactCaptureError: if one mixture would be a part of several calls.
    """
    if len(alone) == 1:
        return list(alone)
    calls = _fold(sorted(alone, key=lambda one: (one.columns[0], one.parts[0].first)), _beside)
    calls = _fold(sorted(calls, key=lambda one: int(one.tokens.min())), _behind)
    calls = _fold(sorted(calls, key=lambda one: one.examples), _below)
    owners = [mixture for call in calls for mixture in {part.mixture for part in call.parts}]
    if len(set(owners)) < len(owners):
        raise InexactCaptureError(_not_joined([one.parts[0] for one in alone]))
    return calls


def _not_joined(parts: Sequence[Heads]) -> str:
    """Why a mixture would be a part of several calls."""
    for part in parts:
        counts = [other.layout.shape[2] for other in parts if other.mixture is part.mixture]
        if len(set(counts)) > 1:
            return (
                f"groups of its examples have {', '.join(map(str, sorted(set(counts))))} queries, as where some tokens "
                "attend to all and the others within windows, and not all of their keys are positions of the input. "
                "DecompX reads such attention as it is"
            )
    return "the parts of W_O write their outputs in different orders"


def _fold(pieces: Sequence[Joined], join: Callable[[Joined, Joined], Joined | None]) -> list[Joined]:
    """Each piece joined to the first one that takes it."""
    calls: list[Joined] = []
    for piece in pieces:
        for index, call in enumerate(calls):
            together = join(call, piece)
            if together is not None:
                calls[index] = together
                break
        else:
            calls.append(piece)
    return calls


def _beside(one: Joined, other: Joined) -> Joined | None:
    """Other heads of the same queries and keys."""
    shapes = [(*p.weights.shape[:1], *p.weights.shape[2:], p.values.shape[-1]) for p in (one, other)]
    if shapes[0] != shapes[1] or not torch.equal(one.tokens, other.tokens) or not one.keys.same(other.keys):
        return None
    if one.keys.rows is None and not _may_share_keys(one, other):
        return None
    return replace(
        _together(one, other, 1),
        columns=one.columns + other.columns,
        weights=Whole(torch.cat([one.weights.whole(), other.weights.whole()], 1)),
        values=_joined_values(one, other, 1),
        W_O=torch.cat([one.W_O, other.W_O]),
        queries=one.queries.along(1, [other.queries]),
        keys=one.keys.along(1, [other.keys]),
    )


def _may_share_keys(one: Joined, other: Joined) -> bool:
    """Whether heads at unknown positions can have the same keys: not if the same columns of W_O read other values."""
    heads = {columns: number for number, columns in enumerate(one.columns)}
    both = [(heads[columns], number) for number, columns in enumerate(other.columns) if columns in heads]
    return all(torch.equal(one.values.whole[:, ours], other.values.whole[:, theirs]) for ours, theirs in both)


def _behind(one: Joined, other: Joined) -> Joined | None:
    """Other queries of the same heads and keys."""
    if one.columns != other.columns or len(one.tokens) != len(other.tokens):
        return None
    longer, shorter = (one, other) if one.values.shape[2] >= other.values.shape[2] else (other, one)
    here = _found_in(shorter, longer)
    if here is None:
        return None
    keys = longer.values.shape[2]
    wholes = [(p, p.weights.whole()) for p in (one, other)]
    padded = [weights if p is longer else _padded(weights, here, keys) for p, weights in wholes]
    tokens = torch.cat([one.tokens, other.tokens], 1)
    order = tokens[0].argsort()
    whole = _together(one, other, 2, order)
    queries = one.queries.along(2, [other.queries])
    return replace(
        whole,
        tokens=tokens[:, order],
        weights=Whole(torch.cat(padded, 2)[:, :, order.to(padded[0].device)]),
        values=longer.values,
        queries=queries if queries.rows is None else replace(queries, rows=queries.rows[:, :, order]),
        keys=longer.keys,
    )


def _below(one: Joined, other: Joined) -> Joined | None:
    """Other examples, with the same heads and as many queries and keys."""
    if one.columns != other.columns or one.weights.shape[1:] != other.weights.shape[1:]:
        return None
    if not _of_other_examples(one, other):
        return None
    return replace(
        _together(one, other, 0),
        tokens=torch.cat([one.tokens, other.tokens]),
        weights=Whole(torch.cat([one.weights.whole(), other.weights.whole()])),
        values=_joined_values(one, other, 0),
        queries=one.queries.along(0, [other.queries]),
        keys=one.keys.along(0, [other.keys]),
    )


def _of_other_examples(one: Joined, other: Joined) -> bool:
    """Whether two calls read their keys from different examples, as far as can be known.

    Where positions could not be followed, examples are told by the axes on the way to W_O: an index of one for each.
    """
    if one.keys.rows is None and other.keys.rows is None:
        ours, theirs = one.indices, other.indices
        return any(ours[axis].isdisjoint(theirs[axis]) for axis in ours.keys() & theirs.keys())
    known = one.keys.anchor is other.keys.anchor and one.examples and other.examples
    return bool(known) and set(one.examples).isdisjoint(other.examples)


def _together(one: Joined, other: Joined, axis: int, order: Tensor | None = None) -> Joined:
    """Parts, gate and order of both, side by side along an axis."""
    count = len(one.parts)

    def arrange(tensors: Sequence[Tensor]) -> Tensor:
        whole = torch.cat([one.arrange(tensors[:count]), other.arrange(tensors[count:])], axis)
        return whole if order is None else whole.index_select(axis, order.to(whole.device))

    gate = None
    if one.gate is not None or other.gate is not None:
        gates = [_gate_of(p, one.gate, other.gate) for p in (one, other)]
        width = max(g.shape[-1] for g in gates)
        gate = torch.cat([g.expand(*g.shape[:-1], width) for g in gates], axis)
        gate = gate if order is None else gate.index_select(axis, order.to(gate.device))
    return replace(one, parts=one.parts + other.parts, gate=gate, arrange=arrange)


def _joined_values(one: Joined, other: Joined, axis: int) -> HeadValues:
    return HeadValues(torch.cat([one.values.whole, other.values.whole], axis))


def _gate_of(call: Joined, *gates: Tensor | None) -> Tensor:
    like = next(gate for gate in gates if gate is not None)
    return like.new_ones(*call.weights.shape[:3], 1) if call.gate is None else call.gate


def _found_in(shorter: Joined, longer: Joined) -> Tensor | None:
    """Which keys of ``longer`` those of ``shorter`` are: the same positions and values; None if they are not."""
    count = shorter.values.shape[2]
    here = torch.arange(count)
    ours, theirs = shorter.keys.rows, longer.keys.rows
    if ours is not None and theirs is not None:
        if shorter.keys.anchor is not longer.keys.anchor or len(ours) != len(theirs):
            return None
        equal = ours[0, 0][:, None] == theirs[0, 0][None, :]
        if not equal.any(-1).all():
            return None
        here = equal.long().argmax(-1)
        if not torch.equal(ours[:, :1], theirs[:, :1, here]):
            return None
    elif ours is not theirs:
        return None
    ours, theirs = shorter.values.whole, longer.values.whole
    there = theirs[:, :, here.to(theirs.device)]
    return here if there.shape == ours.shape and torch.equal(there, ours) else None


def _padded(weights: Tensor, here: Tensor, keys: int) -> Tensor:
    """Weights of some keys as weights of all: nothing for the others."""
    wide = weights.new_zeros(*weights.shape[:3], keys)
    wide[..., here.to(weights.device)] = weights
    return wide
