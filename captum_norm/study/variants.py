"""How a study's methods are written down: a method with choices of its own, scores from elsewhere, and the bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captum_norm.methods import known_methods

SPECIAL = ("mask", "keep", "report")
RANDOM, ORACLE = "random", "oracle"


@dataclass(frozen=True)
class Variant:
    """A method of `captum_norm.methods.METHODS` with choices of its own; a study may list several of one method.

    Attributes:
        method: its name in the table.
        name: what it is called in the results; None makes one of the choices.
        options: what its class is made with (``{"aggregate": "rollout"}``).
        arguments: what ``attribute`` gets (``{"n_steps": 20}``).
        over: the method that it wraps, for NoiseTunnel.
        special: what becomes of special tokens, over what the study says.

    Example:
        >>> Variant("AttentionNorm", options={"aggregate": "rollout", "residual": True}).title
        'AttentionNorm(aggregate=rollout, residual=True)'
    """

    method: str
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    over: str | None = None
    special: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", known_methods([self.method])[0])
        if self.special is not None:
            check_special(self.special)

    @property
    def choice(self) -> str:
        """What it chooses, in words; "" for nothing."""
        chosen = {**({"over": self.over} if self.over else {}), **self.options, **self.arguments}
        chosen |= {"special": self.special} if self.special else {}
        return ", ".join(f"{key}={value}" for key, value in chosen.items())

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or (f"{self.method}({self.choice})" if self.choice else self.method)


@dataclass(frozen=True)
class StoredScores:
    """Scores from elsewhere: JSONL with an object per example, ``{"id": key, "scores": [one per token or word]}``.

    Attributes:
        name: what the method is called.
        path: the file.

    Words are those between white space; the score of a word is shared evenly by its tokens.
    """

    name: str
    path: str | Path


def check_special(special: str) -> None:
    """Refuse a policy for special tokens that is none.

    Raises:
        ValueError: naming those there are.
    """
    if special not in SPECIAL:
        raise ValueError(f"special should be one of {', '.join(map(repr, SPECIAL))}, got {special!r}.")
