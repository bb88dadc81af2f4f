"""Which attribution method should be believed on this model?  Methods x metrics x data, in a store that can be resumed.

    Study(model, tokenizer, methods, metrics).run(data, store="study.db").table()

A study cuts its texts into batches of like length (`captum_norm.study.batches`) and commits every batch of every method
to the store as it finishes (`captum_norm.study.run.store`).  A study that was killed goes on where it stopped when it
is run again, and ends with the same numbers, bit for bit; under ``accelerate launch`` its processes share the batches
and end with the same numbers, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from captum_norm.forward import HFForward, Position
from captum_norm.methods import METHODS
from captum_norm.study.batches import (
    Padding,
    Tokenized,
    class_of,
    explain,
    logits_of,
    padded,
    tokenize,
    with_target,
)
from captum_norm.study.data import Fields, as_examples, read_examples
from captum_norm.study.metrics import METRICS, Metric
from captum_norm.study.report.results import Results
from captum_norm.study.run.fingerprints import circumstances, model_record, versions
from captum_norm.study.run.locking import check_choices, locked_record
from captum_norm.study.run.plan import (
    Plan,
    batches_of,
    class_names,
    data_records,
    generations_of_data,
    in_order,
    metric_record,
    metric_records,
    names_of,
)
from captum_norm.study.run.processes import Processes, parts_of, processes_of
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
        level: what metrics rank and remove as a whole, ``"token"`` or ``"word"``; None: as each metric says.
        target: what is explained: ``"predicted"``, the class or next token the model finds most probable, or
            ``"label"``, the data's.
        special: what becomes of special tokens: ``"mask"`` sets them aside (neither removed nor ranked), ``"keep"``
            treats them as any other, ``"report"`` sets them aside and reports the share of |score| they receive.
        position: whose row is explained, as for `HFForward`.
        batch_size: how many examples go through the model together.
        max_length: cut longer texts to so many tokens; None refuses texts that are too long for the model.
        seed: of the random floor, and of methods that draw random numbers.
        random_draws: how many draws the random floor is the mean over, where its expectation is not known.

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
        level: Literal["token", "word"] | None = None,
        target: Literal["predicted", "label"] = "predicted",
        special: Literal["mask", "keep", "report"] = "mask",
        position: Position = None,
        batch_size: int = 16,
        max_length: int | None = None,
        seed: int = 0,
        random_draws: int = 10,
    ) -> None:
        check_special(special)
        if model.training:
            raise ValueError("Study: the model is in training mode, so its outputs are random. Call model.eval().")
        if target not in ("predicted", "label"):
            raise ValueError(f"Study: target should be 'predicted' or 'label', got {target!r}.")
        for name, count in (("batch_size", batch_size), ("random_draws", random_draws)):
            if count < 1:
                raise ValueError(f"Study: {name} should be at least 1, got {count}.")
        self.forward = HFForward(model, position=position)
        self.tokenizer = tokenizer
        self.methods = DEFAULT_METHODS if methods is None else methods
        self.metrics = metrics
        self.removal = removal
        self.level = level
        self.target = target
        self.special = special
        self.batch_size = batch_size
        self.max_length = max_length
        self.seed = seed
        self.random_draws = random_draws
        self._metrics(evidence=True)  # an unknown metric is refused before the data is read

    def run(
        self,
        data: Iterable[Any] | str | Path,
        store: str | Path,
        *,
        fields: Fields | None = None,
        progress: bool = True,
    ) -> Results:
        """Run all that the store does not hold yet: methods, metrics and examples may be added to it.

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
        path = Path(store)
        plan = self._plan(data, fields, path)
        processes = processes_of(self.forward.model)
        if processes.first:
            with Store(path) as whole:
                whole.begin(plan.config, {"versions": versions(), "run": circumstances()}, plan.rows())
                _take_in_parts(whole, plan)
        processes.wait()
        self._work(plan, path, processes, progress)
        processes.wait()
        if processes.first and processes.size > 1:
            with Store(path) as whole:
                _take_in_parts(whole, plan)
        processes.wait()
        return Results(path)

    def lock(
        self, data: Iterable[Any] | str | Path, store: str | Path, *, fields: Fields | None = None, **choices: Any
    ) -> str:
        """Write down what will be run and how it will be judged, before anything is run.

        The report of the store then says when the plan was locked, and what was added or judged otherwise since.

        Args:
            data: as for `run`.
            store: a new file.
            fields: as for `run`.
            **choices: arguments of `Results.table` (reference, test, correction, margin ...) that will be used.

        Returns:
            A hash of the plan and the choices, to be published or sent to somebody.

        Raises:
            ValueError: if the store holds results, or another plan is locked in it.
        """
        check_choices(choices)
        plan = self._plan(data, fields, Path(store))
        with Store(store) as whole:
            if whole.finished() or whole.about("locked") is not None:
                raise ValueError(f"{store} holds results or a locked plan: a plan is locked before the run.")
            whole.begin(plan.config, {"versions": versions(), "run": circumstances()}, plan.rows())
            locked = locked_record(plan.config, choices)
            whole.note("locked", locked)
        return str(locked["hash"])

    def _work(self, plan: Plan, path: Path, processes: Processes, progress: bool) -> None:
        """This process's share of what is left; all see the same, since nobody writes the store meanwhile."""
        with Store(path, readonly=True) as whole:
            remaining = plan.remaining(whole.finished())
        processes.wait()
        share = remaining[processes.rank :: processes.size]
        if not share:
            return
        with Store(processes.own_store(path)) as own:
            if processes.size > 1:
                own.begin(plan.config, {}, plan.rows())
            with _bar(plan, share, processes, progress) as bar:
                for number, missing in share:
                    self._batch(plan, number, missing, own, path, bar)

    def _batch(
        self, plan: Plan, number: int, missing: Sequence[tuple[int, list[int] | None]], own: Store, path: Path, bar: Any
    ) -> None:
        batch = padded(number, plan.batches[number], plan.runner.pad)
        explained = explain(batch, self.forward, plan.labels, self.target)
        own.add_targets(number, batch.numbers, explained)
        batch = with_target(batch, explained.target)
        for method, metrics in missing:
            bar.set_postfix_str(plan.runner.scorers[method].name, refresh=False)
            scores = None
            if metrics is not None:
                with Store(path, readonly=True) as whole:
                    scores = whole.scores(method, number)
            own.add(plan.runner.run(method, batch, metrics, scores))
            bar.update(len(batch))

    def _plan(self, data: Iterable[Any] | str | Path, fields: Fields | None, store: Path) -> Plan:
        read = read_examples if isinstance(data, str | Path) else as_examples
        examples = tokenize(
            read(data, fields),  # type: ignore[arg-type]
            self.tokenizer,
            self.forward.model,
            self.max_length,
        )
        before, keys = begun_in(store)
        generations = generations_of_data(examples, before.get("data", []), keys)
        examples = [text for generation in generations for text in generation]
        labels = class_names(self.forward.model)
        if self.target == "label":
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
        named = self._metrics(evidence)
        known = before.get("metrics", [])
        metrics = dict(in_order(known, list(named.items()), lambda named_metric: metric_record(*named_metric)))
        records = metric_records(metrics, known)
        repeated = [(metric, of["generation"]) for metric, of in zip(metrics.values(), records, strict=True)]
        runner = Runner(
            self.forward,
            scorers,
            [repetition for metric, _ in repeated for repetition in metric.repetitions()],
            Padding.of(self.tokenizer),
            getattr(self.tokenizer, "mask_token_id", None),
            [generation for metric, generation in repeated for _ in metric.repetitions()],
        )
        config = self._config(generations, scorers, records)
        return Plan(examples, batches_of(generations, self.batch_size), labels, runner, config)

    def _check_labels(self, examples: Sequence[Tokenized], labels: Mapping[str, int]) -> None:
        """Refuse a label that names no class now, and not when its batch comes."""
        shortest = padded(0, (min(examples, key=len),), Padding.of(self.tokenizer))
        classes = logits_of(shortest, self.forward).shape[1]
        for text in examples:
            class_of(text.example, labels, classes)

    def _metrics(self, evidence: bool) -> dict[str, Metric]:
        """The metrics by the names they have in the results."""
        chosen = self.metrics
        if chosen is None:
            chosen = [*_USUAL_METRICS, *(_WITH_EVIDENCE if evidence else [])]
        if not chosen:
            raise ValueError(f"a study needs at least one metric. There are: {', '.join(METRICS)}.")
        metrics = [self._metric(metric) for metric in chosen]
        lacking = next((metric for metric in metrics if metric.needs_evidence and not evidence), None)
        if lacking is not None:
            raise ValueError(f"{lacking.name} compares with evidence, and no example has any.")
        return names_of(metrics)

    def _metric(self, given: str | Metric) -> Metric:
        if isinstance(given, str) and given not in METRICS:
            raise ValueError(f"unknown metric {given!r}. There are: {', '.join(METRICS)}.")
        metric = METRICS[given] if isinstance(given, str) else given
        arguments: dict[str, Any] = {"removal": self.removal} if self.removal and hasattr(metric, "removal") else {}
        arguments |= {"level": self.level} if self.level else {}
        return replace(metric, **arguments)

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


