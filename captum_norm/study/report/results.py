"""What has a study found?  Its results are read from its store, finished or not, without the model.

Axes: n example, t token.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from captum_norm.files import replacing
from captum_norm.methods import METHODS
from captum_norm.optional_packages import required
from captum_norm.study.agreement import agreement_matrix, comparable
from captum_norm.study.report.cells import Statistics, cells_of
from captum_norm.study.report.measured import Numbers
from captum_norm.study.report.rankings import Rankings
from captum_norm.study.report.statistics import needed_examples
from captum_norm.study.report.tables import AgreementTable, StudyTable
from captum_norm.study.run.locking import departures
from captum_norm.study.variants import ORACLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Results(Rankings):
    """A study's results: what it measured, and the tables, ranks, figures and exports made of it.

    Args:
        path: its store.
        predictions: which examples count: ``"all"``, or those that the model predicts ``"right"`` or ``"wrong"``.

    Raises:
        FileNotFoundError: if there is no such store.
        ValueError: if it is no store, nothing was begun in it, or no example counts.
    """

    @property
    def reference(self) -> str:
        """The method that others are tested against where none is named: AttentionNorm, or the first."""
        return "AttentionNorm" if "AttentionNorm" in self.methods else self.methods[0]

    def table(
        self,
        reference: str | None = None,
        *,
        cases: Literal["complete", "available"] = "complete",
        test: Literal["bootstrap", "permutation"] = "bootstrap",
        correction: Literal["metric", "table"] = "metric",
        margin: float | Mapping[str, float] | None = None,
        confidence: float = 0.95,
        resamples: int = 9999,
        permutations: int = 9999,
        seed: int = 0,
    ) -> StudyTable:
        """Every metric of every method: mean, interval, and the paired difference to one of them, tested.

        Args:
            reference: the method that others are tested against; None: AttentionNorm, or the first.
            cases: ``"complete"`` takes a metric over the examples for which every method has a value, so that all means
                are over the same; ``"available"`` takes each over what it has, and marks nothing where these differ.
            test: ``"bootstrap"``, the studentised one, assumes no shape of the differences; ``"permutation"`` flips
                their signs and assumes that they are symmetric.
            correction: Holm's over the tests of each ``"metric"``, or over the whole ``"table"``.
            margin: differences up to this count as level, in the metric's unit, for all metrics or by metric.
            confidence: of the intervals.
            resamples: how often the examples are drawn anew.
            permutations: how many patterns of signs are drawn.
            seed: of the draws.

        Raises:
            KeyError: for a reference that the study does not have.
            ValueError: for a choice that is not known.
        """
        reference = self.reference if reference is None else reference
        self._place("method", reference)
        statistics = Statistics(cases, test, correction, margin, confidence, resamples, permutations, seed)
        by_metric = cells_of({metric: self.repetitions(metric) for metric in self.metrics}, reference, statistics)
        return StudyTable(
            methods=self.methods,
            metrics={name: self.higher_is_better(name) for name in self.metrics},
            cells={method: {metric: by_metric[metric][method] for metric in self.metrics} for method in self.methods},
            reference=reference,
            statistics=statistics,
            costs=self.costs(),
            failures=self._failure_counts(),
            special_shares=self.special_shares(),
            examples=len(self),
            missing=len(self) * len(self.methods) - self.finished,
            notes={**self._notes(), "locked": self._locked(reference, statistics)},
        )

    def needed_examples(
        self, metric: str, difference: float, reference: str | None = None, *, power: float = 0.8, alpha: float = 0.05
    ) -> dict[str, int]:
        """How many examples would star a difference of this size to the reference in `table`, method by method.

        Args:
            metric: by which metric.
            difference: in the metric's unit.
            reference: the method compared with; None: AttentionNorm, or the first.
            power: how often it is to be found.
            alpha: level of all tests of the metric together.

        Raises:
            KeyError: for a metric or reference that the study does not have.
        """
        reference = self.reference if reference is None else reference
        self._place("method", reference)
        values = self.values(metric)
        base = values[reference]
        others = {name: of for name, of in values.items() if of is not base and name != ORACLE}
        enough = {name: of for name, of in others.items() if np.isfinite(of - base).sum() > 1}
        return {
            name: needed_examples(of, base, difference, power, alpha, tests=len(enough)) for name, of in enough.items()
        }

    def agreement(
        self,
        measure: str = "spearman",
        *,
        level: Literal["token", "word"] = "token",
        special: Literal["mask", "keep"] = "mask",
    ) -> AgreementTable:
        """How far each two methods agree on the order of the tokens, mean over examples.

        Args:
            measure: one of `captum_norm.study.agreement.AGREEMENTS`.
            level: whether tokens are compared, or words (between white space), each the sum of its tokens.
            special: ``"mask"`` leaves special tokens out, ``"keep"`` compares them like any other.

        Raises:
            ValueError: for an unknown measure or level.
        """
        if level not in ("token", "word"):
            raise ValueError(f"level should be 'token' or 'word', got {level!r}.")
        compared = [name for name in self.methods if name != ORACLE]
        lists = {name: self._comparable(name, level, special) for name in compared}
        matrix = agreement_matrix(lists, measure)
        defined = ~np.isnan(matrix)
        with np.errstate(invalid="ignore"):
            means = np.where(defined, matrix, 0).sum(-1) / defined.sum(-1)
        return AgreementTable(tuple(compared), means, defined.sum(-1), measure, level, special)

    def to_pandas(self) -> Any:
        """A row per example, method and metric: ``key, method, metric, value``, and what is explained: ``label, target,
        predicted, probability``.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = required("pandas", "Results.to_pandas")
        shape = len(self.methods), len(self.metrics), len(self)
        every = np.stack([list(self.values(metric).values()) for metric in self.metrics], axis=1)
        method, metric, example = (index.ravel() for index in np.indices(shape))
        return pandas.DataFrame(
            {
                "key": np.array(self.keys, dtype=object)[example],
                "method": pandas.Categorical.from_codes(method, self.methods),
                "metric": pandas.Categorical.from_codes(metric, self.metrics),
                "value": every.ravel(),
                **{
                    name: pandas.array([getattr(of, name) for of in self.explained], dtype="Int64")[example]
                    for name in ("label", "target", "predicted")
                },
                "probability": np.array([of.probability for of in self.explained])[example],
            }
        )

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `to_pandas` as CSV, whole or not at all."""
        with replacing(path) as unfinished:
            self.to_pandas().to_csv(unfinished, index=False)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write `to_pandas` as Parquet, whole or not at all.

        Raises:
            ImportError: if pyarrow is not installed.
        """
        required("pyarrow", "Results.to_parquet")
        with replacing(path) as unfinished:
            self.to_pandas().to_parquet(unfinished, index=False)

    def to_latex(self, path: str | os.PathLike[str], reference: str | None = None) -> None:
        """Write `table` as LaTeX, whole or not at all."""
        with replacing(path) as unfinished:
            unfinished.write_text(self.table(reference).to_latex() + "\n", encoding="utf-8")

    def figures(self, reference: str | None = None, *, table: StudyTable | None = None) -> dict[str, Figure]:
        """The table, the agreement and the ranks as figures: ``{"metrics": ..., "agreement": ..., "ranks": ...}``.

        ``"ranks"`` has rank intervals and, as lines beside them, groups of methods that no test tells apart;
        ``"universes"`` has each method's rank under every combination of choices, where a metric has several.

        Args:
            reference: the method that others are tested against; None: AttentionNorm, or the first.
            table: one that was made before; None makes it.
        """
        from captum_norm.visualization.studies import agreement_grid, metric_dots, rank_grid, rank_lines

        table, alike = table or self.table(reference), self.agreement()
        dots = {
            metric: {name: (row[metric].mean, row[metric].low, row[metric].high) for name, row in table.cells.items()}
            for metric in self.metrics
        }
        plain = [metric for metric in self.metrics if metric.partition("(")[0] == metric]  # its variants are universes
        ranks = {metric: self.ranks(metric) for metric in plain}
        lines = {
            metric: ({name: (one.rank, one.low, one.high) for name, one in of.items()}, self.groups(metric))
            for metric, of in ranks.items()
            if of
        }
        figures: dict[str, Figure] = {
            "metrics": metric_dots(dots, table.metrics, reference=table.reference),
            "agreement": agreement_grid(alike.means, list(alike.methods), alike.title),
        }
        figures |= {"ranks": rank_lines(lines)} if lines else {}
        changes = max((self.order_changes(metric) for metric in self.metrics), key=lambda of: len(of.universes))
        if len(changes.universes) > 1 and changes.methods:
            figures["universes"] = rank_grid(changes.ranks, changes.methods, changes.universes)
        return figures

    def to_scores(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens and scores of every example and method as JSONL, whole or not at all.

        A line is ``{"id", "tokens", "target", "scores": {method: [one per token]}}``; null where a method failed.
        """
        scores = {name: self.scores(name) for name in self.methods}
        with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
            for place, (explained, tokens) in enumerate(zip(self.explained, self.tokens(), strict=True)):
                of_methods = {name: _listed(of[place]) for name, of in scores.items()}
                record = {"id": explained.key, "tokens": tokens, "target": explained.target, "scores": of_methods}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _comparable(self, method: str, level: str, special: Literal["mask", "keep"]) -> list[Numbers | None]:
        """A method's scores of every example as they are compared; None where there are none."""
        compared: list[Numbers | None] = []
        of_words = self._words_alone if special == "mask" else [words for words, _ in self._marks]
        for scores, (_, marks), words in zip(self.scores(method), self._marks, of_words, strict=True):
            if scores is None:
                compared.append(None)
                continue
            example = comparable(
                scores,
                real=np.ones(len(scores), dtype=bool),
                special=marks,
                specials=special,
                words=words if level == "word" else None,
            )
            compared.append(example.scores)
        return compared

    def _locked(self, reference: str, statistics: Statistics) -> str:
        """What is said of a locked plan; "" where none was locked."""
        locked = self.about["locked"]
        if locked is None:
            return ""
        departed = departures(locked, self.config, {**vars(statistics), "reference": reference})
        since = "; ".join(departed) or "nothing has departed from it"
        return f"The plan was locked before the run ({locked['time']}, {locked['hash']}): {since}."

    def _notes(self) -> dict[str, Any]:
        arguments = {metric["name"]: metric["arguments"] for metric in self.config["metrics"]}
        removals = {name: of["removal"].strip("'") for name, of in arguments.items() if "removal" in of}
        return {
            "model": self.config["model"],
            "target": self.config["target"],
            "predictions": self.predictions,
            "levels": sorted({of.get("level", "'token'").strip("'") for of in arguments.values()}),
            "special": self.config["special"],
            "removals": removals,
            "classless": [
                of["name"] for of in self.config["methods"] if _explains(of.get("method")) == "position"
            ],
            "cautions": {of["name"]: of["caution"] for of in self.config["metrics"] if of.get("caution")},
            "seed": self.config["seed"],
            "unchanged": self.unchanged,
        }


def _explains(method: str | None) -> str | None:
    """What a method of the table explains: one output, or what one position is made of; None for other methods."""
    return METHODS[method].explains if method in METHODS else None


def _listed(scores: Numbers | None) -> list[float] | None:
    return None if scores is None else scores.tolist()
