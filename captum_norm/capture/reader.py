"""From a finished attention call to its record, checked exact, or to the error that says why it cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Module

from captum_norm.capture.blocks.check import UnreadableBlockError
from captum_norm.capture.blocks.read import BlockReader, residual_key
from captum_norm.capture.blocks.stream import ResidualStream
from captum_norm.capture.call import AttentionCall, Certificate, InexactCaptureError, Kind, Mixer, Positions, refusal
from captum_norm.capture.certificate import (
    Check,
    predicted,
    read_along,
    relative_error,
    tolerance_for,
    what_is_wrong,
)
from captum_norm.capture.chain import Fed
from captum_norm.capture.graph import MixedValues
from captum_norm.capture.heads import HeadReader, Heads, something_else
from captum_norm.capture.held import Held
from captum_norm.capture.joining import Joined, apart, joined, meets_values_twice
from captum_norm.capture.kind import KindReader, has_cache
from captum_norm.capture.layout import LayoutError
from captum_norm.capture.names import Names
from captum_norm.capture.positions import PositionReader, numbers_of, positions_of
from captum_norm.capture.real_tokens import RealTokens
from captum_norm.capture.record import AttentionBlock, AttentionRecord
from captum_norm.capture.rows import CheckedRows, ReadRows, sample
from captum_norm.capture.spreading import whole_of
from captum_norm.capture.traces import Mixture, Projection
from captum_norm.functional.block import ResidualKey
from captum_norm.operations.formats import same_storage
from captum_norm.operations.places import OtherInput, Source
from captum_norm.operations.sharded import what_is_split

OnRecord = Callable[[AttentionRecord], None]
OnInexact = Callable[[InexactCaptureError], None]


@dataclass(frozen=True, eq=False)
class ReadProjection:
    """What went through one projection: its calls, proved together, and whether it wrote something else besides.

    ``check`` is what rows that are asked for later have to pass, where there is one call of one product; ``read`` are
    those that have passed it.
    """

    projection: Projection
    calls: list[Joined]
    certificate: Certificate
    check: Check | None
    offsets: bool
    read: ReadRows | None = None


class RecordReader:
    """Turns finished mixtures into checked records.

    Args:
        names: what modules and parameters are called.
        on_record, on_inexact, over_windows: as for :func:`~captum_norm.capture.recording`.
        stream: what follows the blocks around the calls, or None.
    """

    def __init__(
        self, names: Names, on_record: OnRecord, on_inexact: OnInexact | None, stream: ResidualStream | None,
        over_windows: bool = False,
    ) -> None:  # fmt: skip
        self._on_record, self._on_inexact = on_record, on_inexact
        self._stream, self._blocks = stream, BlockReader()
        self._names, self._over_windows = names, over_windows
        self._heads, self._positions, self._kinds = HeadReader(), PositionReader(), KindReader()
        self._real = RealTokens()
        self._counts: dict[int, int] = {}
        self._random = Random(0)

    def finish(self, mixtures: tuple[Mixture, ...]) -> None:
        """Read, check and hand over what went through one projection, or one mixture that went through none."""
        first = mixtures[0]
        if first.projection is None and not first.problem and not _is_attention(first):
            first.settle("no attention")
            return
        try:
            read = self._read(mixtures)
        except (LayoutError, InexactCaptureError) as error:
            for mixture in mixtures:
                mixture.settle("refused")
            self._refuse(self._call(mixtures), error, sum({mixture.bit for mixture in mixtures}))
            return
        for call in read.calls:
            record = self._record(call, read)
            try:
                self._on_record(record)
            except InexactCaptureError as error:
                if self._on_inexact is None or error.call is not record.call:  # not of rows that were asked of it
                    raise
                self._on_inexact(error)

    def _refuse(self, call: AttentionCall, error: Exception, bit: int) -> None:
        refused = refusal(call, error)
        refused.bit = bit
        if self._on_inexact is None:
            raise refused from None
        self._on_inexact(refused)

    def _call(self, mixtures: tuple[Mixture, ...], kind: Kind = "self", heads: int = 0) -> AttentionCall:
        """Which call, named by the innermost module in which all of it ran."""
        modules = _common([tuple(caller.module for caller in mixture.callers) for mixture in mixtures])
        count = 0
        if modules:
            count = self._counts.get(id(modules[-1]), 0)
            self._counts[id(modules[-1])] = count + 1
        projection = mixtures[0].projection
        parameter = "" if projection is None else self._names.parameter(projection.terms[0].parameter, modules)
        return AttentionCall(self._names.module(modules), kind, count, heads, parameter, modules)

    def _read(self, mixtures: tuple[Mixture, ...]) -> ReadProjection:
        problem = next((mixture.problem for mixture in mixtures if mixture.problem), "")
        if problem:
            raise InexactCaptureError(problem)
        projection = mixtures[0].projection
        if projection is None:
            raise InexactCaptureError(
                "its mixed values were not seen to enter an output projection W_O (a linear map); what lies between "
                "is not a reshape, a gate or a norm, or the module has no output projection"
                + _last_reader(mixtures)
            )
        if not all(mixture.unchanged for mixture in mixtures):
            raise InexactCaptureError("its weights or values were overwritten in place before they could be read")
        parts = self._heads.read(projection)
        offsets = something_else(parts)
        pieces = apart(parts, self._over_windows)
        spread = whole_of(pieces)
        if not spread and meets_values_twice(parts):
            raise InexactCaptureError(
                "its weights meet two sets of values that are added up (relative positions of values, the values of "
                "another layer), so that what a key adds is no alpha f(x) of one: add the values before the product"
            )
        calls = spread or joined(pieces)
        if len(parts) > 1 or spread:
            return ReadProjection(projection, calls, certify(projection, parts, offsets), None, bool(offsets))
        weights, check = parts[0].weights, check_of(projection, parts[0], offsets)
        batch, _, query, _ = weights.shape
        numbers = sample(query, self._random)
        rows = slice(None) if len(numbers) == query else torch.tensor(numbers).expand(batch, -1)
        read = ReadRows(numbers, weights.at(rows), query)
        return ReadProjection(projection, calls, check.certificate(read.weights, rows), check, bool(offsets), read)

    def _record(self, call: Joined, read: ReadProjection) -> AttentionRecord:
        mixture = call.parts[0].mixture
        parts = tuple(dict.fromkeys(part.mixture for part in call.parts))
        bit = ancestors = 0
        fed: Fed | None = None
        for part in parts:
            bit, ancestors = bit | part.bit, ancestors | part.ancestors
            fed = part.fed if fed is None or part.fed is None else fed.joined(part.fed)
        queries, _ = self._positions_of(call, "query")
        keys, unknown = self._positions_of(call, "key")
        numbers = None if queries is not None or keys is None else self._numbers_of_queries(call)
        told = partial(self._real.told, call, queries, keys)
        kind = self._kinds.read(mixture, call.weights, queries, keys, read.read, numbers, told)
        heads = call.weights.shape[1]
        cross = kind == "cross"
        query_mask, key_mask = self._real.read(call, kind, queries, keys)
        looked_at = self._real.looked_at(keys)
        whole = len(call.parts) == 1 or not read.offsets
        whole = whole and not any(call.meets(other) for other in read.calls if other is not call)
        block, no_block = self._block(call, whole, queries, keys, cross)
        if block is not None and read.offsets:  # W_O wrote something else along with attention
            block = replace(block, attended=None)
        named = self._call(parts, kind, heads)
        weights: Any = call.weights
        if read.check is None:
            weights = Held(weights.whole())
        else:
            unchanged = partial(getattr, mixture, "unchanged")
            weights = CheckedRows(weights, read.check, named, unchanged, read.certificate, read.read)
        return AttentionRecord(
            call=named,
            weights=weights,
            **_own_tensors(call, read.projection.bias),
            gate=call.gate,
            queries=queries,
            keys=keys,
            unknown_keys=unknown,
            sequence=None if mixture.values_place is None else mixture.values_place.anchor.source,
            query_mask=query_mask,
            key_mask=key_mask,
            looked_at=looked_at,
            certificate=read.certificate,
            mixed=_mixed_values(call),
            mixers=mixers_of(parts),
            beside=_others_of(parts),
            bit=bit,
            ancestors=ancestors & ~bit,
            fed=fed,
            block=block,
            no_block=no_block,
        )

    def _positions_of(self, call: Joined, axis: str) -> tuple[Positions | None, str]:
        """Where the query or key axis lies in the input."""
        mixture, layout = call.parts[0].mixture, call.layout
        if len(call.parts) > 1 or call.over_keys is not None:
            numbered = call.queries if axis == "query" else call.keys
            if numbered.rows is None or numbered.anchor is None:
                return None, numbered.unknown
            return positions_of(numbered.rows, numbered.anchor, axis)
        if axis == "query":
            return self._positions.read(mixture.weights_place, mixture.lead, mixture.weights.shape, layout, axis)
        return self._positions.read(mixture.values_place, mixture.lead, mixture.values.shape, layout, axis)

    @staticmethod
    def _numbers_of_queries(call: Joined) -> Tensor | None:
        """(batch, head, query) as the anchor of the keys counts them; None where it does not."""
        mixture = call.parts[0].mixture
        ours, theirs = mixture.weights_place, mixture.values_place
        if ours is None or theirs is None or ours.anchor is not theirs.anchor or len(call.parts) > 1:
            return None
        numbers, _ = numbers_of(ours, mixture.lead, mixture.weights.shape, call.layout, "query")
        return numbers if numbers is not None and bool((numbers >= 0).all()) else None

    def _block(
        self, call: Joined, whole: bool, queries: Positions | None, keys: Positions | None, cross: bool
    ) -> tuple[AttentionBlock | None, str]:
        """The block around a call, or None and why."""
        if self._stream is None:
            return None, AttentionRecord.no_block
        mixtures = tuple(dict.fromkeys(part.mixture for part in call.parts))
        blocks = [self._stream.forget(mixture) for mixture in mixtures]
        if not whole:
            return None, "W_O wrote more at once than the heads of this call"

        def own_key() -> ResidualKey:
            if call.own is not None:
                return call.own
            order, (query, key) = call.layout.queries, call.weights.shape[-2:]
            in_order = torch.equal(order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
            return residual_key(queries, keys, cross, has_cache(mixtures[0].callers), query, key, in_order)

        try:
            return self._blocks.read(blocks[-1], mixtures[0].projection, call.layout, own_key), ""
        except UnreadableBlockError as error:
            return None, str(error)


def mixers_of(mixtures: tuple[Mixture, ...]) -> tuple[Mixer, ...]:
    """What mixed positions on the way to the values, in one order whatever the run."""
    places = [mixture.values_place for mixture in mixtures if mixture.values_place is not None]
    found = {mixer for place in places for mixer in place.mixers if isinstance(mixer, Mixer)}
    return tuple(sorted(found, key=str))


def _others_of(mixtures: tuple[Mixture, ...]) -> frozenset[Source]:
    """The inputs whose rows stand among the keys, which count as another one's positions."""
    places = [mixture.values_place for mixture in mixtures if mixture.values_place is not None]
    return frozenset(one.source for place in places for one in place.mixers if isinstance(one, OtherInput))


