"""Which attribution method should be believed on this model?  Methods x metrics x data, in a store that can be resumed.

    Study(model, tokenizer, methods, metrics).run(data, store="study.db").table()

A study cuts its texts into batches of like length (`captum_norm.study.batches`) and commits every batch of every method
to the store as it finishes (`captum_norm.study.run.store`).  A study that was killed goes on where it stopped when it
is run again, and ends with the same numbers, bit for bit; under ``accelerate launch`` its processes share the batches
and end with the same numbers, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from captum_norm.forward import HFForward, Position
from captum_norm.methods import METHODS
from captum_norm.study.batches import (
    Padding,
    Tokenized,
    class_of,
    cut,
    explain,
    logits_of,
    padded,
    tokenize,
    with_target,
)
from captum_norm.study.data import Fields, as_examples, read_examples
from captum_norm.study.metrics import METRICS, Metric
from captum_norm.study.report.results import Results
from captum_norm.study.run.fingerprints import circumstances, data_record, model_record, versions
from captum_norm.study.run.processes import Crew, crew_of
from captum_norm.study.run.runner import Runner
from captum_norm.study.run.store import Store
from captum_norm.study.scorers import scorers_of
from captum_norm.study.scorers.scorer import Scorer
from captum_norm.study.variants import check_special

_USUAL_METHODS = (
    "AttentionWeights AttentionRollout AttentionNorm AttentionBlockNorm GlobEnc ALTI DecompX Saliency InputXGradient "
    "IntegratedGradients FeatureAblation"
).split()
_USUAL_METRICS = "comprehensiveness sufficiency aopc_comprehensiveness aopc_sufficiency log_odds deletion_area".split()
_WITH_EVIDENCE = "auprc token_f1 iou".split()

DEFAULT_METHODS = tuple(name for name in _USUAL_METHODS if name in METHODS)
"""The methods compared where none are named: the attention family, gradients, and one by removal."""


class Study:
    """Methods against each other on one model, by several metrics, on many texts.

    A random floor always takes part, and where the data has evidence an oracle that scores it 1 and all else 0.

    Args:
        model: a Hugging Face model in evaluation mode, on its device (or over several, by ``device_map``).
        tokenizer: its tokenizer; a fast one, since words and evidence are told by character offsets.
        methods: names of `captum_norm.methods.METHODS`, `Variant`, `StoredScores`, objects with Captum's ``attribute``
            over an `HFForward`, or functions ``f(forward, inputs, target) -> (batch, token)``; or a mapping from names
            to these.  None: `DEFAULT_METHODS`.
        metrics: names of `captum_norm.study.metrics.METRICS`, or metrics.  None: comprehensiveness and sufficiency,
            once and over fractions, log-odds and the area under deletion; with evidence also AUPRC, token F1 and IOU.
        removal: how metrics remove a token (`captum_norm.study.metrics.removal.REMOVALS`); None: as each metric says.
        target: what is explained: ``"predicted"``, the class or next token the model finds most probable, or
            ``"label"``, the data's.
        special: what becomes of special tokens: ``"mask"`` sets them aside (neither removed nor ranked), ``"keep"``
            treats them as any other, ``"report"`` sets them aside and reports the share of |score| they receive.
        position: whose row is explained, as for `HFForward`.
        batch_size: how many examples go through the model together.
        max_length: cut longer texts to so many tokens; None refuses texts that are too long for the model.
        seed: of the random floor, and of methods that draw random numbers.

    Raises:
        ValueError: for a model in training mode, and for choices that are not known.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from captum_norm.models import load_sentiment
        >>> study = Study(*load_sentiment(), methods=["AttentionNorm"], metrics=["comprehensiveness"])
        >>> with TemporaryDirectory() as folder:
        ...     results = study.run(["A warm film.", "A cold one."], f"{folder}/study.db", progress=False)
        >>> results.methods, results.metrics
        (('AttentionNorm', 'random'), ('comprehensiveness',))
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        methods: Sequence[Any] | Mapping[str, Any] | None = None,
        metrics: Sequence[str | Metric] | None = None,
        *,
        removal: str | None = None,
        target: Literal["predicted", "label"] = "predicted",
        special: Literal["mask", "keep", "report"] = "mask",
        position: Position = None,
        batch_size: int = 16,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        check_special(special)
        if model.training:
            raise ValueError("Study: the model is in training mode, so its outputs are random. Call model.eval().")
        if target not in ("predicted", "label"):
            raise ValueError(f"Study: target should be 'predicted' or 'label', got {target!r}.")
        if batch_size < 1:
            raise ValueError(f"Study: batch_size should be at least 1, got {batch_size}.")
        self.forward = HFForward(model, position=position)
        self.tokenizer = tokenizer
        self.methods = DEFAULT_METHODS if methods is None else methods
        self.metrics = metrics
        self.removal = removal
        self.target = target
        self.special = special
        self.batch_size = batch_size
        self.max_length = max_length
        self.seed = seed
        self._metrics(evidence=True)  # what is not known should not wait for the data

    def run(
        self,
        data: Iterable[Any] | str | Path,
        store: str | Path,
        *,
        fields: Fields | None = None,
        progress: bool = True,
    ) -> Results:
        """Run all that the store does not hold yet.

        Args:
            data: a path or data set id for `read_examples`, or texts, mappings or `Example`.
            store: the file that results are kept in; made if it is not there, continued if it is.
            fields: which field of a record holds what.
            progress: whether to show a bar with rate and remaining time.

        Returns:
            The results, read from the store.

        Raises:
            StoreMismatchError: if the store belongs to another study.
            OSError: if it cannot be written; what was finished is kept.
            ValueError: naming the example, for data that cannot be studied.
        """
        plan = self._plan(data, fields)
        path = Path(store)
        crew = crew_of(self.forward.model)
        if crew.first:
            with Store(path) as whole:
                whole.begin(plan.config, {"versions": versions(), "run": circumstances()}, plan.rows())
                _take_in_parts(whole, plan)
        crew.wait()
        self._work(plan, path, crew, progress)
        crew.wait()
        if crew.first and crew.size > 1:
            with Store(path) as whole:
                _take_in_parts(whole, plan)
        crew.wait()
        return Results(path)

    def _work(self, plan: _Plan, path: Path, crew: Crew, progress: bool) -> None:
        """This process's share of what is left; all see the same, since nobody writes the store meanwhile."""
        with Store(path, readonly=True) as whole:
            left = plan.left(whole.finished())
        crew.wait()
        mine = left[crew.rank :: crew.size]
        if not mine:
            return
        with Store(path if crew.size == 1 else _part(path, crew.rank)) as own:
            if crew.size > 1:
                own.begin(plan.config, {}, plan.rows())
            with _bar(plan, mine, crew, progress) as bar:
                for number, methods in mine:
                    self._batch(plan, number, methods, own, bar)

    def _batch(self, plan: _Plan, number: int, methods: Sequence[int], own: Store, bar: Any) -> None:
        batch = padded(number, plan.batches[number], plan.runner.pad, torch.zeros(0, dtype=torch.long))
        said = explain(batch, self.forward, plan.labels, self.target)
        rows = zip(batch.numbers, said.target.tolist(), said.predicted.tolist(), said.probability.tolist(), strict=True)
        own.add_targets(rows)
        batch = with_target(batch, said.target)
        for method in methods:
            bar.set_postfix_str(plan.runner.scorers[method].name, refresh=False)
            own.add(plan.runner.run(method, batch))
            bar.update(len(batch))

    def _plan(self, data: Iterable[Any] | str | Path, fields: Fields | None) -> _Plan:
        from_file = isinstance(data, str | Path)
        examples = read_examples(data, fields) if from_file else as_examples(data, fields)  # type: ignore[arg-type]
        labels = _labels(self.forward.model)
        tokenized = tokenize(examples, self.tokenizer, self.forward.model, self.max_length)
        if self.target == "label":
            shortest = min(tokenized, key=len)
            one = padded(0, (shortest,), Padding.of(self.tokenizer), torch.zeros(0, dtype=torch.long))
            classes = logits_of(one, self.forward).shape[1]
            for example in examples:  # a label that is none should not wait for its batch
                class_of(example, labels, classes)
        evidence = any(one.evidence is not None for one in tokenized)
        scorers = scorers_of(self.methods, self.forward, special=self.special, seed=self.seed, evidence=evidence)
        metrics = self._metrics(evidence)
        runner = Runner(
            self.forward,
            scorers,
            list(metrics.values()),
            Padding.of(self.tokenizer),
            getattr(self.tokenizer, "mask_token_id", None),
        )
        config = self._config(tokenized, scorers, metrics)
        return _Plan(tokenized, cut(tokenized, self.batch_size), labels, runner, config)

    def _metrics(self, evidence: bool) -> dict[str, Metric]:
        """The metrics by the names they have in the results."""
        wanted = self.metrics
        if wanted is None:
            wanted = [name for name in [*_USUAL_METRICS, *(_WITH_EVIDENCE if evidence else [])] if name in METRICS]
        if not wanted:
            raise ValueError(f"a study needs at least one metric. There are: {', '.join(METRICS)}.")
        found: dict[str, Metric] = {}
        for one in map(self._metric, wanted):
            if one.needs_evidence and not evidence:
                raise ValueError(f"{one.name} compares with evidence, and no example has any.")
            if one in found.values():
                raise ValueError(f"the metric {one.name} is listed twice.")
            found[one.name if one.name not in found else f"{one.name}({_arguments(one)})"] = one
        return found

    def _metric(self, given: str | Metric) -> Metric:
        if isinstance(given, str) and given not in METRICS:
            raise ValueError(f"unknown metric {given!r}. There are: {', '.join(METRICS)}.")
        metric = METRICS[given] if isinstance(given, str) else given
        chosen: dict[str, Any] = {"removal": self.removal} if self.removal and hasattr(metric, "removal") else {}
        return replace(metric, **chosen)

    def _config(
        self, examples: Sequence[Tokenized], scorers: Sequence[Scorer], metrics: Mapping[str, Metric]
    ) -> dict[str, Any]:
        """What decides the results."""
        position = self.forward.position
        return {
            "model": model_record(self.forward.model),
            "data": data_record(examples),
            "methods": [{**scorer.describe(), "family": scorer.family} for scorer in scorers],
            "metrics": [
                {
                    "name": name,
                    "arguments": {key: repr(value) for key, value in metric.arguments().items()},
                    "rows": metric.max_rows,
                    "formula": metric.formula,
                    "source": metric.source,
                    "higher_is_better": metric.higher_is_better,
                }
                for name, metric in metrics.items()
            ],
            "target": self.target,
            "special": self.special,
            "position": position if position is None or isinstance(position, int | str) else repr(position),
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "seed": self.seed,
            "versions": versions(),
        }


