"""Parts of a model whose inside cannot be seen: TorchScript, a kernel of another library, numpy, a compiled graph.

What they give out is told by four signs: numbers that no seen operation made and that no module holds; numbers read
from memory that was never seen to be written; numbers that are no longer those that were seen to be written; the result
of an operation that another library brought along.  Such a tensor has a bit, and so has what is made of it, so that an
answer says whether it rests on one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Module, Parameter

from captum_norm.capture.lent import LentMemory
from captum_norm.capture.names import Names
from captum_norm.capture.reach import INPUT, Reach
from captum_norm.capture.weights import version_of
from captum_norm.operations.callers import running_modules
from captum_norm.operations.formats import INT8_PRODUCTS, QUANTISED_MAPS, ROUNDINGS, holds_numbers
from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.sharded import is_distributed
from captum_norm.operations.storages import storage_of

_LEAVES_UNWRITTEN = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"))
# Another library's, or torch's for quantised weights, of which it is known what they do.
_FOLLOWED = frozenset((*QUANTISED_MAPS, *ROUNDINGS, *INT8_PRODUCTS))
_OWN = frozenset(("aten", "prims", "prim", "torch"))
_SMALL = 1 << 20


@dataclass(frozen=True, eq=False)
class Opaque:
    """A part of a model that could not be looked into.

    Attributes:
        operation: the torch operation that took in what it gave out, or the foreign operation itself.
        module: dotted name of the innermost module that was running; ``""`` where there was none.
        why: how it is known.
        value: what it gave out, if small, and its storage, whose address no other one has while there is a reference:
            a constant has one of them again in another run of the model.
    """

    operation: str
    module: str
    why: str
    value: Tensor | None = None
    storage: StorageWeakRef | None = None

    def __str__(self) -> str:
        where = f" in {self.module!r}" if self.module else ""
        return f"{self.operation}{where} ({self.why})"

    def is_constant(self, again: Opaque) -> bool:
        """Whether another run on other inputs gave the same."""
        if (self.operation, self.module) != (again.operation, again.module):
            return False
        if self.storage is not None and again.storage is not None and self.storage.cdata == again.storage.cdata:
            return True
        if self.value is None or again.value is None:
            return False
        try:
            return torch.equal(self.value, again.value)
        except NotImplementedError:  # of tensors in a layout of their own
            return False


def no_constants(parts: Sequence[Opaque], again: Sequence[Opaque]) -> tuple[Opaque, ...]:
    """The parts that gave out something else where the model ran ``again`` on other inputs."""
    left, found = list(again), []
    for part in parts:
        constant = next((other for other in left if part.is_constant(other)), None)
        if constant is None:
            found.append(part)
        else:
            left.remove(constant)
    return tuple(found)


class OpaqueParts:
    """Finds opaque parts while a model runs, and which tensors rest on them.

    Args:
        reach: what each tensor was made of.
        names: what modules are called.
    """

    def __init__(self, reach: Reach, names: Names) -> None:
        self.parts: list[Opaque] = []
        self._reach, self._names = reach, names
        self._storages = reach.storages
        self._bits: dict[int, int] = {}
        self._unwritten: set[int] = set()
        self._looked_through: set[int] = set()
        self._lent = LentMemory()
        self._has_given_out = False
        self._versions: dict[int, int] = {}
        self._distributed = is_distributed()

    def know(self, tensor: Tensor, storage: int | None = None) -> None:
        """A tensor that was there before, or that a seen operation made; its storage, where that is known."""
        storage = self._storages.hold(tensor, storage)
        version = version_of(tensor)
        if version > self._versions.get(storage, 0):
            self._versions[storage] = version

    def give_out(self, op: Operation) -> None:
        """Take in an operation that hands over numbers; those made of an input may come back unseen."""
        self._has_given_out |= any(holds_numbers(tensor) and self._reach.is_given(tensor) for tensor in op.tensors)

    def lend(self, op: Operation) -> None:
        """Take in an operation that hands over the memory of a tensor, which may be written out of sight."""
        self.give_out(op)
        for tensor in op.tensors:
            if not isinstance(tensor, Parameter):
                self._lent.lend(tensor)

    def knows(self, tensor: Tensor) -> bool:
        """Whether it is a parameter, was there before, or was made by an operation that was seen."""
        storage = storage_of(tensor)
        return isinstance(tensor, Parameter) or not storage or storage in self._storages or self._is_held(storage)

    def see(self, op: Operation) -> None:
        """Take in one operation."""
        self.see_operands(op)
        self.see_results(op)

    def see_operands(self, op: Operation) -> list[Tensor]:
        """Take in what one operation reads; those of its operands that were changed out of sight."""
        if self._unwritten:
            self._unwritten.difference_update(map(storage_of, op.overwritten))
        changed = []
        for tensor, storage in zip(op.tensors, op.storages, strict=True):
            if not storage:
                continue
            if storage not in self._storages:
                if not isinstance(tensor, Parameter) or not holds_numbers(tensor):
                    self._first_sight(op, tensor, storage)
            elif storage in self._unwritten and holds_numbers(tensor) and kind_of(op.name) is not OperationKind.MOVE:
                self._unwritten.discard(storage)
                self._note(op, tensor, "it reads memory that was not seen to be written", tensor)
            elif self._is_changed(tensor, storage, op.overwritten):
                self._note(op, tensor, "it reads numbers that were changed out of sight")
                changed.append(tensor)
        return changed

    def see_results(self, op: Operation) -> None:
        """Take in what it wrote, which rests on opaque parts if it is one or an operand does."""
        bits = 0
        for storage in op.storages if self._bits else ():
            bits |= self._bits.get(storage, 0)
        given = _numbers_among((op.args, op.kwargs)) if self._has_given_out else []
        foreign = "" if op.name in _FOLLOWED else _foreign(op.func)
        for out, storage in zip(op.written, op.written_storages, strict=True):
            self.know(out, storage)
            if foreign and self._reach.of_all(op.tensors) > INPUT:
                self._note(op, out, f"an operation of {foreign!r}, not of torch")
            if given and holds_numbers(out):
                self._note(op, out, "it may take in numbers that were handed to Python", torch.tensor(given))
            if bits and holds_numbers(out):
                self._bits[storage] = self._bits.get(storage, 0) | bits
        if base_name(op.name) in _LEAVES_UNWRITTEN:
            self._unwritten |= {storage_of(out) for out in op.outputs}

    def _is_changed(self, tensor: Tensor, storage: int, overwritten: Sequence[Tensor] = ()) -> bool:
        """Whether a tensor's numbers are not those that operations were seen to write, the one included that has just
        ``overwritten`` some."""
        version, known = version_of(tensor), self._versions.get(storage, 0)
        is_lent = storage in self._lent.storages
        if version <= known and not is_lent:
            return False
        if isinstance(tensor, Parameter) or (self._distributed and not self._reach.is_given(tensor)):
            return False  # weights, which a wrapper may gather from other processes
        if is_lent and self._lent.was_written(tensor):
            return True
        if version <= known:
            return False
        self._versions[storage] = version
        return all(storage_of(into) != storage for into in overwritten)

    def on_the_way_to(self, tensor: Tensor) -> tuple[Opaque, ...]:
        """The parts that a tensor rests on; one that no seen operation made is one itself."""
        storage = storage_of(tensor)
        bits = self._bits.get(storage, 0)
        found = tuple(part for number, part in enumerate(self.parts) if bits >> number & 1)
        if not found and storage and storage not in self._storages and tensor.is_floating_point():
            return (Opaque("the output", "", "no operation that was seen made it"),)
        if not found and storage and self._is_changed(tensor, storage):
            return (Opaque("the output", "", "its numbers were changed out of sight"),)
        return found

    def clear(self) -> None:
        """Forget everything but the parts."""
        self._bits.clear()
        self._lent.clear()

    def _first_sight(self, op: Operation, tensor: Tensor, storage: int) -> None:
        if not holds_numbers(tensor):
            if not self._is_held(storage):
                self._reach.tell(tensor)
            self.know(tensor)
            return
        if storage > 0:
            self._lent.doubt(self._storages.overlapping(tensor))
        gathered = self._distributed and tensor.ndim < 2  # weights on their way from other processes
        if not gathered and not self._is_held(storage):
            self._note(op, tensor, "it takes in numbers that no operation was seen to make", tensor)
            self._reach.tell(tensor)
        self.know(tensor)

    def _note(self, op: Operation, tensor: Tensor, why: str, given: Tensor | None = None) -> None:
        """A part that gave out a tensor, or what was ``given`` of it, which a constant gives again."""
        module = self._names.module(tuple(caller.module for caller in running_modules()))
        value = None if given is None or given.numel() > _SMALL else given.detach().clone()
        storage = storage_of(tensor)
        self._bits[storage] = self._bits.get(storage, 0) | 1 << len(self.parts)
        held = StorageWeakRef(tensor.untyped_storage()) if given is tensor and storage > 0 else None  # type: ignore[no-untyped-call]
        self.parts.append(Opaque(op.name, module, why, value, held))

    def _is_held(self, storage: int) -> bool:
        """Whether a module holds the storage: the innermost, or one of all, which are looked through once."""
        running = running_modules()
        if not running:
            return False
        root, innermost = running[0].module, running[-1].module
        if any(storage_of(tensor) == storage for tensor in _held(innermost)):
            return True
        if id(root) not in self._looked_through:
            self._looked_through.add(id(root))
            for module in root.modules():
                for tensor in _held(module):
                    self.know(tensor)
        return storage in self._storages


def _numbers_among(arguments: Any) -> list[float]:
    """All that are no integers among the arguments of an operation, arrays of another library included."""
    if isinstance(arguments, float | complex):
        return [arguments.real, arguments.imag]
    if isinstance(arguments, np.ndarray | np.generic):
        return arguments.ravel().real.tolist() if arguments.dtype.kind in "fc" else []
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    return [one for part in arguments for one in _numbers_among(part)] if isinstance(arguments, list | tuple) else []


def _held(module: Module) -> Iterator[Tensor]:
    """The tensors that a module keeps: parameters, buffers, and what stands among its attributes."""
    for value in module.__dict__.values():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (item for item in inside if isinstance(item, Tensor))


@cache
def _foreign(func: Any) -> str:
    """The library that brought an operation along; ``""`` for torch's own."""
    name = getattr(func, "_qualified_op_name", None) or getattr(func, "_name", None)
    library = name.partition("::")[0] if isinstance(name, str) and "::" in name else ""
    return "" if library in _OWN else library
