"""The norms of a layer's contributions, split over the vectors that went into the layer.

Which module multiplies by W_V is not asked for: autograd takes the gradient with respect to the values
(:mod:`captum_norm.functional.split`) back along the graph that leads from the layer's inputs to the values, and the
same forward with these inputs set to zero leaves b_V.  Both together must be the norm again; where they are not, the
values are no affine function of the layer's input.

Axes: b batch, h head, q query, k key, e head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import get_ident
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._maps import at_rows, without_padding
from captum_norm.attr._position import Rows
from captum_norm.attr._sequences import KindType, Sequences, matches
from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, InexactCaptureError
from captum_norm.forward import real_tokens
from captum_norm.functional import summed_norms, value_gradients
from captum_norm.operations.precision import at_least_float32, tolerance


@dataclass(frozen=True)
class Given:
    """One tensor that a layer was given: by which call of the layer, and under which name or number."""

    layer: int
    run: int
    name: str | int


class LayerInputs:
    """The float tensors that layers are given, each as the beginning of a graph, or set to zero.

    Args:
        layers: the layers.
        zeroed: which inputs are set to zero; None begins a graph at every input instead.
    """

    def __init__(self, layers: Sequence[Module], zeroed: set[Given] | None = None) -> None:
        self._layers, self._zeroed = layers, zeroed
        self._runs = [0] * len(layers)
        self._grad_modes: list[bool] = []
        self._thread = get_ident()  # threads may share a model
        self.leaves: dict[Given, Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For the length of the ``with``, hooks exchange what the layers are given."""
        with ExitStack() as stack:
            for number, layer in enumerate(self._layers):
                entered = layer.register_forward_pre_hook(self._enter(number), with_kwargs=True)
                stack.callback(entered.remove)
                stack.callback(layer.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def of(self, layer: int) -> dict[Given, Tensor]:
        """The leaves of a layer's inputs."""
        return {given: leaf for given, leaf in self.leaves.items() if given.layer == layer}

    def _enter(self, number: int) -> Any:
        def hook(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = MappingProxyType({})) -> Any:
            if get_ident() != self._thread:  # which may meet the hook while it is taken away, and pass no kwargs
                return None
            run = self._runs[number]
            self._runs[number] += 1
            self._grad_modes.append(torch.is_grad_enabled())
            torch.set_grad_enabled(self._zeroed is None)
            known: dict[int, Tensor] = {}  # query, key and value may be one tensor, and modules look for that
            return (
                tuple(self._exchanged(Given(number, run, place), value, known) for place, value in enumerate(args)),
                {name: self._exchanged(Given(number, run, name), value, known) for name, value in kwargs.items()},
            )

        return hook

    def _leave(self, *_: Any) -> None:
        if get_ident() == self._thread:
            torch.set_grad_enabled(self._grad_modes.pop())

    def _exchanged(self, given: Given, value: Any, known: dict[int, Tensor]) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if id(value) not in known:
            known[id(value)] = self._replaced(given, value)
        return known[id(value)]

    def _replaced(self, given: Given, value: Tensor) -> Tensor:
        if self._zeroed is not None:
            return value * 0 if given in self._zeroed else value
        leaf = self.leaves[given] = value.detach().requires_grad_()
        return leaf.clone()  # some layers write into their input


@dataclass(frozen=True)
class CallSplit:
    """The split of one attention call.

    Attributes:
        call: the attention call.
        given: the layer's input that it is split over.
        split: shaped as that input.
        gradients: of the norms with respect to the values, (batch, head, key, head_dim).
        norms: what is split, (batch,).
    """

    call: AttentionCall
    given: Given
    split: Tensor
    gradients: Tensor
    norms: Tensor


@dataclass
class Splits:
    """Collects the splits of the calls that run inside given layers, from a forward with gradients in the layers.

    Attributes:
        found: by layer, in call order.
        seen: all attention calls.
    """

    title: str
    layers: Sequence[Module]
    inputs: LayerInputs
    rows: Rows
    kind: KindType
    found: dict[int, list[CallSplit]] = field(default_factory=dict)
    seen: list[tuple[AttentionCall, Certificate]] = field(default_factory=list)
    _sequences: Sequences = field(default_factory=Sequences)

    def add(self, record: AttentionRecord) -> None:
        """Take in the next record, whose forward ran with :class:`LayerInputs`."""
        self.seen.append((record.call.without_modules, record.certificate))
        route = self._sequences.note(record)
        causal = record.call.kind == "causal" if route is None else self._sequences.looks_back(route[0])
        for owner in self.owners(record.call):
            self.found.setdefault(owner, []).append(self._split(record, owner, causal))

    def skip(self, error: InexactCaptureError) -> None:
        """Let a call pass that could not be read and is in no layer asked for (its kind is not known)."""
        if error.call is None or any(layer in error.call.modules for layer in self.layers):
            raise error

    def owners(self, call: AttentionCall) -> list[int]:
        """The layers that a call ran in, if it is of the kind asked for."""
        inside = [n for n, layer in enumerate(self.layers) if any(layer is module for module in call.modules)]
        return inside if matches(call, self.kind) else []

    def _split(self, record: AttentionRecord, owner: int, causal: bool) -> CallSplit:
        plain = without_padding(_asked_for(record, self.rows, causal))
        gate = plain.gate
        gradients = value_gradients(plain.weights, plain.values, plain.W_O, gate)
        given, leaf, gradient = self._back_to_input(record, owner, gradients)
        dtype = at_least_float32(record.values.dtype)
        split = leaf.detach().to(dtype) * gradient.to(dtype)
        norms = summed_norms(plain.weights, plain.values, plain.W_O, gate=gate).sum((1, 2))
        return CallSplit(record.call.without_modules, given, split, gradients, norms.to(dtype))

    def _back_to_input(self, record: AttentionRecord, owner: int, gradients: Tensor) -> tuple[Given, Tensor, Tensor]:
        leaves = self.inputs.of(owner)
        values = None if record.mixed is None else record.mixed.live_values()
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if values is not None and leaves:
            found = torch.autograd.grad(
                values, list(leaves.values()), gradients.to(values.dtype), allow_unused=True, retain_graph=True
            )
        used = [
            (given, leaf, gradient)
            for (given, leaf), gradient in zip(leaves.items(), found, strict=True)
            if gradient is not None
        ]
        if len(used) != 1:
            names = ", ".join(f"{given.name!r}" for given, _, _ in used) or "none of them"
            raise ValueError(
                f"{self.title}: the values of attention call {record.call.name!r} should come from one tensor that the "
                f"layer is given, but they come from {names}; it is given "
                f"{', '.join(repr(given.name) for given in leaves) or 'no float tensor'}. Choose as layer the module "
                "that is given the vectors which attention reads."
            )
        return used[0]


@dataclass
class Zeros:
    """Collects, from the same forward with the layers' inputs set to zero, the values that are left: b_V."""

    splits: Splits
    found: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, record: AttentionRecord) -> None:
        """Take in the next record."""
        for owner in self.splits.owners(record.call):
            self.found.setdefault(owner, []).append(record.values)

    def skip(self, error: InexactCaptureError) -> None:
        """Let pass what zeros downstream make of other layers."""
        self.splits.skip(error)

    def bias_shares(self, owner: int) -> list[Tensor]:
        """<gradients, b_V> of each call in a layer, (batch,), checked against the norms.

        Raises:
            ValueError: if split and bias share do not add up to the norms.
        """
        splits, biases = self.splits.found.get(owner, []), self.found.get(owner, [])
        if len(splits) != len(biases):
            raise ValueError(
                f"{self.splits.title}: the layer made {len(splits)} attention calls, but {len(biases)} with its input "
                "set to zero: what it does depends on its input. Without the split, attribute() gives its norms."
            )
        return [self._bias_share(split, bias) for split, bias in zip(splits, biases, strict=True)]

    def _bias_share(self, split: CallSplit, bias: Tensor) -> Tensor:
        share = (split.gradients * bias).sum((1, 2, 3)).to(split.norms.dtype)
        error = (split.norms.sum() - split.split.sum() - share.sum()).abs()
        size = split.split.abs().sum() + (split.gradients * bias).abs().sum() + split.norms.sum()
        if not error <= tolerance("split", bias.dtype) * size:
            raise ValueError(
                f"{self.splits.title}: the values of attention call {split.call.name!r} are no affine function of the "
                f"layer's input (a normalisation or an activation stands between): split and bias share add up to "
                f"{float(split.split.sum() + share.sum()):.6g}, the norms to {float(split.norms.sum()):.6g}. Choose as "
                "layer the attention module behind the normalisation."
            )
        return share


def _asked_for(record: AttentionRecord, rows: Rows, causal: bool) -> AttentionRecord:
    """The queries asked for; for ``"mean"`` all, with weights divided by their number."""
    batch, _, queries, _ = record.shape
    if rows.position == "mean":
        real = real_tokens(record.query_mask, batch, queries).to(record.weights)
        weights = record.weights * (real / real.sum(1, keepdim=True))[:, None, :, None]
        return replace(record, weights=weights, query_mask=None)
    return at_rows(record, rows.chosen(batch, queries, record.query_mask, causal))
