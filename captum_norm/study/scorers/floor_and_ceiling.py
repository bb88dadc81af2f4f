"""Between which floor and which ceiling does a method lie?  Random scores, and the evidence itself as scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm.study.batches import TextBatch
from captum_norm.study.scorers.scorer import NoEvidenceError, Scorer
from captum_norm.study.variants import ORACLE, RANDOM


@dataclass
class RandomFloor(Scorer):
    """Numbers between 0 and 1, drawn for each text by itself: what a method is worth that knows nothing.

    One draw may be lucky.  A metric takes the floor at its expectation where that is known (`Metric.at_random`), and at
    the mean of ``draws`` elsewhere.
    """

    seed: int
    special: str
    draws: int = 10
    name: str = RANDOM

    def score(self, batch: TextBatch) -> Tensor:
        return self.draw(batch, 0)

    def draw(self, batch: TextBatch, number: int) -> Tensor:
        scores = torch.zeros(batch.real.shape, dtype=torch.float64)
        for row, text in enumerate(batch.examples):
            generator = torch.Generator().manual_seed(text.seed(self.seed, RANDOM, *([number] if number else [])))
            scores[row, batch.real[row]] = torch.rand(len(text), generator=generator, dtype=torch.float64)
        return scores

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed, "draws": self.draws, "special": self.special}


@dataclass
class OracleCeiling(Scorer):
    """1 at the evidence, 0 elsewhere: what a method is worth that says what the annotators say."""

    special: str
    name: str = ORACLE

    def score(self, batch: TextBatch) -> Tensor:
        missing = next((text for text in batch.examples if text.evidence is None), None)
        if missing is not None or batch.evidence is None:
            raise NoEvidenceError(f"{missing.example.where if missing else 'the batch'} has no evidence.")
        return batch.evidence.double()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "special": self.special}
