"""Which inputs and attention calls a tensor was made of: one bit for each, kept for its storage.

Views share a storage, and what is written into a storage adds to what it was made of; so views, in-place operations
and preallocated buffers need no rule of their own.  A number that is no float (an id, a mask, a route) passes on
nothing but that it depends on an input at all: choosing entries by it mixes no positions.
"""

from __future__ import annotations

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from captum_norm.operations.formats import ROUNDINGS
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation

# What else they are given says where entries go, or in which shape or format.
_OF_THE_FIRST = names_of(OperationKind.MOVE, OperationKind.IDENTITY)

INPUT = 1
"""The bit of everything that was made of an input."""


class Reach:
    """Tensor -> bits of what it was made of; bits are joined by ``|``."""

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}
        self._kept: dict[int, StorageWeakRef] = {}  # while there is a reference, no other storage has its address
        self._next = INPUT << 1

    def new_bit(self) -> int:
        """A bit that nothing has so far."""
        bit, self._next = self._next, self._next << 1
        return bit

    def of(self, tensor: Tensor) -> int:
        """The bits of a tensor; 0 for one that no input and no call reached."""
        return self._bits.get(self.storage(tensor), 0)

    def add(self, tensor: Tensor, bits: int) -> None:
        """Join bits to those of a tensor and all that shares its storage."""
        key = self.hold(tensor)
        if key:
            self._bits[key] = self._bits.get(key, 0) | bits

    def storage(self, tensor: Tensor) -> int:
        """What a storage is known by; 0 for a tensor without a storage of its own."""
        try:
            return tensor.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError):
            return 0

    def hold(self, tensor: Tensor) -> int:
        """As ``storage``, which no other storage will be known by from now on."""
        key = self.storage(tensor)
        if key and key not in self._kept:
            self._kept[key] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        return key

    def of_all(self, tensors: list[Tensor]) -> int:
        """The bits of several tensors together."""
        bits = 0
        for tensor in tensors:
            bits |= self.of(tensor)
        return bits

    def see(self, op: Operation, born: int = 0) -> None:
        """Take in one operation: what it wrote was made of its operands, and of what is ``born`` here."""
        bits = self.of_all(op.tensors)
        if len(op.tensors) > 1 and op.name in _OF_THE_FIRST:
            bits = self.of(op.tensors[0]) | bits & INPUT
        bits |= born
        if not bits:
            return
        for out in (op.tensors[0], *op.outputs) if op.writes else op.outputs:
            numbers = out.is_floating_point() or out.is_complex() or op.name in ROUNDINGS
            passed_on = bits if numbers else bits & INPUT
            if passed_on:
                self.add(out, passed_on)

    def clear(self) -> None:
        """Forget everything."""
        self._bits.clear()
        self._kept.clear()
