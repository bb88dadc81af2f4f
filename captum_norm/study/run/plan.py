"""What is decided before a study runs: its batches, its methods and metrics, and the record of them for the store.

A study that adds to a store takes over what the store holds, in the store's order: its examples and their batches, its
methods, its metrics.  What is new follows as one more *generation*, in batches of its own and with copies of its own,
so that nothing that was measured depends on what was added when.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from captum_norm.class_names import ClassNames
from captum_norm.study.batches import Tokenized, cut
from captum_norm.study.metrics import Metric
from captum_norm.study.run.fingerprints import data_record
from captum_norm.study.run.finished import SCORING
from captum_norm.study.run.runner import Runner

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Plan:
    """A study about to run.

    Attributes:
        examples: the data as the model reads it.
        batches: the examples that go through the model together.
        labels: what the model's classes are called.
        runner: runs methods on batches.
        config: what decides the results.
    """

    examples: list[Tokenized]
    batches: list[tuple[Tokenized, ...]]
    labels: ClassNames
    runner: Runner
    config: dict[str, Any]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The examples, for the store."""
        of_example = {text.number: number for number, batch in enumerate(self.batches) for text in batch}
        for text in self.examples:
            label = None if text.example.label is None else str(text.example.label)
            words = json.dumps([text.words.strings, text.words.index], ensure_ascii=False)
            tokens = json.dumps(text.tokens, ensure_ascii=False)
            flags = [None if mask is None else bytes(mask.tolist()) for mask in (text.special, text.evidence)]
            texts = text.example.text, text.example.text_pair
            yield text.number, of_example[text.number], text.example.key, *texts, label, tokens, words, *flags

    def remaining(self, finished: set[tuple[int, int, int]]) -> list[tuple[int, list[tuple[int, list[int] | None]]]]:
        """(batch, [(method, metrics)]) that are not finished; None for all metrics, with the scores.

        Args:
            finished: (method, metric, batch)es that the store holds.
        """
        remaining = []
        for number in range(len(self.batches)):
            missing: list[tuple[int, list[int] | None]] = []
            for method in range(len(self.runner.scorers)):
                metrics = range(len(self.runner.metrics))
                lacking = [metric for metric in metrics if (method, metric, number) not in finished]
                if (method, SCORING, number) not in finished:
                    missing.append((method, None))
                elif lacking:
                    missing.append((method, lacking))
            if missing:
                remaining.append((number, missing))
        return remaining


def in_order(before: Sequence[Any], things: Sequence[Thing], record: Callable[[Thing], Any]) -> list[Thing]:
    """Things in the order of the records that a store holds of them; those that it does not know come last."""
    places = {_text(of): place for place, of in enumerate(before)}
    return sorted(things, key=lambda thing: places.get(_text(record(thing)), len(places)))


def generations_of_data(
    examples: Sequence[Tokenized], before: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[list[Tokenized]]:
    """The examples of each generation, numbered: those that a store holds, then those that are new.

    Args:
        examples: as the data has them.
        before: the store's records of its generations.
        keys: the keys of its examples, in order.
    """
    by_key = {text.example.key: text for text in examples}
    if not all(key in by_key for key in keys):
        return [list(examples)]  # other data, which the store refuses
    ordered = [by_key.pop(key) for key in keys] + list(by_key.values())
    ordered = [replace(text, number=number) for number, text in enumerate(ordered)]
    edges, generations = [0], []
    for record in before:
        edges.append(edges[-1] + int(record["examples"]))
    for start, end in zip(edges, [*edges[1:], len(ordered)], strict=True):
        generations.append(ordered[start:end])
    return [generation for generation in generations if generation]


def batches_of(generations: Sequence[Sequence[Tokenized]], size: int) -> list[tuple[Tokenized, ...]]:
    """The batches of all generations, one after the other."""
    return [batch for generation in generations for batch in cut(generation, size)]


def data_records(generations: Sequence[Sequence[Tokenized]]) -> list[dict[str, Any]]:
    """What is recorded of each generation."""
    return [data_record(generation) for generation in generations]


def metric_records(metrics: Mapping[str, Metric], before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What decides each metric's values, and what a report says of it, with the generation that it came in."""
    known = {of["name"]: of["generation"] for of in before}
    new = max(known.values(), default=-1) + 1
    return [{**metric_record(name, metric), "generation": known.get(name, new)} for name, metric in metrics.items()]


def metric_record(name: str, metric: Metric) -> dict[str, Any]:
    """A metric, as it is recorded."""
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


def _text(record: Any) -> str:
    if isinstance(record, Mapping):
        record = {name: value for name, value in record.items() if name != "generation"}
    return json.dumps(record, sort_keys=True)
