"""Captum's own two metrics, in the space where a token's embedding is multiplied by a gate of ones.

    infidelity    E_I [ (beta I . scores - (f(x) - f(x - I)))^2 ]     I takes random tokens out: their gate goes to 0
    sensitivity   max over noise d, |d| <= radius, of |scores(x + d) - scores(x)| / |scores(x)|

f is the logit of the target.  With ``normalise`` (the usual way here) beta is the factor that fits the scores best, as
Captum computes it: norms and weights are in no unit of the logit, and are not to be punished for that.

Source: Yeh et al. (2019), "On the (In)fidelity and Sensitivity of Explanations", https://arxiv.org/abs/1901.09392;
computed by ``captum.metrics.infidelity`` and ``captum.metrics.sensitivity_max``.

Axes: b batch, s sequence, r row (Captum repeats every example in place).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from captum_norm.forward import HFForward
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.perturbed import remembered
from captum_norm.study.metrics.scored_texts import Scored, digest_of_tensors
from captum_norm.study.metrics.seeding import generators

_SOURCE = "Yeh et al. (2019), https://arxiv.org/abs/1901.09392, by captum.metrics"


@dataclass(frozen=True)
class Infidelity(Metric):
    """How badly the scores predict what removing random tokens does to the logit.

    Args:
        samples: how many sets of tokens are removed.
        probability: of each token to be among them.
        normalise: whether the scores may be scaled to fit, see above.
        seed: of the draws, which depend on it and on the text alone.
    """

    samples: int = 32
    probability: float = 0.3
    normalise: bool = True
    seed: int = 0

    name = "infidelity"
    formula = "mean over random sets I of tokens of (beta I . scores - (f(x) - f(x - I)))^2, f the logit"
    source = _SOURCE
    higher_is_better = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_samples(self.name, self.samples)
        if not 0 < self.probability < 1:
            raise ValueError(f"infidelity: probability should be between 0 and 1, got {self.probability}.")

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        return torch.cat([self._of_part(forward, part) for part in parts(scored, self.max_rows)])

    def _of_part(self, forward: HFForward, scored: Scored) -> Tensor:
        from captum.metrics import infidelity  # type: ignore[import-untyped]

        gate_forward, gate, extras = gated_arguments(forward, scored)
        drawing = generators(scored, self.seed)

        def remove(gates: Tensor) -> tuple[Tensor, Tensor]:
            removed = scored.whole_units(
                _draws(scored, drawing, len(gates)) < self.probability, _repeated(scored, len(gates))
            ).to(gates)
            return removed, gates - removed

        def answered(gates: Tensor, *given: Any) -> Tensor:
            # The sets are the text's own, so what the model says of them is the same for all methods.
            *others, target = given

            def run() -> Tensor:
                return gate_forward(gates, *others).gather(1, target[:, None])[:, 0]

            answers: Tensor = remembered(scored, (forward, "gates", digest_of_tensors(gates)), run)
            return answers

        errors: Tensor = infidelity(
            answered,
            remove,
            gate,
            torch.where(scored.removable, scored.scores, 0.0).to(gate),
            additional_forward_args=(*(extras or ()), scored.target.to(gate.device)),
            n_perturb_samples=self.samples,
            max_examples_per_batch=min(self.max_rows, self.samples * len(scored)),
            normalize=self.normalise,
        )
        return errors


@dataclass(frozen=True)
class Sensitivity(Metric):
    """How much the scores change, at most, when every token's embedding is scaled by a little noise.

    Args:
        samples: how many draws of noise.
        radius: of the noise on the gate, uniform from -radius to radius.
        seed: of the draws, which depend on it and on the text alone.
    """

    samples: int = 10
    radius: float = 0.02
    seed: int = 0

    name = "sensitivity"
    formula = "max over noise d of |scores(x + d) - scores(x)| / |scores(x)|"
    source = _SOURCE
    higher_is_better = False
    needs_attribute = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_samples(self.name, self.samples)
        if not self.radius > 0:
            raise ValueError(f"sensitivity: radius should be above 0, got {self.radius}.")

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        assert attribute is not None
        return torch.cat([self._of_part(forward, part, attribute) for part in parts(scored, self.max_rows)])

    def _of_part(self, forward: HFForward, scored: Scored, attribute: Attribute) -> Tensor:
        from captum.metrics import sensitivity_max

        gate_forward, gate, extras = gated_arguments(forward, scored)
        drawing = generators(scored, self.seed)

        def disturb(gates: Tensor, radius: float) -> Tensor:
            examples = _repeated(scored, len(gates))
            noise = (2 * _draws(scored, drawing, len(gates)) - 1).masked_fill(~scored.removable[examples], 0.0)
            return gates + radius * scored.whole_units(noise, examples).to(gates)

        def explain(gates: Any, **arguments: Any) -> Any:
            # Captum passes a tuple at first and then what disturb returned; what it gets back must be of the same kind.
            several = isinstance(gates, tuple)
            gate: Tensor = gates[0] if several else gates
            scores = attributed(attribute, gate_forward, gate, arguments, scored)
            return (scores,) if several else scores

        changes: Tensor = sensitivity_max(
            explain,
            gate,
            disturb,
            perturb_radius=self.radius,
            n_perturb_samples=self.samples,
            max_examples_per_batch=min(self.max_rows, self.samples * len(scored)),
            additional_forward_args=extras,
            target=scored.target.to(gate.device),
        )
        return changes


def gated_arguments(forward: HFForward, scored: Scored) -> tuple[HFForward, Tensor, tuple[Any, ...]]:
    """The same model with a gate of ones for its input: the forward, the gate (b, s), and what goes beside it."""
    settings: dict[str, Any] = {"position": forward.position, "names": forward.names, "embedding": forward.embedding}
    gate_forward = HFForward(forward.model, mode="gate", **settings, **forward.fixed)
    inputs = gate_forward.inputs(scored.inputs, scored.rows)
    gate: Tensor = inputs["inputs"]
    if gate.shape != scored.scores.shape:
        raise ValueError(
            f"Scored: scores are {tuple(scored.scores.shape)}, but the model's gate is {tuple(gate.shape)}; there is "
            "one score per token, padding included."
        )
    return gate_forward, gate, inputs["additional_forward_args"]


def attributed(
    attribute: Attribute, forward: HFForward, gate: Tensor, arguments: dict[str, Any], scored: Scored
) -> Tensor:
    """A method's scores of the units of texts, 0 elsewhere, (r, s), in the gate's dtype; texts are repeated in place.

    Raises:
        ValueError: if the method returns another shape, or no finite number for a removable token.
    """
    with torch.enable_grad(), _captums_notice_silenced():
        scores = attribute(forward, gate, **arguments).detach().to(gate)
    if scores.shape != gate.shape:
        raise ValueError(
            f"attribute returned scores of shape {tuple(scores.shape)} for a gate of {tuple(gate.shape)}; there is one "
            "score per token."
        )
    examples = _repeated(scored, len(scores))
    removable, affected = (scored.removable[examples], scored.whole_units(scored.removable[examples], examples))
    if not torch.isfinite(scores[affected.to(scores.device)]).all():
        raise ValueError("attribute returned NaN or infinity for a token.")
    summed = scored.summed(torch.where(affected.to(scores.device), scores, 0.0))
    return torch.where(removable.to(scores.device), summed, 0.0)


def parts(scored: Scored, rows: int) -> Iterator[Scored]:
    """The batch in pieces of at most ``rows`` examples, for what runs all of them at once."""
    if len(scored) <= rows:
        yield scored
        return
    for part in torch.split(torch.arange(len(scored)), rows):
        yield scored.part(part)


def _draws(scored: Scored, drawing: list[Generator], rows: int) -> Tensor:
    """Uniform numbers from 0 to 1 for the removable tokens of examples that were repeated in place; 1 elsewhere."""
    times = rows // len(scored)
    draws = torch.ones(len(scored), times, scored.removable.shape[1], dtype=torch.float64)
    for example, generator in enumerate(drawing):
        removable = scored.removable[example]
        count = int(removable.sum())
        draws[example, :, removable] = torch.rand(times, count, generator=generator, dtype=torch.float64)
    return draws.flatten(0, 1)


def _repeated(scored: Scored, rows: int) -> Tensor:
    """The example of each row, examples repeated in place."""
    return torch.arange(len(scored)).repeat_interleave(rows // len(scored))


def _check_samples(name: str, samples: int) -> None:
    if samples < 1:
        raise ValueError(f"{name}: samples should be at least 1, got {samples}.")


@contextmanager
def _captums_notice_silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
        yield
