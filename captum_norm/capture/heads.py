"""From what entered W_O to heads: weights, values, W_O and gate in (batch, head, query, key) order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture.call import InexactCaptureError
from captum_norm.capture.held import HeadValues
from captum_norm.capture.layout import Layout, indices, measure, measured
from captum_norm.capture.rows import Arranged, Whole
from captum_norm.capture.rules.norms import CentredNorm
from captum_norm.capture.traces import Mixture, Projection, Term
from captum_norm.operations.precision import at_least_float32
from captum_norm.operations.steps import Step


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads that one mixture brings to one input of W_O.

    Attributes:
        mixture: whose weights and values.
        layout: where (batch, head, query) lie.
        weights: (batch, head, query, key), on demand.
        values: (batch, head, key, head_dim), of groups where heads share them.
        W_O: (head, head_dim, model).
        gate: (batch, head, query, head_dim or 1), or None.
        x: the input, (row, column).
        W: what it is multiplied with, (column, model).
        root: which product this is; heads of one product have one x and one W.
        steps: what made the input of the mixed values.
        beta: what a LayerNorm before W added to each row of x, (column,), or None.
    """

    mixture: Mixture
    layout: Layout
    weights: Arranged | Whole
    values: HeadValues
    W_O: Tensor
    gate: Tensor | None
    x: Tensor
    W: Tensor
    root: int
    steps: tuple[Step, ...]
    beta: Tensor | None = None

    @property
    def first(self) -> tuple[int, int]:
        """Which row of the model's weights, and which query of it, comes first."""
        return int(self.layout.rows[0, 0, 0]), int(self.layout.queries[0, 0, 0])

    @cached_property
    def indices(self) -> dict[Hashable, set[int]]:
        """Where the rows of the mixed values lie on the way to W_O, :func:`captum_norm.capture.layout.indices`."""
        mixture = self.mixture
        return indices(mixture.lead, mixture.weights.shape[-2], mixture.values.shape[-1], self.steps)


class HeadReader:
    """Reads the heads of mixtures; layouts are measured once for calls of one structure."""

    def __init__(self) -> None:
        self._layouts: dict[Any, list[Layout]] = {}

    def read(self, projection: Projection) -> list[Heads]:
        """What each mixture brings to each input of a projection.

        Raises:
            LayoutError: where heads cannot be told apart.
            InexactCaptureError: where what stands between mixed values and W_O cannot be folded into gate and W_O.
        """
        groups: list[list[Term]] = []
        for terms in _by_input(projection.terms):
            same = next((group for group in groups if self._is_reshaped(group[0], terms[0])), None)
            if same is None:
                groups.append(terms)
            else:
                same += terms
        parts = [part for terms in groups for part in self._of_one_input(terms)]
        if len(parts) == 1:
            return parts
        return [replace(part, weights=Whole(part.weights.whole())) for part in parts]

    def _is_reshaped(self, one: Term, other: Term) -> bool:
        """Whether two inputs hold the same heads in the same rows, however many axes these have."""
        if one.mixture is not other.mixture or any(step.scales for step in (*one.steps, *other.steps)):
            return False
        layouts, others = self._layouts_of(one), self._layouts_of(other)
        return one.x.numel() == other.x.numel() and len(layouts) == len(others) and all(
            torch.equal(getattr(a, name), getattr(b, name))
            for a, b in zip(layouts, others, strict=True) for name in ("rows", "queries", "tokens", "columns")
        )  # fmt: skip

    def _layouts_of(self, term: Term) -> list[Layout]:
        mixture = term.mixture
        moves = tuple(step.key for step in term.steps if not step.scales)
        structure = (mixture.lead, mixture.weights.shape[-2], mixture.values.shape[-1], moves, term.x.shape[-1])
        if structure not in self._layouts:
            self._layouts[structure] = measured(*_sizes(mixture, term))
        return self._layouts[structure]

    def _of_one_input(self, terms: list[Term]) -> list[Heads]:
        term, mixture = terms[0], terms[0].mixture
        width = term.x.shape[-1]
        W = terms[0].matrix()
        for other in terms[1:]:
            W = W + other.matrix()
        folded, beta = _fold_norm(term, W)
        x, parts = term.x.reshape(-1, width), []
        for layout in self._layouts_of(term):
            gate = _gate(mixture, term, layout) if any(step.scales for step in term.steps) else None
            weights = Arranged(mixture.weights, layout, mixture.lead)
            values = _values(mixture, layout)
            W_O = layout.heads(folded)
            parts.append(Heads(mixture, layout, weights, values, W_O, gate, x, W, term.root, term.steps, beta))
        return parts


