"""Carrying many inputs, or the parts of one, through a frozen model beside the model's own values.

While the model runs as it is, each live tensor has a companion, (part, *shape of the tensor), which goes through the
linear form of every operation: other inputs of the frozen map (:class:`PartsRun`), or the parts that the hidden
states come from, with every bias shared among the parts it is added to (:class:`SharedRun`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_norm.functional.decompx import BiasRule, share_bias
from captum_norm.linear.frozen import Conventions, Frozen, NotFrozenError
from captum_norm.linear.run import FrozenRun, Known, Start
from captum_norm.linear.sources import Leaf, TokenSources
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import Source

# Linear maps of features, whose parts are made when they are asked for.
_MAPS = frozenset(("linear", "addmm", "baddbmm", "matmul", "rmatmul", "einsum", "conv1d"))
_SUMS = names_of(OperationKind.SUM) | {"addmm", "baddbmm"}  # where the residual may be added
# Each entry of the result is one of an operand's, or a constant.
_PLACES = names_of(OperationKind.JOIN) | frozenset(
    "where masked_fill setitem copy index_copy masked_scatter masked_select gather take take_along_dim tril triu rot90 "
    "fliplr flipud atleast_1d atleast_2d atleast_3d H mH".split()
)
# The same, if the constants are zeros and ones.
_WRITES = frozenset(("index_put", "index_add", "scatter", "scatter_add"))
_PRODUCTS = frozenset(("linear", "matmul", "rmatmul", "einsum", "tensordot"))
_MAY_PLACE = _WRITES | _PRODUCTS | {"add", "sub", "mul", "div"}


class PartSources(TokenSources):
    """Where tokens begin, each being one part.

    Args:
        inputs: the tensors whose positions are the tokens.
        lengths: how many positions each sequence has, in the order of the parts.

    Attributes:
        number: how many parts there are; the last is what belongs to no token.
    """

    def __init__(self, inputs: Iterable[Tensor], lengths: Mapping[Source, int]) -> None:
        super().__init__(inputs)
        self._first: dict[Source, int] = {}
        self.number = 1
        for source, length in lengths.items():
            self._first[source] = self.number - 1
            self.number += length

    def slots(self, source: Source, length: int) -> slice:
        """Which parts are a sequence's positions."""
        return slice(self._first[source], self._first[source] + length)

    def parts(self, tensor: Tensor) -> Tensor:
        """A hidden state that belongs to single tokens, taken apart: (part, *shape)."""
        place = self.place(tensor)
        assert place is not None
        leaf = Leaf(tensor.detach(), place)
        index, first = leaf.index(), self._first.get(leaf.source)
        if first is None:  # a table of positions, say: the output depends on it only through what is held fixed
            index = torch.full_like(index, self.number - 1)
        else:
            index = torch.where(index < 0, self.number - 1, index % leaf.anchor.length + first)
        parts = tensor.new_zeros(self.number, *tensor.shape)
        return parts.scatter_(0, index[None].to(tensor.device), tensor.detach()[None])


