"""Does a method put first what is known to matter?  Scores against evidence, over the removable tokens.

    AUPRC     area under precision over recall, as average precision: sum over thresholds of (R_n - R_n-1) P_n
    token F1  2 |top and evidence| / (|top| + |evidence|)
    IOU       |top and evidence| / |top or evidence|

where the top tokens are as many as the evidence has, or a fraction of the text.

Source: DeYoung et al. (2020), "ERASER", https://arxiv.org/abs/1911.03429, section 5.  There, AUPRC joins the points of
the curve by straight lines, which promises more than a ranking can keep (Davis and Goadrich 2006,
https://doi.org/10.1145/1143844.1143874): ``area="trapezoid"``.  Its IOU is of spans (``span_iou``): an F1 of the runs
of top tokens, right where one overlaps a run of evidence by half.  ``iou`` is of tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.order import check_fraction, share, sizes, top
from captum_norm.study.metrics.scored_texts import Scored

_SOURCE = "DeYoung et al. (2020), https://arxiv.org/abs/1911.03429"


def average_precision(scores: Tensor, evidence: Tensor, area: Literal["step", "trapezoid"] = "step") -> float:
    """Area under the precision-recall curve of one example; equal scores pass a threshold together.

    Args:
        scores: (token,).
        evidence: (token,) bool.
        area: ``"step"``, average precision; ``"trapezoid"``, straight lines between the points.

    Returns:
        0 to 1; NaN without any evidence.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([True, False, True]))
        0.8333333333333333
    """
    if not evidence.any():
        return float("nan")
    order = scores.double().argsort(descending=True)
    ordered, hits = scores.double()[order], evidence[order].double().cumsum(0)
    last_of_equals = torch.cat([ordered[1:] != ordered[:-1], torch.tensor([True])])
    hit, chosen = hits[last_of_equals], torch.arange(1, len(ordered) + 1)[last_of_equals]
    precision = torch.cat([torch.ones(1, dtype=torch.float64), hit / chosen])
    recall = torch.cat([torch.zeros(1, dtype=torch.float64), hit / hits[-1]])
    steps = recall.diff()
    heights = precision[1:] if area == "step" else (precision[1:] + precision[:-1]) / 2
    return float((steps * heights).sum())


def random_average_precision(tokens: int, evidence: int) -> float:
    """What a random order of distinct scores gets on average: the exact expectation of average precision.

    With n tokens, R of them evidence: an evidence token stands at each place k with probability 1 / n, and the k - 1
    places before it hold (k - 1) (R - 1) / (n - 1) others on average, so

        E = 1/n sum over k of [1 + (k - 1) (R - 1) / (n - 1)] / k

    Source: Bestgen (2015), "Exact Expected Average Precision of the Random Baseline for System Evaluation",
    https://doi.org/10.1515/pralin-2015-0007.

    Raises:
        ValueError: if there is no evidence, or more than there are tokens.

    Example:
        >>> random_average_precision(tokens=2, evidence=1)
        0.75
    """
    if not 1 <= evidence <= tokens:
        raise ValueError(
            f"random_average_precision: evidence should be 1 to tokens = {tokens}, got {evidence}; without evidence "
            "there is no precision to expect."
        )
    others = (evidence - 1) / (tokens - 1) if tokens > 1 else 0.0
    return sum((1 + (k - 1) * others) / k for k in range(1, tokens + 1)) / tokens


@dataclass(frozen=True)
class _Plausibility(Metric):
    """Metrics that compare with evidence; the model is not run."""

    source = _SOURCE
    needs_evidence = True
    undefined = "where no removable token is evidence"


@dataclass(frozen=True)
class AUPRC(_Plausibility):
    """Area under the precision-recall curve; a random order gets :func:`random_average_precision`.

    Args:
        area: ``"step"``, average precision; ``"trapezoid"``, straight lines between the points, as ERASER's code.
    """

    area: Literal["step", "trapezoid"] = "step"

    name = "auprc"
    formula = "sum over thresholds of (R_n - R_n-1) P_n"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.area not in ("step", "trapezoid"):
            raise ValueError(f"auprc: area should be 'step' or 'trapezoid', got {self.area!r}.")

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        rows = zip(scored.scores, _evidence(scored), scored.removable, strict=True)
        return torch.tensor([average_precision(s[r], e[r], self.area) for s, e, r in rows], dtype=torch.float64)

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor | None:
        if self.area != "step":
            return None
        counts = zip(sizes(scored).tolist(), _evidence(scored).sum(1).tolist(), strict=True)
        expected = [random_average_precision(n, marked) if marked else torch.nan for n, marked in counts]
        return torch.tensor(expected, dtype=torch.float64)


@dataclass(frozen=True)
class _Overlap(_Plausibility):
    """Metrics of the tokens that a method puts first.

    Args:
        fraction: how much of a text that is, rounded up; None for as many tokens as the evidence has.
    """

    fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fraction is not None:
            check_fraction(self.name, self.fraction)

    def _counts(self, scored: Scored) -> tuple[Tensor, Tensor, Tensor]:
        """How many tokens are first and evidence, first, evidence: (b,) float64 each; NaN without evidence."""
        evidence = _evidence(scored)
        marked = evidence.sum(1)
        chosen = marked
        if self.fraction is not None:
            chosen = torch.tensor([share(size, self.fraction) for size in sizes(scored).tolist()])
        both = (top(scored, chosen) & evidence).sum(1).double()
        return both, chosen.double(), torch.where(marked > 0, marked.double(), torch.nan)

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return self.overlap(*self._counts(scored))

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor | None:
        """The mean over how many of the first tokens may be evidence, a hypergeometric number of them."""
        _, chosen, marked = self._counts(scored)
        rows = zip(sizes(scored).tolist(), chosen.tolist(), marked.tolist(), strict=True)
        return torch.tensor([self._expected(n, int(k), m) for n, k, m in rows], dtype=torch.float64)

    def _expected(self, tokens: int, chosen: int, marked: float) -> float:
        if math.isnan(marked):
            return marked
        evidence, both = int(marked), range(chosen + 1)
        ways = [math.comb(evidence, hits) * math.comb(tokens - evidence, chosen - hits) for hits in both]
        overlaps = self.overlap(torch.tensor(both).double(), torch.tensor(chosen), torch.tensor(marked)).tolist()
        return sum(way * overlap for way, overlap in zip(ways, overlaps, strict=True)) / math.comb(tokens, chosen)

    def overlap(self, both: Tensor, chosen: Tensor, marked: Tensor) -> Tensor:
        """The metric, from how many tokens are first and evidence, first, evidence."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenF1(_Overlap):
    """The harmonic mean of precision and recall of the first tokens."""

    name = "token_f1"
    formula = "2 |top and evidence| / (|top| + |evidence|)"

    def overlap(self, both: Tensor, chosen: Tensor, marked: Tensor) -> Tensor:
        return 2 * both / (chosen + marked)


