"""What is decided before a study runs: its batches, its methods and metrics, and the record of them for the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from captum_norm.study.batches import Tokenized
from captum_norm.study.metrics import Metric
from captum_norm.study.run.runner import Runner


@dataclass(frozen=True)
class Plan:
    """A study about to run.

    Attributes:
        examples: the data as the model reads it.
        batches: the examples that go through the model together.
        labels: lower-case class name -> class.
        runner: runs methods on batches.
        config: what decides the results.
    """

    examples: list[Tokenized]
    batches: list[tuple[Tokenized, ...]]
    labels: dict[str, int]
    runner: Runner
    config: dict[str, Any]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The examples, for the store."""
        for text in self.examples:
            label = None if text.example.label is None else str(text.example.label)
            words = json.dumps([text.words.strings, text.words.index], ensure_ascii=False)
            tokens = json.dumps(text.tokens, ensure_ascii=False)
            flags = [None if mask is None else bytes(mask.tolist()) for mask in (text.special, text.evidence)]
            yield text.number, text.example.key, text.example.text, text.example.text_pair, label, tokens, words, *flags

    def remaining(self, finished: set[tuple[int, int]]) -> list[tuple[int, list[int]]]:
        """(batch, methods) that are not finished.

        Args:
            finished: (method, example)s that the store holds.
        """
        remaining = []
        for number, batch in enumerate(self.batches):
            methods = range(len(self.runner.scorers))
            missing = [method for method in methods if any((method, text.number) not in finished for text in batch)]
            if missing:
                remaining.append((number, missing))
        return remaining


def metric_record(name: str, metric: Metric) -> dict[str, Any]:
    """What decides a metric's values, and what a report says of it."""
    return {
        "name": name,
        "arguments": {argument: repr(value) for argument, value in metric.arguments().items()},
        "rows": metric.max_rows,
        "repetitions": len(metric.repetitions()),
        "formula": metric.formula,
        "source": metric.source,
        "caution": metric.caution,
        "higher_is_better": metric.higher_is_better,
    }


def names_of(metrics: list[Metric]) -> dict[str, Metric]:
    """Metrics by the names they have in the results: several of one name are told apart by their arguments.

    Raises:
        ValueError: if a metric is listed twice.
    """
    named: dict[str, Metric] = {}
    for metric in metrics:
        if metric in named.values():
            raise ValueError(f"the metric {metric.name} is listed twice.")
        arguments = ", ".join(f"{argument}={value}" for argument, value in metric.arguments().items())
        named[metric.name if metric.name not in named else f"{metric.name}({arguments})"] = metric
    return named


def class_names(model: Any) -> dict[str, int]:
    """lower-case class name -> class, as the model's config has them."""
    names: Mapping[Any, Any] = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {str(name).lower(): int(index) for index, name in names.items()}
