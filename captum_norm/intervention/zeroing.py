"""How far does each output of a layer turn when the values of one key are set to zero in one of its attention calls?

The measure is :func:`captum_norm.functional.value_zeroing`; here it is taken from a running model.  Layers are found
and run again one at a time, while the model waits with the next one.

Axes: b batch, h head, q query, k key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import BaseTorchFunctionMode

from captum_norm.capture import AttentionRecord, InexactCaptureError
from captum_norm.functional import value_zeroing
from captum_norm.functional.precision import full_precision
from captum_norm.intervention.calls import LayerCall, watch_layers
from captum_norm.intervention.layers import layers_of
from captum_norm.intervention.replay import CannotBatchError, Product, Replay, fingerprint
from captum_norm.intervention.stretches import Stretch, stretch_calls

# Numbers that the copies of a layer's output may hold in one replay; what is inside a layer, several times that, is to
# fit a cache.  But what comes before the values is computed for each replay.
_NUMBERS = 1 << 20
_AT_LEAST = 4


@dataclass(frozen=True)
class Outline:
    """What is kept of a record until its layer runs again.

    Attributes:
        record: the record, its weights and values being of the same shape but all zero, without memory of their own.
        unseen: (batch, query, key) bool, True where no head looks, so that rounding alone is no score.
        mark: by which the call is known again, (key,).
    """

    record: AttentionRecord
    unseen: Tensor
    mark: Tensor

    @classmethod
    def of(cls, record: AttentionRecord) -> Outline:
        """The outline of a record."""
        mark = fingerprint(record.weights, record.values)
        weights, values = _empty(record.weights), _empty(record.values)
        outline = replace(record, weights=weights, values=values, gate=None, block=None, mixed=None)
        return cls(outline, (record.weights == 0).all(1), mark)


@dataclass(frozen=True)
class LayerScores:
    """What value zeroing finds of one attention call.

    Attributes:
        layer: number of the layer call it ran in, in the order they finish; the same for the calls of one layer.
        scores: 1 - cos, (batch, query, key), in float32 at least; padding rows are 0, and so is a key that no head
            looks at (unless its values get to a query by another way inside the layer, such as a convolution).
    """

    layer: int
    scores: Tensor


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(()).expand(tensor.shape)


def value_zeroing_maps(
    run: Callable[[], Any], outlines: Sequence[Outline], wanted: Sequence[Outline] | None = None, *,
    layers: Sequence[Module] | None = None, keys_at_once: int | None = None,
) -> list[LayerScores]:  # fmt: skip
    """The scores of value zeroing, not normalised, of each attention call.

    Args:
        run: runs the model as it ran when it was recorded, without gradients: once, or twice where its layers do not
            say that they are layers.
        outlines: of all attention calls of that recording, in order.
        wanted: those of them that are to have scores; None: all.
        layers: the model's layers, where they cannot be found.
        keys_at_once: how many keys may be without their values in one replay, each at the cost of the memory of one
            copy of the layer's activations.  None: as many as keep the copies of a layer's output below a million
            numbers, four at least.

    Returns:
        The scores of each wanted call.

    Raises:
        ValueError: if the layer around a call is not found.
        InexactCaptureError: if a layer does not repeat itself, its output has no row for each query, or a call is mixed
            by several products.
    """
    chosen = outlines if wanted is None else wanted
    for outline in chosen:
        _check_is_one_product(outline.record)
    taker = _Scores(outlines, {id(outline) for outline in chosen}, keys_at_once)
    # Any mode switches torch's fused layers off; a compiled layer shows nothing of itself.
    with BaseTorchFunctionMode(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found = layers_of([outline.record.call for outline in chosen], run, layers)
        taker.stretches = [*dict.fromkeys(layer for layer in found if isinstance(layer, Stretch))]
        watch_layers({layer.owner if isinstance(layer, Stretch) else layer for layer in found}, run, taker.take)
    missing = [outline for outline in chosen if id(outline) not in taker.found]
    if missing:
        raise InexactCaptureError(taker.why_missing(missing[0].record))
    return [taker.found[id(outline)] for outline in chosen]


class _Scores:
    """Takes layer calls, and finds the scores of the attention calls in them."""

    def __init__(self, outlines: Sequence[Outline], chosen: set[int], keys_at_once: int | None) -> None:
        self._waiting: dict[int, list[Outline]] = {}
        # A projection may take in calls in another order than their products ran.
        for outline in sorted(outlines, key=lambda outline: outline.record.bit):
            self._waiting.setdefault(id(outline.record.call.module), []).append(outline)
        self._chosen, self._keys_at_once = chosen, keys_at_once
        self._calls = 0
        self._other_keys: dict[int, int] = {}
        self._one_by_one: set[type[Module]] = set()
        self.stretches: list[Stretch] = []
        self.found: dict[int, LayerScores] = {}

    def take(self, call: LayerCall) -> None:
        """Run a layer again for each key of each of its attention calls; or each of those that a module owns."""
        stretches = [stretch for stretch in self.stretches if stretch.owner is call.layer]
        for one in stretch_calls(call, stretches) if stretches else [call]:
            self._take(one)

    def _take(self, call: LayerCall) -> None:
        number, self._calls = self._calls, self._calls + 1
        replay = Replay(call)
        for product in replay.products():
            if not call.holds([caller.module for caller in product.mixture.callers]):
                continue  # of another layer
            outline = self._outline_of(replay, product)
            if outline is not None and id(outline) in self._chosen:
                self.found[id(outline)] = LayerScores(number, self._scores(replay, product, outline, type(call.layer)))

    def _outline_of(self, replay: Replay, product: Product) -> Outline | None:
        """The call whose product this is; None for one that could not be read, or a part of one of several products.

        A module may run several calls, and products that were not read, so that their order alone does not tell.
        """
        waiting = self._waiting.get(id(product.module), [])
        far = [replay.differs(product, outline.mark) for outline in waiting]
        if min(far, default=math.inf) == math.inf:
            self._other_keys[id(product.module)] = product.keys
            return None
        return waiting.pop(far.index(min(far)))

    def why_missing(self, record: AttentionRecord) -> str:
        """What to say of a call that was not found in its layer."""
        call, keys = record.call, record.weights.shape[-1]
        other = self._other_keys.get(id(call.module), keys)
        if other != keys:
            return (
                f"{call.name}: {keys} keys when it was read, but {other} when its layer was run again: keys of earlier "
                "passes are kept"
            )
        return (
            f"{call.name} (call {call.call}): its layer, when it was run again, did not run it with the same weights "
            "and values. Let the layer depend on nothing but its input; AttentionNorm answers"
        )

    def _scores(self, replay: Replay, product: Product, outline: Outline, kind: type[Module]) -> Tensor:
        if kind not in self._one_by_one:
            try:
                return self._distances(replay, product, outline, batched=True)
            except CannotBatchError:
                self._one_by_one.add(kind)
        return self._distances(replay, product, outline, batched=False)

    def _distances(self, replay: Replay, product: Product, outline: Outline, batched: bool) -> Tensor:
        batch, _, query = product.layout.shape
        at_once = self._keys_at_once or max(_AT_LEAST, _NUMBERS // max(1, batch * query * replay.width(product)))
        scores = torch.cat(
            [
                _turned(changed, output, outline.record.query_mask)
                for changed, output in replay.without_keys(product, at_once, batched)
            ],
            dim=-1,
        )
        rounding = (8 * torch.finfo(product.mixture.values.given.dtype).eps) ** 2 / 2
        return scores.masked_fill_(outline.unseen.to(scores.device) & (scores <= rounding), 0)


def _check_is_one_product(record: AttentionRecord) -> None:
    if record.bit.bit_count() > 1:  # each product has a bit of its own
        _, heads, queries, _ = record.weights.shape
        raise InexactCaptureError(
            f"{record.call.name}: its {heads} heads and {queries} queries are mixed by several products, of which one "
            "alone can be changed; AttentionNorm answers, and so does a layer that mixes all of them at once"
        )


def _turned(changed: Tensor, output: Tensor, real: Tensor | None) -> Tensor:
    """1 - cos, (batch, query, key); padding may hold NaN and gets 0."""
    if real is not None:
        padding = ~real[..., None].to(output.device)
        changed, output = changed.masked_fill(padding, 0), output.masked_fill(padding, 0)
    with full_precision(output.device):
        return value_zeroing(changed, output)
