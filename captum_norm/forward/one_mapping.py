"""Models that take all their inputs as one mapping (sentence-transformers' objects), called by keywords instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.keywords import ForwardFunction

_REQUIRED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class ByKeywords(nn.Module):
    """A model of one mapping as one of keywords: ids first, then masks and types.

    Args:
        model: what is called with the mapping.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **more: Any
    ) -> Any:
        """What the model returns; all tokens are real where no mask says otherwise."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model({"input_ids": input_ids, "attention_mask": mask, **types, **more})


def by_keywords(model: ForwardFunction) -> ForwardFunction:
    """The model itself, or around one that takes a mapping alone, :class:`ByKeywords`.

    Example:
        >>> class Embedder(nn.Module):
        ...     def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        ...         return {"sentence_embedding": features["input_ids"] * features["attention_mask"]}
        >>> by_keywords(Embedder())(torch.tensor([[7]]))["sentence_embedding"]
        tensor([[7]])
        >>> by_keywords(nn.Identity())
        Identity()
    """
    return ByKeywords(model) if isinstance(model, nn.Module) and _takes_one_mapping(model) else model


def _takes_one_mapping(model: nn.Module) -> bool:
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.kind in _REQUIRED and p.default is inspect.Parameter.empty]
    if len(needed) != 1 or needed[0] is not parameters[0]:
        return False
    given = needed[0].annotation
    if isinstance(given, str):
        return given.lower().removeprefix("typing.").startswith(("dict", "mapping"))
    kind = getattr(given, "__origin__", given)
    return isinstance(kind, type) and issubclass(kind, Mapping)
