"""How is a plan carried out?  Batch by batch, by one process or several, into a store that survives a kill."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from captum_norm.study.batches import explain, padded, with_places, with_target
from captum_norm.study.metrics.answers import answers_with_a_place
from captum_norm.study.run.fingerprints import circumstances, versions
from captum_norm.study.run.plan import Plan
from captum_norm.study.run.processes import Processes, parts_of, processes_of
from captum_norm.study.run.store import Store

_Share = Sequence[tuple[int, Sequence[tuple[int, list[int] | None]]]]


def carry_out(plan: Plan, path: Path, progress: bool) -> None:
    """Run what the store does not hold yet.

    Raises:
        StoreMismatchError: if the store belongs to another study.
        OSError: if it cannot be written; what was finished is kept.
    """
    processes = processes_of(plan.runner.forward.model)
    if processes.first:
        with Store(path) as whole:
            begin(whole, plan)
            _take_in_parts(whole, plan)
    processes.wait()
    _work(plan, path, processes, progress)
    processes.wait()
    if processes.first and processes.size > 1:
        with Store(path) as whole:
            _take_in_parts(whole, plan)
    processes.wait()


def begin(whole: Store, plan: Plan) -> None:
    """Write what the study is, or check that it is the one that the store holds, or adds to it."""
    whole.begin(plan.config, {"versions": versions(), "run": circumstances()}, plan.rows())


def _work(plan: Plan, path: Path, processes: Processes, progress: bool) -> None:
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
                _batch(plan, number, missing, own, path, bar)


def _batch(
    plan: Plan, number: int, missing: Sequence[tuple[int, list[int] | None]], own: Store, path: Path, bar: Any
) -> None:
    runner = plan.runner
    batch = padded(number, plan.batches[number], runner.pad)
    if answers_with_a_place(runner.forward.model):
        batch = with_places(batch)
    explained = explain(batch, runner.forward, plan.labels, plan.config["target"])
    own.add_targets(number, batch.numbers, explained)
    batch = with_target(batch, explained.target, explained.foil)
    for method, metrics in missing:
        bar.set_postfix_str(runner.scorers[method].name, refresh=False)
        scores = None
        if metrics is not None:
            with Store(path, readonly=True) as whole:
                scores = whole.scores(method, number)
        own.add(runner.run(method, batch, metrics, scores))
        bar.update(len(batch))


def _take_in_parts(whole: Store, plan: Plan) -> None:
    """Put what processes have left beside the store into it."""
    for part in parts_of(whole.path):
        with Store(part) as other:
            other.begin(plan.config, {}, plan.rows())
        whole.take_in(part)
        part.unlink()


def _bar(plan: Plan, share: _Share, processes: Processes, progress: bool) -> Any:
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