class PartsRun(FrozenRun):
    """Each live tensor carries what the frozen model would have in its place for other inputs.

    Args:
        conventions: how what is not linear is held fixed.
        ones: what each part's biases are scaled with, (part,): 1 for another input, 0 for a part of one.
        sources: where tokens begin; their parts are made there.
        starts: as for :class:`FrozenRun`, with ``given``, the parts that begin there, (part, *shape) each.
    """

    lazy_maps = True

    def __init__(
        self, conventions: Conventions, ones: Tensor, sources: PartSources | None = None, starts: Sequence[Start] = (),
        given: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        super().__init__(conventions, sources, starts)
        self.ones, self._given = ones, given
        self._parts = sources
        self._starts: Facts[tuple[Any]] = Facts()

    def begin(self, tensor: Tensor, number: int = 0) -> Tensor:
        parts = self._given[number].to(tensor)
        if parts.shape != (len(self.ones), *tensor.shape):
            expected = ", ".join(map(str, (len(self.ones), *tensor.shape)))
            raise ValueError(f"the inputs of a frozen map should be ({expected}), got {tuple(parts.shape)}.")
        self.known[tensor] = Known(lambda: self.started(parts))
        return tensor

    def started(self, parts: Tensor) -> Any:
        return parts

    def carry(self, op: Operation, frozen: Frozen) -> Any:
        def make() -> Any:
            with torch.no_grad():
                return self.companions(op, frozen, [self.linear_form(tensor) for tensor in frozen.operands])

        value = self.note_values(op, frozen, make)
        if not (frozen.lazy or frozen.moves or op.name in _MAPS):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                self.linear_form(tensor)
        return value

    def linear_form(self, tensor: Tensor) -> Any:
        known = self.known[tensor]
        if known is not None and known.make is not None:
            return known.make()
        if self._parts is None or self._parts.place(tensor) is None:  # a constant
            return tensor.detach() * self.ones.to(tensor).view(-1, *[1] * tensor.ndim)
        start = self._starts[tensor]
        if start is None:
            start = self._starts[tensor] = (self.started(self._parts.parts(tensor)),)
        return start[0]

    def forget_start(self, tensor: Tensor) -> None:
        self._starts[tensor] = None

    def companions(self, op: Operation, frozen: Frozen, operands: list[Any]) -> Any:
        """The operation's linear form on the parts of its operands."""
        return self.mapped(frozen, operands, self.ones)

    def mapped(self, frozen: Frozen, operands: list[Tensor], ones: Tensor) -> Any:
        """The linear form for each part; where it cannot be done for all at once, one by one."""
        ones = ones.to(operands[0].dtype)
        axes = (0 if ones.ndim else None, *[0] * len(operands))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # done one by one by torch itself
                return torch.vmap(frozen.apply, in_dims=axes)(ones, *operands)
        except RuntimeError:
            number = len(operands[0])
            each = [
                frozen.apply(ones[n] if ones.ndim else ones, *(parts[n] for parts in operands)) for n in range(number)
            ]
        if isinstance(each[0], Tensor):
            return torch.stack(each)
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    def overwrite(self, into: Tensor, out: Tensor) -> Known | None:
        if into._is_view():
            raise NotFrozenError(
                f"a view of shape {tuple(into.shape)} is overwritten, so that its base's parts are lost"
            )
        with torch.no_grad():
            into.copy_(out)
        return None


class _Shared:
    """Parts of a tensor, and what biases have added that is not shared yet.

    Attributes:
        parts: (part, *shape).
        pending: shaped as the tensor, or None.
        mixed: the bias has been through attention: b_V and b_O are shared together, once the residual is there.
        moved: where it was moved from and how; a bias is shared there, where all features of a vector are together.
    """

    __slots__ = ("mixed", "moved", "parts", "pending")

    def __init__(
        self, parts: Any, pending: Any = None, mixed: bool = False, moved: Callable[[], Tensor] | None = None
    ) -> None:
        self.parts, self.pending, self.mixed, self.moved = parts, pending, mixed, moved


class SharedRun(PartsRun):
    """Parts with every bias shared among the parts it is added to, as DecompX does.

    A bias is shared where it is added, by how much each part resembles it.  But those of attention, b_V and b_O, are
    held back until the residual has been added, as in the authors' code: attention adds to the residual, not the
    residual to attention.  They go through whatever is linear on the way there, however the model has written it: heads
    put side by side, W_O entry by entry or head by head, a norm behind it.  An activation shares them before, and so
    does a product with what is not of attention, such as a gate.

    Args:
        conventions: how what is not linear is held fixed.
        sources: where tokens begin, and which part each is.
        rule: how a bias is shared.
    """

    def __init__(self, conventions: Conventions, sources: PartSources, rule: BiasRule) -> None:
        super().__init__(conventions, torch.zeros(sources.number), sources)
        self._rule = rule

    def started(self, parts: Tensor) -> Any:
        return _Shared(parts)

    def result(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return self._share_pending(self.linear_form(tensor))

    def companions(self, op: Operation, frozen: Frozen, operands: list[_Shared]) -> Any:
        if base_name(op.name) in _SUMS and any(operand.mixed for operand in operands):
            return self._add(frozen, operands)
        moves = frozen.moves or self._places(op, frozen, operands)
        of_attention = all(operand.mixed for operand in (operands[:1] if frozen.moves else operands))  # x.view_as(y)
        keep = moves or frozen.mixes or (of_attention and not frozen.bent)
        if not keep:
            for operand in operands:
                self._share_pending(operand)
        parts = self._mapped(frozen, operands)
        pending = self._pending(frozen, operands)
        mixed = frozen.mixes or (keep and of_attention)
        moves = moves and pending is not None
        if isinstance(parts, Tensor):
            return _Shared(parts, pending, mixed, self._moved(frozen, operands) if moves else None)
        return tuple(
            _Shared(
                part,
                None if pending is None else pending[number],
                mixed,
                self._moved(frozen, operands, number) if moves else None,
            )
            for number, part in enumerate(parts)
        )

    def _mapped(self, frozen: Frozen, operands: list[_Shared]) -> Any:
        return self.mapped(frozen, [operand.parts for operand in operands], operands[0].parts.new_zeros(()))

    def _places(self, op: Operation, frozen: Frozen, operands: list[_Shared]) -> bool:
        """Whether each entry of the result is one of an operand's, or a constant: it is moved, and nothing else.

        A product with ones, a sum with zeros or a matrix that repeats heads moves entries by what its constants are.
        """
        name, kwargs = base_name(op.name), op.kwargs
        if name in _PLACES:
            return True
        if name not in _MAY_PLACE or frozen.bent or frozen.mixes:
            return False
        if all(operand.pending is None for operand in operands):  # there is no bias to be shared, here or later
            return False
        if "reduce" in kwargs or kwargs.get("alpha", 1) != 1:
            return False
        if name in _PRODUCTS:
            live = set(map(id, frozen.operands))
            if not all(_is_zeros_and_ones(tensor.detach()) for tensor in op.tensors if id(tensor) not in live):
                return False
        zeros = [operand.parts.new_zeros(operand.parts.shape[1:]) for operand in operands]
        one = zeros[0].new_ones(())
        if frozen.has_constant and name not in _WRITES and bool(frozen.apply(one, *zeros).any()):
            return False
        counts = [
            frozen.apply(0 * one, *(zero + 1 if n == number else zero for n, zero in enumerate(zeros)))
            for number in range(len(zeros))
        ]
        return all(map(_is_zeros_and_ones, (*counts, torch.stack(counts).sum(0))))

    def _moved(self, frozen: Frozen, operands: list[_Shared], number: int | None = None) -> Callable[[], Tensor]:
        one = operands[0].parts.new_ones(())
        zeros = [operand.parts.new_zeros(operand.parts.shape[1:]) for operand in operands]
        constant = frozen.apply(one, *zeros) if frozen.has_constant else None  # of what may be overwritten later

        def again() -> Tensor:
            for operand in operands:
                self._share_pending(operand)
            parts = self._mapped(frozen, operands)
            if number is not None:
                parts = parts[number]
            return parts if constant is None else self._share(parts, constant)  # that were put beside them

        return again

    def _pending(self, frozen: Frozen, operands: list[_Shared]) -> Any:
        """What the biases so far, and the operation's own, are after it."""
        if not frozen.has_constant and all(operand.pending is None for operand in operands):
            return None
        one = operands[0].parts.new_ones(())
        if frozen.bent and self.conventions.activation == "ReLU":
            one = 0 * one  # what an activation is beyond z is dropped, as in the authors' code
        before = [o.parts.new_zeros(o.parts.shape[1:]) if o.pending is None else o.pending for o in operands]
        return frozen.apply(one, *before)

    def _add(self, frozen: Frozen, operands: list[_Shared]) -> _Shared:
        """Attention's parts are added up; with the residual, what is pending from attention is shared by their sum."""
        residual = not all(operand.mixed for operand in operands)
        for operand in operands:
            if not operand.mixed:
                self._share_pending(operand)
        parts = self._mapped(frozen, operands)
        shared = _Shared(parts, self._pending(frozen, operands), not residual)
        if residual:
            self._share_pending(shared)
        return shared

    def _share_pending(self, operand: _Shared) -> Tensor:
        """The parts, once the bias that is still pending has been shared among them."""
        if operand.pending is not None and operand.moved is not None:
            operand.parts = operand.moved()
        elif operand.pending is not None:
            operand.parts = self._share(operand.parts, operand.pending)
        operand.pending, operand.mixed, operand.moved = None, False, None
        return operand.parts

    def _share(self, parts: Tensor, bias: Tensor) -> Tensor:
        return share_bias(parts.movedim(0, -2), bias, self._rule).movedim(-2, 0)


def _is_zeros_and_ones(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())
