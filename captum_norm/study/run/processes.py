"""Which of several processes is this one, and where does it leave what it finds?

``accelerate launch`` or ``torchrun`` starts the processes.  A study needs little of them: a number each, and a place to
wait for each other.  They share a folder, not results: each writes a part of its own beside the store, and the first
process takes all parts in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch import nn

from captum_norm.optional_packages import required


@dataclass(frozen=True)
class Processes:
    """The processes of a study, seen from one of them.

    Attributes:
        rank: the number of this one, from 0.
        size: how many there are.
        wait: returns when all have called it.
    """

    rank: int
    size: int
    wait: Callable[[], None]

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the store itself."""
        return self.rank == 0

    def own_store(self, store: Path) -> Path:
        """The file that this process writes to."""
        return store if self.size == 1 else store.with_name(f"{store.name}.part-{self.rank}")


def processes_of(model: nn.Module) -> Processes:
    """The processes there are: one, unless a launcher has said otherwise.

    Raises:
        ImportError: if there are several and ``accelerate`` is not installed.

    Example:
        >>> processes_of(nn.Linear(1, 1)).size
        1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(0, 1, lambda: None)
    accelerate = required("accelerate", "a study in several processes")
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    # Shares of a study may end hours apart; the usual half an hour of patience would end the slower one.
    state = accelerate.PartialState(cpu=on_cpu, timeout=timedelta(days=30))
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def parts_of(store: Path) -> Iterator[Path]:
    """What processes have left beside a store, now or when they were killed."""
    yield from sorted(store.parent.glob(f"{store.name}.part-*[0-9]"))
