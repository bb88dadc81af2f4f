"""Where a token begins: everything that a model computes from one token alone belongs to that token.

Up to the first operation that mixes positions, a hidden state is its token's own: the word's embedding with that of its
position and type, their norm, and the first layer's values with b_V, as in DecompX's own code.  Found by following
positions (:mod:`captum_norm.capture.places`), not by names of modules.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture import Dataflow, Following, Mixer
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, kind_of, names_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import Anchor, Place, Source

# Attention is where positions mix: it is not followed any further.
_MIXES = names_of(OperationKind.ATTENTION)
_EXITS = names_of(OperationKind.EXIT)
_HELD_FIXED = names_of(OperationKind.SOFTMAX, OperationKind.FUNCTION)
_PRODUCTS = frozenset(("matmul", "rmatmul", "einsum", "baddbmm", "addmm"))
_SIDE_BY_SIDE = names_of(OperationKind.JOIN, OperationKind.WRITE)


@dataclass(frozen=True, eq=False)
class Leaf:
    """A tensor as it enters the first mixing: where what is followed begins.

    Attributes:
        value: in any layout, a leaf of autograd's graph.
        place: which position of which input each entry belongs to.
    """

    value: Tensor
    place: Place

    @property
    def source(self) -> Source:
        """The index of the input among the sources, or a name where it is no input."""
        origin = self.place.anchor.origin.source
        return origin if isinstance(origin, int) else self.place.anchor.source

    @property
    def anchor(self) -> Anchor:
        return self.place.anchor

    def index(self) -> Tensor:
        """``batch * length + position`` of each entry, shaped as ``value``; -1 where an entry is no input's."""
        numbers = self.place.numbers()
        if numbers is None:
            raise ValueError(f"the positions of {self.source!r} were taken apart before any attention")
        return numbers.expand(self.value.shape)

    def examples(self) -> Tensor:
        """Which example each entry belongs to, shaped as ``value``; -1 where an entry is no input's."""
        index = self.index()
        return torch.where(index < 0, -1, index // self.anchor.length)

    def by_position(self, entries: Tensor) -> Tensor:
        """Entries (..., *shape of value) summed for each position: (..., batch, position)."""
        index, lead = self.index(), entries.shape[: entries.ndim - self.value.ndim]
        if index.stride(-1) == 0:  # the features of one position
            index, entries = index[..., 0], entries.sum(-1)
        anchor = self.anchor
        flat, entries = index.flatten().to(entries.device), entries.flatten(len(lead))
        inside = flat >= 0
        out = entries.new_zeros(*lead, anchor.shape[0] * anchor.length)
        out.index_add_(-1, flat[inside], entries[..., inside])
        return out.view(*lead, anchor.shape[0], anchor.length)

    def left_out(self, entries: Tensor) -> Tensor:
        """Entries shaped as ``value`` summed where they belong to no input position: (batch,)."""
        index = self.index().to(entries.device)
        outside = index < 0
        batch = self.anchor.shape[0]
        if not outside.any():
            return entries.new_zeros(batch)
        example = torch.where(outside, -1, index // self.anchor.length)
        entries = torch.where(outside, entries, 0)
        if batch == 1:
            return entries.sum()[None]
        for axis in range(index.ndim):
            of_row = _example_of_each(example, axis)
            if of_row is not None:
                rows = entries.movedim(axis, 0).flatten(1).sum(1)
                return entries.new_zeros(batch).index_add(0, of_row, rows)
        raise ValueError(
            f"the share of what is no token of input {self.source!r} (a class token, latents) cannot be told "
            f"by example: its state, {tuple(self.value.shape)}, has no axis that counts the {batch} examples. "
            "Explain one example at a time."
        )


def _example_of_each(example: Tensor, axis: int) -> Tensor | None:
    """Which example each index along an axis (examples, or heads of each of them) is of; None where that varies."""
    rows = example.movedim(axis, 0).flatten(1)
    of_row = rows.amax(1)
    is_one = bool(((rows == of_row[:, None]) | (rows < 0)).all())
    return of_row if is_one and bool((of_row >= 0).all()) else None


class TokenSources:
    """Follows positions from the inputs to the first mixing, and makes leaves there.

    Args:
        inputs: the tensors whose positions are the tokens.
        of_the_first: what is cut again (patches of patches, reduced keys) belongs to the positions of the first cut.
    """

    def __init__(self, inputs: Iterable[Tensor], of_the_first: bool = False) -> None:
        sequences, self._of_the_first = list(inputs), of_the_first
        self._flow = Dataflow(sequences, finish=lambda mixture: None)
        self._following = Following(self._flow)
        for number, ids in enumerate(sequences):
            # Ids of more axes, such as (batch, choice, position): each is a token, whichever axis attention runs over.
            if ids.ndim > 2 and not ids.is_floating_point():
                anchor = Anchor(number, tuple(ids.shape), tuple(range(1, ids.ndim)), self._flow.next_anchor())
                self._flow.traces.update(ids, place=Place(anchor))
        self._leaves: Facts[Leaf] = Facts()
        self._gates: Facts[bool] = Facts()
        self.leaves: list[Leaf] = []
        self._met_unseen = False
        self._mixers: set[Hashable] = set()

    def rule_for(self, name: str) -> Callable[[Operation], None] | None:
        if name in _MIXES:
            return None
        return self._softmax if name == "softmax" else self._following.rule_for(name)

    def compares(self, name: str) -> bool:
        """Whether operations of this name make masks of what they compare."""
        return kind_of(name) is OperationKind.QUESTION and self.rule_for(name) is not None

    def compared(self, op: Operation) -> None:
        """Take in such an operation."""
        rule = self.rule_for(op.name)
        if rule is not None:
            with torch.no_grad():
                rule(op)

    def _softmax(self, op: Operation) -> None:
        """Over the features of one token it is that token's own; over positions it is attention."""
        x, axis = op.args[0], op.argument(1, "dim")
        place = self.place(x)
        if place is not None and isinstance(axis, int) and self._flow.places.holds_one(place, (axis % x.ndim,)):
            self._flow.traces.update(op.out, place=place)

    def place(self, tensor: Tensor) -> Place | None:
        """Where a hidden state that belongs to single tokens comes from; None for all others."""
        if not _is_state(tensor) or isinstance(tensor, torch.nn.Parameter):
            return None
        trace = self._flow.traces[tensor]
        if trace is None or trace.place is None:
            return None
        if trace.place.mixers:
            self._mixers |= trace.place.mixers
            return None
        # A softmax may be attention; of one token alone, it is an activation or a gate.
        return None if trace.mixed or trace.projection is not None else trace.place

    @property
    def mixers(self) -> str:
        """What mixed positions on the way to a state that was met, in words; "" where nothing did."""
        return ", ".join(sorted(str(one) for one in self._mixers if isinstance(one, Mixer)))

    @property
    def of_unseen(self) -> bool:
        """Whether anything was taken in that no seen operation made, and that is no parameter."""
        return self._met_unseen or bool(self._flow.opaque.parts)

    def meets(self, constants: Iterable[Tensor]) -> None:
        """Note what meets a state that is followed."""
        self._met_unseen = self._met_unseen or any(
            _is_state(tensor) and tensor.ndim > 1 and not self._flow.opaque.knows(tensor)
            for tensor in constants
        )

    def pass_on(self, out: Any) -> None:
        """Note that a result was made of what has been mixed: a gate made of it is none of a single token."""
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor) and _is_state(tensor):
                self._flow.know_mixed(tensor)

    def is_gate(self, tensor: Tensor) -> bool:
        """Whether a hidden state of single tokens is what would be held fixed as a whole if it were mixed."""
        return tensor in self._gates

    def note(self, op: Operation) -> bool:
        """Take in an operation that has run on nothing live; whether it mixed positions."""
        placed = [(tensor, place) for tensor in op.tensors if (place := self.place(tensor)) is not None]
        if op.name == "copy_":  # which does not read what it overwrites
            placed = [(tensor, place) for tensor, place in placed if tensor is not op.args[0]] or placed
        traces = self._flow.traces
        written = [op.args[0], *traces.beside(op.args[0])] if op.writes else []
        before = [traces[into] for into in written]
        rule, of_gates = self.rule_for(op.name), all(self.is_gate(tensor) for tensor, _ in placed)
        for into in op.overwritten:
            for tensor in (into, *self._gates.beside(into)):
                self._gates[tensor] = None
        if rule is not None:
            with torch.no_grad():
                rule(op)
        if not placed:
            return False
        if op.name in _EXITS:
            return True
        if base_name(op.name) in _HELD_FIXED or of_gates:
            for out in op.outputs:
                for tensor in (out, *(alias for alias in written if alias.numel() == out.numel())):
                    self._gates[tensor] = True
        outs = [out for out in ([op.args[0]] if op.writes else op.outputs) if _is_state(out)]
        mixed = any(self.place(out) is None or self._cuts_tokens(placed, out) for out in outs)
        mixed = mixed or (bool(outs) and self._mixes(op, placed))
        if mixed:  # it is done again, on what was there before
            for into, trace in zip(written, before, strict=True):
                traces[into] = trace
        return mixed

    def _cuts_tokens(self, placed: Sequence[tuple[Tensor, Place]], out: Tensor) -> bool:
        """Whether positions begin anew in what was counted before, where the first ones are the tokens."""
        place = self.place(out) if self._of_the_first else None
        before = [was.anchor for _, was in placed]
        parent = None if place is None else place.anchor.parent
        return parent is not None and parent.parent is not None and any(parent is anchor for anchor in before)

    def _mixes(self, op: Operation, placed: Sequence[tuple[Tensor, Place]]) -> bool:
        if op.name in _PRODUCTS:
            place = self.place(op.out)
            several = len(placed) > 1 and not all(_is_of_an_input(one) for _, one in placed)
            return several or place is None or place.numbers() is None
        if base_name(op.name) in _SIDE_BY_SIDE:  # rows of several tokens beside each other; places say what is not
            return False
        first = placed[0][1]
        others = [
            place for _, place in placed[1:] if place.anchor.origin is first.anchor.origin and place.key != first.key
        ]
        return any(not _agree(first, other) for other in others)

    def leaf(self, tensor: Tensor) -> Tensor:
        """The leaf of a tensor that enters a mixing; the same one each time it enters."""
        leaf = self._leaves[tensor]
        if leaf is None:
            place = self.place(tensor)
            assert place is not None
            value = tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            leaf = self._leaves[tensor] = Leaf(value, place)
            self.leaves.append(leaf)
        return leaf.value

    @property
    def differ(self) -> bool:
        """Whether one input is counted in several ways: in patches and in patches of these, say."""
        lengths: dict[Source, set[int]] = {}
        for leaf in self.leaves:
            lengths.setdefault(leaf.source, set()).add(leaf.anchor.length)
        return any(len(found) > 1 for found in lengths.values())

    def beside(self, tensor: Tensor) -> list[Tensor]:
        """The other tensors of which something is known that share the memory of this one."""
        return self._flow.traces.beside(tensor)

    def forget_leaf(self, tensor: Tensor) -> None:
        """A tensor was overwritten: where it enters a mixing from here on, there is another leaf."""
        self._leaves[tensor] = None

    def forget(self, tensor: Tensor) -> None:
        """A tensor was overwritten by something mixed."""
        self._flow.traces.update(tensor, place=None)

    def clear(self) -> None:
        """Drop all that is held but the leaves."""
        self._flow.forget()
        self._leaves.clear()
        self._gates.clear()


def _is_of_an_input(place: Place) -> bool:
    """Whether positions are those of an input; what others do to each other is not seen to mix them."""
    return isinstance(place.anchor.origin.source, int)


def _is_state(tensor: Tensor) -> bool:
    """Whether a tensor may be a hidden state: numbers, complex ones, too (a Fourier transform's), not ids or masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def _agree(first: Place, second: Place) -> bool:
    """Whether two tensors of one shape hold the same positions in the same places."""
    a, b = first.numbers(), second.numbers()
    if a is None or b is None:
        return False
    try:
        shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return True  # no entrywise operation: places say all there is
    return torch.equal(a.expand(shape), b.expand(shape))
