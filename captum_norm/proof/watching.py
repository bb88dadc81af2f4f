"""One level below the capture: aten operations of a running model, surveyed, or with one operand changed.

Fused calls, ``einsum`` and ``nn.MultiheadAttention`` are all plain products there.  A product is found by the
*contents* of its operands, a key by its *position* on the axis that is summed over, and W_O by the memory of its
parameter.

Where the model normalises between attention and W_O, 1/sigma depends on the values; a record holds it fixed (as a
gate), so the intervention holds it fixed too and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Print:
    """What a tensor holds, whatever its layout."""

    count: int
    total: float
    square: float
    peak: float

    @classmethod
    def of(cls, tensor: Tensor) -> Print:
        x = tensor.detach().double()
        return cls(x.numel(), float(x.sum()), float(x.square().sum()), float(x.abs().max()) if x.numel() else 0.0)

    def shares(self, other: Print) -> bool:
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


class Done(Exception):  # noqa: N818  (no error: the way out of a forward)
    """The projection has been reached; the rest of the forward is not needed."""


@dataclass
class Survey:
    """One plain run: every product by what it holds, every use of a parameter by its memory."""

    products: list[tuple[int, int, int, int, Print]] = field(
        default_factory=list
    )  # event, argument, axis, size, contents
    rows: dict[int, int] = field(default_factory=dict)  # event of a product -> how many rows it writes
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
        memory = memory_of(tensor)
        return memory if memory in memories else self.copies.get(memory, (0, None))[0]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations; in a survey notes them, in an intervention changes one product and stops at the projection."""

    def __init__(self, memories: frozenset[int] = frozenset(), survey: Survey | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.event, self.memories, self.survey = -1, memories, survey
        self.cut: tuple[int, int, int, int] | None = None  # event, argument, axis, key
        self.erased: tuple[int, Callable[[Tensor], Tensor]] | None = None  # event, and what becomes of its result
        self.sought: Callable[[Tensor], bool] | None = None
        self.since = -1
        self.until, self.base, self.held = -1, Survey(), False
        self.output: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.event += 1
        name = func.name().split("::")[-1].split(".")[0]
        if self.survey is not None:
            return self._note(name, func, args, kwargs)
        if self.cut is not None and self.event == self.cut[0]:
            args = self._without_key(args)
        start = self.cut or self.erased
        if start is not None and start[0] < self.event < self.until and name in _NORMS:
            return self._held(name, func, args, kwargs)
        out = func(*args, **kwargs)
        if self.erased is not None and self.event == self.erased[0]:
            out = self.erased[1](out)
        if self.sought is not None and self.event > self.since and isinstance(out, Tensor) and self.sought(out):
            self.output = out.detach().clone()
            raise Done
        if self.event == self.until:
            self.output = out.detach().clone()
            raise Done
        return out

    def _note(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        survey = self.survey
        assert survey is not None
        fused = len(_PRODUCTS.get(name, ())) == 1
        survey.softmaxes += fused or (name in _SOFTMAXES and args[0].ndim > 2)
        survey.means += _is_weighted_mean(name, args, self.memories, survey.streams)
        for argument, axis in _PRODUCTS.get(name, ()):
            operand = args[argument]
            if operand.is_floating_point() and operand.ndim >= 2 and memory_of(operand) not in self.memories:
                survey.products.append((self.event, argument, axis, operand.shape[axis], Print.of(operand)))
        out = func(*args, **kwargs)
        if name in _PRODUCTS and isinstance(first := out[0] if isinstance(out, tuple) else out, Tensor):
            survey.rows[self.event] = first.numel() // max(1, first.shape[-1])
        if name in _NORMS:
            survey.norms[self.event] = tuple(o.clone() for o in out) if isinstance(out, tuple) else out.clone()
        if not isinstance(out, Tensor):
            return out
        for argument in args:
            memory = survey.parameter(argument, self.memories)
            if memory and name in ("mm", "bmm", "addmm", "baddbmm", "convolution"):
                survey.uses.setdefault(memory, []).append((self.event, out.clone()))
            elif memory and name in ("clone", "_to_copy", "_reshape_copy") and memory_of(out) != memory_of(argument):
                survey.copies[memory_of(out)] = memory, out
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
    if not (a.is_floating_point() and a.ndim == 3) or {memory_of(a), memory_of(b)} & parameters:
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


def memory_of(tensor: Tensor) -> int:
    """Where a tensor's storage lies; 0 where it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0
