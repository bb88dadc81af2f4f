"""Which method finds the statements that an answer rests on?  Methods x tasks whose evidence was planted.

    python -m captum_norm.study.recovery --folder planted --seeds 5 --json recovery.json

For every task of `captum_norm.study.planted.contexts` and every seed a model is trained (or taken from the folder),
each method scores the tokens of texts that it answers rightly, and a statement gets the sum of its tokens' scores.
Models are the unit: a cell is the mean over them, with the interval of Student's t.  Every study is kept in the folder,
and resumed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from captum_norm.files import replacing
from captum_norm.forward import HFForward
from captum_norm.optional_packages import required
from captum_norm.study.metrics import METRICS, Metric, variations
from captum_norm.study.planted.contexts import TASKS
from captum_norm.study.planted.learnt import learnt
from captum_norm.study.study import Study
from captum_norm.study.variants import Variant
from captum_norm.tables import Table

METHODS: dict[str, Any] = {
    **{
        name: Variant(name)
        for name in (
            "AttentionWeights AttentionRollout AttentionFlow AttentionNorm AttentionBlockNorm GlobEnc ALTI "
            "ValueZeroing AttentionRelevance DecompX"
        ).split()
    },
    "Logit": Variant("ALTILogit", options={"mixing": False}),
    "ALTILogit": Variant("ALTILogit"),
    "SpanTrace": Variant("SpanTrace"),
    "Saliency": Variant("Saliency"),
    "InputXGradient": Variant("InputXGradient"),
    "IntegratedGradients": Variant("IntegratedGradients", arguments={"n_steps": 20}),
    "FeatureAblation": Variant("FeatureAblation"),
}
"""What is compared, in the table's order."""

DECODERS = ("Logit", "ALTILogit", "SpanTrace")
HOPS = (1, 2)
WORKED_OUT = 2  # how many words of ``written`` lead to its answer


def span_trace_of_answer(hops: int) -> Any:
    """SpanTrace as its authors ask it: of the answer's own row, and with hops through what was written before it."""

    def scores(forward: HFForward, inputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        from captum_norm.attr import SpanTrace

        ids = torch.cat([inputs["input_ids"], target[:, None]], dim=1)
        end = ids.shape[1] - 1
        thought = {"reasoning": (end - WORKED_OUT, end)} if hops else {}
        found: Any = SpanTrace(forward.model, hops=hops).attribute(ids, span=(end, end + 1), **thought)
        return found[:, :-1]

    scores.__qualname__ = f"span_trace_of_answer({hops})"
    return scores


def methods_of(task: str) -> dict[str, Any]:
    """The methods that answer for a task: those of decoders where there is one, hops where the text works it out."""
    methods = {name: of for name, of in METHODS.items() if task != "facts" or name not in DECODERS}
    if task != "written":
        return methods
    return methods | {"SpanTrace, answer's row": span_trace_of_answer(0)} | {
        f"SpanTrace, {hops} hop{'s' * (hops > 1)}": span_trace_of_answer(hops) for hops in HOPS
    }


def metrics_of_contexts() -> list[Metric]:
    """Recovery at 1 and 3, the drop without the first 1 and 3, and the linear datamodelling score."""
    by_k = [variations(METRICS[name], k=[1, 3]) for name in ("recovery", "top_drop")]
    return [*(metric for metrics in by_k for metric in metrics), METRICS["lds"]]


def measured(task: str, seed: int, folder: Path, count: int, progress: bool = True) -> dict[str, Any]:
    """One task and seed: the model's accuracy, and by metric and method the mean over texts.

    Args:
        task: one of `TASKS`.
        seed: of model and texts.
        folder: where weights and studies are kept.
        count: how many texts.
        progress: whether to show a bar.
    """
    truth = learnt(task, seed, count, folder)
    metrics = metrics_of_contexts()
    study = Study(
        truth.model, truth.tokenizer, methods_of(task), metrics, level="source", target="label", batch_size=50
    )
    results = study.run(truth.examples, folder / f"{task}-{seed}.db", progress=progress)
    names = [f"{metric.name}@{metric.k}" if hasattr(metric, "k") else metric.name for metric in metrics]
    means = {
        name: {method: float(torch.tensor(values).nanmean()) for method, values in results.values(kept).items()}
        for name, kept in zip(names, results.metrics, strict=True)
    }
    return {"accuracy": truth.accuracy, "texts": len(results), **means}


def over_models(values: Sequence[float]) -> dict[str, Any]:
    """Their mean and its 95 % interval by Student's t, without an end for a single model.

    Example:
        >>> cell = over_models([0.5, 0.7])
        >>> round(cell["mean"], 2), cell["low"] < 0 < cell["high"]
        (0.6, True)
    """
    n = len(values)
    stats = required("scipy.stats", "an interval over models")
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return {"mean": mean(values), "low": mean(values) - half, "high": mean(values) + half, "models": list(values)}


def collected(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Task -> metric -> method -> mean, interval and each model's value; and the accuracies."""
    found: dict[str, Any] = {}
    for task, of in runs.items():
        metrics = [name for name in of[0] if name not in ("accuracy", "texts")]
        found[task] = {
            "accuracy": [one["accuracy"] for one in of],
            "texts": [one["texts"] for one in of],
            **{
                metric: {method: over_models([one[metric][method] for one in of]) for method in of[0][metric]}
                for metric in metrics
            },
        }
    return found


def as_table(found: Mapping[str, Any], metric: str, intervals: bool = True) -> Table:
    """One metric: a row for each method, a column for each task."""
    methods = list(dict.fromkeys(method for of in found.values() for method in of[metric]))
    rows = [(method, *(_cell(of[metric].get(method), intervals) for of in found.values())) for method in methods]
    return Table(("method", *found), tuple(rows), metric)


def _cell(cell: Mapping[str, Any] | None, intervals: bool) -> str:
    if cell is None:
        return "—"
    ends = f" [{cell['low']:.2f}, {cell['high']:.2f}]" if intervals and math.isfinite(cell["low"]) else ""
    return f"{cell['mean']:.2f}{ends}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is lacking, run what is lacking, print the tables and write the JSON."""
    asked = _parser().parse_args(arguments)
    asked.folder.mkdir(parents=True, exist_ok=True)
    runs = {
        task: [measured(task, seed, asked.folder, asked.count) for seed in range(asked.seeds)] for task in asked.task
    }
    found = collected(runs)
    for metric in (name for name in next(iter(found.values())) if name not in ("accuracy", "texts")):
        print(f"{as_table(found, metric).to_markdown()}\n")
    if asked.json:
        with replacing(asked.json) as unfinished:
            finite = json.loads(json.dumps(found), parse_constant=lambda _: None)  # JSON has no infinity
            unfinished.write_text(json.dumps(finite, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captum_norm.study.recovery",
        description="Compares methods on tasks whose evidence was planted: recovery, drops, LDS, over several models.",
        epilog="example: python -m captum_norm.study.recovery --folder planted --seeds 5 --json recovery.json",
    )
    parser.add_argument("--folder", required=True, type=Path, help="where weights and studies are kept, and resumed")
    parser.add_argument("--seeds", type=int, default=5, help="how many models of each task (5)")
    parser.add_argument("--count", type=int, default=50, help="how many texts of each (50)")
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS), help="which tasks (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    return parser


if __name__ == "__main__":
    main()
