"""What ``generate`` was told when it began, as far as it says which row of a pass is whose.

Axes: row of the running batch (example or beam).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

# Where ``generate`` makes its stopping criteria, once it has made up its configuration and before it runs the model.
_BEGINS = "_get_stopping_criteria"


@dataclass(eq=False)
class Writing:
    """One ``generate``.

    Attributes:
        rows: how many rows of a pass belong to each example, side by side.
        returned: how many sequences it returns of each example.
    """

    rows: int
    returned: int

    @classmethod
    def of(cls, config: Any) -> Writing:
        """What a configuration says, in which arguments are taken in."""
        beams, returned = (getattr(config, name, None) or 1 for name in ("num_beams", "num_return_sequences"))
        return cls(max(beams, returned), returned)

    def rows_of(self, number: int, count: int, size: int) -> Tensor | None:
        """Which of ``size`` rows are the example's of the ``number``-th of ``count`` sequences, (row,).

        None if there are not as many sequences as ``generate`` returned.
        """
        examples = size // self.rows
        if count != examples * self.returned:
            return None
        return torch.arange(size) // self.rows == number // self.returned


def watched(model: Any, begin: Callable[[Writing], None]) -> dict[str, Any]:
    """Have ``begin`` told of each ``generate`` of a model, and give what the model itself had in the place of it."""
    prepare = getattr(model, _BEGINS, None)
    if prepare is None:
        return {}
    own = model.__dict__.get(_BEGINS)

    def prepared(*args: Any, **kwargs: Any) -> Any:
        begin(Writing.of(kwargs.get("generation_config", args[0] if args else None)))
        return prepare(*args, **kwargs)

    setattr(model, _BEGINS, wraps(prepare)(prepared))
    return {_BEGINS: own}
