"""What did one method give on one batch?  Scores, metrics, failures, costs, and the rows that a store keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """What a method took on one batch, or a metric of it: wall-clock seconds, and bytes above what was in use (None:
    unknown)."""

    seconds: float
    peak_bytes: int | None = None


SCORING, SHARED = -1, -1
"""In the place of a metric: what scoring took; in that of a method: what all methods share, charged to none."""


@dataclass
class Finished:
    """All that one method gave on one batch, or what was still missing of it.

    Attributes:
        method: its number in the study.
        batch: the batch's number.
        examples: their numbers.
        costs: (method, metric) -> what it took; see `SCORING` and `SHARED`.
        scores: example -> (token,) float64, padding left out.
        values: (metric, example) -> value; NaN where the metric is not defined.
        errors: example -> why the method failed; None where it has nothing to say (the oracle without evidence).
        metric_errors: (metric, example) -> why the metric failed.
        metrics: the metrics that were asked for.
    """

    method: int
    batch: int
    examples: Sequence[int]
    costs: dict[tuple[int, int], Cost] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    values: dict[tuple[int, int], float] = field(default_factory=dict)
    errors: dict[int, str | None] = field(default_factory=dict)
    metric_errors: dict[tuple[int, int], str] = field(default_factory=dict)
    metrics: Sequence[int] = ()

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """For the tables of the store."""
        method, batch = self.method, self.batch
        scores: list[tuple[Any, ...]] = [(method, e, batch, _blob(s), None) for e, s in self.scores.items()]
        scores += [(method, e, batch, None, error) for e, error in self.errors.items()]
        values: list[tuple[Any, ...]] = [(method, m, e, batch, _number(v), None) for (m, e), v in self.values.items()]
        values += [(method, m, e, batch, None, error) for (m, e), error in self.metric_errors.items()]
        costs = [(*of, batch, len(self.examples), cost.seconds, cost.peak_bytes) for of, cost in self.costs.items()]
        return {"scores": scores, "metrics": values, "costs": costs}


def scores_of(blob: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(token,) float64, as `Store.add` was given it."""
    return np.frombuffer(blob, dtype="<f8").astype(np.float64)


def flags_of(blob: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(token,) bool, from a blob of one byte per token."""
    return np.frombuffer(blob, dtype=np.uint8).astype(bool)


def _blob(scores: Tensor) -> bytes:
    return scores.detach().cpu().double().numpy().astype("<f8").tobytes()


def _number(value: float) -> float | None:
    return None if value != value else value  # SQLite has no NaN
