"""Does a method order the tokens as leaving each of them out does?

    tau( scores_j ,  p(x) - p(x without token j) )   over the removable tokens j

Source: Jain and Wallace (2019), "Attention is not Explanation", https://arxiv.org/abs/1902.10186 (Kendall's tau).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.agreement import RankCorrelation, rank_correlation
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.perturbed import intact, perturbed, remembered
from captum_norm.study.metrics.removal import removal_named
from captum_norm.study.metrics.scored_texts import Scored


@dataclass(frozen=True)
class LeaveOneOutCorrelation(Metric):
    """Rank correlation with the drop of the probability when one token is left out.

    Args:
        measure_of_rank: ``"kendall"`` (tau-b) or ``"spearman"``.
        removal: how tokens are removed, see `captum_norm.study.metrics.removal.REMOVALS`.
    """

    measure_of_rank: RankCorrelation = "kendall"
    removal: str = "delete"

    name = "leave_one_out_correlation"
    formula = "rank correlation over tokens j of the scores and p(x) - p(x without j)"
    source = "Jain and Wallace (2019), https://arxiv.org/abs/1902.10186"
    undefined = "where an example has fewer than two tokens, or all scores, or all drops, are equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        removal_named(self.removal)
        rank_correlation(self.measure_of_rank)

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        drops = leave_one_out(forward, scored, self.removal, self.max_rows)
        correlation = rank_correlation(self.measure_of_rank)
        pairs = zip(scored.scores, drops, scored.removable, strict=True)
        return torch.tensor([correlation(s[r].numpy(), d[r].numpy()) for s, d, r in pairs], dtype=torch.float64)


def leave_one_out(forward: HFForward, scored: Scored, removal: str, max_rows: int) -> Tensor:
    """p(x) - p(x without token j) for each removable token j, (b, s), 0 elsewhere; computed once for each batch."""

    def run() -> Tensor:
        examples, tokens = scored.removable.nonzero(as_tuple=True)
        keep = torch.ones(len(examples), scored.removable.shape[1], dtype=torch.bool)
        keep[torch.arange(len(examples)), tokens] = False
        p = perturbed(forward, scored, examples, keep, removal, max_rows).exp()
        drops = torch.zeros_like(scored.scores)
        drops[examples, tokens] = intact(forward, scored).exp()[examples] - p
        return drops

    drops: Tensor = remembered(scored, (forward, "leave one out", removal), run)
    return drops