def _last_reader(mixtures: tuple[Mixture, ...]) -> str:
    split = what_is_split(caller.module for caller in mixtures[0].callers[:1])
    if split:
        return f". {split}"
    reader = next((mixture.last_reader for mixture in mixtures if mixture.last_reader), "")
    if not reader:
        return ""
    return (
        f". They were last read by {reader}; if that is a layer in a number format of its own, keep the output "
        "projection out of the quantisation, or dequantise it first"
    )


def _is_attention(mixture: Mixture) -> bool:
    """Whether weights that meet values mix positions.

    A softmax over classes that weighs something does not, nor does one that mixes several streams of one position.
    """
    place, key = mixture.values_place, mixture.values.shape[-2]
    numbers = None if place is None else place.numbers()
    if len(mixture.weights.shape) == 2 and numbers is None:
        return False
    return numbers is None or key == 1 or not torch.equal(numbers, numbers[..., :1, :].expand_as(numbers))


def _common(chains: list[tuple[Module, ...]]) -> tuple[Module, ...]:
    """The modules in which all of it ran, outermost first; those of the first one where there are none."""
    common = chains[0]
    for chain in chains[1:]:
        same = [ours is theirs for ours, theirs in zip(common, chain, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return common or chains[0]


def _own_tensors(call: Joined, bias: Tensor | None) -> dict[str, Any]:
    """What a record gives out of the model's own."""
    return {"values": call.values, "W_O": Held(call.W_O), "b_O": None if bias is None else Held(bias)}


def _mixed_values(call: Joined) -> MixedValues | None:
    found = []
    for part in call.parts:
        mixture = part.mixture
        if mixture.edge is None:
            return None
        found.append(MixedValues(mixture.edge, mixture.steps, mixture.lead, part.layout, mixture.live))
    if len(found) == 1 and call.over_keys is None:
        return found[0]
    whole = call.over_keys is None and all(part.weights.shape[2] == call.weights.shape[2] for part in call.parts)
    return replace(found[0], beside=tuple(found[1:]), arrange=call.arrange, whole=whole)


def check_of(projection: Projection, part: Heads, offsets: list[tuple[Tensor, Tensor]]) -> Check:
    """What the weights of a projection's only heads must reproduce; arguments as for :func:`certify`."""
    r, actual, size, beside = _written(projection, offsets)
    tokens = part.layout.tokens
    if part.layout.tokens_in_order and actual.numel() == tokens.numel():
        actual = actual.view(tokens.shape)
    else:
        actual, size = actual[tokens.to(actual.device)], size[tokens.to(actual.device)]
    parameter = projection.terms[0].parameter
    is_view = same_storage(part.W_O, parameter)
    reads = [partial(read_along, part.W_O, r, known) for known in ((parameter, None) if is_view else (None,))]
    largest = float(size.amax())
    tolerance = _tolerance(projection, part.weights.shape[-1], beside, largest)
    return Check(part.values, part.W_O, part.gate, reads, actual, largest, tolerance)


def certify(projection: Projection, parts: list[Heads], offsets: list[tuple[Tensor, Tensor]]) -> Certificate:
    """The check that heads reproduce what their projection wrote, along one random direction.

    Args:
        projection: what was written.
        parts: all heads that it took in.
        offsets: pairs of x (row, column) and W (column, model): what else it wrote.

    Raises:
        InexactCaptureError: where they do not.
    """
    r, actual, size, beside = _written(projection, offsets)
    tokens = [part.layout.tokens.to(actual.device).flatten() for part in parts]
    rows = torch.unique(torch.cat(tokens))
    total = torch.zeros_like(actual)
    for of_one, part in zip(tokens, parts, strict=True):
        expected = predicted(part.weights.whole(), part.values, read_along(part.W_O, r), part.gate)
        total.index_add_(0, of_one, expected.flatten().to(total.dtype))
    largest = float(size[rows].amax())
    error = relative_error(total[rows], actual[rows], largest)
    keys = max(part.weights.shape[-1] for part in parts)
    tolerance = _tolerance(projection, keys, beside, largest)
    if error <= tolerance:
        return Certificate(error, tolerance)
    tensors = [tensor for part in parts for tensor in (part.weights.whole(), part.values.given, part.W_O)]
    products = len({part.root for part in parts})
    raise InexactCaptureError(what_is_wrong(error, tolerance, *tensors, products=products))


def _written(
    projection: Projection, offsets: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """r, (y - b_O - rest) . r and the size of each row, (row,), and how much was added to the attention part."""
    r, actual, size = projection.r, projection.actual, projection.size
    if r is None or actual is None or size is None:
        raise InexactCaptureError("its output projection was seen only in part")
    # What was added to the attention part was rounded with it: a large bias hides the last digits of a small part.
    beside = 0.0 if projection.bias is None else float(vector_norm(projection.bias.detach().to(r.dtype)))
    for x, W in offsets:
        offset = x.to(r.dtype) @ (W.to(r.dtype) @ r)
        beside += float(offset.abs().max())
        actual = actual - offset
        size = actual.abs()
    return r, actual, size, beside


def _tolerance(projection: Projection, keys: int, beside: float, size: float) -> float:
    """What rounding explains where this is the largest size of the attention part."""
    formats = [dtype for term in projection.terms for dtype in (term.x.dtype, term.mixture.values.given.dtype)]
    dtype = max(formats, key=lambda dtype: torch.finfo(dtype).eps)
    largest = max(size, torch.finfo(torch.float32).tiny)
    if projection.rounding / largest > _TOO_ROUNDED:
        raise InexactCaptureError(
            f"its output projection is in {projection.number_format}, whose rounding alone changes what it writes by "
            f"{projection.rounding / largest:.0%} of its size, so that no matrix stands for it; keep it out of the "
            "quantisation, or dequantise it first"
        )
    return min(_TOO_ROUNDED, tolerance_for(dtype, keys, beside / largest) + projection.rounding / largest)


# More of what was written than this is not left to rounding.
_TOO_ROUNDED = 0.1
