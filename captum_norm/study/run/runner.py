"""How is one method run and measured on one batch, so that one bad text spoils nothing but itself?

A batch is scored and measured as a whole.  Where that raises, its texts are taken one by one; those that raise by
themselves are recorded as failed, with the reason, and the others are scored and measured as ever.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.batches import Padding, TextBatch
from captum_norm.study.metrics import Metric
from captum_norm.study.metrics.perturbed import shared_seconds
from captum_norm.study.metrics.scored_texts import Scored
from captum_norm.study.run.finished import SCORING, SHARED, Cost, Finished
from captum_norm.study.run.meter import Meter
from captum_norm.study.scorers.scorer import NoEvidenceError, Scorer

FATAL: tuple[type[BaseException], ...] = (getattr(torch, "AcceleratorError", KeyboardInterrupt),)
"""Errors after which the device answers nothing any more: going on would record a failure for all that is left."""


@dataclass
class Runner:
    """Runs methods on batches.

    Attributes:
        forward: the model, in mode "ids".
        scorers: the methods.
        metrics: the metrics, a number for each repetition.
        generations: which of them were asked for together; they share copies of texts.
        pad: how batches are padded.
        mask_id: the id of [MASK]; None where there is none.
    """

    forward: HFForward
    scorers: Sequence[Scorer]
    metrics: Sequence[Metric]
    pad: Padding
    mask_id: int | None
    generations: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.generations = self.generations or [0] * len(self.metrics)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.forward.model.parameters()), torch.device("cpu"))

    def run(
        self,
        method: int,
        batch: TextBatch,
        metrics: Sequence[int] | None = None,
        scores: Mapping[int, Tensor] | None = None,
    ) -> Finished:
        """All that one method gives on one batch.

        Args:
            method: its number.
            batch: the texts.
            metrics: which; None for all.
            scores: example -> (token,), where the method has run already; examples that are not there failed.
        """
        with warnings.catch_warnings():
            # On every call Captum tells how it splits a batch that a small limit was set for, and that it asks for
            # gradients of what had none.
            warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
            warnings.filterwarnings("ignore", "Internal batch size cannot be less")
            warnings.filterwarnings("ignore", "`max_examples_per_batch` must be at least")
            asked = range(len(self.metrics)) if metrics is None else metrics
            finished = Finished(method, batch.number, batch.numbers, metrics=tuple(asked))
            if scores is None:
                return self._run(finished, batch)
            rows = torch.zeros(batch.real.shape, dtype=torch.float64)
            for row, example in enumerate(batch.numbers):
                if example in scores:
                    rows[row, batch.real[row]] = scores[example]
            failed = {row for row, example in enumerate(batch.numbers) if example not in scores}
            self._measure_all(finished, batch, rows, failed)
            return finished

    def _run(self, finished: Finished, batch: TextBatch) -> Finished:
        with Meter(self.device) as meter:
            scores, errors = self._scores(self.scorers[finished.method], batch)
        finished.costs[finished.method, SCORING] = Cost(meter.seconds, meter.peak_bytes)
        finished.scores = {
            example: scores[row, batch.real[row]] for row, example in enumerate(batch.numbers) if row not in errors
        }
        finished.errors = {batch.numbers[row]: error for row, error in errors.items()}
        self._measure_all(finished, batch, scores, set(errors))
        return finished

    def _measure_all(self, finished: Finished, batch: TextBatch, scores: Tensor, failed: set[int]) -> None:
        """The metrics of what did not fail, each generation by itself, as if it had been asked for alone."""
        for generation in sorted(set(self.generations)):
            asked = [number for number in finished.metrics if self.generations[number] == generation]
            if not failed:
                self._measure(finished, asked, batch, scores)
            for row in sorted(set(range(len(batch))) - failed) if failed else ():
                self._measure(finished, asked, *self._single(batch, scores, row))

    def _scores(self, scorer: Scorer, batch: TextBatch) -> tuple[Tensor, dict[int, str | None]]:
        """(b, s), and row -> why it has no scores; None where the method has nothing to say."""
        try:
            return scorer(batch, self.pad), {}
        except FATAL:
            raise
        except Exception:
            return self._scores_one_by_one(scorer, batch)

    def _scores_one_by_one(self, scorer: Scorer, batch: TextBatch) -> tuple[Tensor, dict[int, str | None]]:
        scores, errors = torch.zeros(batch.real.shape, dtype=torch.float64), dict[int, str | None]()
        for row in range(len(batch)):
            try:
                scores[row, batch.real[row]] = scorer(batch.single(row, self.pad), self.pad)[0]
            except FATAL:
                raise
            except NoEvidenceError:
                errors[row] = None
            except Exception as error:
                errors[row] = reason(error)
        return scores, errors

    def _measure(self, finished: Finished, asked: Sequence[int], batch: TextBatch, scores: Tensor) -> None:
        scorer = self.scorers[finished.method]
        scored = self._scored(scorer, batch, scores)
        for number in asked:
            start, shared = time.perf_counter(), shared_seconds(scored)
            try:
                values = self._values(self.metrics[number], scorer, batch, scored).tolist()
            except FATAL:
                raise
            except Exception:
                self._measure_one_by_one(finished, number, batch, scores)
            else:
                places = ((number, example) for example in batch.numbers)
                finished.values.update(zip(places, values, strict=True))
            shared = shared_seconds(scored) - shared
            _charge(finished, number, time.perf_counter() - start, shared)

    def _measure_one_by_one(self, finished: Finished, number: int, batch: TextBatch, scores: Tensor) -> None:
        scorer = self.scorers[finished.method]
        for row, example in enumerate(batch.numbers):
            single, of_single = self._single(batch, scores, row)
            try:
                scored = self._scored(scorer, single, of_single)
                finished.values[number, example] = float(self._values(self.metrics[number], scorer, single, scored)[0])
            except FATAL:
                raise
            except Exception as error:
                finished.metric_errors[number, example] = reason(error)

    def _values(self, metric: Metric, scorer: Scorer, batch: TextBatch, scored: Scored) -> Tensor:
        """(b,) float64; NaN where there is nothing to measure."""
        nothing = torch.full((len(batch),), torch.nan, dtype=torch.float64)
        if metric.needs_evidence and batch.evidence is None:
            return nothing
        if scorer.draws:
            return self._at_random(metric, scorer, batch, scored)
        if not metric.needs_attribute:
            return metric(self.forward, scored)
        if scorer.attribute(batch) is None:
            return nothing
        if scorer.alone and len(batch) > 1:
            singles = [self._single(batch, scored.scores, row) for row in range(len(batch))]
            values = [self._values(metric, scorer, one, self._scored(scorer, one, scores)) for one, scores in singles]
            return torch.cat(values)
        return metric(self.forward, scored, attribute=scorer.attribute(batch))

    def _at_random(self, metric: Metric, scorer: Scorer, batch: TextBatch, scored: Scored) -> Tensor:
        """(b,): the expectation where the metric knows it, else the mean over all draws; NaN where there is neither."""
        with torch.no_grad():
            expected = metric.at_random(self.forward, metric.units(scored))
        if expected is not None:
            return expected
        if metric.needs_attribute:
            return torch.full((len(batch),), torch.nan, dtype=torch.float64)
        drawn = [replace(scored, scores=scorer.draw(batch, number)) for number in range(scorer.draws)]
        return torch.stack([metric(self.forward, scores) for scores in drawn]).mean(0)

    def _single(self, batch: TextBatch, scores: Tensor, row: int) -> tuple[TextBatch, Tensor]:
        """One text by itself, and its scores, (1, s), both without padding."""
        return batch.single(row, self.pad), scores[row, batch.real[row]][None]

    def _scored(self, scorer: Scorer, batch: TextBatch, scores: Tensor) -> Scored:
        memo = batch.memo.setdefault(scorer.special == "keep", {})
        return Scored(
            batch.inputs,
            scores,
            batch.target,
            batch.removable(scorer.special),
            batch.evidence,
            mask_id=self.mask_id,
            memo=memo,
            words=batch.words,
            rows=batch.rows,
            places=batch.places,
            drawn=scorer.draws > 0,
            sources=batch.sources,
            foil=batch.foil,
        )


def _charge(finished: Finished, metric: int, seconds: float, shared: float) -> None:
    """Add what a metric took, and what it computed for all methods of the batch, to the costs."""
    for place, took in (((finished.method, metric), seconds - shared), ((SHARED, metric), shared)):
        before = finished.costs.get(place, Cost(0.0)).seconds
        if took or place[0] != SHARED:
            finished.costs[place] = Cost(before + took)


def reason(error: BaseException) -> str:
    """An error in one line, as it is recorded."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