@dataclass(frozen=True)
class IOU(_Overlap):
    """Intersection over union of the first tokens and the evidence."""

    name = "iou"
    formula = "|top and evidence| / |top or evidence|"

    def overlap(self, both: Tensor, chosen: Tensor, marked: Tensor) -> Tensor:
        return both / (chosen + marked - both)


@dataclass(frozen=True)
class SpanIOU(_Overlap):
    """F1 of spans: a run of first tokens is right where it and a run of evidence share enough of what both cover.

    Runs are of neighbouring units among those that can be ranked; evidence that touches is one run.

    Args:
        threshold: how large their intersection over union is at least.
    """

    threshold: float = 0.5

    name = "span_iou"
    formula = "2 PR / (P + R), P and R the right runs over those of the top tokens and of the evidence"

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        _, chosen, _ = self._counts(scored)
        rows = zip(top(scored, chosen.long()), _evidence(scored), scored.removable, strict=True)
        return torch.tensor([self._f1(first[r], marked[r]) for first, marked, r in rows], dtype=torch.float64)

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor | None:
        return None

    def _f1(self, first: Tensor, marked: Tensor) -> float:
        if not marked.any():
            return math.nan
        found, wanted = _runs(first), _runs(marked)
        best = (max(len(run & other) / len(run | other) for other in wanted) for run in found)
        right = sum(iou >= self.threshold for iou in best)
        return 2 * right / (len(found) + len(wanted))  # with P = right / found and R = right / wanted


def _runs(marks: Tensor) -> list[set[int]]:
    """Places that stand side by side: (unit,) bool."""
    runs: list[set[int]] = []
    for place in marks.nonzero()[:, 0].tolist():
        if runs and place - 1 in runs[-1]:
            runs[-1].add(place)
        else:
            runs.append({place})
    return runs


def _evidence(scored: Scored) -> Tensor:
    """(b, s) bool; evidence among special tokens does not count, since no method can put it first."""
    if scored.evidence is None:
        raise ValueError("no evidence: give Scored(evidence=...).")
    return scored.evidence & scored.removable
