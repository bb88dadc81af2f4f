"""What is known of a tensor while a model runs: the one kind of store, by identity, forgotten with the tensor."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from captum_norm.operations.storages import is_same_view, storage_of

Fact = TypeVar("Fact")


class Facts(Generic[Fact]):
    """Tensor -> what is known of it; a tensor that dies takes it along.  What is false, such as None, is no fact.

    Attributes:
        numbers: the ids of all tensors of which something is known, and maybe of some that died: most tensors are told
            apart from these faster than by asking.

    Example:
        >>> import torch
        >>> names: Facts[str] = Facts()
        >>> x, y = torch.ones(2), torch.ones(2)
        >>> names[x] = "x"
        >>> names[x], names[y], x in names, y in names
        ('x', None, True, False)
        >>> names.take(x), names[x]
        ('x', None)
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], Fact]] = {}
        self.numbers = self._of.keys()

    def __getitem__(self, tensor: Any) -> Fact | None:
        entry = self._of.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __setitem__(self, tensor: Tensor, fact: Fact | None) -> None:
        key = id(tensor)
        if fact is None or (not isinstance(fact, Tensor) and not fact):
            self._of.pop(key, None)
            return
        # Called as ``pop(key, ref)`` when the tensor dies, before another one can have its id.
        self._of[key] = (weakref.ref(tensor, partial(self._of.pop, key)), fact)

    def __contains__(self, tensor: object) -> bool:
        entry = self._of.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def take(self, tensor: Tensor) -> Fact | None:
        """What is known of a tensor, which is then forgotten."""
        fact = self[tensor]
        self[tensor] = None
        return fact

    def beside(self, tensor: Tensor) -> list[Tensor]:
        """The other tensors of which something is known that share the memory of this one."""
        storage = storage_of(tensor)
        others = [other for ref, _ in list(self._of.values()) if (other := ref()) is not None and other is not tensor]
        return [other for other in others if storage and storage_of(other) == storage]

    def follow(self, into: Tensor) -> None:
        """A tensor was overwritten: of others in its memory nothing is known, but for those of the same entries."""
        for alias in self.beside(into):
            self[alias] = self[into] if is_same_view(alias, into) else None

    def clear(self) -> None:
        """Forget everything."""
        self._of.clear()
