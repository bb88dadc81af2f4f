"""What each layer's output loses when an input's value vectors are set to zero, along the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.random import fork_rng

from captum_norm.attr._aggregate import Aggregate
from captum_norm.attr._base import MapMethod
from captum_norm.attr._captum import run_forward
from captum_norm.attr._forward import outside_inference_mode
from captum_norm.attr._maps import call_map
from captum_norm.attr._paths import LayerProduct
from captum_norm.attr._reduction import Reduction
from captum_norm.functional import value_zeroing_shares
from captum_norm.intervention import LayerScores, Outline, value_zeroing_maps


class ValueZeroing(MapMethod):
    """A row of the product over layers of s_ij, the cosine distance 1 - cos that output i of a layer turns by without
    the value vectors of j, divided by the sum of its row.

    For each layer and each key j, the value vectors of j (b_V included) are set to zero in all heads while the
    attention weights stay as they are, and the whole layer, norms, residuals and feed-forward part included, runs again
    on its own input.  So no residual is added to the product, and rows sum to 1.  In a decoder that attends to a
    source, the scores of both attention calls of a layer are divided by the sum over both, and those of the source are
    composed with the encoder's.

    Two forward passes (more for models whose layers do not say that they are layers), and three quarters of another for
    each key: the keys of a layer are taken many at a time, so that what comes before its values is computed once.  As
    many more as twice the binary digits of the number of positions tell which row of a layer's output is which query.
    Layers have to repeat themselves: a model in training mode that draws random numbers is refused.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        layers: the modules that are the layers of the model, where they cannot be found: each is the smallest module
            that holds an attention call and hands its output to the next, or the entries of a list of modules whose
            residuals the owner of the list adds.
        keys_at_once: how many keys are without their values in one replay of a layer; each takes the memory of the
            layer's activations once more.  None: as many as keep the copies of a layer's output below a million
            numbers, four at least.

    Raises:
        ValueError: if ``keys_at_once`` is not positive.

    Source: Mohebbi et al. (2023), "Quantifying Context Mixing in Transformers", section 3,
    https://arxiv.org/abs/2301.12971.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> scores = ValueZeroing(model).attribute(torch.randn(1, 3, 8)).sum(-1)
        >>> scores.shape, round(float(scores.sum()), 4)
        (torch.Size([1, 3]), 1.0)
    """

    def __init__(
        self, forward_func: Callable[..., Any], *, layers: Sequence[Module] | None = None,
        keys_at_once: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(forward_func, aggregate="rollout")
        if keys_at_once is not None and keys_at_once < 1:
            raise ValueError(f"keys_at_once should be a number of keys from 1 on, or None, got {keys_at_once!r}.")
        self.layers = None if layers is None else list(layers)
        self.keys_at_once = keys_at_once

    def _new_aggregate(self) -> Aggregate:
        return LayerProduct()

    def _read(self, reduction: Reduction, inputs: tuple[Tensor, ...], target: Any, extras: tuple[Any, ...]) -> None:
        """Read the model once, run each of its layers again, and hand over the scores layer by layer."""
        outlines: list[Outline] = []
        with outside_inference_mode((inputs, extras)) as (inputs, extras), torch.no_grad():
            numbers = torch.get_rng_state()
            self._forward(
                inputs, extras, lambda record: outlines.append(Outline.of(record)), reduction.skip,
                on_output=reduction.explains(target), chain=reduction.composes, real=reduction.real,
            )  # fmt: skip

            def run() -> Any:
                with fork_rng([tensor.device.index or 0 for tensor in inputs if tensor.is_cuda]):
                    torch.set_rng_state(numbers)
                    return run_forward(self.forward_func, inputs, extras)

            reduction.refuse()
            resting = {id(record) for record in reduction.resting([outline.record for outline in outlines])}
            wanted = [outline for outline in outlines if id(outline.record) in resting]
            _refuse_cross_alone(type(self).__name__, wanted, reduction)
            scores = value_zeroing_maps(run, outlines, wanted, layers=self.layers, keys_at_once=self.keys_at_once)
            shares = _shares(wanted, scores)
            for outline in outlines:
                if reduction.note(outline.record) is not None and id(outline) in shares:
                    reduction.add(call_map(outline.record, *shares[id(outline)]))


def _shares(wanted: Sequence[Outline], scores: Sequence[LayerScores]) -> dict[int, tuple[Tensor, int]]:
    """By the id of each outline, its map (batch, query, key) divided by the sum of its row over the maps of its layer,
    0 at padding, and the number of the layer."""
    by_layer: dict[int, list[tuple[Outline, Tensor]]] = {}
    for outline, found in zip(wanted, scores, strict=True):
        scored, real = found.scores, outline.record.key_mask
        scored = scored if real is None else scored.masked_fill(~real[:, None].to(scored.device), 0)
        by_layer.setdefault(found.layer, []).append((outline, scored))
    shares: dict[int, tuple[Tensor, int]] = {}
    for layer, pairs in by_layer.items():
        of_layer = value_zeroing_shares([scored for _, scored in pairs], pairs[0][0].record.query_mask)
        shares |= {id(outline): (share, layer) for (outline, _), share in zip(pairs, of_layer, strict=True)}
    return shares


def _refuse_cross_alone(title: str, wanted: Sequence[Outline], reduction: Reduction) -> None:
    crossing = [outline.record.call for outline in wanted if outline.record.call.kind == "cross"]
    if crossing and not reduction.counts(replace(crossing[0], kind="self")):
        raise ValueError(
            f"{title}: the product of layers through {crossing[0].name!r} ends there if its cross-attention alone "
            'counts. Leave kind= out, or use kind="self" for each sequence by itself.'
        )
