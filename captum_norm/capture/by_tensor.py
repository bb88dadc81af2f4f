"""Tensor -> what is known of it while a model runs."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

Known = TypeVar("Known")


class ByTensor(Generic[Known]):
    """What is known of each tensor, by identity; forgotten with the tensor."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], Known]] = {}

    def __getitem__(self, tensor: Any) -> Known | None:
        entry = self._of.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __setitem__(self, tensor: Tensor, known: Known | None) -> None:
        key = id(tensor)
        if not known:
            self._of.pop(key, None)
            return
        self._of[key] = (weakref.ref(tensor, lambda ref: self._forget(key, ref)), known)

    def _forget(self, key: int, ref: weakref.ref[Tensor]) -> None:
        entry = self._of.get(key)
        if entry is not None and entry[0] is ref:
            del self._of[key]

    def clear(self) -> None:
        """Forget all."""
        self._of.clear()
