"""A layer run again on the input it was given, with one of its attention calls changed.

    mixed values = weights @ values          in the running layer
    mixed values = weights @ (values * keep) in the replay; everything behind it follows

The replay is the layer's own code: its value product is found by the same rules that read attention, and another result
is put in its place.  Many replays that differ in ``keep`` are one call of the layer, in which only what comes after the
product is computed for each (``torch.vmap``); where a layer's code does not allow that (it asks for numbers), they run
one by one.

Axes: n replay, b batch, h head, q query, k key, e head_dim, d model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.capture import InexactCaptureError
from captum_norm.capture.certificate import at_least_float32
from captum_norm.capture.dataflow import Dataflow
from captum_norm.capture.layout import LayoutError, Step, measure
from captum_norm.capture.operations import OperationMode
from captum_norm.capture.places import Place
from captum_norm.capture.traces import Mixture

# What a layer may differ by when it runs twice, as a part of its largest output.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer while a model ran.

    Attributes:
        layer: the module.
        args, kwargs: what it was given, copied; caches of keys are left out.
        output: what it returned.
    """

    layer: Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def again(self) -> Any:
        """Call the layer with the same input."""
        return self.layer(*_copied(self.args), **_copied(self.kwargs))


def without_cache(value: Any) -> Any:
    """A copy of a layer's arguments; a cache of keys, which the layer has written to by now, is left out."""
    if isinstance(value, dict):
        return {key: False if key == "use_cache" else without_cache(item) for key, item in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(without_cache, value))
    return None if hasattr(value, "get_seq_length") else _copied(value)


def _copied(value: Any) -> Any:
    """The same with tensors copied, as a layer may write to its input."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return type(value)(*map(_copied, value)) if hasattr(value, "_fields") else tuple(map(_copied, value))
    return [_copied(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Product:
    """A value product of a layer.

    Attributes:
        number: which one, of all products of weights and values in a call of the layer.
        mixture: what was read of it: weights, values and the modules that were running.
        rows: (batch, query) long, which row of the layer's flattened output belongs to which query.
        where: which tensor of the layer's output it is.
    """

    number: int
    mixture: Mixture
    rows: Tensor
    where: int

    @property
    def module(self) -> Module | None:
        """The innermost module that was running."""
        return self.mixture.callers[-1].module if self.mixture.callers else None

    def of(self, output: Any) -> Tensor:
        """A layer's output as (batch, query, model)."""
        found = tensors_of(output)[self.where]
        return found.flatten(0, -2)[self.rows.to(found.device)]


