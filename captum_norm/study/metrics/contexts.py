"""Does an answer rest on the passages that a method puts first?  Removal, ablations at random, and known evidence.

    top drop    log p(x) - log p(x without its k top passages)
    LDS         Spearman( sum of the scores of what is kept ,  log(p / (1 - p)) of what is kept ), over random halves
    recovery    |k top passages and evidence| / min(k, |evidence|)

Passages are the sources of a study of contexts (``level="source"``); tokens and words may stand in their place.  Scores
are read with their sign: what speaks against an answer is not what it rests on.

Sources: Cohen-Wang et al. (2024), "ContextCite", https://arxiv.org/abs/2409.00729, section 3, for the drop and the
linear datamodelling score, which is Park et al.'s (2023), https://arxiv.org/abs/2303.14186.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.ranks import spearman
from captum_norm.study.metrics.answers import QUANTITIES
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.order import sizes, top
from captum_norm.study.metrics.perturbed import all_quantities, intact, perturbed, remembered
from captum_norm.study.metrics.removal import removal_named
from captum_norm.study.metrics.scored_texts import Scored
from captum_norm.study.metrics.seeding import generators

_CONTEXT_CITE = "Cohen-Wang et al. (2024), https://arxiv.org/abs/2409.00729"


@dataclass(frozen=True)
class TopDrop(Metric):
    """How much the logarithm of the probability drops without the k that a method puts first.

    Args:
        k: how many; all, where there are fewer.
        removal: how they are removed, see `captum_norm.study.metrics.removal.REMOVALS`.
    """

    k: int = 1
    removal: str = "delete"

    name = "top_drop"
    formula = "log p(x) - log p(x without the k top ones)"
    source = _CONTEXT_CITE

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_k(self.name, self.k)
        removal_named(self.removal)

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        keep = ~top(scored, torch.full((len(scored),), self.k))
        examples = torch.arange(len(scored))
        without = perturbed(forward, scored, examples, keep, self.removal, self.max_rows, "log")
        return intact(forward, scored, "log") - without


@dataclass(frozen=True)
class LinearDatamodelingScore(Metric):
    """Do sums of scores order what the model says of random parts of the text?

    Args:
        ablations: how many random parts; each holds each passage with a probability of a half.
        seed: of the parts, which are drawn for each text by itself and are the same for every method.
        removal: how the rest is removed, see `captum_norm.study.metrics.removal.REMOVALS`.
    """

    ablations: int = 32
    seed: int = 0
    removal: str = "delete"

    name = "lds"
    formula = "Spearman's rho over random halves of the sum of their scores and log(p / (1 - p)) of them"
    source = f"{_CONTEXT_CITE}; Park et al. (2023), https://arxiv.org/abs/2303.14186"
    undefined = "where all sums of scores, or all that the model says, are equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        removal_named(self.removal)
        if self.ablations < 2:
            raise ValueError(f"{self.name}: ablations should be 2 or more, got {self.ablations}.")

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        keep, effects = self._ablated(forward, scored)
        scores = scored.scores.masked_fill(~scored.removable, 0.0)
        return spearman((keep * scores[:, None]).sum(-1), effects)

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor:
        """0, since every list of scores is as probable as its negative; NaN where there are no effects to order."""
        effects = self._ablated(forward, scored)[1]
        return torch.where(effects.amax(1) > effects.amin(1), 0.0, torch.nan).double()

    def _ablated(self, forward: HFForward, scored: Scored) -> tuple[Tensor, Tensor]:
        """What each part keeps, (b, ablation, s) bool, and what the model says of it, (b, ablation)."""

        def run() -> tuple[Tensor, Tensor]:
            kept = torch.ones(len(scored), self.ablations, scored.removable.shape[1], dtype=torch.bool)
            for row, generator in enumerate(generators(scored, self.seed)):
                units = scored.removable[row]
                kept[row][:, units] = torch.rand(self.ablations, int(units.sum()), generator=generator) < 0.5
            examples = torch.arange(len(scored)).repeat_interleave(self.ablations)
            # Not shared with other metrics: what they asked before would decide which copies run together.
            of = all_quantities(forward, scored, examples, kept.flatten(0, 1), self.removal, self.max_rows, {})
            effects = of[:, QUANTITIES.index("log_odds")].view(len(scored), self.ablations)
            return kept & scored.removable[:, None], effects

        intact(forward, scored, "log_odds")  # refuses values, which have no odds
        key = (forward, "ablations", self.ablations, self.seed, self.removal)
        found: tuple[Tensor, Tensor] = remembered(scored, key, run)
        return found


@dataclass(frozen=True)
class Recovery(Metric):
    """How much of the evidence is among the k that a method puts first, 1 where all places that it can fill are its.

    Args:
        k: how many.
    """

    k: int = 1

    name = "recovery"
    formula = "|the k top ones and evidence| / min(k, |evidence|)"
    source = (
        "recall at k of what k can hold, after Manning et al. (2008), "
        "https://nlp.stanford.edu/IR-book/html/htmledition/evaluation-of-ranked-retrieval-results-1.html"
    )
    undefined = "where no removable token is evidence"
    needs_evidence = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_k(self.name, self.k)

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        evidence, counts = _evidence(scored)
        found = (top(scored, torch.full((len(scored),), self.k)) & evidence).sum(1)
        return torch.where(counts > 0, found / counts.clamp(1, self.k), torch.nan).double()

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor:
        """Each of n is among the first k with a probability of k / n."""
        _, counts = _evidence(scored)
        expected = counts * (self.k / sizes(scored)).clamp_max(1) / counts.clamp(1, self.k)
        return torch.where(counts > 0, expected, torch.nan).double()


def _evidence(scored: Scored) -> tuple[Tensor, Tensor]:
    """What is evidence and can be ranked, (b, s), and how much of it there is, (b,)."""
    assert scored.evidence is not None  # the metric needs evidence
    evidence = scored.evidence & scored.removable
    return evidence, evidence.sum(1)


def _check_k(name: str, k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"{name}: k should be 1 or more, how many come first; got {k!r}.")
