"""Recording the attention calls of whatever runs inside a ``with``.

    with recording() as records:
        model.generate(**inputs)

Nothing is put on the model: its operations are watched while they run (:mod:`captum_norm.capture.operations`), what
belongs to attention is followed (:mod:`captum_norm.capture.dataflow`), and each call is checked exact and handed over
as soon as it is complete.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Module

from captum_norm.capture.blocks.check import UnreadableBlockError
from captum_norm.capture.blocks.read import BlockReader, residual_key
from captum_norm.capture.blocks.stream import Stream
from captum_norm.capture.callers import Caller, real_tokens
from captum_norm.capture.certificate import (
    at_least_float32,
    predicted,
    read_along,
    relative_error,
    tolerance_for,
)
from captum_norm.capture.dataflow import Dataflow
from captum_norm.capture.graph import MixedValues
from captum_norm.capture.layout import Layout, LayoutError, measure
from captum_norm.capture.operations import OperationMode
from captum_norm.capture.places import PositionReader
from captum_norm.capture.record import (
    AttentionBlock,
    AttentionCall,
    AttentionRecord,
    Certificate,
    InexactCaptureError,
    Kind,
    Positions,
)
from captum_norm.capture.rules.norms import CentredNorm
from captum_norm.capture.traces import Mixture, Projection, Term
from captum_norm.functional.block import ResidualKey

OnRecord = Callable[[AttentionRecord], None]
OnInexact = Callable[[InexactCaptureError], None]


@contextlib.contextmanager
def recording(
    on_record: OnRecord | None = None,
    *,
    sources: Sequence[Tensor] = (),
    model: Module | None = None,
    on_inexact: OnInexact | None = None,
    differentiable: bool = False,
    blocks: bool = False,
) -> Iterator[list[AttentionRecord]]:
    """Record every attention call of the code inside the ``with``, in this thread.

    The running model is untouched: no hook, no change of mode, config or random state; its outputs are bit-equal to
    the same forward without torch's fused fast path.  Calls whose exactness cannot be shown raise.

    Args:
        on_record: called with each :class:`AttentionRecord` when its call is complete, which is at the next attention
            call or at the end; the record is then dropped, so that one call is held at a time.  None collects all
            records in the list that the context yields.
        sources: the input tensors whose positions matter; ``record.keys.source`` is the index among them.
        model: names are relative to this module; by default to the outermost module that is running.
        on_inexact: called with the error of a call that cannot be read exactly, instead of raising it.
        differentiable: note each value product in autograd's graph, ``record.mixed``, so that gradients with respect to
            its weights can be taken afterwards.  The forward has to run with gradients enabled; where parameters are
            frozen, the graph begins at the first attention call.
        blocks: read the block around each call as well, ``record.block``: residual, norms and output.  A record is then
            handed over one attention call later, when it is known how the residual stream goes on.

    Yields:
        The list of records; empty while ``on_record`` is given.

    Raises:
        InexactCaptureError: where a call cannot be read exactly, naming the module, the error and the way out.

    Example:
        >>> attention = torch.nn.MultiheadAttention(8, num_heads=2, batch_first=True)
        >>> x = torch.randn(1, 5, 8)
        >>> with recording() as records:
        ...     _ = attention(x, x, x)
        >>> tuple(records[0].weights.shape), tuple(records[0].W_O.shape), float(records[0].certificate) < 1e-5
        ((1, 2, 5, 5), (2, 4, 8), True)
    """
    records: list[AttentionRecord] = []
    stream = Stream() if blocks else None
    reader = _Reader(model, on_record or records.append, on_inexact, stream)
    flow = Dataflow(sources, reader.finish, differentiable, stream)
    mode = OperationMode(flow.rule_for)
    try:
        with _uncompiled(), mode:
            yield records
        with torch._C.DisableTorchFunction(), torch.no_grad():
            flow.finish()
    finally:
        flow.forget()


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled modules run eagerly for the time being: a compiled graph shows none of its operations."""
    import torch.compiler

    with torch.compiler.set_stance("force_eager"):
        yield


