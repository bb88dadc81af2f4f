"""Which of several processes is this one?  As ``accelerate launch`` or ``torchrun`` started them.

A study needs little of them: a number each, and a place to wait for each other.  They share a folder, not results:
each writes a store of its own, and the first takes them all in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from torch import nn

from captum_norm.study.optional_packages import required


@dataclass(frozen=True)
class Crew:
    """The processes of a study.

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


def crew_of(model: nn.Module) -> Crew:
    """The processes there are: one, unless a launcher has said otherwise.

    Raises:
        ImportError: if there are several and ``accelerate`` is not installed.

    Example:
        >>> crew_of(nn.Linear(1, 1)).size
        1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Crew(0, 1, lambda: None)
    accelerate = required("accelerate", "a study in several processes")
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    # Shares of a study may end hours apart; the usual half an hour of patience would end the slower one.
    state = accelerate.PartialState(cpu=on_cpu, timeout=timedelta(days=30))
    return Crew(state.process_index, state.num_processes, state.wait_for_everyone)
