"""How strongly does each source piece act on each row of cross-attention?  One row of a table for each method.

A method is a way to read a model that has a source and a translation before it: from the model and its inputs to the
maps of its cross-attention, one for each layer of the decoder.  Most read one measure of each call for itself
(:data:`captum_norm.measures.MEASURES`, the rows with a name for the aligner); the others take several calls together or
run layers again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from captum_norm.attr._maps import CallMap, without_padding
from captum_norm.attr._paths import Rollout
from captum_norm.capture import AttentionRecord, in_float32, run_recorded
from captum_norm.forward.inputs import ModelInputs, call_model
from captum_norm.intervention import Outline, value_zeroing_maps
from captum_norm.measures import MEASURES, Measure, mean_weights


@dataclass(frozen=True)
class CrossMap:
    """What a method says of one layer's cross-attention.

    Attributes:
        summed: (batch, query, key), all heads together, non-negative; None where the layer was not asked for.
        by_head: (batch, head, query, key); None where it was not asked for, or the method has no form for a head.
    """

    summed: Tensor | None
    by_head: Tensor | None = None


Reader: TypeAlias = Callable[[nn.Module, ModelInputs, bool, int | None], list[CrossMap]]
"""From model, inputs, whether heads are wanted, and the one layer wanted (None: all), to a map per layer."""


@dataclass(frozen=True)
class LinkMethod:
    """A row of the table.

    Attributes:
        title: for tables and figures.
        says: what it measures of a source piece, for the documentation.
        read: the maps of a model's cross-attention.
        has_heads: whether there is a form for single heads.
    """

    title: str
    says: str
    read: Reader
    has_heads: bool = False


def _call_by_call(measure: Measure) -> Reader:
    """Measures each cross-attention call for itself."""

    def read(model: nn.Module, inputs: ModelInputs, heads: bool, layer: int | None) -> list[CrossMap]:
        maps: list[CrossMap] = []

        def take(record: AttentionRecord) -> None:
            if record.call.kind != "cross":
                return
            if layer not in (None, len(maps)):
                maps.append(CrossMap(None))
                return
            record = in_float32(record)
            by_head = _measured(MEASURES[measure.of_one_head], record) if heads and measure.of_one_head else None
            maps.append(CrossMap(_measured(measure, record), by_head))

        run_recorded(model, inputs, take, blocks=measure.of_block)
        return maps

    return read


def _measured(measure: Measure, record: AttentionRecord) -> Tensor:
    """The measure of a record, without the residual's own column, which is no source piece."""
    lacking = measure.lacks(record)
    if lacking:
        raise ValueError(
            f"CrossAttentionAligner: {record.call.name!r} has no {measure.name}: {lacking}. "
            'method="norm" measures its attention alone.'
        )
    return measure.compute(record)[..., : record.weights.shape[-1]]


def _rollout(model: nn.Module, inputs: ModelInputs, heads: bool, layer: int | None) -> list[CrossMap]:
    """Composes the weights of encoder and decoder, residuals included, up to each cross-attention call."""
    maps: list[CrossMap] = []
    rollout = Rollout(residual=True)

    def take(record: AttentionRecord) -> None:
        queries, keys = record.queries, record.keys
        if queries is None or keys is None:
            raise ValueError(
                "CrossAttentionAligner: a rollout composes all calls by input position, but that of "
                f"{record.call.name!r} is not known: {record.unknown_keys or 'no reason was given'}. Take a method "
                'that reads each call for itself, such as method="norm".'
            )
        route = (queries.source, keys.source)
        scores = mean_weights(without_padding(in_float32(record)))
        rollout.add(CallMap(record.call.without_modules, route, scores, keys))
        if record.call.kind == "cross":
            maps.append(CrossMap(rollout.result(route).scores))

    run_recorded(model, inputs, take)
    return maps


def _value_zeroing(model: nn.Module, inputs: ModelInputs, heads: bool, layer: int | None) -> list[CrossMap]:
    """Runs each layer again without the values of one key after the other."""
    outlines: list[Outline] = []
    with torch.inference_mode(False):
        run_recorded(model, inputs, lambda record: outlines.append(Outline.of(record)))
        crossing = [outline for outline in outlines if outline.record.call.kind == "cross"]
        wanted = [outline for number, outline in enumerate(crossing) if layer in (None, number)]
        found = value_zeroing_maps(lambda: call_model(model, inputs), outlines, wanted)
        scores = {id(outline): one.scores for outline, one in zip(wanted, found, strict=True)}
    return [CrossMap(scores.get(id(outline))) for outline in crossing]


METHODS: dict[str, LinkMethod] = {
    **{
        measure.aligner: LinkMethod(measure.brief, measure.says, _call_by_call(measure), bool(measure.of_one_head))
        for measure in MEASURES.values()
        if measure.aligner
    },
    "value_zeroing": LinkMethod(
        "value zeroing",
        "how far the layer's output turns without the values of j; as slow as a pass for each piece",
        _value_zeroing,
    ),
    "rollout": LinkMethod("rollout", "weights composed along encoder and decoder", _rollout),
}
"""A measure of one call is here as soon as its row names it; any other method is one row here."""


def link_method(name: str) -> LinkMethod:
    """The method of this name.

    Raises:
        ValueError: if there is none, naming those there are.
    """
    if name not in METHODS:
        raise ValueError(f"CrossAttentionAligner: method should be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]
