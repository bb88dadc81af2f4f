"""From a finished attention call to its record, checked exact, or to the error that says why it cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Module

from captum_norm.capture.blocks.check import UnreadableBlockError
from captum_norm.capture.blocks.read import BlockReader, residual_key
from captum_norm.capture.blocks.stream import Stream
from captum_norm.capture.certificate import predicted, read_along, relative_error, tolerance_for
from captum_norm.capture.graph import MixedValues
from captum_norm.capture.heads import HeadReader, Heads
from captum_norm.capture.kind import KindReader, has_cache
from captum_norm.capture.layout import Layout, LayoutError
from captum_norm.capture.names import Names
from captum_norm.capture.positions import PositionReader
from captum_norm.capture.record import (
    AttentionBlock,
    AttentionCall,
    AttentionRecord,
    Certificate,
    InexactCaptureError,
    Positions,
)
from captum_norm.capture.traces import Mixture, Projection
from captum_norm.functional.block import ResidualKey
from captum_norm.operations.callers import received_mask

OnRecord = Callable[[AttentionRecord], None]
OnInexact = Callable[[InexactCaptureError], None]


class RecordReader:
    """Turns finished mixtures into checked records.

    Args:
        model: what names are relative to; None: the outermost module that was running.
        on_record, on_inexact: as for :func:`~captum_norm.capture.recording`.
        stream: what follows the blocks around the calls, or None.
    """

    def __init__(
        self, model: Module | None, on_record: OnRecord, on_inexact: OnInexact | None, stream: Stream | None
    ) -> None:
        self._on_record, self._on_inexact = on_record, on_inexact
        self._stream, self._blocks = stream, BlockReader()
        self._names = Names(model)
        self._heads, self._positions, self._kinds = HeadReader(), PositionReader(), KindReader()
        self._counts: dict[int, int] = {}

    def finish(self, mixture: Mixture) -> None:
        """Read, check and hand over one call."""
        if mixture.projection is None and not mixture.problem and not _is_attention(mixture):
            return
        call = self._call(mixture)
        try:
            record = self._read(mixture, call)
        except (LayoutError, InexactCaptureError) as error:
            refusal = InexactCaptureError(f"{call.name or 'attention'} (call {call.call}): {error}")
            refusal.call = call
            if self._on_inexact is None:
                raise refusal from None
            self._on_inexact(refusal)
        else:
            self._on_record(record)

    def _call(self, mixture: Mixture) -> AttentionCall:
        modules = tuple(caller.module for caller in mixture.callers)
        count = 0
        if modules:
            count = self._counts.get(id(modules[-1]), 0)
            self._counts[id(modules[-1])] = count + 1
        projection = mixture.projection
        parameter = "" if projection is None else self._names.parameter(projection.terms[0].parameter, modules)
        return AttentionCall(self._names.module(modules), "self", count, 0, parameter, modules)

    def _read(self, mixture: Mixture, call: AttentionCall) -> AttentionRecord:
        if mixture.problem:
            raise InexactCaptureError(mixture.problem)
        projection = mixture.projection
        if projection is None:
            raise InexactCaptureError(
                "its mixed values were not seen to enter an output projection W_O (a linear map); what lies between "
                "is not a reshape, a gate or a norm, or the module has no output projection"
            )
        if not mixture.unchanged:
            raise InexactCaptureError("its weights or values were overwritten in place before they could be read")
        heads = self._heads.read(mixture, projection)
        layout, weights, values = heads.layout, heads.weights, heads.values
        certificate = certify(projection, heads)
        queries, _ = self._positions.read(mixture.weights_place, mixture.lead, mixture.weights.shape, layout, "query")
        keys, unknown = self._positions.read(mixture.values_place, mixture.lead, mixture.values.shape, layout, "key")
        kind = self._kinds.read(mixture, weights, queries, keys)
        batch, _, query, key = weights.shape
        mixed = None
        if mixture.edge is not None:
            mixed = MixedValues(mixture.edge, mixture.steps, mixture.lead, layout, mixture.live)
        cross = kind == "cross"
        block, no_block = self._block(mixture, layout, queries, keys, cross)
        if block is not None and heads.offsets:  # W_O wrote something else along with attention
            block = replace(block, attended=None)
        return AttentionRecord(
            call=replace(call, kind=kind, heads=weights.shape[1]),
            weights=weights,
            values=values,
            W_O=heads.W_O,
            b_O=projection.bias,
            gate=heads.gate,
            queries=queries,
            keys=keys,
            unknown_keys=unknown,
            query_mask=received_mask(mixture.callers, batch, query),
            key_mask=received_mask(mixture.callers, batch, key, memory=cross),
            certificate=certificate,
            mixed=mixed,
            block=block,
            no_block=no_block,
        )

    def _block(
        self, mixture: Mixture, layout: Layout, queries: Positions | None, keys: Positions | None, cross: bool
    ) -> tuple[AttentionBlock | None, str]:
        """The block around a call, or None and why."""
        if self._stream is None:
            return None, AttentionRecord.no_block
        query, key = layout.shape[2], mixture.values.shape[-2]

        def own_key() -> ResidualKey:
            return residual_key(queries, keys, cross, has_cache(mixture.callers), query, key)

        try:
            return self._blocks.read(self._stream.forget(mixture), mixture.projection, layout, own_key), ""
        except UnreadableBlockError as error:
            return None, str(error)


def _is_attention(mixture: Mixture) -> bool:
    """Whether weights that meet values mix positions.

    A softmax over classes that weighs something does not, nor does one that mixes several streams of one position.
    """
    if mixture.weights.ndim == 2:
        return False
    place, key = mixture.values_place, mixture.values.shape[-2]
    numbers = None if place is None else place.numbers()
    return numbers is None or key == 1 or not torch.equal(numbers, numbers[..., :1, :].expand_as(numbers))


def certify(projection: Projection, heads: Heads) -> Certificate:
    """The check that the heads reproduce what the projection wrote, along one random direction.

    Raises:
        InexactCaptureError: where they do not.
    """
    r, actual, size = projection.r, projection.actual, projection.size
    if r is None or actual is None or size is None:
        raise InexactCaptureError("its output projection was seen only in part")
    # What was added to the attention part was rounded with it: a large bias hides the last digits of a small part.
    beside = 0.0 if projection.bias is None else float(vector_norm(projection.bias.detach().to(r.dtype)))
    beside *= float(vector_norm(r)) / math.sqrt(len(r))
    for x, W in heads.offsets:
        offset = x.to(r.dtype) @ (W.to(r.dtype) @ r)
        beside += float(offset.abs().max())
        actual = actual - offset
        size = actual.abs()
    tokens = heads.layout.tokens.to(actual.device)
    actual, size = actual[tokens], size[tokens]
    weights, values, W_O = heads.weights, heads.values, heads.W_O
    dtype = projection.terms[0].x.dtype
    tolerance = tolerance_for(dtype, weights.shape[-1], beside / max(float(size.max()), torch.finfo(r.dtype).tiny))
    parameter = projection.terms[0].parameter
    is_view = W_O.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    error = math.nan
    for remembered in (parameter, None) if is_view else (None,):
        expected = predicted(weights, values, read_along(W_O, r, remembered), heads.gate)
        error = relative_error(expected, actual, size)
        if error <= tolerance:
            return Certificate(error, tolerance)
    raise InexactCaptureError(_what_is_wrong(error, tolerance, weights, values, W_O))


def _what_is_wrong(error: float, tolerance: float, *tensors: Tensor) -> str:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return (
            "its weights, values or W_O are not finite (NaN or infinity): look at the model's parameters and inputs, "
            "or at rows whose keys are all masked"
        )
    return (
        f"its weights, values and W_O do not reproduce the projection's output: relative error {error:.1e}, "
        f"allowed {tolerance:.0e}. Something else entered between the value product and W_O; "
        "attn_implementation='eager' and model.eval() are worth trying"
    )
