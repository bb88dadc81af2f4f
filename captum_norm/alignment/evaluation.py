"""What ``CrossAttentionAligner.evaluate`` found: a row for each setting, layer and head, beside a diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from captum_norm.alignment.scoring import AlignmentScore
from captum_norm.alignment.teacher import Setting

LayerChoice: TypeAlias = int | Literal["mean"]


@dataclass(frozen=True)
class Choice:
    """Where links are read.

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
    """One place at which links can be read, and how good they are there.

    Attributes:
        choice: the place.
        score: against the gold links.
        special_share: of what all candidates receive, the part of the source's special tokens (``</s>``); the mean over
            target words.
        punctuation_share: the same for punctuation marks.
    """

    choice: Choice
    score: AlignmentScore
    special_share: float
    punctuation_share: float


@dataclass(frozen=True)
class AlignmentEvaluation:
    """How good the links of one method are wherever they can be read.

    Attributes:
        method: which method.
        pairs: how many pairs of sentences.
        rows: a row for each setting and layer (heads together), for each head, and for the mean of the layers.
        chosen: the row that the aligner was told to use, or that ``fit`` found; None where nothing was chosen.
        diagonal: what knowing nothing gives.
    """

    method: str
    pairs: int
    rows: tuple[EvaluationRow, ...]
    chosen: EvaluationRow | None
    diagonal: AlignmentScore

    def best(self, heads: bool = False) -> EvaluationRow:
        """The row with the lowest error rate, of single layers; chosen on these very pairs, so it flatters.

        Args:
            heads: whether single heads count, too.
        """
        rows = [row for row in self.rows if row.choice.layer != "mean" and (heads or row.choice.head is None)]
        return min(rows, key=lambda row: row.score.error_rate)

    def row(self, setting: Setting, layer: LayerChoice, head: int | None = None) -> EvaluationRow:
        """The row of one place.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if row.choice == Choice(setting, layer, head):
                return row
        raise KeyError(f"AlignmentEvaluation: there is no row for {Choice(setting, layer, head)}.")

    def layer_mean(self, setting: Setting) -> float:
        """The mean of the layers' error rates, as the paper reports it (not the rate of the layers' mean)."""
        rates = [row.score.error_rate for row in self._layers(setting)]
        return sum(rates) / len(rates)

    def layers(self) -> int:
        """How many layers there are."""
        return 1 + max(row.choice.layer for row in self.rows if row.choice.layer != "mean")

    def heads(self, layer: int) -> int:
        """How many heads of a layer there are rows for."""
        heads = [row.choice.head for row in self.rows if row.choice.layer == layer and row.choice.head is not None]
        return len(set(heads))

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "method": self.method,
            "pairs": self.pairs,
            "diagonal": asdict(self.diagonal),
            "chosen": None if self.chosen is None else asdict(self.chosen),
            "layer_mean": {setting: self.layer_mean(setting) for setting in self._settings()},
            "rows": [asdict(row) for row in self.rows],
        }

    def _settings(self) -> Sequence[Setting]:
        return tuple(dict.fromkeys(row.choice.setting for row in self.rows))

    def _layers(self, setting: Setting) -> list[EvaluationRow]:
        return [
            row
            for row in self.rows
            if row.choice.setting == setting and row.choice.layer != "mean" and row.choice.head is None
        ]
