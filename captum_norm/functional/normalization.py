"""What does a normalisation do to the parts of its input?  With its divisor held fixed it is linear: it sorts them out.

    LayerNorm(u) = gamma * (u - mean u) / sigma + beta,    sigma^2 = var(u) + eps,
    RMSNorm(u)   = gamma * u / sigma,                      sigma^2 = mean(u^2) + eps.

Where u is a sum of vectors, each is centred by its own mean and divided by the sigma of the whole, as the model saw it;
beta belongs to none of them.  What does not depend on the query (centring, gamma) folds into the projection before it.

Source: Kobayashi et al. (2021), "Incorporating Residual and Normalization Layers into Analysis of Masked Language
Models", https://arxiv.org/abs/2109.07152, section 3.  Variances are those of the population, as in the models.

Axes: b batch, q query, d model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import vector_norm


def at_rows(states: Tensor, rows: slice | Tensor) -> Tensor:
    """Some queries of states (batch, query, ...): a view for a slice, a copy for rows (batch, row) long."""
    if isinstance(rows, slice):
        return states[:, rows]
    return states.gather(1, rows if states.ndim == 2 else rows[..., None].expand(-1, -1, states.shape[-1]))


@dataclass(frozen=True)
class FrozenNorm:
    """A normalisation whose divisor is held at what it was when the model ran.

    Attributes:
        state: what the model normalised, (batch, query, model).  ``None``: nothing divides, as in a fixed scale of the
            attention's output (LayerScale, a gate of one number).
        weight: gamma, (model,); where a model multiplies with 1 + w (Gemma), that sum.  ``None``: ones.
        bias: beta, (model,), or ``None``.
        eps: what is added to the variance, inside the root.
        centred: True for LayerNorm, False for RMSNorm and fixed scales.
        factor: what the model multiplied each query with instead of dividing by its deviation, (batch, query): 1/sigma
            as a model that writes its norm out computed it, or any other scale of one number per query.  ``None``: the
            deviation of ``state`` divides.

    Example:
        >>> import torch
        >>> state = torch.tensor([[[1.0, 3.0]]])                           # mean 2, deviation 1
        >>> norm = FrozenNorm(state, weight=torch.tensor([10.0, 1.0]), eps=0.0)
        >>> norm(torch.tensor([[[0.0, 4.0]]]))
        tensor([[[-20.,   2.]]], dtype=torch.float64)
        >>> norm.output()
        tensor([[[-10.,   1.]]], dtype=torch.float64)
    """

    state: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    centred: bool = True
    factor: Tensor | None = None

    def __call__(self, part: Tensor) -> Tensor:
        """What becomes of one part of the state per query, (batch, query, model); in float64."""
        out = self.fold(part)
        return out if self.deviation is None else out / self.deviation[..., None]

    def output(self) -> Tensor:
        """What the model's normalisation gave out, (batch, query, model), in float64.

        Raises:
            ValueError: if the state is not known.
        """
        if self.state is None:
            raise ValueError("FrozenNorm.output: the norm has no state, so that its output is not known.")
        out = self(self.state)
        return out if self.bias is None else out + self.bias

    def at(self, rows: slice | Tensor) -> FrozenNorm:
        """The norm of some queries alone; rows a slice, or (batch, row) long."""
        state = None if self.state is None else at_rows(self.state, rows)
        factor = None if self.factor is None else at_rows(self.factor, rows)
        return replace(self, state=state, factor=factor)

    def fold(self, rows: Tensor) -> Tensor:
        """The part that is the same for all queries, centring and gamma, on rows (..., model); in float64."""
        rows = rows.double()
        if self.centred:
            rows = rows - rows.mean(-1, keepdim=True)
        return rows if self.weight is None else rows * self.weight

    def back(self, rows: Tensor) -> Tensor:
        """``fold`` the other way: <back(a), b> = <a, fold(b)>; in float64."""
        rows = rows.double()
        rows = rows if self.weight is None else rows * self.weight
        return rows - rows.mean(-1, keepdim=True) if self.centred else rows

    @cached_property
    def deviation(self) -> Tensor | None:
        """What each query is divided by, sigma or 1 / factor, (batch, query) in float64; None where nothing divides.

        Raises:
            ValueError: if a state is constant and eps is 0, so that the model divided by zero.
        """
        if self.factor is not None:
            return 1 / self.factor.double()
        if self.state is None:
            return None
        state = self.state.to(torch.float64, copy=True)
        if self.centred:
            state -= state.mean(-1, keepdim=True)
        deviation = (vector_norm(state, dim=-1).square_() / state.shape[-1] + self.eps).sqrt_()
        if (deviation == 0).any():
            place = tuple((deviation == 0).nonzero()[0].tolist())
            raise ValueError(f"FrozenNorm: the state at (batch, query) = {place} has no spread, and eps is 0.")
        return deviation


Norms = Sequence[FrozenNorm]
"""Normalisations in the order in which they are applied."""


def fold(W_O: Tensor, after: Norms) -> Tensor:
    """W_O with all that comes after it for every query alike: centring and gamma; in float64."""
    W_O = W_O.double()
    for norm in after:
        W_O = norm.fold(W_O)
    return W_O


def divided(norms: Tensor, after: Norms) -> Tensor:
    """Norms (batch, query, key) after a folded projection, divided in place by what each query is divided by."""
    for norm in after:
        if norm.deviation is not None:
            norms /= norm.deviation[..., None]
    return norms