class _Reader:
    """Turns finished mixtures into checked records."""

    def __init__(
        self, model: Module | None, on_record: OnRecord, on_inexact: OnInexact | None, stream: Stream | None
    ) -> None:
        self._on_record, self._on_inexact = on_record, on_inexact
        self._stream, self._blocks = stream, BlockReader()
        self._names = _Names(model)
        self._layouts: dict[Any, Layout] = {}
        self._positions = PositionReader()
        self._counts: dict[int, int] = {}
        self._ahead: dict[tuple[int, int, int, int], _Ahead] = {}

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
        heads = [self._heads(mixture, terms) for terms in _by_input(projection.terms)]
        layout, weights, values, W_O, gate, offsets = _join(heads)
        dtype = projection.terms[0].x.dtype
        certificate = _certify(projection, layout, weights, values, W_O, gate, offsets, dtype)
        queries, _ = self._positions.read(mixture.weights_place, mixture.lead, mixture.weights.shape, layout, "query")
        keys, unknown = self._positions.read(mixture.values_place, mixture.lead, mixture.values.shape, layout, "key")
        kind = self._kind(mixture, weights, queries, keys)
        batch, _, query, key = weights.shape
        mixed = None
        if mixture.edge is not None:
            mixed = MixedValues(mixture.edge, mixture.steps, mixture.lead, layout, mixture.live)
        cross = kind == "cross"
        block, no_block = self._block(mixture, layout, queries, keys, cross)
        if block is not None and offsets:  # W_O wrote something else along with attention
            block = replace(block, attended=None)
        return AttentionRecord(
            call=replace(call, kind=kind, heads=weights.shape[1]),
            weights=weights,
            values=values,
            W_O=W_O,
            b_O=projection.bias,
            gate=gate,
            queries=queries,
            keys=keys,
            unknown_keys=unknown,
            query_mask=real_tokens(mixture.callers, batch, query),
            key_mask=real_tokens(mixture.callers, batch, key, memory=cross),
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
            return residual_key(queries, keys, cross, _has_cache(mixture.callers), query, key)

        try:
            return self._blocks.read(self._stream.forget(mixture), mixture.projection, layout, own_key), ""
        except UnreadableBlockError as error:
            return None, str(error)

    def _kind(self, mixture: Mixture, weights: Tensor, queries: Positions | None, keys: Positions | None) -> Kind:
        """Self, causal or cross: by where queries and keys come from, then by whether any query looks ahead."""
        ours, theirs = mixture.weights_place, mixture.values_place
        query, key = weights.shape[-2:]
        if _cross_attends(mixture.callers):
            return "cross"
        if theirs is not None and ours is not None:
            if ours.anchor.origin is not theirs.anchor.origin:
                return "cross"
        elif ours is None and theirs is not None and key != query:
            return "cross"  # queries of the module's own, such as a pooling head's
        if queries is None or keys is None or queries.source != keys.source:
            queries = keys = None
            if query != key and not (query < key and _has_cache(mixture.callers)):
                return "self"
        name = (query, key, id(queries), id(keys))
        if name not in self._ahead:
            self._ahead[name] = _Ahead(query, key, queries, keys)
        return "causal" if self._ahead[name].is_avoided(weights) else "self"

    def _heads(self, mixture: Mixture, terms: list[Term]) -> _Heads:
        """The heads that one projection input holds."""
        term = terms[0]
        head_dim, query = mixture.values.shape[-1], mixture.weights.shape[-2]
        width = term.x.shape[-1]
        key = (mixture.lead, query, head_dim, tuple(step.key for step in term.steps if not step.scales), width)
        if key not in self._layouts:
            self._layouts[key] = measure(mixture.lead, query, head_dim, term.steps, width)
        layout = self._layouts[key]
        W = terms[0].matrix()
        for other in terms[1:]:
            W = W + other.matrix()
        W, offset = _fold_norm(term, W)
        gate = _gate(mixture, term, layout) if any(step.scales for step in term.steps) else None
        W_O = layout.heads(W)
        if len(layout.rest):
            rest = layout.rest.to(W.device)
            x = term.x.reshape(-1, width)[:, rest]
            if offset is not None:
                raise InexactCaptureError("a norm spans the mixed values and something else")
            offset = (x, W[rest])
        weights = layout.weights(mixture.weights, mixture.lead)
        values = layout.values(mixture.values, mixture.lead)
        return _Heads(layout, weights, values, W_O, gate, offset)


def _is_attention(mixture: Mixture) -> bool:
    """Whether weights that meet values mix positions.

    A softmax over classes that weighs something does not, nor does one that mixes several streams of one position.
    """
    if mixture.weights.ndim == 2:
        return False
    place, key = mixture.values_place, mixture.values.shape[-2]
    numbers = None if place is None else place.numbers()
    return numbers is None or key == 1 or not torch.equal(numbers, numbers[..., :1, :].expand_as(numbers))


def _certify(
    projection: Projection, layout: Layout, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None,
    offsets: list[tuple[Tensor, Tensor]], dtype: torch.dtype,
) -> Certificate:  # fmt: skip
    """The check that the record reproduces what the projection wrote, along one random direction.

    Raises:
        InexactCaptureError: where it does not.
    """
    r, actual, size = projection.r, projection.actual, projection.size
    if r is None or actual is None or size is None:
        raise InexactCaptureError("its output projection was seen only in part")
    # What was added to the attention part was rounded with it: a large bias hides the last digits of a small part.
    beside = 0.0 if projection.bias is None else float(vector_norm(projection.bias.detach().to(r.dtype)))
    beside *= float(vector_norm(r)) / math.sqrt(len(r))
    for x, W in offsets:
        offset = x.to(r.dtype) @ (W.to(r.dtype) @ r)
        beside += float(offset.abs().max())
        actual = actual - offset
        size = actual.abs()
    tokens = layout.tokens.to(actual.device)
    actual, size = actual[tokens], size[tokens]
    tolerance = tolerance_for(dtype, weights.shape[-1], beside / max(float(size.max()), torch.finfo(r.dtype).tiny))
    parameter = projection.terms[0].parameter
    is_view = W_O.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    error = math.nan
    for known in (parameter, None) if is_view else (None,):
        expected = predicted(weights, values, read_along(W_O, r, known), gate)
        error = relative_error(expected, actual, size)
        if error <= tolerance:
            return Certificate(error, tolerance)
    raise InexactCaptureError(_what_is_wrong(error, tolerance, weights, values, W_O))


class _Heads:
    """Some heads of one call, in (batch, head, ...) order, and what else their projection adds."""

    def __init__(
        self, layout: Layout, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None,
        offset: tuple[Tensor, Tensor] | None,
    ) -> None:  # fmt: skip
        self.layout, self.weights, self.values, self.W_O = layout, weights, values, W_O
        self.gate, self.offset = gate, offset

    @property
    def first(self) -> tuple[int, int]:
        return int(self.layout.rows[0, 0, 0]), int(self.layout.queries[0, 0, 0])


def _by_input(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms that read the same input (W_O and its adapters) belong together; each group holds heads of its own."""
    groups: dict[Any, list[Term]] = {}
    for term in terms:
        groups.setdefault((tuple(step.key for step in term.steps), term.x.shape), []).append(term)
    return list(groups.values())


def _join(
    parts: list[_Heads],
) -> tuple[Layout, Tensor, Tensor, Tensor, Tensor | None, list[tuple[Tensor, Tensor]]]:
    offsets = [part.offset for part in parts if part.offset is not None]
    if len(parts) == 1:
        part = parts[0]
        return part.layout, part.weights, part.values, part.W_O, part.gate, offsets
    parts = sorted(parts, key=lambda part: part.first)
    if len({part.first for part in parts}) < len(parts):
        raise InexactCaptureError("the same heads enter W_O in two different layouts")
    layouts = [part.layout for part in parts]
    if any(not torch.equal(layout.tokens, layouts[0].tokens) for layout in layouts):
        raise InexactCaptureError("the parts of W_O write their outputs in different orders")
    if any(part.gate is not None for part in parts):
        raise InexactCaptureError("the parts of W_O are gated one by one")
    joined = replace(
        layouts[0],
        rows=torch.cat([layout.rows for layout in layouts], 1),
        queries=torch.cat([layout.queries for layout in layouts], 1),
    )
    weights, values = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("weights", "values"))
    return joined, weights, values, torch.cat([part.W_O for part in parts]), None, offsets


def _fold_norm(term: Term, W: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Centring and gamma of a LayerNorm before W_O go into W_O, beta becomes an offset of the output."""
    norms = [step.key for step in term.steps if isinstance(step.key, CentredNorm)]
    if not norms:
        return W, None
    if len(norms) > 1 or not isinstance(term.steps[-1].key, CentredNorm):
        raise InexactCaptureError("a LayerNorm stands between the mixed values and W_O, with more steps after it")
    norm = norms[0]
    W = W.to(at_least_float32(W.dtype))
    if norm.bias is None:
        return norm.fold(W), None
    rows = term.x.numel() // term.x.shape[-1]
    return norm.fold(W), (norm.bias.detach().to(W.dtype).expand(rows, -1), W)


def _gate(mixture: Mixture, term: Term, layout: Layout) -> Tensor:
    """What the model multiplied the mixed values with: its own operations, replayed on ones."""
    shape = (*mixture.lead, mixture.weights.shape[-2], mixture.values.shape[-1])
    gate = torch.ones(shape, dtype=at_least_float32(term.x.dtype), device=term.x.device)
    for step in term.steps:
        gate = step.apply(gate)
    gate = layout.mixed(gate)
    return gate[..., :1] if torch.equal(gate, gate[..., :1].expand_as(gate)) else gate


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


def _cross_attends(callers: tuple[Caller, ...]) -> bool:
    """The innermost module was given what a module around it was given to cross-attend to."""
    if not callers:
        return False
    given = callers[-1].arguments
    if any(isinstance(given.get(name), Tensor) for name in ("key_value_states", "encoder_hidden_states")):
        return True
    memories = [caller.arguments.get(name) for caller in callers[:-1] for name in ("memory", "encoder_hidden_states")]
    return any(value is memory for value in given.values() for memory in memories if isinstance(memory, Tensor))


def _has_cache(callers: tuple[Caller, ...]) -> bool:
    """The keys of earlier forward passes come before those of this one."""
    names = ("past_key_values", "past_key_value", "layer_past", "cache")
    return any(caller.arguments.get(name) is not None for caller in callers for name in names)


class _Ahead:
    """Which keys come after which queries, and so whether weights that avoid them are causal.

    Attributes:
        mask: (query, key) bool, True where the key comes after the query.
        rows: the queries that have keys after them.
    """

    def __init__(self, query: int, key: int, queries: Positions | None, keys: Positions | None) -> None:
        if queries is not None and keys is not None:
            self.mask = keys.index[None, :] > queries.index[:, None]
        else:
            self.mask = torch.ones(query, key, dtype=torch.bool, device="cpu").triu(key - query + 1)
        self.rows = self.mask.any(-1).nonzero()[:, 0]
        self._kept = (queries, keys)  # the cache is keyed by their identity

    def is_avoided(self, weights: Tensor) -> bool:
        """No query gives weight to later keys; rows without an allowed key (left padding) are uniform: no sign.

        Args:
            weights: (batch, head, query, key); one head is looked at.
        """
        query, key = self.mask.shape
        if key == 1:
            return False
        if query == 1:
            return not len(self.rows)  # one step of generation
        # The first query that could look ahead settles it for most encoders.
        return self._some_say_so(weights, self.rows[:1]) and self._some_say_so(weights, self.rows)

    def _some_say_so(self, weights: Tensor, rows: Tensor) -> bool:
        chosen = weights[:, 0, int(rows[0]) : int(rows[0]) + 1] if len(rows) == 1 else weights[:, 0, rows]
        looks = (chosen * self.mask[rows].to(chosen.device)).amax(-1) > 0
        tells = chosen.amax(-1) != chosen.amin(-1)
        return bool(~(looks & tells).any() & (tells.any() | (len(rows) == 1)))


class _Names:
    """Dotted names of modules and parameters, from the root that the caller chose or the outermost module."""

    # Names are remembered per model and checked before use, as a model may be rebuilt between recordings.
    _modules: ClassVar[WeakKeyDictionary[Module, dict[int, str]]] = WeakKeyDictionary()
    _parameters: ClassVar[WeakKeyDictionary[Module, dict[int, str]]] = WeakKeyDictionary()

    def __init__(self, model: Module | None) -> None:
        self._model = model

    def _root(self, modules: tuple[Module, ...]) -> Module | None:
        return self._model if self._model is not None else (modules[0] if modules else None)

    def module(self, modules: tuple[Module, ...]) -> str:
        """Name of the innermost module that the root knows."""
        root = self._root(modules)
        if root is None:
            return ""
        for module in reversed(modules):
            name = self._name_of(module, root)
            if name is not None:
                return name or type(module).__name__
        return type(modules[-1]).__name__

    def _name_of(self, module: Module, root: Module) -> str | None:
        names = self._modules.get(root, {})
        name = names.get(id(module))
        if name is None or not _is_at(root, name, module):
            names = self._modules[root] = {id(m): n for n, m in root.named_modules()}
            name = names.get(id(module))
        return name

    def parameter(self, parameter: Tensor, modules: tuple[Module, ...]) -> str:
        """Name of the parameter, also when the model used a view of it; its shape where it has no name."""
        root = self._root(modules)
        if root is not None:
            names = self._parameters.get(root)
            if names is None or id(parameter) not in names:
                names = self._parameters[root] = {id(p): n for n, p in root.named_parameters()}
            name = names.get(id(parameter))
            if name is not None and _is_at(root, name, parameter):
                return name
            for name, candidate in root.named_parameters():
                if candidate is parameter or (candidate.numel() and candidate.data_ptr() == parameter.data_ptr()):
                    return name
        return f"a tensor of shape {tuple(parameter.shape)}"


def _is_at(root: Module, name: str, what: object) -> bool:
    found: object = root
    for part in name.split(".") if name else ():
        found = getattr(found, part, None)
    return found is what


__all__ = ["recording"]
