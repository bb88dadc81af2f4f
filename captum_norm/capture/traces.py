"""What is known of a tensor while the model runs: is it weights, mixed values, a projection, and where is it from."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_norm.capture.chain import Fed
from captum_norm.capture.columns import Columns
from captum_norm.capture.held import HeadValues
from captum_norm.capture.ledger import Fate, Softmax
from captum_norm.capture.weights import Weights
from captum_norm.operations.callers import Caller
from captum_norm.operations.facts import Facts
from captum_norm.operations.places import Place, Source
from captum_norm.operations.steps import NOT_AN_INPUT, Step


@dataclass(eq=False)
class Mixture:
    """One attention call under way: weights have mixed values, W_O is still to be seen.

    Attributes:
        weights: (*lead, query, key) as the model used them.
        values: (*lead', head, key, head_dim), broadcastable to the lead.
        lead: the leading axes of the product.
        callers: the modules that were running, outermost first.
        weights_place, values_place: where the queries and the keys come from.
        problem: why this call cannot be read, known already; "" where nothing speaks against it.
        projection: W_O as far as it is known.
        edge: the product in autograd's graph, where gradients are asked for.
        steps: what the product's result is of (*lead, query, head_dim).
        live: the values of each head in autograd's graph, if the model's own are.
        bit: the call's own, of all that is made of it; ``ancestors`` are the bits of what entered the product.
        reach: the bits that the weights, and those that the values were made of.
        fed: its marks (:mod:`captum_norm.capture.chain`), if they are asked for.
        softmaxes: where its weights come from.
        allowed: which keys each query may attend to, broadcastable to the weights; None for all, or where unknown.
        used: which keys each query gave weight to, where some were left out for being small; else None.
        unmasked: whether it is known that every query may attend to every key.
        patterned: whether its weights were multiplied with what the model holds, which may set some to zero.
        given: whether something given to the model may have told it; otherwise it is a pattern of the model's own.
        selections: of which selections of positions, (batch, position) bool, its mask was made.
        last_reader: the operation that read the mixed values last, where it made nothing of them that is followed.
        is_read: it is complete, and was handed over or is about to be.
    """

    weights: Weights
    values: HeadValues
    lead: tuple[int, ...]
    callers: tuple[Caller, ...]
    weights_place: Place | None
    values_place: Place | None
    problem: str = ""
    projection: Projection | None = None
    edge: GradientEdge | None = None
    steps: tuple[Step, ...] = ()
    live: Tensor | None = None
    bit: int = 0
    ancestors: int = 0
    reach: tuple[int, int] = (0, 0)
    fed: Fed | None = None
    allowed: Tensor | None = None
    used: Tensor | None = None
    unmasked: bool = False
    patterned: bool = False
    given: bool = True
    selections: tuple[Tensor, ...] = ()
    softmaxes: tuple[Softmax, ...] = ()
    last_reader: str = ""
    is_read: bool = False

    def settle(self, fate: Fate) -> None:
        """Say what became of its softmaxes."""
        for softmax in self.softmaxes:
            softmax.fate = fate

    def may_be_one_with(self, later: Mixture) -> bool:
        """Whether a later one mixes beside it in the same run of a module: neither is made of the other."""
        if bool(self.callers) != bool(later.callers) or later.ancestors & self.bit:
            return False
        return not self.callers or self.callers[-1].is_one_with(later.callers[-1])

    @property
    def nbytes(self) -> int:
        """Of its values, and of what its weights are read from."""
        return self.weights.nbytes + self.values.given.nbytes

    @property
    def unchanged(self) -> bool:
        """Whether neither weights nor values were written to since."""
        return self.values.unchanged and self.weights.unchanged


@dataclass(frozen=True, eq=False)
class RowsRead:
    """The rows that a tensor without positions was made of.

    Attributes:
        positions: (batch, row), the input position of each, or below 0 where it is none.
        weights: (batch, row), how much of each was read; a row's weights sum to 1.
        sources: the sequences that these are positions of; two texts' where the same rows of both were read.
        mixers: what mixed positions on the way to them.
    """

    positions: Tensor
    weights: Tensor
    sources: frozenset[Source]
    mixers: frozenset[Hashable] = frozenset()

    def equals(self, other: RowsRead) -> bool:
        """Whether the same rows were read."""
        if self is other:
            return True
        if self.positions.shape != other.positions.shape or not torch.equal(self.positions, other.positions):
            return False
        return torch.allclose(self.weights.double(), other.weights.double())

    def joined(self, other: RowsRead) -> RowsRead:
        """The same rows with the sequences and the mixers of both."""
        if other.mixers <= self.mixers and other.sources <= self.sources:
            return self
        return replace(self, sources=self.sources | other.sources, mixers=self.mixers | other.mixers)


class Mixed(NamedTuple):
    """A part of a tensor: the mixed values of a call, after these steps.  A tensor is the sum of its parts."""

    mixture: Mixture
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Mixed:
        """The part after one more step."""
        return Mixed(self.mixture, (*self.steps, step))

    def is_here(self) -> bool:
        """Whether the moves since have left any of the mixed values in the tensor."""
        query, head_dim = self.mixture.weights.shape[-2], self.mixture.values.shape[-1]
        numbers = torch.zeros(*self.mixture.lead, query, head_dim, dtype=torch.long, device="cpu")
        try:
            for step in self.steps:
                numbers = numbers if step.scales else step.apply(numbers)
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return True
        return bool((numbers != NOT_AN_INPUT).any())


class Term(NamedTuple):
    """One linear map of a call's mixed values: x (..., column) times W (column, model), then more factors.

    ``root`` numbers the product: terms of one product read the same x, of which each mixture holds a part.
    """

    mixture: Mixture
    steps: tuple[Step, ...]
    x: Tensor
    W: Tensor
    parameter: Tensor
    root: int
    factors: tuple[Callable[[Tensor], Tensor], ...] = ()

    def matrix(self) -> Tensor:
        W = self.W
        for factor in self.factors:
            W = factor(W)
        return W


_KEEP_ROWS = frozenset(("view", "reshape", "flatten", "unflatten", "contiguous", "unsqueeze", "squeeze", "ravel"))


@dataclass(frozen=True, eq=False)
class Projection:
    """A tensor that is linear in mixed values: what W_O wrote, or a branch of it (a low-rank adapter).

    Attributes:
        mixtures: whose values; several where W_O takes in heads, queries or differences that were mixed one by one.
        width: how many columns it writes.
        terms: the linear maps whose results were added.
        bias: (model,) added on the way, or None.
        roots: which first projections it goes through; branches that are added have different ones.
        parts_axis: axis of the tensor that still has to be summed (one part per head), or None.
        r, actual, size: the random direction, (y - bias) . r and ||y - bias|| of each row, taken the moment y was
            written; None for a branch.
        depth: how many of the modules that ran at the value product were still running.
        base: what this is with one factor less, where W_O is a product of several.
        is_final: several maps read what it wrote, so that none of them is a factor of W_O.
        is_moved: rows of what it wrote have changed places.
        number_format, rounding: what a weight's own format is called, and how far rounding within it took y . r.
    """

    mixtures: tuple[Mixture, ...]
    terms: tuple[Term, ...]
    bias: Tensor | None
    roots: frozenset[int]
    width: int
    parts_axis: int | None = None
    r: Tensor | None = None
    actual: Tensor | None = None
    size: Tensor | None = None
    depth: int = 0
    base: Projection | None = None
    is_final: bool = False
    is_moved: bool = False
    number_format: str = ""
    rounding: float = 0.0

    @property
    def nbytes(self) -> int:
        """Of what its linear maps read, and of their matrices."""
        return sum({term.root: term.x.nbytes + term.W.nbytes for term in self.terms}.values())

    def of(self, mixtures: tuple[Mixture, ...]) -> Projection:
        """The part of it that these mixtures make up; to the others it adds something else."""
        if len(mixtures) == len(self.mixtures):
            return self
        return replace(self, mixtures=mixtures, terms=tuple(term for term in self.terms if term.mixture in mixtures))

    def rounded(self) -> float:
        """How far what was written is from its one linear map, along the random direction: its format's rounding."""
        x, W, r, actual = self.terms[0].x, self.terms[0].W, self.r, self.actual
        if r is None or actual is None:
            return 0.0
        return float((x.reshape(-1, x.shape[-1]).to(r.dtype) @ (W.to(r.dtype) @ r) - actual).abs().max())

    def times(self, factor: Callable[[Tensor], Tensor], width: int | None = None) -> Projection:
        """This branch after one more linear map, given as a function of a matrix (column, model), to this width."""
        width = width or self.width
        bias = None if self.bias is None else factor(self.bias[None])[0]
        terms = tuple(term._replace(factors=(*term.factors, factor)) for term in self.terms)
        return replace(
            self, terms=terms, bias=bias, width=width, r=None, actual=None, size=None, parts_axis=None, rounding=0.0
        )

    def after(self, step: Step) -> Projection | None:
        """This branch after a move; None where its heads are still to be summed."""
        if self.parts_axis is not None:
            return None
        key = step.key
        keeps_rows = isinstance(key, tuple) and key[0] in _KEEP_ROWS
        return self if keeps_rows or self.is_moved else replace(self, is_moved=True)

    def plus(self, other: Projection) -> Projection:
        """The sum of two branches."""
        biases = [bias for bias in (self.bias, other.bias) if bias is not None]
        bias = None if not biases else biases[0] if len(biases) == 1 else biases[0] + biases[1]
        mixtures = tuple(dict.fromkeys(self.mixtures + other.mixtures))
        return Projection(
            mixtures, self.terms + other.terms, bias, self.roots | other.roots, self.width,
            number_format=self.number_format or other.number_format, rounding=self.rounding + other.rounding,
        )  # fmt: skip


# Pieces of a softmax, or of a value product, that the model writes out itself.  A numerator is made of exponentials of
# scores in a way that no rule takes for a softmax.
SoftmaxPart = Literal["", "exponential", "numerator", "normaliser", "log weights", "log normaliser", "spread weights"]


class Trace(NamedTuple):
    """Everything known of one tensor.

    ``weights``: it was made of a softmax, and where the softmax's axis is now; ``scores``: it was made of a product of
    positions with positions, and which axis holds those of the second.
    """

    weights: Columns | None = None
    mixed: tuple[Mixed, ...] = ()
    projection: Projection | None = None
    place: Place | None = None
    softmax_part: SoftmaxPart = ""
    scores: Columns | None = None

    @property
    def in_attention(self) -> bool:
        """It is on the way from a softmax to W_O; otherwise only its positions are known."""
        return self.weights is not None or bool(self.mixed) or self.projection is not None or bool(self.softmax_part)

    @property
    def is_numerator(self) -> bool:
        """It was made of exponentials of scores, and nothing is known to have made weights of it."""
        return self.scores is not None and self.softmax_part in ("exponential", "numerator")

    def after(self, step: Step) -> Trace:
        """What is known after one more move."""
        scores = self.scores and self.scores.then(step)
        if not self.in_attention:
            return Trace(place=self.place and self.place.then(step), scores=scores)
        mixed = tuple(Mixed(m.mixture, (*m.steps, step)) for m in self.mixed)
        projection = self.projection and self.projection.after(step)
        weights, place = self.weights and self.weights.then(step), self.place and self.place.then(step)
        return Trace(weights, mixed, projection, place, "numerator" if self.is_numerator else "", scores)

    def __bool__(self) -> bool:
        return self.place is not None or self.scores is not None or self.in_attention


class Traces(Facts[Trace]):
    """The trace of each tensor; a tensor of which nothing is known has none."""

    def update(self, tensor: Tensor, **changes: Any) -> None:
        """Change a part of what is known of a tensor."""
        self[tensor] = (self[tensor] or Trace())._replace(**changes)
