"""Memory that a model overwrites while it runs in its frozen form, and what is no longer true of it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from captum_norm.operations.storages import Storages, storage_of


class OverwrittenMemory:
    """Which memory was written into in place, when, and whether by something of the inputs.

    Example:
        >>> import torch
        >>> memory, x = OverwrittenMemory(), torch.zeros(2)
        >>> before = memory.now
        >>> memory.note([x])
        >>> memory.is_overwritten([storage_of(x)], since=before), memory.is_overwritten([storage_of(x)], memory.now)
        (True, False)
    """

    def __init__(self) -> None:
        self._writes: list[int] = []  # storages, in the order of the operations
        self._of_inputs = Storages()  # memory into which something followed, or a token's own, was written
        self._of_followed: set[int] = set()  # of that, into which something followed was

    @property
    def now(self) -> int:
        """How often operations have written in place."""
        return len(self._writes)

    def note(self, overwritten: Iterable[Tensor]) -> None:
        """An operation has overwritten these."""
        self._writes.extend(map(storage_of, overwritten))

    def is_overwritten(self, storages: Iterable[int], since: int) -> bool:
        """Whether any of these was written into since."""
        return since < self.now and not set(self._writes[since:]).isdisjoint(storages)

    def take_tokens(self, into: Tensor) -> None:
        """Something of single tokens was written into a tensor."""
        self._of_inputs.hold(into)

    def take_followed(self, into: Tensor) -> None:
        """Something that has a linear form was written into a tensor."""
        self._of_followed.add(self._of_inputs.hold(into))

    def __bool__(self) -> bool:
        return bool(self._of_inputs)

    def holds_inputs(self, storage: int) -> bool:
        """Whether anything of the inputs was written there."""
        return storage in self._of_inputs

    def holds_followed(self, storage: int) -> bool:
        """Whether anything was written there that has a linear form."""
        return storage in self._of_followed

    def clear(self) -> None:
        """Forget everything."""
        self._writes.clear()
        self._of_inputs.clear()
        self._of_followed.clear()
