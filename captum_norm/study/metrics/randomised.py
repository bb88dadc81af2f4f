"""Do the scores depend on what the model has learned?  The sanity check: the same method on shuffled weights.

    mean over shuffles of |rho( scores of the model , scores of the model with shuffled weights )|

over the removable tokens, rho Spearman's.  A method that says the same of both explains the text and not the model; one
that says the opposite of both does, too, so the size of rho counts and not its sign.  Every parameter keeps its values
and loses their order, so that the sizes are those of the trained model in every architecture.  One shuffle may happen
to say something: a study repeats the check with several, and resamples them together with the examples.

Source: Adebayo et al. (2018), "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292 (all layers at once).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from captum_norm.forward import HFForward
from captum_norm.study.agreement import spearman
from captum_norm.study.metrics.captums import attributed, gated_arguments, parts
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.scored_texts import Scored


@dataclass(frozen=True)
class RandomisedWeights(Metric):
    """Size of the rank correlation with the same method's scores on the model with shuffled weights; near 0 is right.

    Two orders that have nothing to do with each other do not reach 0 in short texts: `at_random` says what they reach.

    Args:
        shuffles: how many; so many copies of the model are kept.
        seed: of the first; the others follow.
    """

    shuffles: int = 5
    seed: int = 0

    name = "randomised_weights"
    formula = "mean over shuffles of |Spearman's rho| of the scores and those of the model with shuffled weights"
    source = "Adebayo et al. (2018), https://arxiv.org/abs/1810.03292"
    undefined = "where an example has fewer than two tokens, or either scores are all equal"
    higher_is_better = False
    needs_attribute = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffles < 1:
            raise ValueError(f"{self.name}: shuffles should be at least 1, got {self.shuffles}.")

    def repetitions(self) -> tuple[Metric, ...]:
        return tuple(replace(self, shuffles=1, seed=self.seed + number) for number in range(self.shuffles))

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        assert attribute is not None
        seeds = range(self.seed, self.seed + self.shuffles)
        of_parts = [
            torch.stack([self._of_part(forward, part, attribute, seed) for seed in seeds]).mean(0)
            for part in parts(scored, self.max_rows)
        ]
        return torch.cat(of_parts)

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor:
        return torch.tensor([mean_of_random_orders(n) for n in scored.removable.sum(1).tolist()], dtype=torch.float64)

    def _of_part(self, forward: HFForward, scored: Scored, attribute: Attribute, seed: int) -> Tensor:
        model = shuffled(forward.model, seed)
        settings: dict[str, Any] = {
            "position": forward.position,
            "names": forward.names,
            "embedding": forward.embedding,
        }
        gate_forward, gate, extras = gated_arguments(HFForward(model, **settings, **forward.fixed), scored)
        arguments = {"additional_forward_args": extras, "target": scored.target.to(gate.device)}
        shuffled_scores = attributed(attribute, gate_forward, gate, arguments, scored).double().cpu()
        rows = zip(scored.scores, shuffled_scores, scored.removable, strict=True)
        return torch.tensor([abs(spearman(a[r].numpy(), b[r].numpy())) for a, b, r in rows], dtype=torch.float64)


@cache
def mean_of_random_orders(tokens: int) -> float:
    """The mean |rho| of two random orders, over 5,000 of them; NaN for fewer than two tokens.

    Example:
        >>> mean_of_random_orders(2), round(mean_of_random_orders(20), 1)
        (1.0, 0.2)
    """
    if tokens < 2:
        return torch.nan
    orders = torch.rand(5000, tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64).argsort(1)
    distances = (orders - torch.arange(tokens)).square().sum(1)
    return float((1 - 6 * distances / (tokens * (tokens**2 - 1))).abs().mean())


_SHUFFLED: WeakKeyDictionary[nn.Module, tuple[Any, dict[int, nn.Module]]] = WeakKeyDictionary()


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model in which each parameter's values are in random order; kept while the model lives and is the
    same, because all methods and batches of a study ask for it.
    """
    state = tuple((p.data_ptr(), p._version) for p in model.parameters())
    if model not in _SHUFFLED or _SHUFFLED[model][0] != state:
        _SHUFFLED[model] = (state, {})
    copies = _SHUFFLED[model][1]
    if seed not in copies:
        other = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in other.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        copies[seed] = other
    return copies[seed]
