"""What ``generate`` was told and what it found to be at an end: which row of a pass is whose, and how far it goes.

Axes: row of the running batch (example or beam).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
        fills: whether a sequence is filled up behind its end, as it is by all but a search of one beam that knows no
            end of sequence: there it is written on until all others are at their ends.
        ended: by length the texts that a stopping criterion found to be at their end, (text, position), which of how
            many they were.
    """

    rows: int
    returned: int
    fills: bool
    ended: dict[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any, criteria: Any) -> Writing:
        """What a configuration, in which arguments are taken in, and criteria say."""
        beams, returned = (getattr(config, name, None) or 1 for name in ("num_beams", "num_return_sequences"))
        knows_end = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        return cls(max(beams, returned), returned, beams > 1 or knows_end)

    def note(self, texts: Tensor, done: Tensor) -> None:
        """Which of some texts, (text, position), are at their end."""
        if bool(done.any()):
            self.ended[texts.shape[1]] = texts[done].cpu(), done.nonzero()[:, 0].cpu(), len(texts)

    def has_ended(self, sequence: Tensor, place: int, number: int, count: int, size: int) -> bool:
        """Whether the ``number``-th of ``count`` sequences had its end in front of ``place``; ``size`` as below."""
        if not self.fills or place not in self.ended:
            return False
        texts, numbers, total = self.ended[place]
        same = (texts == sequence[:place]).all(1)
        examples = size // self.rows
        if count == examples * self.returned:
            own = numbers * examples // total == number // self.returned
            same = same & own if bool((same & own).any()) else same
        return bool(same.any()) and bool((sequence[place:] == sequence[place]).all())

    def rows_of(self, number: int, count: int, size: int) -> Tensor | None:
        """Which of ``size`` rows are the example's of the ``number``-th of ``count`` sequences, (row,).

        None if there are not as many sequences as ``generate`` returned.
        """
        examples = size // self.rows
        if count != examples * self.returned:
            return None
        return torch.arange(size) // self.rows == number // self.returned


def _noting(criteria: Any, writing: Writing) -> Any:
    """Stopping criteria whose answers are noted."""
    kind = type(criteria)

    def asked(self: Any, texts: Tensor, *rest: Any, **kwargs: Any) -> Any:
        done = kind.__call__(self, texts, *rest, **kwargs)
        writing.note(texts, done)
        return done

    return type(kind.__name__, (kind,), {"__call__": asked})(criteria)


def watched(model: Any, begin: Callable[[Writing], None]) -> dict[str, Any]:
    """Have ``begin`` told of each ``generate`` of a model, and give what the model itself had in the place of it."""
    prepare = getattr(model, _BEGINS, None)
    if prepare is None:
        return {}
    own = model.__dict__.get(_BEGINS)

    def prepared(*args: Any, **kwargs: Any) -> Any:
        criteria = prepare(*args, **kwargs)
        writing = Writing.of(kwargs.get("generation_config", args[0] if args else None), criteria)
        begin(writing)
        return _noting(criteria, writing)

    setattr(model, _BEGINS, wraps(prepare)(prepared))
    return {_BEGINS: own}


def ends_of(model: Any) -> set[int]:
    """The ids that end a sequence by a model's own configuration."""
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    end = getattr(config, "eos_token_id", None)
    return {end} if isinstance(end, int) else set(end or ())
