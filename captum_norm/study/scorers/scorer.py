"""What all scorers have in common: how a study asks for scores, and what is recorded of where they come from.

``scorer(batch, pad)`` gives (b, s) float64.  ``scorer.describe()`` says what decides the scores; a study with another
description does not continue its store.

Axes: b batch, s token (padding included).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from captum_norm.study.batches import Padding, TextBatch
from captum_norm.study.metrics import Attribute


class Scorer(ABC):
    """What gives a score to every token of a batch.

    Attributes:
        name: what it is called in the results.
        special: what becomes of special tokens: ``"mask"``, ``"keep"`` or ``"report"``.
        family: the method that it is a variant of; its own name for all others.
        alone: whether it takes one example at a time, without padding.
        draws: how many draws a metric takes its mean over; 0 where scores are not drawn.
        attribute: the method on another forward, for metrics that run it again; None where there is none.
    """

    name: str
    special: str
    alone: bool = False
    draws: int = 0

    @abstractmethod
    def score(self, batch: TextBatch) -> Tensor:
        """(b, s), in any float dtype, on any device."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides its scores, as JSON."""

    def draw(self, batch: TextBatch, number: int) -> Tensor:
        """The scores of one of the ``draws``; the first are those of `score`."""
        return self.score(batch)

    @property
    def family(self) -> str:
        """The method that it is a variant of."""
        return self.name

    def attribute(self, batch: TextBatch) -> Attribute | None:
        """The method on a forward of a metric's choice."""
        return None

    def __call__(self, batch: TextBatch, pad: Padding) -> Tensor:
        """One score per token of each example.

        Returns:
            (b, s) float64 on the CPU, 0 at padding.

        Raises:
            ValueError: where the scores are not one per token, or not finite.
        """
        if not self.alone or len(batch) == 1:
            return checked(self.name, self.score(batch), batch)
        scores = torch.zeros(batch.real.shape, dtype=torch.float64)
        for row in range(len(batch)):
            single = batch.single(row, pad)
            scores[row, batch.real[row]] = checked(self.name, self.score(single), single)[0]
        return scores


class NoEvidenceError(ValueError):
    """The oracle has no scores for an example without evidence; this is no failure."""


def checked(name: str, scores: Tensor, batch: TextBatch) -> Tensor:
    """Scores (batch, token) on the CPU in float64, 0 at padding.

    Raises:
        ValueError: if there is not one score per token, or a real token's is not finite.
    """
    if scores.shape != batch.real.shape:
        raise ValueError(
            f"{name} gave scores of shape {tuple(scores.shape)}, not one per token: {tuple(batch.real.shape)}."
        )
    scores = scores.detach().cpu().double()
    wrong = (batch.real & ~torch.isfinite(scores)).nonzero().tolist()
    if wrong:
        raise ValueError(f"{name} gave token {wrong[0][1]} the score {scores[tuple(wrong[0])]}.")
    return scores.masked_fill(~batch.real, 0.0)