def begun_in(store: Path) -> tuple[dict[str, Any], list[str]]:
    """The configuration that a store was begun with and its examples' keys; nothing where it was not."""
    if not store.is_file() or not store.stat().st_size:
        return {}, []
    with Store(store, readonly=True) as whole:
        config = whole.about("config")
        keys = [key for (key,) in whole.rows("SELECT name FROM examples ORDER BY example")]
    return config or {}, keys


def _take_in_parts(whole: Store, plan: Plan) -> None:
    """Put what processes have left beside the store into it."""
    for part in parts_of(whole.path):
        with Store(part) as other:
            other.begin(plan.config, {}, plan.rows())
        whole.take_in(part)
        part.unlink()


def _bar(plan: Plan, share: Sequence[tuple[int, Sequence[Any]]], processes: Processes, progress: bool) -> Any:
    """A bar over (example, method)s; with several processes, over those of the first."""
    here = sum(len(plan.batches[number]) * len(methods) for number, methods in share)
    total = len(plan.examples) * len(plan.runner.scorers)
    done = total - here if processes.size == 1 else 0
    return tqdm(
        total=done + here,
        initial=done,
        desc="study" if processes.size == 1 else f"study, process 1 of {processes.size}",
        unit="score",
        disable=not (progress and processes.first),
        smoothing=0.05,
        mininterval=0.1 if sys.stderr.isatty() else 30,  # a log is no place for ten lines a second
        dynamic_ncols=True,
    )
