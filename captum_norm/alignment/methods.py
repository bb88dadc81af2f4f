"""How strongly does each source piece act on each row of cross-attention?  One row of a table for each method.

A new method is one row: a measure of one cross-attention call and, where it has one, the same for each head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

from captum_norm.attr._aggregate import CallMap, Rollout
from captum_norm.attr._reduction import without_padding
from captum_norm.attr.weights import mean_weights
from captum_norm.capture import AttentionRecord
from captum_norm.functional import head_norms, summed_norms

Method: TypeAlias = Literal["norm", "weights", "rollout"]
Measure: TypeAlias = Callable[[AttentionRecord], Tensor]


@dataclass(frozen=True)
class LinkMethod:
    """What a method says of one call.

    Attributes:
        title: for tables and figures.
        measure: (batch, query, key) of a call, non-negative.
        by_head: (batch, head, query, key), or None where the method has no form for a head.
        composed: whether the measures of all calls up to a layer's cross-attention are composed, residuals included,
            with the encoder's.
    """

    title: str
    measure: Measure
    by_head: Measure | None = None
    composed: bool = False


METHODS: dict[str, LinkMethod] = {
    "norm": LinkMethod(
        "norm",
        lambda r: summed_norms(r.weights, r.values, r.W_O, gate=r.gate),
        lambda r: head_norms(r.weights, r.values, r.W_O, gate=r.gate),
    ),
    "weights": LinkMethod("weight", mean_weights, lambda r: r.weights),
    "rollout": LinkMethod("rollout", mean_weights, composed=True),
}


def link_method(name: str) -> LinkMethod:
    """The method of this name.

    Raises:
        ValueError: if there is none, naming those there are.
    """
    if name not in METHODS:
        raise ValueError(f"CrossAttentionAligner: method should be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


class Composition:
    """The rollout of a method's measure, up to each layer's cross-attention."""

    def __init__(self, method: LinkMethod) -> None:
        self._method, self._rollout = method, Rollout(residual=True)

    def add(self, record: AttentionRecord) -> Tensor | None:
        """Takes in the next call; after a cross-attention, what its queries have of the source, (batch, query, key)."""
        queries, keys = record.queries, record.keys
        if queries is None or keys is None:
            raise ValueError(
                f"CrossAttentionAligner: {self._method.title} composes all calls by input position, but those of "
                f"{record.call.name!r} are not known: {record.unknown_keys or 'no reason was given'}. Take a method "
                'that reads one call, such as method="norm".'
            )
        route = (queries.source, keys.source)
        scores = self._method.measure(without_padding(record))
        self._rollout.add(CallMap(replace(record.call, modules=()), route, scores, keys))
        return self._rollout.result(route).scores if record.call.kind == "cross" else None
