"""Comprehensiveness and sufficiency without a threshold: each token loses as much of its embedding as its score says.

Scores become shares a in [0, 1] (the smallest of a text 0, the largest 1; all 1/2 where a method tells no token from
another).  Every number of a token's embedding is then set to 0 with probability a, for comprehensiveness, or 1 - a, for
sufficiency:

    soft comprehensiveness  = max(0, p(x) - p(x'))         soft sufficiency  = 1 - max(0, p(x) - p(x'))

on the mean over several draws x'.  As published (Soft-NC, Soft-NS) they are related to the text x0 whose tokens are
all 0, by max(0, p(x) - p(x0)), and cut off at 0 and 1; ``normalise=False`` leaves that out.

Source: Zhao and Aletras (2023), https://arxiv.org/abs/2305.10496.  They draw once; how scores of either sign become
shares is left open there.

Axes: b batch, s sequence, n draw, r row, d model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from captum_norm.forward import HFForward
from captum_norm.forward.embedding import VectorChange
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.perturbed import changed, intact, perturbed
from captum_norm.study.metrics.removal import Copies
from captum_norm.study.metrics.scored_texts import Scored
from captum_norm.study.metrics.seeding import generators


@dataclass(frozen=True)
class _Soft(Metric):
    """Metrics of texts whose embeddings are partly set to 0.

    Args:
        samples: how many draws the metric is the mean over.
        normalise: whether to relate it to the text without any token, as published (Soft-NC, Soft-NS).
        seed: of the draws, which depend on it and on the text alone.
    """

    samples: int = 10
    normalise: bool = True
    seed: int = 0

    source = "Zhao and Aletras (2023), https://arxiv.org/abs/2305.10496"
    undefined = "with normalise, where the text without any token is no less probable than the text"
    keeps_top: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"{self.name}: samples should be at least 1, got {self.samples}.")

    def _lost(self, forward: HFForward, scored: Scored) -> Tensor:
        """max(0, p(x) - p(x')) on the mean over the draws, (b,)."""
        stays = shares(scored) if self.keeps_top else 1 - shares(scored)
        stays = scored.whole_units(stays, torch.arange(len(scored)))
        drawing = generators(scored, self.seed)
        examples = torch.arange(len(scored)).repeat(self.samples)

        def drop(copies: Copies) -> Copies:
            return copies.but(change=_dropping(scored, stays, copies.examples, drawing))

        p = changed(forward, scored, examples, drop, self.max_rows).view(self.samples, len(scored))
        return (intact(forward, scored) - p).clamp(min=0).mean(0)

    def _lost_without_any(self, forward: HFForward, scored: Scored) -> Tensor:
        """max(0, p(x) - p(x0)), NaN where it is 0: nothing can be related to it."""
        nothing = torch.zeros_like(scored.removable)
        p0 = perturbed(forward, scored, torch.arange(len(scored)), nothing, "gate", self.max_rows)
        lost = intact(forward, scored) - p0
        return torch.where(lost > 0, lost, torch.nan)


def shares(scored: Scored) -> Tensor:
    """Scores as shares from 0 to 1, the largest of each text 1: (b, s); 1/2 where all are equal.

    Example:
        >>> removable = torch.ones(1, 3).bool()
        >>> shares(Scored({}, torch.tensor([[-1.0, 3.0, 1.0]]), torch.tensor([0]), removable))
        tensor([[0.0000, 1.0000, 0.5000]], dtype=torch.float64)
    """
    low = scored.scores.masked_fill(~scored.removable, torch.inf).amin(1, keepdim=True)
    high = scored.scores.masked_fill(~scored.removable, -torch.inf).amax(1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (scored.scores - low) / torch.where(spread > 0, spread, 1.0), 0.5)


def _dropping(scored: Scored, stays: Tensor, examples: Tensor, drawing: list[Generator]) -> VectorChange:
    """Sets each number of an embedding to 0 with probability 1 - ``stays``, the token's own, (b, s)."""

    def change(module: nn.Module, output: Tensor) -> Tensor:
        # Drawn for removable tokens alone, one row after the other, so that every batch gives the same numbers.
        mask = torch.ones(output.shape, dtype=torch.float64)
        affected = scored.whole_units(scored.removable, torch.arange(len(scored)))
        for row, example in enumerate(examples.tolist()):
            removable = affected[example]
            draw = torch.rand(int(removable.sum()), output.shape[-1], generator=drawing[example], dtype=torch.float64)
            mask[row, removable] = (draw < stays[example, removable, None]).double()
        return output * mask.to(output)

    return change


@dataclass(frozen=True)
class SoftComprehensiveness(_Soft):
    """How much of the probability goes when each token loses what its score says."""

    name = "soft_comprehensiveness"
    formula = "min(1, max(0, p(x) - p(x')) / max(0, p(x) - p(x0))), x' lacks a share of each embedding, x0 lacks all"
    keeps_top = False

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        lost = self._lost(forward, scored)
        return (lost / self._lost_without_any(forward, scored)).clamp(max=1) if self.normalise else lost


@dataclass(frozen=True)
class SoftSufficiency(_Soft):
    """How much of the probability remains when each token keeps what its score says."""

    name = "soft_sufficiency"
    formula = "(S(x') - S(x0)) / (1 - S(x0)), S = 1 - max(0, p(x) - p(.)), x' with a share a of each embedding"
    keeps_top = True

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        kept = 1 - self._lost(forward, scored)
        if not self.normalise:
            return kept
        without_any = self._lost_without_any(forward, scored)
        # (S - S0) / (1 - S0) with S0 = 1 - lost without any token.
        return (kept - 1 + without_any).clamp(min=0) / without_any
