"""What does a model's answer say of its target?  A probability, its odds, or a value: that depends on the task.

    classes   one of several:   p = softmax(z),   odds p / (1 - p)
    labels    each by itself:   p = sigmoid(z),   odds p / (1 - p)
    value     a regression:     the value z itself; there are no odds

A model with ``problem_type`` "multi_label_classification" has labels; one with "regression", or with a single output,
has values, as transformers understands them.  All others choose one of several classes: sentiment, a pair's relation, a
token's tag, the next token of a text, or the place where an answer begins (`answers_with_a_place`).

Axes: r row, c class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from captum_norm.forward.keywords import title, unwrapped

Task = Literal["classes", "labels", "value"]
Quantity = Literal["answer", "log", "log_odds", "change"]

QUANTITIES: tuple[Quantity, ...] = ("answer", "log", "log_odds", "change")


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Attributes:
        task: how its outputs are read.
        outputs: (r, c) float64 on the CPU: log p of every class or label, or the values.
    """

    task: Task
    outputs: Tensor

    @classmethod
    def of(cls, model: nn.Module, logits: Tensor, target: Tensor) -> Answers:
        """From logits (r, c), once each row's target, (r,), is known to be a class with a number.

        Raises:
            ValueError: for another shape, a target that is none, or no finite number for a target.
        """
        task = task_of(model, logits)
        classes = logits.shape[1]
        wrong = target[(target < 0) | (target >= classes)].tolist()
        if wrong:
            raise ValueError(f"Scored: target {wrong[0]} is no class of {title(model)}, which has {classes}.")
        if not torch.isfinite(logits.gather(1, target[:, None].to(logits.device))).all():
            raise ValueError(f"{title(model)} returned NaN or infinity for a target; nothing can be measured.")
        outputs = logits.double().cpu()
        if task == "labels":
            outputs = nn.functional.logsigmoid(outputs)
        return cls(task, outputs.log_softmax(-1) if task == "classes" else outputs)

    @property
    def numbers(self) -> Tensor:
        """(r, c): probabilities, or the values."""
        return self.outputs if self.task == "value" else self.outputs.exp()

    def quantities(self, target: Tensor, before: Tensor) -> Tensor:
        """All `QUANTITIES` of each row's target: (r, 4); NaN for what a value does not have.

        Args:
            target: (r,) long.
            before: (r, c), the ``numbers`` of the texts as they are.
        """
        place = target[:, None]
        log = self.outputs.gather(1, place)[:, 0]
        moved = (before - self.numbers).abs()
        if self.task == "value":
            nothing = torch.full_like(log, torch.nan)
            return torch.stack([log, nothing, nothing, moved.gather(1, place)[:, 0]], dim=1)
        if self.task == "classes":
            against = self.outputs.scatter(1, place, -torch.inf).logsumexp(1)
        else:
            against = torch.log(-torch.expm1(log))
        return torch.stack([log.exp(), log, log - against, moved.sum(1) / 2], dim=1)


def task_of(model: nn.Module, logits: Tensor) -> Task:
    """How a model's outputs, (r, c), are to be read.

    Raises:
        ValueError: if they are not (batch, class), or a single class is all there is to choose from.
    """
    problem = getattr(getattr(unwrapped(model), "config", None), "problem_type", None)
    if logits.ndim != 2:
        raise ValueError(f"{title(model)} returns {tuple(logits.shape)}: a metric needs answers (batch, class).")
    if problem == "multi_label_classification":
        return "labels"
    if problem == "regression" or (problem is None and logits.shape[1] == 1):
        return "value"
    if logits.shape[1] < 2:
        raise ValueError(f"{title(model)} returns {tuple(logits.shape)}: one class has a probability of 1 always.")
    return "classes"


def answers_with_a_place(model: nn.Module) -> bool:
    """Whether a model's classes are the places of its text, as those of question answering in transformers are."""
    return title(unwrapped(model)).endswith("ForQuestionAnswering")
