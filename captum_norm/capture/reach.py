"""Which inputs and attention calls a tensor was made of: one bit for each, kept for its storage.

Views share a storage, and what is written into a storage adds to what it was made of; so views, in-place operations
and preallocated buffers need no rule of their own.  A number that is no float (an id, a mask, a route) passes on
nothing but that it depends on an input at all: choosing entries by it mixes no positions.  What is computed of such
numbers alone and is a float again (a state that was rounded, a sign) is made of all that they were made of.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from captum_norm.operations.formats import ROUNDINGS, holds_numbers
from captum_norm.operations.kinds import OperationKind, Property, names_of, names_with
from captum_norm.operations.operation import Operation
from captum_norm.operations.storages import Storages, storage_of

# What else they are given says where entries go, or in which shape or format.
_OF_THE_FIRST = names_of(OperationKind.MOVE, OperationKind.IDENTITY)
_LIKE = names_with(Property.LIKE)

INPUT = 1
"""The bit of everything that was made of an input."""


class Reach:
    """Tensor -> bits of what it was made of; bits are joined by ``|``.

    Attributes:
        storages: all that were seen.
    """

    def __init__(self) -> None:
        self.storages = Storages()
        self._bits: dict[int, int] = {}
        self._chosen: dict[int, int] = {}  # of what is no float, all that it was made of
        self._told: set[int] = set()
        self._next = INPUT << 1

    def new_bit(self) -> int:
        """A bit that nothing has so far."""
        bit, self._next = self._next, self._next << 1
        return bit

    def of(self, tensor: Tensor) -> int:
        """The bits of a tensor; 0 for one that no input and no call reached."""
        return self._bits.get(storage_of(tensor), 0)

    def add(self, tensor: Tensor, bits: int, storage: int | None = None) -> None:
        """Join bits to those of a tensor and all that shares its storage, whose number may be known."""
        storage = self.storages.hold(tensor, storage)
        if storage:
            self._bits[storage] = self._bits.get(storage, 0) | bits

    def tell(self, tensor: Tensor) -> None:
        """A tensor that the model was told beside its inputs, such as a mask: it has no bit."""
        self._told.add(self.storages.hold(tensor))

    def is_given(self, tensor: Tensor) -> bool:
        """Whether an input, or what the model was told beside them, has a part in a tensor."""
        storage = storage_of(tensor)
        return storage in self._bits or storage in self._told

    def of_all(self, tensors: Iterable[Tensor]) -> int:
        """The bits of several tensors together."""
        return self._of_storages(map(storage_of, tensors))

    def _of_storages(self, storages: Iterable[int]) -> int:
        bits = 0
        for storage in storages:
            bits |= self._bits.get(storage, 0)
        return bits

    def see(self, op: Operation, born: int = 0, without: int = 0) -> None:
        """Take in one operation: what it wrote was made of its operands, and of what is ``born`` here.

        Args:
            without: bits of the operands that do not go on.
        """
        storages = op.storages
        if len(storages) > 1 and op.name in _LIKE:
            storages = storages[:1]
        bits = self._of_storages(storages)
        if len(storages) > 1 and op.name in _OF_THE_FIRST:
            bits = self._bits.get(storages[0], 0) | bits & INPUT
        bits = (bits | born) & ~without if without else bits | born
        chosen = bits
        for storage in storages if self._chosen else ():
            chosen |= self._chosen.get(storage, 0)
        if chosen != bits and not any(map(holds_numbers, op.tensors)):
            bits = chosen
        if not bits:
            if not self._told.isdisjoint(storages):
                self._told.update(op.written_storages)
            return
        for out, storage in zip(op.written, op.written_storages, strict=True):
            numbers = holds_numbers(out) or op.name in ROUNDINGS
            passed_on = bits if numbers else bits & INPUT
            if not numbers and chosen > INPUT:
                self.storages.hold(out, storage)
                self._chosen[storage] = self._chosen.get(storage, 0) | chosen
            if passed_on:
                self.add(out, passed_on, storage)

    def clear(self) -> None:
        """Forget everything."""
        self._bits.clear()
        self._chosen.clear()
        self._told.clear()
        self.storages.clear()