class Replay:
    """A layer that has shown that it can be run again.

    Args:
        call: the call to repeat.
        name: the layer, for errors.

    Raises:
        InexactCaptureError: if the layer does not repeat itself.
    """

    def __init__(self, call: LayerCall, name: str) -> None:
        self._call, self._name = call, name
        self._flow = _Watching()
        with _Replaying(self._flow):
            self._again = call.again()
        self._flow.finish()
        _check_alike(tensors_of(call.output), tensors_of(self._again), f"{name}, run again on its own input,")

    def products(self) -> list[Product]:
        """The value products whose result went through a projection, in the order they ran.

        Raises:
            InexactCaptureError: if it is not known which row of the output belongs to which query.
        """
        return [self._product(number, mixture) for number, mixture in self._flow.projected]

    def _product(self, number: int, mixture: Mixture) -> Product:
        projection = mixture.projection
        if projection is None or not mixture.unchanged:
            raise InexactCaptureError(f"{self._name}: its weights or values were overwritten in place")
        term = projection.terms[0]
        query, head_dim = mixture.weights.shape[-2], mixture.values.shape[-1]
        try:
            layout = measure(mixture.lead, query, head_dim, term.steps, term.x.shape[-1])
        except LayoutError as error:
            raise InexactCaptureError(f"{self._name}: {error}") from error
        return Product(number, mixture, layout.tokens, self._where(term.x.shape[:-1]))

    def _where(self, rows: torch.Size) -> int:
        """Which tensor of the output has the rows of the projection, in the same order."""
        shapes = [tuple(tensor.shape) for tensor in tensors_of(self._again)]
        for number, shape in enumerate(shapes):
            flat = len(rows) == 1 and math.prod(shape[:-1]) == rows.numel()
            if flat or [n for n in shape[:-1] if n != 1] == [n for n in rows if n != 1]:
                return number
        raise InexactCaptureError(
            f"{self._name}: attention wrote rows of shape {tuple(rows)}, but the layer gives out {shapes}: which row "
            "belongs to which query is not known"
        )

    def width(self, product: Product) -> int:
        """How many numbers the output has for each query."""
        return int(tensors_of(self._again)[product.where].shape[-1])

    def without_keys(self, product: Product, at_once: int, one_by_one: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """The layer's output with the values of a key set to zero, for one key after the other.

        Args:
            product: in which value product.
            at_once: how many keys in one call of the layer.
            one_by_one: a call for each key, without ``vmap``.

        Yields:
            For some keys, (replay, batch, query, model), and the same with no key changed, (batch, query, model).

        Raises:
            CannotBatchError: if the layer's code cannot run under ``vmap``.
        """
        keys = product.mixture.weights.shape[-1]
        if one_by_one:
            unchanged = self._run(product, _NO_KEY)
            for key in range(keys):
                yield self._run(product, torch.tensor(key))[None], unchanged
            return
        first, *others = torch.split(torch.arange(keys), at_once)
        unchanged, *found = self._batched(product, torch.cat([_NO_KEY[None], first]))
        _check_alike([product.of(self._again)], [unchanged], f"{self._name}, run with its value product repeated,")
        yield torch.stack(found), unchanged
        for some in others:
            yield self._batched(product, some), unchanged

    def _batched(self, product: Product, keys: Tensor) -> Tensor:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # some operations run one by one
                return torch.vmap(lambda key: self._run(product, key), randomness="same")(keys)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise CannotBatchError(f"{self._name} cannot run under vmap: {error}") from error

    def _run(self, product: Product, key: Tensor) -> Tensor:
        with _Replaying(_Changing(product.number, key)):
            return product.of(self._call.again())


_NO_KEY = torch.tensor(-1)


class CannotBatchError(RuntimeError):
    """A layer's code cannot run under ``torch.vmap``."""


class _Watching(Dataflow):
    """Notes the value products of a layer, and hands over those that reach a projection."""

    def __init__(self) -> None:
        super().__init__((), self._finished)
        self._numbers: dict[Mixture, int] = {}
        self.projected: list[tuple[int, Mixture]] = []
        self.result: Tensor | None = None
        self.done = False

    def mix(self, mixture: Mixture, out: Tensor, steps: tuple[Step, ...], place: Place | None) -> None:
        self._numbers[mixture] = len(self._numbers)
        super().mix(mixture, out, steps, place)

    def _finished(self, mixture: Mixture) -> None:
        if mixture.projection is not None and not mixture.problem:
            self.projected.append((self._numbers[mixture], mixture))


class _Changing(_Watching):
    """Computes one value product again without a key."""

    def __init__(self, number: int, key: Tensor) -> None:
        super().__init__()
        self._number, self._key = number, key

    def mix(self, mixture: Mixture, out: Tensor, steps: tuple[Step, ...], place: Place | None) -> None:
        super().mix(mixture, out, steps, place)
        if self._numbers[mixture] == self._number:
            result = _without(self._key, mixture, out.dtype)
            for step in steps:
                result = step.apply(result)
            self.result, self.done = result, True


def _without(key: Tensor, mixture: Mixture, dtype: torch.dtype) -> Tensor:
    """weights @ values, the values of a key being zero; for -1 of none."""
    wide = at_least_float32(dtype)
    weights, values = mixture.weights.to(wide), mixture.values.to(wide)
    numbers = torch.arange(values.shape[-2], device=values.device)
    values = torch.where((numbers == key.to(values.device))[:, None], 0, values)
    with torch.autocast(weights.device.type, enabled=False):
        return (weights @ values).to(dtype)


class _Replaying(OperationMode):
    """Shows a layer's operations to a data flow until that has what it wants, and takes a result from it."""

    def __init__(self, flow: _Watching) -> None:
        super().__init__(flow.rule_for)
        self._flow = flow

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._flow.done:
            return func(*args, **(kwargs or {}))
        out = super().__torch_function__(func, types, args, kwargs)
        if self._flow.result is not None:
            out, self._flow.result = self._flow.result, None
        return out


def tensors_of(output: Any) -> list[Tensor]:
    """The floating-point tensors of a layer's output, in order."""
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else (output,)
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1]


def _check_alike(first: list[Tensor], second: list[Tensor], title: str) -> None:
    """Refuse two outputs that differ by more than rounding."""
    for one, other in zip(first, second, strict=False):
        if one.shape != other.shape:
            raise InexactCaptureError(f"{title} gives out {tuple(other.shape)} instead of {tuple(one.shape)}")
        error = float(torch.nan_to_num(one - other).abs().max() / torch.nan_to_num(one).abs().max().clamp_min(1e-30))
        if error > _TOLERANCES.get(one.dtype, 1e-4):
            raise InexactCaptureError(
                f"{title} differs from what it gave out by {error:.1e}: it draws random numbers (call "
                "model.eval()), or keeps a state such as keys of earlier passes"
            )
