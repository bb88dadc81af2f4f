"""What a metric is: a number for each text, with a name, a formula, a source and a direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.study.metrics.scored_texts import Scored

Level = Literal["token", "word", "source"]
"""What is ranked and removed as a whole."""

Attribute = Callable[..., Tensor]
"""A method on a forward of the metric's choice: ``attribute(forward, inputs, *, target, additional_forward_args)``
makes the method anew on ``forward``, an :class:`HFForward` in mode "gate", and returns its scores (batch, token):
``lambda forward, inputs, **arguments: Saliency(forward).attribute(inputs, **arguments)``."""


@dataclass(frozen=True)
class Metric:
    """A number for each example of how good its scores are.

    A subclass defines :meth:`measure`; its fields are the metric's parameters.

    Attributes:
        max_rows: how many perturbed copies the model runs at once.
        level: what is ranked and removed as a whole: ``"token"``, ``"word"`` (between white space), or ``"source"``.
        name: how it is called in tables.
        formula: what it computes.
        source: who proposed it, with a link.
        undefined: for which examples it is NaN; "" if for none.
        caution: what a reader of its values must know; "" for nothing.
        higher_is_better: its direction.
        needs_evidence: whether it compares with ``Scored.evidence``.
        needs_attribute: whether it runs the method again and needs ``attribute=``.
    """

    max_rows: int = 64
    level: Level = "token"

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    undefined: ClassVar[str] = ""
    caution: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    needs_evidence: ClassVar[bool] = False
    needs_attribute: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise ValueError(f"{self.name}: max_rows should be at least 1, got {self.max_rows}.")
        if self.level not in get_args(Level):
            raise ValueError(f"{self.name}: level should be 'token', 'word' or 'source', got {self.level!r}.")

    def __call__(self, forward: HFForward, scored: Scored, *, attribute: Attribute | None = None) -> Tensor:
        """The metric of each example.

        Args:
            forward: the model, as ``HFForward(model)`` in mode "ids".
            scored: the examples and their scores.
            attribute: the method itself, for the metrics that run it again (``needs_attribute``), see `Attribute`.

        Returns:
            (batch,) float64 on the CPU; NaN exactly where the metric is ``undefined``.

        Raises:
            ValueError: where the metric needs evidence or the method and there is none, where the model is in training
                mode, its outputs are no finite numbers, or it cannot be perturbed in the way asked for.
        """
        if forward.mode != "ids":
            raise ValueError(f"{self.name}: forward should be HFForward(model) in mode 'ids', not {forward.mode!r}.")
        if forward.model.training:
            raise ValueError(
                f"{self.name}: the model is in training mode, so its outputs are random. Call model.eval()."
            )
        if self.needs_evidence and scored.evidence is None:
            raise ValueError(f"{self.name} compares with evidence, and there is none: give Scored(evidence=...).")
        if self.needs_attribute and attribute is None:
            raise ValueError(
                f"{self.name} runs the method again, so stored scores are not enough: give attribute=, a function "
                "(forward, inputs, *, target, additional_forward_args) -> scores."
            )
        with torch.no_grad():
            return self.measure(forward, self.units(scored), attribute).double().cpu()

    def units(self, scored: Scored) -> Scored:
        """What it ranks and removes: the tokens, the words, or the sources."""
        if self.level == "source":
            return scored.by_source()
        return scored.by_word() if self.level == "word" else scored

    def measure(self, forward: HFForward, scored: Scored, attribute: Attribute | None) -> Tensor:
        """The metric itself; see :meth:`__call__`."""
        raise NotImplementedError

    def repetitions(self) -> tuple[Metric, ...]:
        """The metric with each of the random choices that it is the mean over; a study keeps and resamples them all."""
        return (self,)

    def at_random(self, forward: HFForward, scored: Scored) -> Tensor | None:
        """What a random order of the tokens is worth on average, (batch,) float64, where that is known exactly.

        None where only draws can tell.  The scores of ``scored`` do not count.
        """
        return None

    def arguments(self) -> dict[str, Any]:
        """The parameters that its value depends on, for the record: all fields but ``max_rows``."""
        names = [f.name for f in fields(self) if f.name not in ("max_rows", "level")]
        return {name: getattr(self, name) for name in (*names, "level")}


def variations(metric: Metric, **choices: Sequence[Any]) -> list[Metric]:
    """A metric under every combination of choices of its parameters, itself first if it is among them.

    Args:
        metric: the metric.
        **choices: for each parameter the values to try.

    Example:
        >>> from captum_norm.study.metrics import METRICS
        >>> several = variations(METRICS["comprehensiveness"], removal=["delete", "mask"], fractions=[(0.1,), (0.2,)])
        >>> len(several), several[0].arguments()
        (4, {'fractions': (0.2,), 'removal': 'delete', 'level': 'token'})
    """
    combinations = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    varied = [replace(metric, **combination) for combination in combinations]
    return sorted(varied, key=lambda variation: variation != metric)
