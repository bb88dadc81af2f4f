"""How strongly does each source piece act on each row of cross-attention?  One row of a table for each method.

A method is a way to read a model that has a source and a translation before it: from the model and its inputs to the
maps of its cross-attention, one for each layer of the decoder.

    norm            the length of what a source piece adds, summed over heads (Kobayashi et al. 2020)
    weights         the attention weight, mean over heads
    block_norm      the same length behind residual and norm (Kobayashi et al. 2021)
    alti            how much nearer it brings the output of the block (Ferrando et al. 2022, ALTI+, one layer)
    value_zeroing   how far the layer's output turns without it (Mohebbi et al. 2023, one layer)
    rollout         weights composed along the model, up to the layer (Abnar and Zuidema 2020)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from captum_norm.attr._aggregate import CallMap, Rollout
from captum_norm.attr._reduction import without_padding
from captum_norm.attr.block_norm import block_norms
from captum_norm.attr.weights import mean_weights
from captum_norm.capture import AttentionRecord
from captum_norm.capture.running import at_least_float32, run_recorded
from captum_norm.forward.inputs import ModelInputs, call_model
from captum_norm.functional import head_norms, summed_norms
from captum_norm.intervention import Outline, value_zeroing_maps
from captum_norm.quantities import alti_contributions, lacks_block

Measure: TypeAlias = Callable[[AttentionRecord], Tensor]


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
        read: the maps of a model's cross-attention.
        has_heads: whether there is a form for single heads.
    """

    title: str
    read: Reader
    has_heads: bool = False


def _call_by_call(measure: Measure, by_head: Measure | None = None, blocks: bool = False) -> Reader:
    """Reads each cross-attention call for itself."""

    def read(model: nn.Module, inputs: ModelInputs, heads: bool, layer: int | None) -> list[CrossMap]:
        found: list[CrossMap] = []

        def take(record: AttentionRecord) -> None:
            if record.call.kind != "cross":
                return
            if layer not in (None, len(found)):
                found.append(CrossMap(None))
                return
            record = at_least_float32(record)
            found.append(CrossMap(measure(record), by_head(record) if heads and by_head is not None else None))

        run_recorded(model, inputs, take, blocks=blocks)
        return found

    return read


def _composed(measure: Measure) -> Reader:
    """Composes the calls of encoder and decoder, residuals included, up to each cross-attention call."""

    def read(model: nn.Module, inputs: ModelInputs, heads: bool, layer: int | None) -> list[CrossMap]:
        found: list[CrossMap] = []
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
            scores = measure(without_padding(at_least_float32(record)))
            rollout.add(CallMap(replace(record.call, modules=()), route, scores, keys))
            if record.call.kind == "cross":
                found.append(CrossMap(rollout.result(route).scores))

        run_recorded(model, inputs, take)
        return found

    return read


def _run_again(model: nn.Module, inputs: ModelInputs, heads: bool, layer: int | None) -> list[CrossMap]:
    """Runs each layer again without the values of one key after the other."""
    outlines: list[Outline] = []
    with torch.inference_mode(False):
        run_recorded(model, inputs, lambda record: outlines.append(Outline.of(record)))
        crossing = [outline for outline in outlines if outline.record.call.kind == "cross"]
        wanted = [outline for number, outline in enumerate(crossing) if layer in (None, number)]

        def run() -> Any:
            return call_model(model, inputs)

        scores = {id(o): s.scores for o, s in zip(wanted, value_zeroing_maps(run, outlines, wanted), strict=True)}
    return [CrossMap(scores.get(id(outline))) for outline in crossing]


def _block_norms(record: AttentionRecord) -> Tensor:
    """Without the residual's own column: it is no source piece."""
    return block_norms("CrossAttentionAligner", record, residual=True, layer_norm=True)[..., : record.weights.shape[-1]]


def _alti(record: AttentionRecord) -> Tensor:
    lacking = lacks_block(record)
    if lacking:
        raise ValueError(
            f"CrossAttentionAligner: the block around {record.call.name!r} cannot be taken in: {lacking}. "
            'method="norm" measures its attention alone.'
        )
    return alti_contributions(record)[..., : record.weights.shape[-1]]


METHODS: dict[str, LinkMethod] = {
    "norm": LinkMethod(
        "norm",
        _call_by_call(
            lambda r: summed_norms(r.weights, r.values, r.W_O, gate=r.gate),
            lambda r: head_norms(r.weights, r.values, r.W_O, gate=r.gate),
        ),
        has_heads=True,
    ),
    "weights": LinkMethod("weight", _call_by_call(mean_weights, lambda r: r.weights), has_heads=True),
    "block_norm": LinkMethod("block norm", _call_by_call(_block_norms, blocks=True)),
    "alti": LinkMethod("ALTI", _call_by_call(_alti, blocks=True)),
    "value_zeroing": LinkMethod("value zeroing", _run_again),
    "rollout": LinkMethod("rollout", _composed(mean_weights)),
}
"""A new method is one row here."""


def link_method(name: str) -> LinkMethod:
    """The method of this name.

    Raises:
        ValueError: if there is none, naming those there are.
    """
    if name not in METHODS:
        raise ValueError(f"CrossAttentionAligner: method should be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]