def _values(mixture: Mixture, layout: Layout) -> HeadValues:
    """In the order of the record; groups stay groups where its heads are theirs, one after the other."""
    shared_by, (batch, heads, _) = mixture.values.shared_by, layout.shape
    if shared_by == 1 or not layout.values_in_order or heads % shared_by:
        return HeadValues(layout.values(mixture.values.whole, mixture.lead))
    *lead, of_heads = mixture.lead
    key, head_dim = mixture.values.shape[-2:]
    groups = mixture.values.given.expand(*lead, of_heads // shared_by, key, head_dim)
    return HeadValues(groups.reshape(batch, heads // shared_by, key, head_dim), shared_by)


def something_else(parts: Sequence[Heads]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of x (row, column) and W (column, model): x W is what a projection wrote along with these heads.

    Raises:
        InexactCaptureError: where a norm spans the mixed values and something else.
    """
    found = []
    for root in dict.fromkeys(part.root for part in parts):
        together = [part for part in parts if part.root == root]
        first = together[0]
        rest = _rest(together)
        if rest is not None:
            if first.beta is not None:
                raise InexactCaptureError("a norm spans the mixed values and something else")
            found.append(rest)
        if first.beta is not None:
            wide = at_least_float32(first.W.dtype)
            found.append((first.beta.to(wide).expand(len(first.x), -1), first.W.to(wide)))
    return found


def _rest(parts: list[Heads]) -> tuple[Tensor, Tensor] | None:
    """The entries of one input that hold none of these heads, in the rows that hold some; None if there are none."""
    first = parts[0]
    if len(parts) == 1:
        rest = first.layout.rest.to(first.W.device)
        return (first.x[:, rest], first.W[rest]) if rest.numel() else None
    held = torch.zeros(first.x.shape, dtype=torch.bool, device=first.x.device)
    for part in parts:
        tokens, columns = part.layout.tokens.to(held.device), part.layout.columns.to(held.device)
        held[tokens.reshape(-1, 1), columns.reshape(1, -1)] = True
    return None if held[held.any(-1)].all() else (first.x.masked_fill(held, 0), first.W)


def layout_of(mixture: Mixture, term: Term) -> Layout:
    """Where each (batch, head, query) of a call lies in the tensors that the model used, and in the projection's input.

    Raises:
        LayoutError: where that cannot be told.
    """
    return measure(*_sizes(mixture, term))


def _sizes(mixture: Mixture, term: Term) -> tuple[tuple[int, ...], int, int, tuple[Step, ...], int]:
    """What a layout is measured of."""
    return mixture.lead, mixture.weights.shape[-2], mixture.values.shape[-1], term.steps, term.x.shape[-1]


def _by_input(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms of one mixture that read the same input (W_O and its adapters); each group holds heads of its own."""
    groups: dict[Any, list[Term]] = {}
    for term in terms:
        groups.setdefault((term.mixture, tuple(step.key for step in term.steps), term.x.shape), []).append(term)
    return list(groups.values())


def _fold_norm(term: Term, W: Tensor) -> tuple[Tensor, Tensor | None]:
    """Centring and gamma of a LayerNorm before W_O go into W_O, beta is added to its input."""
    norms = [step.key for step in term.steps if isinstance(step.key, CentredNorm)]
    if not norms:
        return W, None
    if len(norms) > 1 or not isinstance(term.steps[-1].key, CentredNorm):
        raise InexactCaptureError("a LayerNorm stands between the mixed values and W_O, with more steps after it")
    norm = norms[0]
    W = W.to(at_least_float32(W.dtype))
    return norm.fold(W), None if norm.bias is None else norm.bias.detach()


def _gate(mixture: Mixture, term: Term, layout: Layout) -> Tensor:
    """What the model multiplied the mixed values with: its own operations, replayed on ones."""
    shape = (*mixture.lead, mixture.weights.shape[-2], mixture.values.shape[-1])
    gate = torch.ones(shape, dtype=at_least_float32(term.x.dtype), device=term.x.device)
    for step in term.steps:
        gate = step.apply(gate)
    gate = layout.mixed(gate)
    return gate[..., :1] if torch.equal(gate, gate[..., :1].expand_as(gate)) else gate
