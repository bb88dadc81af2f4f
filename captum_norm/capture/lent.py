"""Memory that a model hands to what is no operation of torch: numpy, another library, a kernel that takes an address.

It may be written there, and no operation shows it.  What it held is kept when it is handed over, and compared when an
operation reads it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from captum_norm.operations.storages import storage_of


class LentMemory:
    """What memory held that was handed over.

    Example:
        >>> lent, x = LentMemory(), torch.zeros(2)
        >>> lent.lend(x)
        >>> lent.was_written(x)
        False
        >>> x.numpy()[0] = 1
        >>> lent.was_written(x)
        True
    """

    def __init__(self) -> None:
        self.storages: dict[int, Tensor | None] = {}

    def lend(self, tensor: Tensor) -> None:
        """Keep what the memory of a tensor holds, unless it was handed over before.

        What operations write there later, too, counts as written: what it held until then is not known.
        """
        storage = storage_of(tensor)
        if storage > 0 and storage not in self.storages:
            self.storages[storage] = _bytes_of(tensor).clone()

    def doubt(self, storages: Iterable[int]) -> None:
        """These memories were handed over unseen."""
        self.storages |= dict.fromkeys(storages)

    def was_written(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor no longer holds what it held; what it holds now is kept instead."""
        storage = storage_of(tensor)
        if storage not in self.storages:
            return False
        before, now = self.storages[storage], _bytes_of(tensor)
        if before is not None and torch.equal(before, now):
            return False
        self.storages[storage] = now.clone()
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.storages.clear()


def _bytes_of(tensor: Tensor) -> Tensor:
    """All bytes of the memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
