"""What did a study measure?  Scores, metrics, failures and costs, as its store holds them.

Axes: n example, t token.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from captum_norm.study.report.legend import ALTERED
from captum_norm.study.report.tables import CostRow
from captum_norm.study.run.finished import SHARED, flags_of, scores_of
from captum_norm.study.run.store import Store
from captum_norm.study.variants import ORACLE, RANDOM
from captum_norm.words import Words

Numbers = NDArray[np.float64]

_EXPLAINED = """SELECT examples.name, text, text_pair, targets.label, target, predicted, probability
    FROM examples LEFT JOIN targets USING (example) ORDER BY example"""


@dataclass(frozen=True)
class Failure:
    """What could not be had.

    Attributes:
        method: which method.
        metric: which metric; None where the method itself failed.
        key: the example's.
        error: why.
    """

    method: str
    metric: str | None
    key: str
    error: str


@dataclass(frozen=True)
class ExplainedText:
    """What is explained of one example.

    Attributes:
        key: the example's.
        texts: the text, or both of a pair.
        label: the class that the data names; None where it names none that the model has.
        target: the class that is explained; None where the study has not come to it.
        predicted: the class that the model finds most probable.
        probability: of the target, or its value in a regression.
    """

    key: str
    texts: tuple[str, ...]
    label: int | None
    target: int | None
    predicted: int | None
    probability: float

    @property
    def right(self) -> bool | None:
        """Whether the model predicts the label; None where either is not known."""
        return None if self.label is None or self.predicted is None else self.label == self.predicted


class Measured:
    """What a study measured.

    Args:
        path: its store.
        predictions: which examples count: ``"all"``, or those that the model predicts ``"right"`` or ``"wrong"``.

    Attributes:
        path: its store.
        config: what decided the results: model, data, methods, metrics, versions.
        methods: the methods' names.
        metrics: the metrics' names.
        keys: the examples' keys, in order.
        explained: what is explained of each example.
        unchanged: whether every byte of the store is as it was when it was closed; None where it has not been closed
            since it was last written to.  False with a warning: what is read has checksums of its own.

    Raises:
        FileNotFoundError: if there is no such store.
        ValueError: if it is no store, nothing was begun in it, or no example counts.
    """

    def __init__(self, path: str | Path, predictions: Literal["all", "right", "wrong"] = "all") -> None:
        if predictions not in ("all", "right", "wrong"):
            raise ValueError(f"predictions should be 'all', 'right' or 'wrong', got {predictions!r}.")
        self.path = Path(path)
        self.predictions = predictions
        with Store(self.path, readonly=True) as store:
            self.unchanged = store.check()
            config = store.about("config")
            if config is None:
                raise ValueError(f"{path} is a store in which no study was begun.")
            self.config: dict[str, Any] = config
            self.about: dict[str, Any] = {name: store.about(name) for name in ("versions", "run", "locked")}
            explained = [_explained_text(*row) for row in store.rows(_EXPLAINED)]
        if self.unchanged is False:
            warnings.warn(f"{path}: {ALTERED}", stacklevel=2)
        wanted = {"right": True, "wrong": False}.get(predictions)
        self._kept = [place for place, of in enumerate(explained) if wanted is None or of.right is wanted]
        if explained and not self._kept:
            raise ValueError(f"{path} has no example that is known to be predicted {predictions}: labels decide that.")
        self.explained = tuple(explained[place] for place in self._kept)
        self.keys = tuple(of.key for of in self.explained)
        self._numbered = [method["name"] for method in config["methods"]]
        # methods that were added come before the bounds, too
        self.methods = tuple(sorted(self._numbered, key=lambda name: name in (RANDOM, ORACLE)))
        self.metrics = tuple(metric["name"] for metric in config["metrics"])
        # the store has a number for each repetition of a metric
        self._repeated = [metric["name"] for metric in config["metrics"] for _ in range(metric.get("repetitions", 1))]

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        done = f"{self.finished} of {len(self) * len(self.methods)} scores"
        return f"{type(self).__name__}({str(self.path)!r}: {len(self.methods)} methods, {len(self)} examples, {done})"

    @property
    def finished(self) -> int:
        """How many (example, method)s the store holds; all of them: examples x methods."""
        counts = dict(self._rows("SELECT example, count(*) FROM scores GROUP BY example"))
        return sum(counts.get(example, 0) for example in self._kept)

    def higher_is_better(self, metric: str) -> bool:
        """A metric's direction."""
        return bool(self.config["metrics"][self._place("metric", metric)]["higher_is_better"])

    def values(self, metric: str) -> dict[str, Numbers]:
        """A metric of every example by every method.

        Returns:
            method -> (n,) float64; NaN where it is not defined, failed, or is still to be computed.

        Raises:
            KeyError: for a metric that the study does not have.
        """
        return {name: of.mean(axis=0) for name, of in self.repetitions(metric).items()}

    def repetitions(self, metric: str) -> dict[str, Numbers]:
        """A metric of every example by every method, for each of the random choices that it is repeated with.

        Returns:
            method -> (repetition, n) float64; most metrics have one repetition.

        Raises:
            KeyError: for a metric that the study does not have.
        """
        self._place("metric", metric)
        columns = [number for number, name in enumerate(self._repeated) if name == metric]
        return {name: values[columns] for name, values in self._values.items()}

    def scores(self, method: str) -> list[Numbers | None]:
        """A method's scores of every example, (t,) each, special tokens included; None where there are none.

        Raises:
            KeyError: for a method that the study does not have.
        """
        query = "SELECT example, scores FROM scores WHERE method = ? AND scores IS NOT NULL"
        blobs = dict(self._rows(query, self._place("method", method)))
        return [scores_of(blobs[example]) if example in blobs else None for example in self._kept]

    def tokens(self) -> list[tuple[str, ...]]:
        """The tokens of every example."""
        rows = self._rows("SELECT tokens FROM examples ORDER BY example")
        return [tuple(json.loads(rows[example][0])) for example in self._kept]

    def failures(self) -> list[Failure]:
        """What could not be had, and why."""
        of_methods = self._rows("SELECT method, NULL, example, error FROM scores WHERE error IS NOT NULL")
        of_metrics = self._rows("SELECT method, metric, example, error FROM metrics WHERE error IS NOT NULL")
        keys = dict(zip(self._kept, self.keys, strict=True))
        failures = [
            Failure(self._numbered[method], None if metric is None else self._repeated[metric], keys[example], error)
            for method, metric, example, error in [*of_methods, *of_metrics]
            if example in keys
        ]
        return list(dict.fromkeys(failures))

    def costs(self) -> dict[str, CostRow]:
        """What each method took: seconds per example, for its scores and for measuring them, and the most memory."""
        scoring = self._rows(
            "SELECT method, sum(seconds) / sum(examples), max(peak_bytes) FROM costs WHERE metric = -1 AND method >= 0 "
            "GROUP BY method"
        )
        measuring = self.metric_costs()
        rows = {}
        for method, seconds, peak in scoring:
            of_metrics = (row[name] for row in measuring.values() for name in [self._numbered[method]] if name in row)
            rows[self._numbered[method]] = CostRow(seconds, sum(of_metrics), peak)
        return rows

    def metric_costs(self) -> dict[str, dict[str, float]]:
        """What each metric took: metric -> method -> seconds per example.

        What all methods share (the text as it is, each token left out) is charged to none and stands under
        ``"shared"``.  Copies that several metrics of a method ask for are charged to the first of them.
        """
        costs: dict[str, dict[str, float]] = {metric: {} for metric in self.metrics}
        query = (
            "SELECT method, metric, sum(seconds) / sum(examples) FROM costs WHERE metric >= 0 GROUP BY method, metric"
        )
        for method, metric, seconds in self._rows(query):
            row = costs[self._repeated[metric]]
            name = "shared" if method == SHARED else self._numbered[method]
            row[name] = row.get(name, 0.0) + seconds
        return costs

    def special_shares(self) -> dict[str, float]:
        """The share of |score| that special tokens receive, mean over examples, of methods that are to report it."""
        special = [marks for _, marks in self._marks]
        special_shares = {}
        for method in self.config["methods"]:
            if method["special"] == "report" and method["name"] != ORACLE:
                pairs = zip(self.scores(method["name"]), special, strict=True)
                shares = [np.abs(s[m]).sum() / np.abs(s).sum() for s, m in pairs if s is not None and np.abs(s).sum()]
                special_shares[method["name"]] = float(np.mean(shares)) if shares else math.nan
        return special_shares

    @cached_property
    def _values(self) -> dict[str, Numbers]:
        """method -> (repetition of a metric, n)."""
        [(examples,)] = self._rows("SELECT count(*) FROM examples")
        values = np.full((len(self.methods), len(self._repeated), examples), np.nan)
        rows = self._rows("SELECT method, metric, example, value FROM metrics WHERE value IS NOT NULL")
        if rows:
            method, metric, example, value = zip(*rows, strict=True)
            values[list(method), list(metric), list(example)] = value
        by_number = dict(zip(self._numbered, values[:, :, self._kept], strict=True))
        return {name: by_number[name] for name in self.methods}

    @cached_property
    def _marks(self) -> list[tuple[Words, NDArray[np.bool_]]]:
        """The words of every example, and its special tokens."""
        rows = self._rows("SELECT words, special FROM examples ORDER BY example")
        read = [(json.loads(rows[example][0]), flags_of(rows[example][1])) for example in self._kept]
        return [(Words(tuple(strings), tuple(index)), special) for (strings, index), special in read]

    @cached_property
    def _words_alone(self) -> list[Words]:
        """Each example's words without special tokens."""
        return [_without(words, marks) for words, marks in self._marks]

    def _failure_counts(self) -> dict[str, int]:
        kept = set(self._kept)
        rows = self._rows("SELECT method, example FROM scores WHERE error IS NOT NULL ORDER BY method")
        return dict(Counter(self._numbered[method] for method, example in rows if example in kept))

    def _place(self, what: str, name: str) -> int:
        names = self.methods if what == "method" else self.metrics
        if name not in names:
            raise KeyError(f"this study has no {what} {name!r}. There are: {', '.join(names)}.")
        return self._numbered.index(name) if what == "method" else names.index(name)

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with Store(self.path, readonly=True) as store:
            return store.rows(query, *values)


def _explained_text(key: str, text: str, pair: str | None, *of_model: Any) -> ExplainedText:
    label, target, predicted, probability = of_model
    texts = (text,) if pair is None else (text, pair)
    return ExplainedText(key, texts, label, target, predicted, math.nan if probability is None else probability)


def _without(words: Words, special: Sequence[bool] | NDArray[np.bool_]) -> Words:
    """The words with special tokens left out."""
    index = [None if is_special else word for word, is_special in zip(words.index, special, strict=True)]
    left = {old: new for new, old in enumerate(dict.fromkeys(word for word in index if word is not None))}
    return Words(
        tuple(words.strings[old] for old in left), tuple(None if word is None else left[word] for word in index)
    )
