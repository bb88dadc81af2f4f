"""Is a record true?  Two answers that use neither the capture's certificate nor the way it looks at a model.

1. *Attentions.*  Where the model itself returns attention weights, computed by its eager implementation, the recorded
   weights equal them.
2. *Intervention.*  One key's value vectors are set to zero inside the running model, everything before that staying as
   it was, so alpha is held.  What the output projection then lacks must be the record's own vector,

       sum_h alpha_h,ij f_h(x_j)   with   f_h(x_j) = (values_h,j * gate_h,i) W_O_h,

   at every query i of every example.

The intervention looks one level below the capture: it watches aten operations (a ``TorchDispatchMode``), where fused
calls, ``einsum`` and ``nn.MultiheadAttention`` are all plain products.  The product in question is found by the
*contents* of its operands, the key by its *position* on the axis that is summed over, and W_O by the memory of the
parameter that the record names.

Where the model normalises between attention and W_O, 1/sigma depends on the values; a record holds it fixed (as a
gate), so the intervention holds it fixed too and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from captum_norm.capture import AttentionRecord

TOLERANCE = 1e-5  # of the projection's output
SIGNAL = 1e-3  # a key must change the output by this much of it, else it proves nothing


@dataclass(frozen=True)
class Finding:
    """What the proof says of one record.

    Attributes:
        name: module and call.
        status: ``"proved"``, ``"wrong"`` or ``"open"`` (not testable, for the reason given).
        error: max |what the output lacks - the record's vector| / max |output|.
        note: why open, or what was held fixed.
    """

    name: str
    status: str
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class _Print:
    """What a tensor holds, whatever its layout."""

    count: int
    total: float
    square: float
    peak: float

    @classmethod
    def of(cls, tensor: Tensor) -> _Print:
        x = tensor.detach().double()
        return cls(x.numel(), float(x.sum()), float(x.square().sum()), float(x.abs().max()) if x.numel() else 0.0)

    def shares(self, other: _Print) -> bool:
        """Both hold the same vectors, one of them each vector several times over (shared heads)."""
        few, many = sorted((self, other), key=lambda p: p.count)
        times = many.count / max(few.count, 1)
        size = (1 + few.square) ** 0.5 * (1 + few.count) ** 0.5
        return (
            times == int(times)
            and few.peak == many.peak
            and abs(many.square / times - few.square) <= 1e-9 * (1 + few.square)
            and abs(many.total / times - few.total) <= 1e-9 * size
        )


_PRODUCTS: dict[str, tuple[tuple[int, int], ...]] = {  # operation: (argument, axis that is summed over)
    "mm": ((0, -1), (1, -2)),
    "bmm": ((0, -1), (1, -2)),
    "addmm": ((1, -1), (2, -2)),
    "baddbmm": ((1, -1), (2, -2)),
    "_scaled_dot_product_flash_attention_for_cpu": ((2, -2),),
    "_scaled_dot_product_flash_attention": ((2, -2),),
    "_scaled_dot_product_efficient_attention": ((2, -2),),
}
_SOFTMAXES = ("_softmax", "_safe_softmax")
_SCALES = ("rsqrt", "sqrt", "linalg_vector_norm")  # what norms written out take 1/sigma from; also a power of -1/2
_NORMS = ("native_layer_norm", "_fused_rms_norm", "pow", *_SCALES)


class _Done(Exception):  # noqa: N818  (no error: the way out of a forward)
    """The projection has been reached; the rest of the forward is not needed."""


@dataclass
class _Survey:
    """One plain run: every product by what it holds, every use of a parameter by its memory."""

    products: list[tuple[int, int, int, int, _Print]] = field(
        default_factory=list
    )  # event, argument, axis, size, contents
    uses: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict)  # memory -> events and outputs
    norms: dict[int, Any] = field(default_factory=dict)
    copies: dict[int, tuple[int, Tensor]] = field(
        default_factory=dict
    )  # memory of a copy -> the parameter's, kept alive
    softmaxes: int = 0  # over three axes or more, those inside fused calls included
    means: int = 0  # products with an operand whose rows are weights that add up to one
    streams: int = 0  # products with (streams, streams) weights mix what one position holds, and are no attention

    def parameter(self, tensor: Any, memories: frozenset[int]) -> int:
        """The memory of the parameter that this is (a view or a copy of); 0 for anything else."""
        if not isinstance(tensor, Tensor):
            return 0
        memory = _memory(tensor)
        return memory if memory in memories else self.copies.get(memory, (0, None))[0]


class _Watch(TorchDispatchMode):
    """Counts operations; in a survey notes them, in an intervention changes one product and stops at the projection."""

    def __init__(self, memories: frozenset[int] = frozenset(), survey: _Survey | None = None) -> None:
        super().__init__()
        self.event, self.memories, self.survey = -1, memories, survey
        self.cut: tuple[int, int, int, int] | None = None  # event, argument, axis, key
        self.until, self.base, self.held, self.output = -1, _Survey(), False, None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.event += 1
        name = func.name().split("::")[-1].split(".")[0]
        if self.survey is not None:
            return self._note(name, func, args, kwargs)
        if self.cut is not None and self.event == self.cut[0]:
            args = self._without_key(args)
        if self.cut is not None and self.cut[0] < self.event < self.until and name in _NORMS:
            return self._held(name, func, args, kwargs)
        out = func(*args, **kwargs)
        if self.event == self.until:
            self.output = out.detach().clone()
            raise _Done
        return out

    def _note(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        survey = self.survey
        assert survey is not None
        fused = len(_PRODUCTS.get(name, ())) == 1
        survey.softmaxes += fused or (name in _SOFTMAXES and args[0].ndim > 2)
        survey.means += _is_weighted_mean(name, args, self.memories, survey.streams)
        for argument, axis in _PRODUCTS.get(name, ()):
            operand = args[argument]
            if operand.is_floating_point() and operand.ndim >= 2 and _memory(operand) not in self.memories:
                survey.products.append((self.event, argument, axis, operand.shape[axis], _Print.of(operand)))
        out = func(*args, **kwargs)
        if name in _NORMS:
            survey.norms[self.event] = tuple(o.clone() for o in out) if isinstance(out, tuple) else out.clone()
        if not isinstance(out, Tensor):
            return out
        for argument in args:
            memory = survey.parameter(argument, self.memories)
            if memory and name in ("mm", "bmm", "addmm", "baddbmm", "convolution"):
                survey.uses.setdefault(memory, []).append((self.event, out.clone()))
            elif memory and name in ("clone", "_to_copy", "_reshape_copy") and _memory(out) != _memory(argument):
                survey.copies[_memory(out)] = memory, out
        return out

    def _without_key(self, args: Any) -> Any:
        _, argument, axis, key = self.cut  # type: ignore[misc]
        changed = args[argument].clone()
        changed.select(axis, key).zero_()
        return (*args[:argument], changed, *args[argument + 1 :])

    def _held(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The same normalisation with the mean taken anew but 1/sigma as it was before the intervention."""
        out, before = func(*args, **kwargs), self.base.norms.get(self.event)
        if before is None:
            return out
        if name in _SCALES or (name == "pow" and isinstance(args[1], float) and args[1] < 0):
            self.held |= not torch.equal(out, before)
            return before
        if name == "native_layer_norm":
            x, shape, weight, bias = args[:4]
            self.held |= not torch.equal(out[2], before[2])
            y = (x - x.mean(tuple(range(-len(shape), 0)), keepdim=True)) * before[2].reshape(*before[2].shape)
            y = y if weight is None else y * weight
            return (y if bias is None else y + bias, *before[1:])
        if name == "_fused_rms_norm":
            x, _, weight = args[:3]
            self.held |= not torch.equal(out[1], before[1])
            y = x * before[1]
            return (y if weight is None else y * weight, before[1])
        return out


