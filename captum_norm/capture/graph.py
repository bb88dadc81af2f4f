"""Where a gradient with respect to attention weights is taken: at the value product, as a point of autograd's graph.

    dL/dweights_h = (dL/d(weights_h values_h)) values_h^T

so that the gradient is known also where fused attention keeps its weights to itself.

Axes: b batch, h head, q query, e head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from captum_norm.capture.layout import Layout
from captum_norm.operations.steps import Step


@dataclass(frozen=True, eq=False)
class MixedValues:
    """The mixed values of one call in the graph of a forward that ran with gradients enabled; it keeps the graph alive.

    Attributes:
        edge: what ``torch.autograd.grad(..., inputs=[edge])`` takes; changes made in place later do not concern it.
        steps: what the product's result is of (*lead, query, head_dim), in the model's own layout.
        lead: the leading axes of the product.
        layout: from there to (batch, head, query).
        values: what was mixed, (*lead, key, head_dim) or broadcastable to it; in the graph if its inputs are.
        beside: the other products of a call whose heads or queries were mixed one by one.
        arrange: puts tensors (batch, head, query, ...) of each product in the order of the call.
        whole: each product has all queries of the call.
    """

    edge: GradientEdge
    steps: tuple[Step, ...]
    lead: tuple[int, ...]
    layout: Layout
    values: Tensor | None
    beside: tuple[MixedValues, ...] = ()
    arrange: Callable[[Sequence[Tensor]], Tensor] = itemgetter(0)
    whole: bool = True

    @property
    def edges(self) -> list[GradientEdge]:
        """The points of the graph where the values of this call were mixed: one for each product."""
        return [one.edge for one in (self, *self.beside)]

    def live_values(self) -> Tensor | None:
        """The record's values, (batch, head, key, head_dim), in the graph that leads to them; None if they are not."""
        parts = (self, *self.beside)
        if not self.whole or any(one.values is None or not one.values.requires_grad for one in parts):
            return None
        with torch.enable_grad():
            return self.arrange([one.layout.values(one.values, one.lead) for one in parts if one.values is not None])

    def arranged(self, gradients: Sequence[Tensor], head_dim: int) -> Tensor:
        """The gradients at ``edges``, shaped as the model made them, as one (batch, head, query, head_dim)."""
        parts = zip((self, *self.beside), gradients, strict=True)
        return self.arrange([one._arranged(gradient, head_dim) for one, gradient in parts])

    def _arranged(self, gradient: Tensor, head_dim: int) -> Tensor:
        shape = (*self.lead, gradient.numel() // (math.prod(self.lead) * head_dim), head_dim)
        numbers = torch.arange(gradient.numel(), device="cpu").view(shape)
        for step in self.steps:
            numbers = step.apply(numbers)
        if self.steps:
            turned = torch.empty_like(gradient, memory_format=torch.contiguous_format).flatten()
            turned[numbers.flatten().to(gradient.device)] = gradient.flatten()
            gradient = turned
        return self.layout.weights(gradient.reshape(shape), self.lead)


def edge_of(mixed: Tensor) -> GradientEdge:
    """The point of the graph where a value product has just been computed.

    Where nothing below requires a gradient (frozen parameters, token ids), the graph begins here: -0.0 is added in
    place, which changes no bit.
    """
    if not mixed.requires_grad:
        with torch.enable_grad():
            mixed.add_(torch.tensor(-0.0, dtype=mixed.dtype, device=mixed.device, requires_grad=True))
    return get_gradient_edge(mixed)
