"""One attention call out of pieces of one softmax: windows, blocks and global tokens, laid over all positions.

Long-document models compute a softmax for each query and then mix its values in pieces: those within a window or block,
those of global tokens, those of random blocks.  Rows of global tokens come from another softmax and may read values of
their own.  The positions of queries and keys are known for each piece, so

    weights[b, h, i, j] = sum over pieces of the weight that query i gives to the key at position j

is the one map of the call.  Windows alone are one piece, with several groups for each example.  Where queries read
different values at one position (Longformer's ``value`` and ``value_global``), the keys are all positions once for each
set of values.

Axes: b batch, h head, q query, k key, e head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_norm.capture.held import HeadValues
from captum_norm.capture.joining import Joined, Numbered
from captum_norm.capture.rows import Whole
from captum_norm.operations.places import Anchor
from captum_norm.operations.steps import NOT_AN_INPUT


def whole_of(pieces: Sequence[Joined]) -> list[Joined]:
    """The one call whose pieces these heads of one projection are; nothing where they are not, or it cannot be told."""
    whole = _spread(pieces) if _is_in_pieces(pieces) else None
    return [] if whole is None else [whole]


def _is_in_pieces(pieces: Sequence[Joined]) -> bool:
    """Whether one softmax writes its rows in several pieces, or other rows stand in the place of some of its own.

    Rows that two softmaxes write are two attention calls.
    """
    if len(pieces) == 1:
        return pieces[0].keys.rows is not None  # asked for where it is in more groups than examples: windows
    in_pieces = False
    for n, one in enumerate(pieces):
        mixture = one.parts[0].mixture
        for other in pieces[:n]:
            theirs = other.parts[0].mixture
            if one.columns == other.columns and mixture is not theirs and one.meets(other):
                if not any(softmax in theirs.softmaxes for softmax in mixture.softmaxes):
                    return False
                in_pieces = True
        written = sum(other.parts[0].layout.rows.numel() for other in pieces if other.parts[0].mixture is mixture)
        in_pieces |= written < math.prod(mixture.lead) * mixture.weights.shape[-2]
    return in_pieces


def _spread(pieces: Sequence[Joined]) -> Joined | None:
    """The one call of these pieces; None where a position is not known, or where a query reads two sets of values."""
    anchor = pieces[0].keys.anchor
    placed = [None if anchor is None else _Placed.of(piece, anchor, pieces[0].columns) for piece in pieces]
    known = [piece for piece in placed if piece is not None]
    if anchor is None or len(known) < len(pieces):
        return None
    tokens, sets = _rows_of_examples(known, anchor), _sets_of_values(known, anchor)
    if tokens is None or sets is None:
        return None
    whole = _Spread(known, [n for n, _ in sets], tokens, anchor.length)
    reads, queries, gate = whole.reads(), whole.queries(), whole.gate()
    if reads is None or queries is None or gate is None:
        return None
    weights, values = whole.over_keys([piece.weights for piece in known]), dict(sets)
    keys = torch.arange(len(tokens))[:, None, None] * anchor.length + torch.arange(anchor.length).repeat(len(values))
    return replace(
        pieces[0],
        parts=tuple(part for piece in pieces for part in piece.parts),
        tokens=tokens,
        weights=Whole(weights),
        values=HeadValues(torch.cat([values[n] for n in sorted(values)], 2)),
        gate=None if all(piece.one.gate is None for piece in known) else gate,
        queries=Numbered(queries, anchor),
        keys=Numbered(keys.expand(-1, weights.shape[1], -1), anchor),
        arrange=whole.arrange,
        over_keys=whole.over_keys,
        own=reads * anchor.length + queries[:, 0] % anchor.length if len(values) > 1 else None,
    )


@dataclass(frozen=True, eq=False)
class _Placed:
    """A piece, whose examples and positions are known.

    Attributes:
        one: the piece.
        weights: (b, h, q, k).
        examples: (b,), the example that each of its groups belongs to.
        keys: (b, h, k), positions; below 0 where the key is no input and has no weight.
        queries: (b, h, q), numbers of the anchor; below 0 for padding that the model added, or without any weight.
    """

    one: Joined
    weights: Tensor
    examples: Tensor
    keys: Tensor
    queries: Tensor

    @classmethod
    def of(cls, piece: Joined, anchor: Anchor, columns: Sequence[object]) -> _Placed | None:
        keys, queries = piece.keys.rows, piece.queries.rows
        if keys is None or queries is None or piece.columns != columns:
            return None
        if piece.keys.anchor is not anchor or piece.queries.anchor is not anchor:
            return None
        weights, inputs = piece.weights.whole(), keys >= 0
        numbers = torch.cat([keys, queries], -1).flatten(1)
        examples = numbers.div(anchor.length, rounding_mode="floor")
        mine = examples.amax(1).clamp_min(0)
        if bool(((examples != mine[:, None]) & (numbers >= 0)).any()):
            return None
        if bool(((weights != 0) & (~inputs[:, :, None] & (queries >= 0)[..., None]).to(weights.device)).any()):
            return None
        return cls(piece, weights, mine, torch.where(inputs, keys % anchor.length, -1), queries)


def _rows_of_examples(pieces: Sequence[_Placed], anchor: Anchor) -> Tensor | None:
    """Which rows W_O wrote for the positions of each example, (b, q) in their order; None where examples have other
    numbers.

    None, too, where two rows lie at one position.  Rows of padding that the model has added are left out.  Those of an
    example's padding that has no weights stay: they lie where other examples have tokens.
    """
    rows: list[dict[int, int]] = [{} for _ in range(anchor.shape[0])]
    for piece in pieces:
        index = torch.where(piece.queries >= 0, piece.queries % anchor.length, NOT_AN_INPUT).amax(1).tolist()
        for example, tokens, positions in zip(piece.examples.tolist(), piece.one.tokens.tolist(), index, strict=True):
            for token, position in zip(tokens, positions, strict=True):
                rows[example][token] = max(position, rows[example].get(token, NOT_AN_INPUT))
    kept = [{token: position for token, position in of_one.items() if position >= 0} for of_one in rows]
    if len({len(of_one) for of_one in kept}) != 1:
        if len({len(of_one) for of_one in rows}) != 1:
            return None
        in_order = [sorted(of_one.items()) for of_one in rows]
        somewhere = [max(position for _, position in of_all) for of_all in zip(*in_order, strict=True)]
        kept = [
            {token: position for (token, _), position in zip(of_one, somewhere, strict=True) if position >= 0}
            for of_one in in_order
        ]
    if not kept[0] or any(len(set(of_one.values())) < len(of_one) for of_one in kept):
        return None
    return torch.tensor([sorted(of_one, key=of_one.__getitem__) for of_one in kept])


def _sets_of_values(pieces: Sequence[_Placed], anchor: Anchor) -> list[tuple[int, Tensor]] | None:
    """For each piece, which set of values it reads and that set, (b, h, position, e), as few sets as there are.

    Pieces that read the same at the same positions share them; None where one reads two values at one position.
    """
    sets: list[tuple[Tensor, Tensor]] = []  # the values, and which of them were seen
    numbers = []
    for piece in pieces:
        values, inputs = piece.one.values.whole, piece.keys >= 0
        heads = torch.arange(values.shape[1])[None, :, None].expand(inputs.shape)
        chosen = (piece.examples[:, None, None].expand(inputs.shape)[inputs], heads[inputs], piece.keys[inputs])
        found = values[inputs.to(values.device)]
        shape = (anchor.shape[0], values.shape[1], anchor.length)
        fresh = values.new_zeros(*shape, values.shape[-1]), torch.zeros(shape, dtype=torch.bool)
        for n, (known, seen) in enumerate([*sets, fresh]):
            written = known.clone()
            written[chosen] = found
            if torch.equal(written[chosen], found) and torch.equal(written[seen], known[seen]):
                seen[chosen] = True
                sets[n:] = [(written, seen), *sets[n + 1 :]]
                numbers.append(n)
                break
        else:
            return None
    return [(n, sets[n][0]) for n in numbers]


class _Spread:
    """Puts tensors of pieces where they belong in the whole call.

    Args:
        pieces: what it is made of.
        sets: which set of values each reads.
        tokens: (b, q), which row of what W_O wrote each query is.
        length: how many positions there are; the keys are these once for each set of values.
    """

    def __init__(self, pieces: Sequence[_Placed], sets: Sequence[int], tokens: Tensor, length: int) -> None:
        self._pieces, self._sets, self._length, self._shape = pieces, sets, length, tokens.shape
        place = torch.full((max(int(t.max()) for t in (tokens, *(p.one.tokens for p in pieces))) + 1,), -1)
        place[tokens.flatten()] = torch.arange(tokens.shape[1]).repeat(len(tokens))
        self._rows = [place[piece.one.tokens] for piece in pieces]  # (b, q) of each piece, -1 where it is left out

    def over_keys(self, tensors: Sequence[Tensor]) -> Tensor:
        """(b, h, q, k) of each piece added up over all positions."""
        first, heads = tensors[0], self._pieces[0].weights.shape[1]
        dtype = torch.uint8 if first.dtype is torch.bool else first.dtype
        size = (self._shape[0], heads, self._shape[1], (max(self._sets) + 1) * self._length)
        whole = torch.zeros(size, dtype=dtype, device=first.device)
        for piece, n, rows, tensor in zip(self._pieces, self._sets, self._rows, tensors, strict=True):
            for example, keys, row, some in zip(piece.examples.tolist(), piece.keys, rows, tensor, strict=True):
                kept = row >= 0
                some = some.to(dtype).masked_fill((keys < 0)[:, None].to(first.device), 0)[:, kept.to(first.device)]
                index = (n * self._length + keys.clamp_min(0))[:, None].expand(some.shape).to(first.device)
                part = whole.new_zeros(*some.shape[:2], whole.shape[-1]).scatter_add_(-1, index, some)
                whole[example].index_add_(1, row[kept].to(first.device), part)
        return whole.bool() if first.dtype is torch.bool else whole

    def arrange(self, tensors: Sequence[Tensor]) -> Tensor:
        """(b, h, q, ...) of each piece in the order of the call; of a query's several pieces, the last."""
        first = tensors[0]
        whole = first.new_zeros(self._shape[0], self._shape[1], first.shape[1], *first.shape[3:])
        for (index, kept), tensor in zip(self._places(first.device), tensors, strict=True):
            whole[index] = tensor.transpose(1, 2)[kept]
        return whole.transpose(1, 2)

    def agreed(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """As ``arrange``; None where two pieces of one query differ."""
        whole = self.arrange(tensors)
        for (index, kept), tensor in zip(self._places(whole.device), tensors, strict=True):
            if not torch.equal(whole.transpose(1, 2)[index], tensor.transpose(1, 2)[kept]):
                return None
        return whole

    def queries(self) -> Tensor | None:
        """The number of each query, (b, h, q); None where pieces differ.

        Padding that has no weights lies where tokens of other examples do.
        """
        numbers = [piece.queries[..., None] for piece in self._pieces]
        whole = numbers[0].new_full((*self._shape, numbers[0].shape[1], 1), NOT_AN_INPUT)
        places = self._places(whole.device)
        for (index, kept), tensor in zip(places, numbers, strict=True):
            whole[index] = whole[index].maximum(tensor.transpose(1, 2)[kept])
        for (index, kept), tensor in zip(places, numbers, strict=True):
            known = tensor.transpose(1, 2)[kept]
            if bool(((known >= 0) & (known != whole[index])).any()):
                return None
        whole = whole.transpose(1, 2)[..., 0]
        anywhere = (whole % self._length).masked_fill(whole < 0, NOT_AN_INPUT).amax((0, 1))
        first = torch.arange(len(whole))[:, None, None] * self._length
        return torch.where((whole < 0) & (anywhere >= 0), first + anywhere, whole)

    def reads(self) -> Tensor | None:
        """Which set of values each query reads, (b, q); None where one reads several."""
        pairs = zip(self._pieces, self._sets, strict=True)
        found = self.agreed([torch.full((*piece.queries.shape, 1), n) for piece, n in pairs])
        return None if found is None else found[:, 0, :, 0]

    def gate(self) -> Tensor | None:
        """What the mixed values are multiplied with, (b, h, q, 1 or e), 1 where nothing; None where pieces differ."""
        gates = [
            piece.weights.new_ones(*piece.queries.shape, 1) if piece.one.gate is None else piece.one.gate
            for piece in self._pieces
        ]
        width = max(gate.shape[-1] for gate in gates)
        return self.agreed([gate.expand(*gate.shape[:-1], width) for gate in gates])

    def _places(self, device: torch.device) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
        """Of each piece, (example, row) of its queries in the call, and which of them (b, q) have one."""
        found = []
        for piece, rows in zip(self._pieces, self._rows, strict=True):
            kept = rows >= 0
            examples = piece.examples[:, None].expand(rows.shape)
            found.append(((examples[kept].to(device), rows[kept].to(device)), kept.to(device)))
        return found