def _is_weighted_mean(name: str, args: Any, parameters: frozenset[int], streams: int = 0) -> bool:
    """An attention by its arithmetic alone: rows of weights that add up to one times something computed."""
    places = _PRODUCTS.get(name, ())
    if len(places) < 2:
        return bool(places)
    (first, _), (second, _) = places
    a, b = args[first], args[second]
    if not (a.is_floating_point() and a.ndim == 3) or {_memory(a), _memory(b)} & parameters:
        return False
    # What is mixed has signs: powers of an adjacency matrix are no attention.
    return any(
        bool((other < 0).any())
        and w.shape[axis] > 1
        and not w.shape[-2] == w.shape[-1] == streams
        and bool((w >= 0).all())
        and bool(((w.sum(axis) - 1).abs() < 1e-4).all())
        and _varied(w)
        for w, other, axis in ((a, b, -1), (b, a, -2))
    )


def _varied(weights: Tensor) -> bool:
    """No averaging or selecting matrix: weights that a softmax made differ from one another and from 0 and 1."""
    inner = weights[(weights > 1e-3) & (weights < 1 - 1e-3)]
    return inner.numel() > 1 and bool(inner.std() > 1e-3)


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


class Prover:
    """Proves records of one model and one forward.

    Args:
        model: in evaluation mode; the records' names are relative to it.
        forward: runs it once, the same way each time (a fixed seed included).
        streams: how many residual streams each position has, in models that mix them.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], Any], streams: int = 0) -> None:
        self._forward, self._streams = forward, streams
        parameters = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._parameters = {name: _memory(p) for name, p in parameters.items()}
        self._survey: _Survey | None = None

    def prove(self, record: AttentionRecord, generator: torch.Generator, keys: int = 2) -> Finding:
        """Zero a few keys, drawn at random among those that matter, one at a time."""
        name = f"{record.call.name} (call {record.call.call})"
        place = self._place(record)
        if isinstance(place, str):
            return Finding(name, "open", note=place)
        event, argument, axis, until, output = place
        scale = float(output.abs().max())
        worst, held = 0.0, False
        tried = 0
        for key in torch.randperm(record.weights.shape[-1], generator=generator).tolist():
            expected = contribution(record, key)
            if float(expected.abs().max()) < SIGNAL * scale:
                continue
            changed, was_held = self._without(event, argument, axis, key, until)
            held |= was_held
            error = _difference(output - changed, expected)
            if error is None:
                return Finding(
                    name, "open", note=f"the projection has other rows ({tuple(output.shape)}) than the record"
                )
            worst, tried = max(worst, error / scale), tried + 1
            if tried == keys:
                break
        if not tried:
            return Finding(name, "open", note="no key changes the output visibly")
        return Finding(name, "proved" if worst <= TOLERANCE else "wrong", worst, "1/sigma held" if held else "")

    def softmaxes(self) -> int:
        """How many softmaxes over three axes or more this forward computes, those inside fused calls included."""
        return self._surveyed().softmaxes

    def weighted_means(self) -> int:
        """How many products of this forward are attention by their arithmetic alone."""
        return self._surveyed().means

    def _surveyed(self) -> _Survey:
        if self._survey is None:
            self._survey = _Survey(streams=self._streams)
            with torch.no_grad(), _Watch(frozenset(self._parameters.values()), self._survey):
                self._forward()
        return self._survey

    def _place(self, record: AttentionRecord) -> tuple[int, int, int, int, Tensor] | str:
        """Event, argument and axis of the value product, event and output of the projection; or why not."""
        survey = self._surveyed()
        uses = survey.uses.get(self._parameters.get(record.call.projection, 0), [])
        if not uses:
            return f"no product with {record.call.projection or 'a named W_O'}"
        values, keys = _Print.of(record.values), record.weights.shape[-1]
        found = [p for p in survey.products if p[3] == keys and p[4].shares(values)]
        pairs = [(p, use) for p in found for use in uses[:] if use[0] > p[0]]
        if not pairs:
            return "no product holds exactly the recorded values"
        product, (until, output) = min(pairs, key=lambda pair: pair[1][0] - pair[0][0])
        return product[0], product[1], product[2], until, output

    def _without(self, event: int, argument: int, axis: int, key: int, until: int) -> tuple[Tensor, bool]:
        watch = _Watch()
        watch.cut, watch.until = (event, argument, axis, key), until
        watch.base = self._surveyed()
        try:
            with torch.no_grad(), watch:
                self._forward()
        except _Done:
            pass
        if watch.output is None:
            raise RuntimeError("the forward did not repeat itself: the projection was not reached")
        return watch.output, watch.held


def contribution(record: AttentionRecord, key: int) -> Tensor:
    """sum_h alpha_h,ij f_h(x_j) for one key j and every query i, written out: (batch, query, model)."""
    weights, values, W_O = record.weights.double(), record.values.double(), record.W_O.double()
    values = values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1)
    gate = torch.ones(1, dtype=torch.float64) if record.gate is None else record.gate.double()
    mixed = weights[..., key].unsqueeze(-1) * values[:, :, None, key] * gate  # (batch, head, query, head_dim)
    return torch.einsum("bhqe,hed->bqd", mixed, W_O)


def _difference(actual: Tensor, expected: Tensor) -> float | None:
    """max |actual - expected|, with zeros expected in rows that are not the record's; None where it does not fit.

    A model may keep (batch, query) or (query, batch) rows, and may project several attention calls at once, one after
    the other (the pictures of a batch).
    """
    if actual.ndim > 2 and actual.shape[-1] != expected.shape[-1] and actual.shape[1] == expected.shape[-1]:
        actual = actual.movedim(1, -1)  # a convolution's channels
    if actual.shape[-1] != expected.shape[-1]:
        return None
    rows = actual.double().reshape(-1, expected.shape[-1])
    batch, queries, model = expected.shape
    if len(rows) % batch or len(rows) < batch * queries:
        return None
    spare = len(rows) // batch - queries
    best = float("inf")
    for start in range(spare + 1):
        placed = pad(expected, (0, 0, start, spare - start))
        for either in (placed, placed.transpose(0, 1)):
            best = min(best, float((rows - either.reshape(-1, model)).abs().max()))
    return best


def compare_attentions(
    returned: Sequence[Tensor], records: Sequence[AttentionRecord], tolerance: float = 1e-5
) -> tuple[int, int]:
    """How many of the returned attentions equal a record's weights, and how many of a record's shape equal none.

    Some models return something else under that name: scores before the softmax are passed over, and a mean over heads
    is compared with the mean.
    """
    left, equal, different = list(records), 0, 0
    for attention in returned:
        if bool((attention < 0).any()) or bool((attention.sum(-1) > 1 + 1e-3).any()):
            continue
        alike = [r for r in left if r.weights.shape == attention.shape]
        one = attention.shape[1] > 1 and torch.equal(attention, attention[:, :1].expand_as(attention))
        match = next((r for r in alike if _apart(r.weights, attention, one) <= tolerance), None)
        if match is not None:
            left = [r for r in left if r is not match]
            equal += 1
        elif alike:
            different += 1
    return equal, different


def _apart(weights: Tensor, attention: Tensor, mean: bool) -> float:
    return float(((weights.mean(1, keepdim=True) if mean else weights) - attention).abs().max())
