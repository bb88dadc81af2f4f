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
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Module

from captum_norm.capture import Dataflow, Following, InexactCaptureError, Layout, LayoutError, Mixture, Term, layout_of
from captum_norm.functional.precision import full_precision
from captum_norm.intervention.calls import LayerCall, hooks_of, tensors_of
from captum_norm.operations.modes import OperationRule, WatchingMode
from captum_norm.operations.places import Place
from captum_norm.operations.precision import tolerance
from captum_norm.operations.steps import Step

# From a value product and its dtype to what is put in its place, (*lead, query, head_dim).
Change: TypeAlias = Callable[[Mixture, torch.dtype], Tensor]


@dataclass(frozen=True)
class Product:
    """A value product of a layer.

    Attributes:
        number: which one, of all products of weights and values in a call of the layer.
        mixture: what was read of it: weights, values and the modules that were running.
        layouts: where its (batch, head, query) lie, one for each part of it that meets a part of W_O of its own.
        written: the shape of what attention wrote, without the last axis.
    """

    number: int
    mixture: Mixture
    layouts: tuple[Layout, ...]
    written: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """Where (batch, head, query) of its first part lie."""
        return self.layouts[0]

    @property
    def module(self) -> Module | None:
        """The innermost module that was running."""
        return self.mixture.callers[-1].module if self.mixture.callers else None

    @property
    def keys(self) -> int:
        return self.mixture.weights.shape[-1]

    @cached_property
    def mark(self) -> tuple[Tensor, float]:
        """:func:`fingerprint` of the rows of its weights that reach W_O, and the size of what was added up for it."""
        shape = (*self.mixture.lead, *self.mixture.weights.shape[-2:])
        used = torch.zeros(math.prod(shape[:-2]), shape[-2], dtype=torch.bool)
        for layout in self.layouts:
            used[layout.rows, layout.queries] = True
        weights, values = self.mixture.weights.whole().expand(shape), self.mixture.values.whole
        if not used.all():
            weights = weights * used.view(*shape[:-1], 1).to(weights)
        return fingerprint(weights, values), float(fingerprint(weights, values.abs()).max())

    def numbers(self) -> Tensor:
        """batch * queries + query of each of the mixed values, (*lead, query, 1); -1 where they reach no W_O."""
        numbers = torch.full((math.prod(self.mixture.lead), self.mixture.weights.shape[-2]), -1)
        for layout in self.layouts:
            batch, _, queries = layout.shape
            numbers[layout.rows, layout.queries] = torch.arange(batch * queries).view(batch, 1, queries)
        return numbers.view(*self.mixture.lead, -1, 1).to(self.mixture.weights.device)


def fingerprint(weights: Tensor, values: Tensor) -> Tensor:
    """By which an attention call is known again, (key,): the sum over b, h and q of alpha^2 c . v, c being any vector.

    It is the same however the model lays its heads and queries out, and another one where some of them are missing.

    Args:
        weights: (..., query, key); rows that look at padding alone may be NaN.
        values: (..., key, head_dim), broadcastable to the weights' leading axes.
    """
    values = values.nan_to_num().double()
    of_keys = vector_norm(weights.nan_to_num(), dim=-2, dtype=torch.float64).square()
    along = (values * torch.linspace(1, 2, values.shape[-1], dtype=values.dtype, device=values.device)).sum(-1)
    return (of_keys * along).flatten(0, -2).sum(0)