@dataclass(frozen=True)
class _Plan:
    """All that is decided before anything runs.

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
        for one in self.examples:
            label = None if one.example.label is None else str(one.example.label)
            words = json.dumps([one.words.strings, one.words.index], ensure_ascii=False)
            tokens = json.dumps(one.tokens, ensure_ascii=False)
            flags = [None if mask is None else bytes(mask.tolist()) for mask in (one.special, one.evidence)]
            yield one.number, one.example.key, one.example.text, label, tokens, words, *flags

    def left(self, finished: set[tuple[int, int]]) -> list[tuple[int, list[int]]]:
        """(batch, methods) that are not finished."""
        methods = range(len(self.runner.scorers))
        found = []
        for number, batch in enumerate(self.batches):
            missing = [m for m in methods if any((m, one.number) not in finished for one in batch)]
            if missing:
                found.append((number, missing))
        return found


def _take_in_parts(whole: Store, plan: _Plan) -> None:
    """What processes have left beside the store, now or when they were killed."""
    for part in sorted(whole.path.parent.glob(f"{whole.path.name}.part-*[0-9]")):
        with Store(part) as other:
            other.begin(plan.config, {}, plan.rows())
        whole.take_in(part)
        part.unlink()


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.part-{rank}")


def _bar(plan: _Plan, mine: list[tuple[int, list[int]]], crew: Crew, progress: bool) -> Any:
    """A bar over (example, method)s; with several processes, over those of the first."""
    here = sum(len(plan.batches[number]) * len(methods) for number, methods in mine)
    total = len(plan.examples) * len(plan.runner.scorers)
    done = total - here if crew.size == 1 else 0
    name = "study" if crew.size == 1 else f"study, process 1 of {crew.size}"
    return tqdm(
        total=done + here,
        initial=done,
        desc=name,
        unit="score",
        disable=not (progress and crew.first),
        smoothing=0.05,
        mininterval=0.1 if sys.stderr.isatty() else 30,  # a log is no place for ten lines a second
        dynamic_ncols=True,
    )


def _labels(model: Any) -> dict[str, int]:
    named = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {str(name).lower(): int(index) for index, name in named.items()}


def _arguments(metric: Metric) -> str:
    return ", ".join(f"{name}={value}" for name, value in metric.arguments().items())
