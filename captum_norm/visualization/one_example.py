"""The maps of one example, by name, call and head, as ``plot`` draws them: its padding is cut away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_norm.measures import MEASURES

_RESIDUAL = "residual"  # the last column of a block's maps in cross-attention


def by_head(name: str) -> bool:
    """Whether the rows of this measure's map are heads: it has no query."""
    return name in MEASURES and MEASURES[name].has_axis("head") and not MEASURES[name].has_axis("query")


def is_ratio(name: str) -> bool:
    """Whether this measure is one number for each query: it has no key."""
    return name in MEASURES and not MEASURES[name].has_axis("key")


class OneExample:
    """The maps of one example.

    Args:
        maps: ``AttentionMaps``, or anything with ``calls`` and, under the name of each measure, a list over calls.
        example: which example of the batch.
    """

    def __init__(self, maps: Any, example: int) -> None:
        self.maps, self.example = maps, example
        if not len(maps.calls):
            raise ValueError("plot: maps holds no attention call: there is nothing to draw.")

    def quantities(self, wanted: Sequence[str] | None, heads: int | str | None) -> list[str]:
        """The measures to draw; an error where one was not computed."""
        held = [name for name in MEASURES if hasattr(self.maps, name)]
        default = ["weights", "summed_norms" if heads is None else "head_norms"]
        names = [wanted] if isinstance(wanted, str) else list(wanted or [name for name in default if name in held])
        missing = [name for name in names if not hasattr(self.maps, name)]
        if missing or not names:
            what = repr(missing[0]) if missing else " or ".join(map(repr, default))
            raise ValueError(
                f"plot: maps does not hold {what}; ask for it: attention_maps(model, inputs, quantities=(...)). "
                f"It holds {', '.join(held) or 'no map'}."
            )
        rows_of_heads = [name for name in names if by_head(name)]
        if rows_of_heads and (len(names) > 1 or heads is not None):
            raise ValueError(
                f"plot: {rows_of_heads[0]} has a row per head, not per query; draw it alone and leave heads out."
            )
        ratios = [name for name in names if is_ratio(name)]
        if ratios and (len(ratios) < len(names) or heads is not None):
            raise ValueError(f"plot: {ratios[0]} has no keys and no heads; draw mixing ratios alone, heads left out.")
        return names

    def ratios(self, name: str, call: int) -> Tensor:
        """(query,) of this example."""
        scores: Tensor = getattr(self.maps, name)[call]
        self._check_example(scores)
        real = self._real("query_masks", call)
        return scores[self.example] if real is None else scores[self.example][real]

    def checked_call(self, call: int) -> int:
        """The call's number, counted from the first."""
        count = len(self.maps.calls)
        if not -count <= call < count:
            raise ValueError(f"plot: call is {call}, but maps holds {count} attention calls.")
        return call % count

    def map(self, name: str, call: int, heads: int | str | None) -> Tensor:
        """(query, key) of this example; (head, query, key) for ``"each"``; (head, key) for ‖f(x)‖."""
        scores = self._scores(name, call)[self.example]
        keys = self._real_keys(call, scores.shape[-1])
        if by_head(name):
            return scores if keys is None else scores[..., keys]
        if scores.ndim == 3 and heads is None:
            scores = scores.mean(0)
        elif scores.ndim == 3 and isinstance(heads, int):
            numbers = self.head_numbers(call, len(scores))
            if heads not in numbers:
                raise ValueError(f"plot: heads is {heads}, but call {call} holds heads {', '.join(map(str, numbers))}.")
            scores = scores[numbers.index(heads)]
        elif scores.ndim == 2 and heads is not None:
            raise ValueError(f"plot: {name} has no heads; leave heads out, or draw head_norms.")
        queries = self._real("query_masks", call)
        scores = scores if queries is None else scores[..., queries, :]
        return scores if keys is None else scores[..., keys]

    def _scores(self, name: str, call: int) -> Tensor:
        """The measure of this call, (batch, query, key) or (batch, head, query, key)."""
        scores: Tensor = getattr(self.maps, name)[call]
        if scores.ndim not in (3, 4):
            raise ValueError(f"plot: {name} of call {call} is no map over queries and keys, {tuple(scores.shape)}.")
        self._check_example(scores)
        return scores

    def _check_example(self, scores: Tensor) -> None:
        if not -len(scores) <= self.example < len(scores):
            raise ValueError(f"plot: example is {self.example}, but the batch holds {len(scores)}.")

    def head_numbers(self, call: int, count: int) -> list[int]:
        """The model's number of each head that the maps hold."""
        held = getattr(self.maps, "head_indices", None)
        return [h % self.maps.calls[call].heads for h in held] if held is not None else list(range(count))

    def which_heads(self, name: str, call: int, heads: int | str | None) -> str:
        """What a panel's title says of heads."""
        shape = self._scores(name, call).shape
        if len(shape) == 3:
            return ""
        if heads is not None:
            return f", head {heads}"
        return "" if shape[1] == 1 else f", mean of {shape[1]} heads"

    def tokens(self, call: int, name: str) -> dict[str, Any]:
        """``query_tokens``, the labels of the rows, which are queries or heads, and ``key_tokens``."""
        shape = self._scores(name, call).shape
        heads = [f"head {number}" for number in self.head_numbers(call, shape[1])] if by_head(name) else None
        return {"query_tokens": heads or self.labels("query", call), "key_tokens": self.labels("key", call, shape[-1])}

    def common_tokens(self, name: str) -> dict[str, Any]:
        """The labels of all calls, where they have the same ones."""
        first, *others = [self.tokens(call, name) for call in range(len(self.maps.calls))]
        return {axis: own if all(one[axis] == own for one in others) else None for axis, own in first.items()}

    def labels(self, axis: str, call: int, size: int | None = None) -> list[str] | None:
        """The tokens of an axis, of ``size`` before padding is cut away; None where they are not known."""
        method = getattr(self.maps, f"{axis}_tokens", None)
        if method is not None:
            labels = list(method(call, self.example))
        elif getattr(self.maps, "tokens", None) is not None and self.maps.calls[call].kind != "cross":
            labels = list(map(str, self.maps.tokens[self.example]))
        else:
            return None
        if size is not None:  # labels may be those of maps with the residual's column, or without
            labels = (labels + [_RESIDUAL] * (size - len(labels)))[:size]
        real = self._real_keys(call, len(labels)) if axis == "key" else self._real("query_masks", call)
        return labels if real is None else [label for label, keep in zip(labels, real, strict=False) if keep]

    def _real_keys(self, call: int, size: int) -> Tensor | None:
        """Which of ``size`` columns are no padding; the residual's is none."""
        real = self._real("key_masks", call)
        return None if real is None else torch.cat([real, real.new_ones(size - len(real))])

    def _real(self, masks: str, call: int) -> Tensor | None:
        held = getattr(self.maps, masks, None)
        return None if held is None or held[call] is None else held[call][self.example]
