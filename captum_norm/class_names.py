"""Which class is meant by a name, as a model's config has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassNames:
    """The names of a model's classes.

    Args:
        names: of each class by its number.

    Example:
        >>> names = ClassNames({0: "B", 1: "b", 2: "Other"})
        >>> names.number_of("b"), names.number_of("other"), names.number_of("none"), list(names)
        (1, 2, None, ['B', 'b', 'Other'])
    """

    names: Mapping[int, str]

    @classmethod
    def of(cls, model: Any) -> ClassNames:
        """Those of a Hugging Face model; none of one whose outputs are no classes: tokens, features, or unknown ones.

        transformers gives every config names, ``LABEL_0`` and ``LABEL_1`` where it was told none.
        """
        given: Mapping[Any, Any] = getattr(getattr(model, "config", None), "id2label", None) or {}
        names = {int(number): str(name) for number, name in given.items()}
        made_up = all(name == f"LABEL_{number}" for number, name in names.items())
        return cls({} if _writes_tokens(model) or (made_up and _is_headless(model)) else names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names.values())

    def __bool__(self) -> bool:
        return bool(self.names)

    def number_of(self, asked: str) -> int | None:
        """The class that is called so, written as it is or, where none is, in letters of another case; None for none.

        Raises:
            ValueError: where several classes are called so.
        """
        found = [number for number, name in self.names.items() if name == asked]
        found = found or [number for number, name in self.names.items() if name.lower() == asked.lower()]
        if len(found) > 1:
            raise ValueError(f"{asked!r} may be any of the classes {', '.join(map(str, found))}: give the number.")
        return found[0] if found else None


def _writes_tokens(model: Any) -> bool:
    """Whether a model's outputs are the entries of a vocabulary."""
    unembedding = getattr(model, "get_output_embeddings", None)
    return unembedding is not None and unembedding() is not None


def _is_headless(model: Any) -> bool:
    """Whether a model of transformers is the body of others, whose outputs are features."""
    return bool(getattr(model, "base_model_prefix", "")) and getattr(model, "base_model", None) is model
