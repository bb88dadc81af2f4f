"""How much does the prediction rest on the tokens that a method puts first?  Take them out, or leave only them.

    comprehensiveness   p(x) - p(x without its top tokens)     large where the top tokens were needed
    sufficiency         p(x) - p(x of its top tokens only)     small where the top tokens are enough
    log-odds            log p(x without its top tokens) - log p(x)

p is the probability of the target; the top tokens are the given fraction of the removable ones, rounded up.  Special
tokens stay in every copy.

Sources: DeYoung et al. (2020), "ERASER", https://arxiv.org/abs/1911.03429 (comprehensiveness, sufficiency, and their
mean over fractions, AOPC, after Samek et al. 2015, https://arxiv.org/abs/1509.06321); Shrikumar et al. (2017),
https://arxiv.org/abs/1704.02685, and for text Chen et al. (2020), https://arxiv.org/abs/2004.02015 (log-odds).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.order import check_fraction, places, share, sizes
from captum_norm.study.metrics.perturbed import intact, perturbed
from captum_norm.study.metrics.removal import removal_named
from captum_norm.study.metrics.scored_texts import Scored

ERASER = "DeYoung et al. (2020), https://arxiv.org/abs/1911.03429"


@dataclass(frozen=True)
class _Erasure(Metric):
    """Metrics that compare an example with copies that lack, or hold only, its top tokens.

    Args:
        fractions: which parts of the tokens are the top ones; the metric is the mean over them.
        removal: how tokens are removed, see `captum_norm.study.metrics.removal.REMOVALS`.
    """

    fractions: tuple[float, ...] = (0.2,)
    removal: str = "delete"

    def __post_init__(self) -> None:
        super().__post_init__()
        removal_named(self.removal)
        object.__setattr__(self, "fractions", tuple(self.fractions))
        if not self.fractions:
            raise ValueError(f"{self.name}: fractions are empty; give one at least, such as 0.2.")
        for fraction in self.fractions:
            check_fraction(self.name, fraction)

    def _without(self, forward: HFForward, scored: Scored, only: bool) -> Tensor:
        """log p of the copies without the top tokens, or of these alone: (fraction, b)."""
        place, size = places(scored), sizes(scored).tolist()
        copies = [place < torch.tensor([share(n, fraction) for n in size])[:, None] for fraction in self.fractions]
        keep = torch.cat(copies if only else [~top for top in copies])
        examples = torch.arange(len(scored)).repeat(len(self.fractions))
        return perturbed(forward, scored, examples, keep, self.removal, self.max_rows).view(-1, len(scored))


@dataclass(frozen=True)
class Comprehensiveness(_Erasure):
    """How much of the probability goes with the top tokens."""

    name = "comprehensiveness"
    formula = "p(x) - p(x without the top tokens)"
    source = ERASER

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return intact(forward, scored).exp() - self._without(forward, scored, only=False).exp().mean(0)


@dataclass(frozen=True)
class Sufficiency(_Erasure):
    """How much of the probability is missing when the top tokens stand alone."""

    name = "sufficiency"
    formula = "p(x) - p(the top tokens alone)"
    source = ERASER
    higher_is_better = False

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return intact(forward, scored).exp() - self._without(forward, scored, only=True).exp().mean(0)


@dataclass(frozen=True)
class AOPCComprehensiveness(Comprehensiveness):
    """Comprehensiveness, on the mean over ERASER's fractions."""

    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.5)

    name = "aopc_comprehensiveness"
    formula = "mean over fractions of p(x) - p(x without the top tokens)"


@dataclass(frozen=True)
class AOPCSufficiency(Sufficiency):
    """Sufficiency, on the mean over ERASER's fractions."""

    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.5)

    name = "aopc_sufficiency"
    formula = "mean over fractions of p(x) - p(the top tokens alone)"


@dataclass(frozen=True)
class LogOdds(_Erasure):
    """How much the logarithm of the probability changes without the top tokens; the further below 0, the better."""

    name = "log_odds"
    formula = "log p(x without the top tokens) - log p(x)"
    source = "Shrikumar et al. (2017), https://arxiv.org/abs/1704.02685; Chen et al. (2020), https://arxiv.org/abs/2004.02015"
    higher_is_better = False

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return self._without(forward, scored, only=False).mean(0) - intact(forward, scored)
