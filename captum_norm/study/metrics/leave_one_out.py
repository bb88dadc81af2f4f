"""Does a method order the tokens as leaving each of them out does?

    with its sign     tau( scores_j ,  p(x) - p(x without token j) )
    by its size       tau( |scores_j| ,  TVD(x, x without token j) ),   TVD = 1/2 sum over classes c of |Δp_c|

over the removable tokens j, p the probability of the target.  The first asks which tokens speak for the target.  Only a
method whose scores have a sign can answer that: the others give a word that speaks against the target as much as one
that speaks for it.  The second asks which tokens move the answer at all, either way.  It is the judge of methods
without a sign.

Source: Jain and Wallace (2019), "Attention is not Explanation", https://arxiv.org/abs/1902.10186, section 4: Kendall's
tau with the total variation distance of the outputs.  Their code takes the mean of |Δp_c| instead, which ranks tokens
alike.  The form with a sign is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.agreement import RankCorrelation, rank_correlation
from captum_norm.study.metrics.answers import QUANTITIES
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.perturbed import all_quantities, intact, remembered
from captum_norm.study.metrics.removal import removal_named
from captum_norm.study.metrics.scored_texts import Scored

JAIN_AND_WALLACE = "Jain and Wallace (2019), https://arxiv.org/abs/1902.10186"


@dataclass(frozen=True)
class _LeaveOneOut(Metric):
    """Rank correlation with what leaving one token out does.

    Args:
        measure_of_rank: ``"kendall"`` (tau-b) or ``"spearman"``.
        removal: how tokens are removed, see `captum_norm.study.metrics.removal.REMOVALS`.
    """

    measure_of_rank: RankCorrelation = "kendall"
    removal: str = "delete"

    undefined = "where an example has fewer than two tokens, or all scores, or all changes, are equal"
    has_sign: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        removal_named(self.removal)
        rank_correlation(self.measure_of_rank)

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        drops, distances = leave_one_out(forward, scored, self.removal, self.max_rows)
        scores, effects = (scored.scores, drops) if self.has_sign else (scored.scores.abs(), distances)
        correlation = rank_correlation(self.measure_of_rank)
        rows = zip(scores, effects, scored.removable, strict=True)
        return torch.tensor([correlation(s[r].numpy(), e[r].numpy()) for s, e, r in rows], dtype=torch.float64)

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor:
        """0, since every order is as probable as its reverse; NaN where there are no changes to order."""
        effects = leave_one_out(forward, scored, self.removal, self.max_rows)[0 if self.has_sign else 1]
        low = effects.masked_fill(~scored.removable, torch.inf).amin(1)
        high = effects.masked_fill(~scored.removable, -torch.inf).amax(1)
        return torch.where(high > low, 0.0, torch.nan)


@dataclass(frozen=True)
class LeaveOneOutCorrelation(_LeaveOneOut):
    """Rank correlation with the drop of the target's probability when one token is left out, signs and all."""

    name = "leave_one_out_correlation"
    formula = "rank correlation over tokens j of the scores and p(x) - p(x without j)"
    source = f"ours, after {JAIN_AND_WALLACE}, who have no sign"
    caution = "has a sign: judge methods without one by leave_one_out_change_correlation"
    has_sign = True


@dataclass(frozen=True)
class LeaveOneOutChangeCorrelation(_LeaveOneOut):
    """Rank correlation of the scores' sizes with how far leaving one token out moves all probabilities."""

    name = "leave_one_out_change_correlation"
    formula = "rank correlation over tokens j of |scores| and 1/2 sum over classes of |p(x) - p(x without j)|"
    source = JAIN_AND_WALLACE
    has_sign = False


def leave_one_out(forward: HFForward, scored: Scored, removal: str, max_rows: int) -> tuple[Tensor, Tensor]:
    """What leaving out each removable token changes; computed once for each batch.

    Returns:
        The drop of the target's probability, and the total variation distance of the answers: (b, s) each, 0 at tokens
        that are not removable.
    """

    def run() -> tuple[Tensor, Tensor]:
        examples, tokens = scored.removable.nonzero(as_tuple=True)
        keep = torch.ones(len(examples), scored.removable.shape[1], dtype=torch.bool)
        keep[torch.arange(len(examples)), tokens] = False
        drops, distances = torch.zeros_like(scored.scores), torch.zeros_like(scored.scores)
        # Not shared with other metrics: what they asked before would decide which copies run together.
        of_copies = all_quantities(forward, scored, examples, keep, removal, max_rows, {})
        drops[examples, tokens] = intact(forward, scored)[examples] - of_copies[:, QUANTITIES.index("answer")]
        distances[examples, tokens] = of_copies[:, QUANTITIES.index("change")]
        return drops, distances

    effects: tuple[Tensor, Tensor] = remembered(scored, (forward, "leave one out", removal), run)
    return effects
