"""How good are the links at each setting, layer and head?  The result of ``CrossAttentionAligner.evaluate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_norm.alignment.batches import PairBatch, Setting
from captum_norm.alignment.links import Link
from captum_norm.alignment.scoring import AlignmentScore
from captum_norm.tables import Table, Tabular

LayerChoice: TypeAlias = int | Literal["mean"]


@dataclass(frozen=True)
class Choice:
    """The place where links are read.

    Attributes:
        setting: ``"awi"`` or ``"awo"``.
        layer: of the decoder, counted from 0, or ``"mean"`` over the layers.
        head: of that layer; None for all heads together.
    """

    setting: Setting
    layer: LayerChoice
    head: int | None = None

    def __str__(self) -> str:
        where = "mean of the layers" if self.layer == "mean" else f"layer {self.layer}"
        return f"{self.setting.upper()}, {where}" + ("" if self.head is None else f", head {self.head}")


@dataclass(frozen=True)
class EvaluationRow:
    """The quality of the links at one place.

    Attributes:
        choice: the place.
        score: of its links against the gold links.
        special_share: the part of all scores that the source's special tokens (``</s>``) receive, averaged over target
            words.
        punctuation_share: the same for punctuation marks.
    """

    choice: Choice
    score: AlignmentScore
    special_share: float
    punctuation_share: float


@dataclass(frozen=True)
class AlignmentEvaluation(Tabular):
    """The quality of one method's links at every place: a table with a row for each.

    Attributes:
        method: its name.
        pairs: how many pairs of sentences.
        rows: a row for each setting and layer (heads together), for each head, and for the mean of the layers.
        chosen: the row of the aligner's choice, given by the caller or found by ``fit``; None without a choice.
        diagonal: the score of links along the diagonal, which need no model.
    """

    method: str
    pairs: int
    rows: tuple[EvaluationRow, ...]
    chosen: EvaluationRow | None
    diagonal: AlignmentScore

    def best(self, heads: bool = False) -> EvaluationRow:
        """The single layer with the lowest error rate.  It is chosen on these very pairs, so its rate is too good.

        Args:
            heads: whether to choose among single heads, too.
        """
        rows = [row for row in self.rows if row.choice.layer != "mean" and (heads or row.choice.head is None)]
        return min(rows, key=lambda row: row.score.error_rate)

    def row(self, setting: Setting, layer: LayerChoice, head: int | None = None) -> EvaluationRow:
        """The row of one place.

        Raises:
            KeyError: if no row has this place.
        """
        for row in self.rows:
            if row.choice == Choice(setting, layer, head):
                return row
        raise KeyError(f"AlignmentEvaluation: there is no row for {Choice(setting, layer, head)}.")

    def layer_mean(self, setting: Setting) -> float:
        """The mean of the layers' error rates, as the paper reports it, not the error rate of the layers' mean."""
        layers = [row for row in self.rows if row.choice.layer != "mean" and row.choice.head is None]
        rates = [row.score.error_rate for row in layers if row.choice.setting == setting]
        return sum(rates) / len(rates)

    def layers(self) -> int:
        """The number of layers."""
        return 1 + max(row.choice.layer for row in self.rows if row.choice.layer != "mean")

    def heads(self, layer: int) -> int:
        """The number of heads of a layer that have a row."""
        return len({row.choice.head for row in self.rows if row.choice.layer == layer} - {None})

    def as_table(self) -> Table:
        """A row for each setting, layer and head: error rate with its interval, precision, recall, shares."""
        rows = tuple(
            (
                row.choice.setting, str(row.choice.layer), "all" if row.choice.head is None else str(row.choice.head),
                row.score.error_rate, row.score.low, row.score.high, row.score.precision, row.score.recall,
                row.special_share, row.punctuation_share,
            )
            for row in self.rows
        )  # fmt: skip
        columns = "setting layer head AER low high precision recall special_share punctuation_share".split()
        notes: tuple[str, ...] = (f"diagonal: AER {self.diagonal.error_rate:.3f}",)
        if self.chosen is not None:
            notes = (f"chosen: {self.chosen.choice}, AER {self.chosen.score.error_rate:.3f}", *notes)
        return Table(tuple(columns), rows, f"Alignment by {self.method} on {self.pairs} pairs", notes, ".3f", keys=3)

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "method": self.method,
            "pairs": self.pairs,
            "diagonal": asdict(self.diagonal),
            "chosen": None if self.chosen is None else asdict(self.chosen),
            "layer_mean": {row.choice.setting: self.layer_mean(row.choice.setting) for row in self.rows},
            "rows": [asdict(row) for row in self.rows],
        }


class PlaceTotals:
    """Links and sums at one place, added up batch by batch.

    Args:
        count: the number of all pairs.

    Attributes:
        links: the links of each pair.
        shares: (2,) the shares of special tokens and of punctuation marks, summed over target words.
        words: the number of target words in these sums.
    """

    def __init__(self, count: int) -> None:
        self.links: list[list[Link]] = [[] for _ in range(count)]
        self.shares = torch.zeros(2, dtype=torch.float64)
        self.words = 0

    def add(self, batch: PairBatch, of_words: Tensor) -> None:
        """Adds a batch with its scores at this place, (batch, word, candidate)."""
        for number, links in zip(batch.numbers, batch.links(of_words), strict=True):
            self.links[number] = links
        total = of_words.sum(-1, keepdim=True)
        shares = (of_words / total.clamp(min=torch.finfo(total.dtype).tiny)) @ batch.marks.to(of_words.dtype)
        self.shares += shares.sum((0, 1)).double().cpu()
        self.words += int((total > 0).sum())
