"""Where a gradient with respect to attention weights is taken: at the value product, as a point of autograd's graph.

    dL/dweights_h = (dL/d(weights_h values_h)) values_h^T

so that the gradient is known also where fused attention keeps its weights to itself.

Axes: b batch, h head, q query, e head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """

    edge: GradientEdge
    steps: tuple[Step, ...]
    lead: tuple[int, ...]
    layout: Layout
    values: Tensor | None

    def live_values(self) -> Tensor | None:
        """The record's values, (batch, head, key, head_dim), in the graph that leads to them; None if they are not."""
        if self.values is None or not self.values.requires_grad:
            return None
        with torch.enable_grad():
            return self.layout.values(self.values, self.lead)

    def arranged(self, gradient: Tensor, head_dim: int) -> Tensor:
        """The gradient at ``edge``, shaped as the model made it, as (batch, head, query, head_dim)."""
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
