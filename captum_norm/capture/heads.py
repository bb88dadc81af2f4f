"""From what entered W_O to the heads of a call: weights, values, W_O and gate in (batch, head, query, key) order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.layout import Layout, measure
from captum_norm.capture.record import InexactCaptureError
from captum_norm.capture.rules.norms import CentredNorm
from captum_norm.capture.traces import Mixture, Projection, Term
from captum_norm.operations.precision import at_least_float32


@dataclass(frozen=True, eq=False)
class Heads:
    """Some heads of one call, or all, and what else their projection adds.

    Attributes:
        layout: where (batch, head, query) lie.
        weights: (batch, head, query, key).
        values: (batch, head, key, head_dim).
        W_O: (head, head_dim, model).
        gate: (batch, head, query, head_dim or 1), or None.
        offsets: pairs of x (row, column) and W (column, model): x W was added along with attention.
    """

    layout: Layout
    weights: Tensor
    values: Tensor
    W_O: Tensor
    gate: Tensor | None
    offsets: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def first(self) -> tuple[int, int]:
        """Which row of the model's weights, and which query of it, comes first."""
        return int(self.layout.rows[0, 0, 0]), int(self.layout.queries[0, 0, 0])


class HeadReader:
    """Reads the heads of calls; layouts are measured once for calls of one structure."""

    def __init__(self) -> None:
        self._layouts: dict[Any, Layout] = {}

    def read(self, mixture: Mixture, projection: Projection) -> Heads:
        """All heads of a call, in order.

        Raises:
            LayoutError: where they cannot be told apart.
            InexactCaptureError: where what stands between mixed values and W_O cannot be folded into gate and W_O.
        """
        return _joined([self._of_one_input(mixture, terms) for terms in _by_input(projection.terms)])

    def _of_one_input(self, mixture: Mixture, terms: list[Term]) -> Heads:
        """The heads that one projection input holds."""
        term = terms[0]
        width = term.x.shape[-1]
        moves = tuple(step.key for step in term.steps if not step.scales)
        structure = (mixture.lead, mixture.weights.shape[-2], mixture.values.shape[-1], moves, width)
        if structure not in self._layouts:
            self._layouts[structure] = layout_of(mixture, term)
        layout = self._layouts[structure]
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
        return Heads(layout, weights, values, W_O, gate, () if offset is None else (offset,))


def layout_of(mixture: Mixture, term: Term) -> Layout:
    """Where each (batch, head, query) of a call lies in the tensors that the model used, and in the projection's input.

    Raises:
        LayoutError: where that cannot be told.
    """
    query, head_dim = mixture.weights.shape[-2], mixture.values.shape[-1]
    return measure(mixture.lead, query, head_dim, term.steps, term.x.shape[-1])


def _by_input(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms that read the same input (W_O and its adapters) belong together; each group holds heads of its own."""
    groups: dict[Any, list[Term]] = {}
    for term in terms:
        groups.setdefault((tuple(step.key for step in term.steps), term.x.shape), []).append(term)
    return list(groups.values())


def _joined(parts: list[Heads]) -> Heads:
    """The heads that W_O takes in one by one, or in several tensors, side by side."""
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: part.first)
    if len({part.first for part in parts}) < len(parts):
        raise InexactCaptureError("the same heads enter W_O in two different layouts")
    layouts = [part.layout for part in parts]
    if any(not torch.equal(layout.tokens, layouts[0].tokens) for layout in layouts):
        raise InexactCaptureError("the parts of W_O write their outputs in different orders")
    if any(part.gate is not None for part in parts):
        raise InexactCaptureError("the parts of W_O are gated one by one")
    layout = replace(
        layouts[0],
        rows=torch.cat([layout.rows for layout in layouts], 1),
        queries=torch.cat([layout.queries for layout in layouts], 1),
    )
    weights, values = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("weights", "values"))
    offsets = tuple(offset for part in parts for offset in part.offsets)
    return Heads(layout, weights, values, torch.cat([part.W_O for part in parts]), None, offsets)


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
