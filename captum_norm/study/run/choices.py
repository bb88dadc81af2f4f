"""What has been chosen for a study, and the plan that follows from it, the data and what a store holds already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captum_norm.class_names import ClassNames
from captum_norm.forward import HFForward
from captum_norm.forward.keywords import title
from captum_norm.numerals import at_least
from captum_norm.study.batches import Padding, Tokenized, class_of, logits_of, padded, pair_of, tokenize
from captum_norm.study.data import Fields, as_examples, read_examples
from captum_norm.study.metrics import METRICS, Metric
from captum_norm.study.metrics.answers import answers_with_a_place
from captum_norm.study.run.fingerprints import model_record, versions
from captum_norm.study.run.plan import (
    Plan,
    batches_of,
    data_records,
    generations_of_data,
    in_order,
    metric_record,
    metric_records,
    names_of,
)
from captum_norm.study.run.runner import Runner
from captum_norm.study.run.store import begun_in
from captum_norm.study.scorers import scorers_of
from captum_norm.study.scorers.scorer import Scorer
from captum_norm.study.variants import check_special
from captum_norm.suggestions import did_you_mean

_USUAL = "comprehensiveness sufficiency aopc_comprehensiveness aopc_sufficiency log_odds deletion_area".split()
_WITH_EVIDENCE = "auprc token_f1 iou".split()


@dataclass(frozen=True)
class Choices:
    """All that a study is told but its data and its store; see `captum_norm.study.Study` for each.

    Raises:
        ValueError: for choices that are not known.
    """

    forward: HFForward
    tokenizer: Any
    methods: Sequence[Any] | Mapping[str, Any]
    metrics: Sequence[str | Metric] | None
    removal: str | None
    level: str | None
    target: str
    special: str
    batch_size: int
    max_length: int | None
    seed: int
    random_draws: int

    def __post_init__(self) -> None:
        check_special(self.special)
        if self.forward.model.training:
            raise ValueError("Study: the model is in training mode, so its outputs are random. Call model.eval().")
        if self.target not in ("predicted", "label", "contrast"):
            raise ValueError(f"Study: target should be 'predicted', 'label' or 'contrast', got {self.target!r}.")
        for name in ("batch_size", "random_draws"):
            at_least(1, getattr(self, name), f"Study: {name}")
        if self.max_length is not None:
            at_least(1, self.max_length, "Study: max_length")
        self.named_metrics(evidence=True)  # an unknown metric is refused before the data is read

    def plan(self, data: Iterable[Any] | str | Path, fields: Fields | None, store: Path) -> Plan:
        """What is to be run.

        Raises:
            ValueError: naming the example, for data that cannot be studied.
        """
        read = read_examples if isinstance(data, str | Path) else as_examples
        read_texts = read(data, fields)  # type: ignore[arg-type]
        examples = tokenize(read_texts, self.tokenizer, self.forward.model, self.max_length)
        before, keys = begun_in(store)
        generations = generations_of_data(examples, before.get("data", []), keys)
        examples = [text for generation in generations for text in generation]
        labels = ClassNames.of(self.forward.model)
        if self.target != "predicted":
            self._check_labels(examples, labels)
        evidence = any(text.evidence is not None for text in examples)
        scorers = scorers_of(
            self.methods,
            self.forward,
            special=self.special,
            seed=self.seed,
            evidence=evidence,
            random_draws=self.random_draws,
        )
        scorers = in_order(before.get("methods", []), scorers, scorer_record)
        known = before.get("metrics", [])
        named = list(self.named_metrics(evidence).items())
        self._check_rows(examples, dict(named).values())
        metrics = dict(in_order(known, named, lambda named_metric: metric_record(*named_metric)))
        records = metric_records(metrics, known)
        config = self._config(generations, scorers, records)
        runner = self._runner(scorers, metrics, records)
        return Plan(examples, batches_of(generations, self.batch_size), labels, runner, config)

    def named_metrics(self, evidence: bool) -> dict[str, Metric]:
        """The metrics by the names they have in the results.

        Raises:
            ValueError: for a name that is no metric, for none at all, or where evidence is needed and missing.
        """
        chosen = self.metrics
        if chosen is None:
            chosen = [*_USUAL, *(_WITH_EVIDENCE if evidence else [])]
        if not chosen:
            raise ValueError(f"a study needs at least one metric. There are: {', '.join(METRICS)}.")
        metrics = [self._metric(metric) for metric in chosen]
        lacking = next((metric for metric in metrics if metric.needs_evidence and not evidence), None)
        if lacking is not None:
            raise ValueError(f"{lacking.name} compares with evidence, and no example has any.")
        again = next((metric for metric in metrics if metric.needs_attribute and self.target == "contrast"), None)
        if again is not None:
            raise ValueError(
                f"{again.name} runs methods again and asks them of one class, not why it and not another: leave it out "
                "of a study of contrasts."
            )
        return names_of(metrics)

    def _metric(self, given: str | Metric) -> Metric:
        if isinstance(given, str) and given not in METRICS:
            near = did_you_mean(given, METRICS)
            raise ValueError(f"unknown metric {given!r}.{near} There are: {', '.join(METRICS)}.")
        metric = METRICS[given] if isinstance(given, str) else given
        arguments: dict[str, Any] = {"removal": self.removal} if self.removal and hasattr(metric, "removal") else {}
        arguments |= {"level": self.level} if self.level else {}
        return replace(metric, **arguments)

    def _runner(
        self, scorers: Sequence[Scorer], metrics: Mapping[str, Metric], records: Sequence[Mapping[str, Any]]
    ) -> Runner:
        repeated = [(metric, of["generation"]) for metric, of in zip(metrics.values(), records, strict=True)]
        return Runner(
            self.forward,
            scorers,
            [repetition for metric, _ in repeated for repetition in metric.repetitions()],
            Padding.of(self.tokenizer),
            getattr(self.tokenizer, "mask_token_id", None),
            [generation for metric, generation in repeated for _ in metric.repetitions()],
        )

    def _check_rows(self, examples: Sequence[Tokenized], metrics: Iterable[Metric]) -> None:
        """Refuse the tag of [CLS] where nobody said whose is asked for, a row said twice, and one that moves."""
        model, fixed = title(self.forward.model), self.forward.position
        if examples[0].row is None and fixed is None and model.endswith("ForTokenClassification"):
            raise ValueError(
                f"Study: {model} has a class for each token. Say whose is explained: a span [start, end] of characters "
                "in each example, or position= for all."
            )
        if examples[0].row is not None and fixed is not None:
            raise ValueError(f"Study: position={fixed!r} is for all examples, and each has a span of its own.")
        of_row = examples[0].row is not None or answers_with_a_place(self.forward.model)
        moving = [metric.name for metric in metrics if getattr(metric, "removal", "") == "delete"]
        if of_row and moving:
            raise ValueError(
                f"Study: {moving[0]} deletes tokens, and a row of the output is explained, which would then be another "
                "token's. Choose removal='mask', 'pad', 'mean_embedding' or 'gate'."
            )

    def _check_labels(self, examples: Sequence[Tokenized], labels: ClassNames) -> None:
        """Refuse a label or foil that names no class now, and not when its batch comes."""
        shortest = padded(0, (min(examples, key=len),), Padding.of(self.tokenizer))
        classes = logits_of(shortest, self.forward).shape[1]
        for text in examples:
            (pair_of if self.target == "contrast" else class_of)(text, labels, classes)

    def _config(
        self, generations: Sequence[Sequence[Tokenized]], scorers: Sequence[Scorer], metrics: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """What decides the results."""
        position = self.forward.position
        return {
            "model": model_record(self.forward.model),
            "data": data_records(generations),
            "methods": [scorer_record(scorer) for scorer in scorers],
            "metrics": metrics,
            "target": self.target,
            "special": self.special,
            "position": position if position is None or isinstance(position, int | str) else repr(position),
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "seed": self.seed,
            "versions": versions(),
        }


def scorer_record(scorer: Scorer) -> dict[str, Any]:
    """What decides a method's scores."""
    return {**scorer.describe(), "family": scorer.family}
