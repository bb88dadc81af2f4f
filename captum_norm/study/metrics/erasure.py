"""How much does the prediction rest on the tokens that a method puts first?  Take them out, or leave only them.

    comprehensiveness   p(x) - p(x without its top tokens)     large where the top tokens were needed
    sufficiency         p(x) - p(x of its top tokens only)     small where the top tokens are enough
    log-odds            l(x without its top tokens) - l(x),  l = log(p / (1 - p))
    log p change        log p(x without its top tokens) - log p(x)

p is the probability of the target, or in a regression its value, which has no logarithm; the top tokens are the given
fraction of the removable ones, rounded up.  Special tokens stay in every copy.

Sources: DeYoung et al. (2020), "ERASER", https://arxiv.org/abs/1911.03429 (comprehensiveness, sufficiency, and their
mean over fractions, AOPC, after Samek et al. 2015, https://arxiv.org/abs/1509.06321); Shrikumar et al. (2017),
https://arxiv.org/abs/1704.02685 (log-odds); Chen et al. (2020), https://arxiv.org/abs/2004.02015 (the change of log p,
which is called log-odds there and after).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.metrics.answers import Quantity
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

    def _moved(self, forward: HFForward, scored: Scored, only: bool, quantity: Quantity = "answer") -> Tensor:
        """A quantity of the copies without the top tokens, or of these alone, less that of the text; (b,)."""
        place, size = places(scored), sizes(scored).tolist()
        copies = [place < torch.tensor([share(n, fraction) for n in size])[:, None] for fraction in self.fractions]
        keep = torch.cat(copies if only else [~top for top in copies])
        examples = torch.arange(len(scored)).repeat(len(self.fractions))
        of_copies = perturbed(forward, scored, examples, keep, self.removal, self.max_rows, quantity)
        return of_copies.view(-1, len(scored)).mean(0) - intact(forward, scored, quantity)


@dataclass(frozen=True)
class Comprehensiveness(_Erasure):
    """How much of the probability goes with the top tokens."""

    name = "comprehensiveness"
    formula = "p(x) - p(x without the top tokens)"
    source = ERASER

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return -self._moved(forward, scored, only=False)


@dataclass(frozen=True)
class Sufficiency(_Erasure):
    """How much of the probability is missing when the top tokens stand alone."""

    name = "sufficiency"
    formula = "p(x) - p(the top tokens alone)"
    source = ERASER
    higher_is_better = False

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return -self._moved(forward, scored, only=True)


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
    """How much the log-odds of the target change without the top tokens; the further below 0, the better."""

    name = "log_odds"
    formula = "l(x without the top tokens) - l(x), l = log(p / (1 - p))"
    source = "Shrikumar et al. (2017), https://arxiv.org/abs/1704.02685"
    higher_is_better = False

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return self._moved(forward, scored, only=False, quantity="log_odds")


@dataclass(frozen=True)
class LogPChange(_Erasure):
    """How much the logarithm of the probability changes without the top tokens; the further below 0, the better."""

    name = "log_p_change"
    formula = "log p(x without the top tokens) - log p(x)"
    source = "Chen et al. (2020), https://arxiv.org/abs/2004.02015, who call it log-odds"
    higher_is_better = False

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return self._moved(forward, scored, only=False, quantity="log")
