"""Do the scores depend on what the model has learned?  The sanity check: the same method on shuffled weights.

    rho( scores of the model , scores of the model with shuffled weights )   over the removable tokens

A method that says the same of both explains the text and not the model.  Every parameter keeps its values and loses
their order, so that the sizes are those of the trained model in every architecture.

Source: Adebayo et al. (2018), "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292 (all layers at once).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
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
    """Rank correlation with the scores of the same method on the model with shuffled weights; near 0 is right.

    Args:
        seed: of the shuffling.
    """

    seed: int = 0

    name = "randomised_weights"
    formula = "Spearman's rho of the scores and those of the model with shuffled weights"
    source = "Adebayo et al. (2018), https://arxiv.org/abs/1810.03292"
    undefined = "where an example has fewer than two tokens, or either scores are all equal"
    higher_is_better = False
    needs_attribute = True

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        assert attribute is not None
        return torch.cat([self._of_part(forward, part, attribute) for part in parts(scored, self.max_rows)])

    def _of_part(self, forward: HFForward, scored: Scored, attribute: Attribute) -> Tensor:
        model = shuffled(forward.model, self.seed)
        settings: dict[str, Any] = {
            "position": forward.position,
            "names": forward.names,
            "embedding": forward.embedding,
        }
        gate_forward, gate, extras = gated_arguments(HFForward(model, **settings, **forward.fixed), scored)
        arguments = {"additional_forward_args": extras, "target": scored.target.to(gate.device)}
        shuffled_scores = attributed(attribute, gate_forward, gate, arguments, scored.removable).double().cpu()
        rows = zip(scored.scores, shuffled_scores, scored.removable, strict=True)
        return torch.tensor([spearman(a[r].numpy(), b[r].numpy()) for a, b, r in rows], dtype=torch.float64)


_SHUFFLED: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]] = WeakKeyDictionary()


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model in which each parameter's values are in random order; kept while the model lives and is the
    same, because all methods and batches of a study ask for it.
    """
    state = (seed, tuple((p.data_ptr(), p._version) for p in model.parameters()))
    known = _SHUFFLED.get(model)
    if known is None or known[0] != state:
        other = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in other.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        known = _SHUFFLED[model] = (state, other)
    return known[1]
