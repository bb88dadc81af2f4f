"""How far does each output of a layer turn when the values of one key are set to zero in one of its attention calls?

The measure is :func:`captum_norm.functional.value_zeroing`; here it is taken from a running model.  Layers are found
and run again one at a time, while the model waits with the next one.

Axes: b batch, h head, q query, k key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import BaseTorchFunctionMode
from torch.random import fork_rng

from captum_norm.capture import AttentionRecord, InexactCaptureError
from captum_norm.functional import value_zeroing
from captum_norm.intervention.layers import layers_of, watched
from captum_norm.intervention.replay import CannotBatchError, LayerCall, Product, Replay, without_cache

# Numbers that the copies of a layer's output may hold in one replay; what is inside a layer is several times that.
_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Outline:
    """What is kept of a record until its layer runs again.

    Attributes:
        record: the record, its weights and values being of the same shape but all zero, without memory of their own.
        unseen: (batch, query, key) bool, True where no head looks, so that rounding alone is no score.
    """

    record: AttentionRecord
    unseen: Tensor

    @classmethod
    def of(cls, record: AttentionRecord) -> Outline:
        """The outline of a record."""
        weights, values = _empty(record.weights), _empty(record.values)
        outline = replace(record, weights=weights, values=values, gate=None, block=None, mixed=None)
        return cls(outline, (record.weights == 0).all(1))


@dataclass(frozen=True)
class LayerScores:
    """What value zeroing finds of one attention call.

    Attributes:
        layer: number of the layer call it ran in, in the order they finish; the same for the calls of one layer.
        scores: 1 - cos, (batch, query, key), in float32 at least; padding rows are 0, and so is a key that no head
        looks
            at (unless its values get to a query by another way inside the layer, such as a convolution).
    """

    layer: int
    scores: Tensor


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(()).expand(tensor.shape)


def value_zeroing_maps(
    run: Callable[[], Any],
    outlines: Sequence[Outline],
    wanted: Sequence[Outline] | None = None,
    *,
    layers: Sequence[Module] | None = None,
    keys_at_once: int | None = None,
) -> list[LayerScores]:
    """The scores of value zeroing, not normalised, of each attention call.

    Args:
        run: runs the model as it ran when it was recorded, without gradients: once, or twice where its layers do not
        say
            that they are layers.
        outlines: of all attention calls of that recording, in order.
        wanted: those of them that are to have scores; None: all.
        layers: the model's layers, where they cannot be found.
        keys_at_once: how many keys may be without their values in one replay, each at the cost of the memory of one
        copy
            of the layer's activations.  None: as many as keep the copies of a layer's output below 4 million numbers.

    Returns:
        The scores of each wanted call.

    Raises:
        ValueError: if the layer around a call is not found.
        InexactCaptureError: if a layer does not repeat itself, or its output has no row for each query.
    """
    chosen = outlines if wanted is None else wanted
    found = layers_of([outline.record.call for outline in chosen], run, layers)
    taker = _Scores(outlines, {id(outline) for outline in chosen}, keys_at_once)
    with BaseTorchFunctionMode(), torch.no_grad():  # any mode switches torch's fused layers off
        watch_layers(set(found), run, taker.take)
    missing = [outline for outline in chosen if id(outline) not in taker.found]
    if missing:
        call = missing[0].record.call
        raise InexactCaptureError(f"{call.name} (call {call.call}): its layer did not run it when it was run again")
    return [taker.found[id(outline)] for outline in chosen]


def watch_layers(layers: Collection[Module], run: Callable[[], Any], on_call: Callable[[LayerCall], None]) -> None:
    """Run a model, and hand over each call of a layer when it has finished, before the model goes on."""
    given: list[tuple[Module, Any, Any]] = []
    busy = False
    devices = {p.device.index or 0 for layer in layers for p in layer.parameters() if p.device.type == "cuda"}

    def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not busy:
            given.append((module, without_cache(args), without_cache(kwargs)))

    def leave(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy
        if busy:
            return
        layer, args, kwargs = given.pop()
        busy = True
        try:
            with fork_rng(sorted(devices)):
                on_call(LayerCall(layer, args, kwargs, output))
        finally:
            busy = False

    with watched(layers, enter, leave):
        run()


class _Scores:
    """Takes layer calls, and finds the scores of the attention calls in them."""

    def __init__(self, outlines: Sequence[Outline], chosen: set[int], keys_at_once: int | None) -> None:
        self._waiting: dict[int, list[Outline]] = {}
        for outline in outlines:
            self._waiting.setdefault(id(outline.record.call.module), []).append(outline)
        self._chosen, self._keys_at_once = chosen, keys_at_once
        self._calls = 0
        self._one_by_one: set[type[Module]] = set()
        self.found: dict[int, LayerScores] = {}

    def take(self, call: LayerCall) -> None:
        """Run a layer again for each key of each of its attention calls."""
        number, self._calls = self._calls, self._calls + 1
        replay = Replay(call, type(call.layer).__name__)
        for product in replay.products():
            waiting = self._waiting.get(id(product.module))
            if not waiting:
                continue  # a call that could not be read, or is not asked for
            outline = waiting.pop(0)
            if id(outline) in self._chosen:
                scores = self._scores(replay, product, outline, type(call.layer))
                self.found[id(outline)] = LayerScores(number, scores)

    def _scores(self, replay: Replay, product: Product, outline: Outline, kind: type[Module]) -> Tensor:
        record = outline.record
        if product.mixture.weights.shape[-1] != record.weights.shape[-1]:
            raise InexactCaptureError(
                f"{record.call.name}: {record.weights.shape[-1]} keys when it was read, but "
                f"{product.mixture.weights.shape[-1]} when its layer was run again: keys of earlier passes are kept"
            )
        if kind not in self._one_by_one:
            try:
                return self._distances(replay, product, outline, one_by_one=False)
            except CannotBatchError:
                self._one_by_one.add(kind)
        return self._distances(replay, product, outline, one_by_one=True)

    def _distances(self, replay: Replay, product: Product, outline: Outline, one_by_one: bool) -> Tensor:
        batch, _, query, _ = outline.record.weights.shape
        at_once = self._keys_at_once or max(1, _NUMBERS // max(1, batch * query * replay.width(product)))
        parts = []
        for changed, output in replay.without_keys(product, at_once, one_by_one):
            parts.append(_turned(changed, output, outline.record.query_mask))
        scores = torch.cat(parts, -1)
        rounding = (8 * torch.finfo(product.mixture.values.dtype).eps) ** 2 / 2
        return scores.masked_fill_(outline.unseen.to(scores.device) & (scores <= rounding), 0)


def _turned(changed: Tensor, output: Tensor, real: Tensor | None) -> Tensor:
    """1 - cos, (batch, query, key); padding may hold NaN and gets 0."""
    if real is not None:
        padding = ~real[..., None].to(output.device)
        changed, output = changed.masked_fill(padding, 0), output.masked_fill(padding, 0)
    with torch.autocast(output.device.type, enabled=False):
        return value_zeroing(changed, output)