class Replay:
    """A layer that has shown that it can be run again.

    Args:
        call: the call to repeat.

    Raises:
        InexactCaptureError: if the layer does not repeat itself.
    """

    def __init__(self, call: LayerCall) -> None:
        self._call, self._name = call, type(call.layer).__name__
        self._flow = _Watching()
        try:
            with _ReplayingMode(self._flow):
                again = call.again()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise InexactCaptureError(
                f"{self._name} cannot be run again on its own input ({error}). Keys of earlier passes, which it may "
                "need, are not kept: run the model on the whole sequence at once"
            ) from error
        self._flow.finish()
        self._outputs = tensors_of(again)
        # Under autocast a layer computes in another dtype than it gives out.
        dtypes = {tensor.dtype for tensor in self._outputs} | {m.values.given.dtype for _, m, _ in self._flow.projected}
        self._tolerance = max(tolerance("replay", dtype) for dtype in dtypes or {torch.float32})
        self._check_alike(tensors_of(call.output), self._outputs, "run again on its own input,")

    def products(self) -> list[Product]:
        """The value products whose result went through a projection, in the order they ran.

        Raises:
            InexactCaptureError: if weights or values were overwritten.
        """
        return [self._product(*projected) for projected in self._flow.projected]

    def differs(self, product: Product, mark: Tensor) -> float:
        """How far a product is from the call of this :func:`fingerprint`, relative to its size; inf beyond rounding."""
        found, size = product.mark
        if found.shape != mark.shape:
            return math.inf
        error = float((found - mark.to(found)).abs().max()) / max(size, 1e-30)
        return error if error <= self._tolerance else math.inf

    def _product(self, number: int, mixture: Mixture, terms: list[Term]) -> Product:
        if not mixture.unchanged:
            raise InexactCaptureError(f"{self._name}: its weights or values were overwritten in place")
        try:
            layouts = tuple(layout_of(mixture, term) for term in terms)
        except LayoutError as error:
            raise InexactCaptureError(
                f"{self._name}: {error}, so that no product alone can be changed; AttentionNorm answers"
            ) from error
        return Product(number, mixture, layouts, tuple(terms[0].x.shape[:-1]))

    # ---- which row of the output is which query

    def _tensor_of(self, product: Product) -> tuple[int, bool]:
        """Which tensor of the output has a row for each query, and whether it may have them where attention wrote them.
        """
        batch, _, queries = product.layout.shape
        shapes = [tuple(tensor.shape[:-1]) for tensor in self._outputs]
        for n, shape in enumerate(shapes):
            alone = batch == 1 and math.prod(shape) == max(shape) == queries
            if alone or (shape == product.written and len(shape) > 1 and batch != queries):
                return n, True
        fitting = [n for n, shape in enumerate(shapes) if math.prod(shape) == batch * queries]
        if not fitting:
            raise InexactCaptureError(
                f"{self._name}: attention has {batch} x {queries} queries, but the layer gives out "
                f"{[tuple(tensor.shape) for tensor in self._outputs]}: no row for each"
            )
        return fitting[0], False

    def _marks(self, product: Product) -> Tensor:
        """Which queries get something else, so that the rows that change in turn spell the number of the query.

        Nobody first; then those whose number has a bit, for each bit; then those whose number has it not: (lane, *lead,
        query, 1).
        """
        numbers, count = product.numbers(), product.layout.tokens.numel()
        digits = torch.stack([numbers >> bit & 1 for bit in range(max(1, (count - 1).bit_length()))])
        return torch.cat([torch.zeros_like(digits[:1]), digits, 1 - digits]) * (numbers >= 0)

    def _rows(self, product: Product, found: Tensor, batched: bool) -> Tensor:
        """Which row of the output is which query, (batch, query), from what the marks made of it.

        Where rows depend on several queries behind attention, they are where those of the layer's last attention call
        with as many queries are, behind which rows often do not meet again, or where attention wrote them if the output
        has that shape or there is one example; but only if each row changes most by the number that it then has.

        Raises:
            InexactCaptureError: if which row is which cannot be told.
            CannotBatchError: as :meth:`without_keys`.
        """
        tensor, as_written = self._tensor_of(product)
        plain = product.layout.tokens.flatten().cpu() if as_written else None
        before, count = found[0].double(), product.layout.tokens.numel()
        change = torch.stack([torch.nan_to_num(after - before).abs().amax(-1) for after in found[1:]])
        change = change.view(2, len(change) // 2, -1).cpu()
        rounding = 8 * torch.finfo(found.dtype).eps * torch.nan_to_num(before).abs().amax(-1).cpu()
        heard = change.amax((0, 1)) > rounding
        clear = (change.amin(0) < 0.1 * change.amax(0)).all(0)
        spelled = ((change[0] > change[1]).long() << torch.arange(change.shape[1])[:, None]).sum(0)
        rows = self._placed(spelled, heard, count) if bool(clear[heard].all()) else None
        if rows is None:
            rows = next((some for some in self._likely(product, plain, batched) if _spell(change[..., some])), None)
        if rows is None:
            raise InexactCaptureError(
                f"{self._name}: which row of its output {tuple(self._outputs[tensor].shape)} is which query cannot be "
                "told: rows depend on several queries behind attention. Where modules within the layers hold attention "
                "and do not mix rows again, give those as layers=; AttentionNorm answers"
            )
        return rows.view(product.layout.tokens.shape)

    def _likely(self, product: Product, plain: Tensor | None, batched: bool) -> Iterator[Tensor]:
        """The rows of the last product with the same queries, and those where attention wrote them, (batch * query,).
        """
        batch, _, queries = product.layout.shape
        last = [p for p in self.products() if (p.layout.shape[0], p.layout.shape[2]) == (batch, queries)][-1]
        if last.number != product.number:
            marks = self._marks(last)
            found = self._each(partial(self._lane, last), (_NO_KEY.expand(len(marks)), marks), batched)
            yield self._rows(last, found, batched).flatten()
        if plain is not None:
            yield plain

    @staticmethod
    def _placed(spelled: Tensor, heard: Tensor, count: int) -> Tensor | None:
        """The row of each query, (batch * query,), where rows spell numbers of which no two are alike; else None.

        Rows that do not change whatever attention gives, such as those of padding that a layer sets to zero, have the
        queries that are left: no key has a score there, so that it does not matter which.
        """
        rows, silent = heard.nonzero()[:, 0], (~heard).nonzero()[:, 0]
        named = spelled[rows]
        if len(set(named.tolist())) < len(named) or bool((named >= count).any()):
            return None
        found = torch.full((count,), -1)
        found[named] = rows
        left = (found < 0).nonzero()[:, 0]
        if len(silent) < len(left):
            return None
        found[left] = silent[: len(left)]
        return found

    # ---- without keys

    def width(self, product: Product) -> int:
        """How many numbers the output has for each query."""
        return int(self._outputs[self._tensor_of(product)[0]].shape[-1])

    def without_keys(self, product: Product, at_once: int, batched: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The layer's output with the values of a key set to zero, for one key after the other.

        Args:
            product: in which value product.
            at_once: how many keys in one call of the layer.
            batched: whether to run several keys in one call of the layer.

        Yields:
            For some keys, (replay, batch, query, model), and the same with no key changed, (batch, query, model).

        Raises:
            InexactCaptureError: if the output has no row for each query, or which row is which cannot be told.
            CannotBatchError: if the layer's code cannot run under ``vmap``.
        """
        tensor, marks = self._tensor_of(product)[0], self._marks(product)
        keys = torch.cat([_NO_KEY.expand(len(marks)), torch.arange(product.keys)])
        rows, unchanged, found = None, None, torch.empty(0)
        for some in torch.split(torch.arange(len(keys)), at_once):
            # Keys share the calls that tell which row is which: a lane is one or the other.
            chosen = torch.stack([marks[n] if n < len(marks) else torch.zeros_like(marks[0]) for n in some.tolist()])
            lanes = self._each(partial(self._lane, product), (keys[some], chosen), batched)
            found = torch.cat([found.to(lanes), lanes]) if len(found) else lanes
            if unchanged is None:
                unchanged = found[0]
                output = self._outputs[tensor].flatten(0, -2)
                self._check_alike([output], [unchanged], "run with its value product repeated,")
            if rows is None and len(found) >= len(marks):
                rows, found = self._rows(product, found[: len(marks)], batched).to(found.device), found[len(marks) :]
            if rows is not None and len(found):
                yield found[:, rows], unchanged[rows]
                found = found[:0]

    def _lane(self, product: Product, key: Tensor, chosen: Tensor) -> Tensor:
        """The output's rows, (row, model), without a key, or with what attention gives to the chosen queries changed
        beyond recognition."""

        def change(mixture: Mixture, dtype: torch.dtype) -> Tensor:
            mixed = _without(key, mixture, dtype)
            noise = torch.linspace(-1, 2, mixed.shape[-1], dtype=dtype, device=mixed.device)
            return mixed + chosen.to(dtype) * noise * (1 + 10 * torch.nan_to_num(mixed).abs().amax())

        return self._changed(product, change)[self._tensor_of(product)[0]].flatten(0, -2)

    def _each(self, run: Callable[[Tensor, Tensor], Tensor], lanes: tuple[Tensor, Tensor], batched: bool) -> Tensor:
        if not batched:
            return torch.stack([run(*lane) for lane in zip(*lanes, strict=True)])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # some operations run one by one
                return torch.vmap(run, randomness="same")(*lanes)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise CannotBatchError(f"{self._name} cannot run under vmap: {error}") from error

    def _check_alike(self, first: list[Tensor], second: list[Tensor], how: str) -> None:
        """Refuse two outputs that differ by more than rounding."""
        for expected, actual in zip(first, second, strict=False):
            if expected.shape != actual.shape:
                shapes = f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
                raise InexactCaptureError(f"{self._name}, {how} gives out {shapes}")
            largest = torch.nan_to_num(expected).abs().max().clamp_min(1e-30)
            error = float(torch.nan_to_num(expected - actual).abs().max() / largest)
            if error > self._tolerance:
                raise InexactCaptureError(
                    f"{self._name}, {how} differs from what it gave out by {error:.1e}: it draws random numbers (call "
                    f"model.eval()), or keeps a state such as keys of earlier passes{self._hooks_named()}"
                )

    def _hooks_named(self) -> str:
        """The hooks that replays leave out, for an error."""
        found = {id(hooks) for hooks, _, _ in hooks_of([self._call.layer])}
        names = [
            f"{name or self._name!r}"
            for name, module in self._call.layer.named_modules()
            if {id(module._forward_hooks), id(module._forward_pre_hooks)} & found
        ]
        if not names:
            return ""
        return (
            f", or a hook on {', '.join(names)} writes into what it is shown: hooks that return nothing are not called "
            "again, so let it return the new value"
        )

    def _changed(self, product: Product, change: Change) -> list[Tensor]:
        with _ReplayingMode(_Changing(product.number, change)):
            return tensors_of(self._call.again())


def _spell(change: Tensor) -> bool:
    """Whether each row changes most by the number of its query.

    Args:
        change: of the row of each query, (2, bit, query): by the queries whose number has the bit, and by the others.
    """
    has = (torch.arange(change.shape[-1]) >> torch.arange(change.shape[1])[:, None] & 1).bool()
    return bool((torch.where(has, change[0], change[1]) >= torch.where(has, change[1], change[0])).all())


_NO_KEY = torch.tensor(-1)


class CannotBatchError(RuntimeError):
    """A layer's code cannot run under ``torch.vmap``."""


class _Watching(Dataflow):
    """Notes the value products of a layer, and hands over those that reach a projection."""

    def __init__(self) -> None:
        super().__init__((), self._finished)
        self._numbers: dict[Mixture, int] = {}
        self.projected: list[tuple[int, Mixture, list[Term]]] = []
        self.result: Tensor | None = None
        self.done = False

    def mix(self, mixture: Mixture, out: Tensor, steps: tuple[Step, ...], place: Place | None) -> None:
        self._numbers[mixture] = len(self._numbers)
        super().mix(mixture, out, steps, place)

    def _finished(self, mixtures: tuple[Mixture, ...]) -> None:
        for mixture in mixtures:
            if mixture.projection is not None and not mixture.problem:
                terms = [term for term in mixture.projection.terms if term.mixture is mixture]
                self.projected.append((self._numbers[mixture], mixture, terms))


class _Changing(_Watching):
    """Puts something else in the place of one value product."""

    def __init__(self, number: int, change: Change) -> None:
        super().__init__()
        self._number, self._change = number, change

    def mix(self, mixture: Mixture, out: Tensor, steps: tuple[Step, ...], place: Place | None) -> None:
        super().mix(mixture, out, steps, place)
        if self._numbers[mixture] == self._number:
            if self._operation is not None and out is not self._operation.out:
                raise InexactCaptureError(
                    f"{self.module() or 'attention'}: its weights, values and W_O meet in one operation, "
                    f"{self._operation.name!r}, which gives out no mixed values that could be others; write the "
                    "product of weights and values by itself"
                )
            result = self._change(mixture, out.dtype)
            for step in steps:
                result = step.apply(result)
            self.result, self.done = result, True


def _without(key: Tensor, mixture: Mixture, dtype: torch.dtype) -> Tensor:
    """weights @ values, the values of a key being zero; for -1 of none.

    What all keys mix is computed once, in float64, so that nothing is lost where a key's part is taken off.
    """
    weights, values = mixture.weights.whole().double(), mixture.values.whole.double()
    key = key.to(values.device)
    at = key.clamp_min(0)[None]
    with full_precision(weights.device):
        part = weights.index_select(-1, at) * values.index_select(-2, at) * (key >= 0)
        return (weights @ values - part).to(dtype)


class _ReplayingMode(WatchingMode):
    """Shows a layer's operations to a data flow until that has what it wants, and takes a result from it."""

    def __init__(self, flow: _Watching) -> None:
        super().__init__(Following(flow).rule_for)
        self._flow = flow

    def hand_over(
        self, rule: OperationRule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._flow.done:
            return func(*args, **kwargs)
        out = super().hand_over(rule, func, args, kwargs)
        if self._flow.result is not None:
            out, self._flow.result = self._flow.result, None
        return out
