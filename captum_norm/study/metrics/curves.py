"""How fast does the prediction come and go with the tokens in a method's order?  Areas under two curves.

    deletion area    of p(x without its first k tokens), k from none to all: small where p falls at once
    insertion area   of p(x of its first k tokens only): large where p rises at once

over the share k / n of the removable tokens, by the trapezoid rule.

Source: Petsiu, Das and Saenko (2018), "RISE", https://arxiv.org/abs/1806.07421.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.order import places, sizes
from captum_norm.study.metrics.perturbed import perturbed
from captum_norm.study.metrics.removal import removal_named
from captum_norm.study.metrics.scored_texts import Scored


@dataclass(frozen=True)
class _Area(Metric):
    """The area under a curve of p over the share of tokens.

    Args:
        steps: into how many steps a text is divided; a text of fewer tokens goes token by token.
        removal: how tokens are removed, see `captum_norm.study.metrics.removal.REMOVALS`.
    """

    steps: int = 20
    removal: str = "delete"

    source = "Petsiu et al. (2018), https://arxiv.org/abs/1806.07421"
    inserts: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        removal_named(self.removal)
        if self.steps < 1:
            raise ValueError(f"{self.name}: steps should be at least 1, got {self.steps}.")

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        place = places(scored)
        points = [torch.linspace(0, n, min(n, self.steps) + 1).round().long() for n in sizes(scored).tolist()]
        examples = torch.arange(len(scored)).repeat_interleave(torch.tensor([len(p) for p in points]))
        first = place[examples] < torch.cat(points)[:, None]
        keep = first if self.inserts else ~first
        p = perturbed(forward, scored, examples, keep, self.removal, self.max_rows)
        areas = [
            torch.trapezoid(curve, count / count[-1])
            for curve, count in zip(torch.split(p, [len(c) for c in points]), points, strict=True)
        ]
        return torch.stack(areas)


@dataclass(frozen=True)
class DeletionArea(_Area):
    """The area under p while tokens are taken out, the first first."""

    name = "deletion_area"
    formula = "area under p(x without its first k of n tokens) over k / n"
    higher_is_better = False
    inserts = False


@dataclass(frozen=True)
class InsertionArea(_Area):
    """The area under p while tokens are put in, the first first."""

    name = "insertion_area"
    formula = "area under p(the first k of n tokens) over k / n"
    inserts = True
