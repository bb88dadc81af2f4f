"""The memory that a tensor and its views share, known by a number for as long as someone holds on to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef


def storage_of(tensor: Any) -> int:
    """What tells a storage from others while it lives; 0 where there is none.

    A tensor that is not laid out in strides (a sparse one) has no storage, and is told from others by itself.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 3)
        >>> storage_of(x) == storage_of(x[0]), storage_of(x) == storage_of(x + 1), storage_of(None)
        (True, False, 0)
    """
    try:
        return tensor.untyped_storage()._cdata if isinstance(tensor, Tensor) else 0
    except (RuntimeError, NotImplementedError):  # a tensor without a storage of its own
        return 0 if tensor.layout is torch.strided else -id(tensor)


def storages_of(tensors: Sequence[Tensor]) -> list[int]:
    """What the storage of each is known by, see :func:`storage_of`."""
    try:
        return [tensor.untyped_storage()._cdata for tensor in tensors]
    except (RuntimeError, NotImplementedError):
        return [storage_of(tensor) for tensor in tensors]


def is_same_view(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors in one memory hold the same entries in the same order."""
    return (
        one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
        and one.dtype == other.dtype
    )


class Storages(dict[int, StorageWeakRef | Tensor]):
    """Storages that were seen, by number: no other one gets the number of one of them, even if that is given back.

    A tensor without a storage is held itself.
    """

    def hold(self, tensor: Tensor, storage: int | None = None) -> int:
        """The number of a tensor's storage, which stands for no other one from now on; 0 where there is none.

        Args:
            tensor: whose storage it is.
            storage: its number, where that is known.
        """
        storage = storage_of(tensor) if storage is None else storage
        if storage and storage not in self:
            held = tensor if storage < 0 else StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self[storage] = held
        return storage

    def overlapping(self, tensor: Tensor) -> list[int]:
        """Those that lie where another storage, that of a tensor, lies too: one memory under two numbers."""
        own, found = _addresses(tensor.untyped_storage()), []
        for storage, ref in self.items():
            if isinstance(ref, Tensor) or storage == storage_of(tensor):
                continue
            one = None if ref.expired() else UntypedStorage._new_with_weak_ptr(ref.cdata)  # type: ignore[no-untyped-call]
            theirs = range(0) if one is None else _addresses(one)
            if theirs.start < own.stop and own.start < theirs.stop:
                found.append(storage)
        return found


def _addresses(storage: UntypedStorage) -> range:
    """Where a storage lies; nowhere, where it is one in name only."""
    try:
        return range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())
    except RuntimeError:
        return range(0)
