"""Run every model type of transformers and write the page that says which attention is read exactly.

    python -m tests.coverage.run --output docs/coverage.md --jobs 2

Each type has a process of its own, with a limit of time and of memory.  Results are kept as JSON lines in the temporary
folder while the run goes on, so that an interrupted run goes on where it was; ``--fresh`` forgets them.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from tests.coverage.check import Result, check

MEMORY = 8 << 30  # bytes of address space per process


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    everything = list(MODEL_MAPPING_NAMES)
    unknown = sorted(set(options.only or ()) - set(everything))
    if unknown:
        print(f"No such model type in transformers {transformers.__version__}: {', '.join(unknown)}", file=sys.stderr)
        return 2
    store = options.store or Path(tempfile.gettempdir()) / "captum-norm-coverage" / f"{_versions()}.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        store.unlink(missing_ok=True)
    known = load(store)
    wanted = options.only or [t for t in everything if t not in known]
    run(wanted, store, options.jobs, options.timeout)
    known = load(store)
    results = [known[t] for t in everything if t in known]
    if options.output:
        _write(options.output, page(results))
    print(summary(results))
    return 1 if any(r.status == "wrong" for r in results) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage.run", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="the page to write, Markdown")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="run these types (again)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per type")
    parser.add_argument("--store", type=Path, help="where results are kept while running (JSON lines)")
    parser.add_argument("--fresh", action="store_true", help="forget what was kept")
    return parser.parse_args(arguments)


def run(types: Iterable[str], store: Path, jobs: int, timeout: float) -> None:
    """Each type in a forked process, at most ``jobs`` at a time; every result is appended as it comes."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    waiting, running = list(types), {}
    done, total = 0, len(waiting)
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                model_type = waiting.pop(0)
                target = Path(folder) / f"{len(waiting)}.json"
                running[_start(model_type, target)] = model_type, target, time.monotonic()
            time.sleep(0.02)
            for pid, (model_type, target, since) in list(running.items()):
                late = time.monotonic() - since > timeout
                if late:
                    os.kill(pid, signal.SIGKILL)
                if os.waitpid(pid, 0 if late else os.WNOHANG)[0]:
                    del running[pid]
                    _keep(store, model_type, target, f"it took longer than {timeout:g} s" if late else "its process died")
                    done += 1
                    print(f"\r{done}/{total} {model_type:40s}", end="", file=sys.stderr, flush=True)
    if total:
        print(file=sys.stderr)


def _start(model_type: str, target: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (closed with the process)
        target.write_text(json.dumps(asdict(check(model_type))))
    finally:
        os._exit(0)


def _keep(store: Path, model_type: str, target: Path, why: str) -> None:
    line = target.read_text() if target.exists() else json.dumps(asdict(Result(model_type, reason=why)))
    with store.open("a") as file:
        file.write(line + "\n")


def load(store: Path) -> dict[str, Result]:
    """The last result of each type."""
    if not store.exists():
        return {}
    results = (Result(**json.loads(line)) for line in store.read_text().splitlines() if line.strip())
    return {result.model_type: result for result in results}


def _versions() -> str:
    return f"transformers-{transformers.__version__}_torch-{torch.__version__}"


def _write(path: Path, text: str) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


# ----------------------------------------------------------------------------------------------------------- the page

STATUS = {
    "exact": "every attention call read exactly",
    "refused": "at least one call refused by name",
    "none": "no softmax attention in it",
    "unbuilt": "could not be built or run here",
    "overlooked": "**attention that recording did not notice**",
    "wrong": "**wrong**: a bug",
}


def summary(results: Sequence[Result]) -> str:
    counts = collections.Counter(r.status for r in results)
    return ", ".join(f"{counts[s]} {s}" for s in STATUS if counts[s]) + f", of {len(results)}"


def page(results: Sequence[Result]) -> str:
    counts = collections.Counter(r.status for r in results)
    exact = [r for r in results if r.status == "exact"]
    ran = [r for r in results if r.status != "unbuilt"]
    parts = [
        "# Which models are read exactly",
        f"Every model type in transformers' `MODEL_MAPPING` ({len(results)}), as a tiny random model, run while recording."
        f" transformers {transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}, CPU,"
        " float32. Made by\n\n```\npython -m tests.coverage.run --output docs/coverage.md\n```",
        _table(["status", "types", "meaning"], [[s, str(counts[s]), m] for s, m in STATUS.items() if s not in ("wrong", "overlooked") or counts[s]]),
        _evidence(exact, ran),
        *_grouped("Refused", [r for r in results if r.status == "refused"]),
        *_grouped("Overlooked", [r for r in results if r.status == "overlooked"]),
        *_grouped("Wrong", [r for r in results if r.status == "wrong"]),
        *_grouped("Could not be built or run", [r for r in results if r.status == "unbuilt"]),
        "## Every type",
        "*calls*: attention calls in one forward, by kind; *error*: the worst certificate, relative to the attention part;"
        " *zeroed*: calls proved by zeroing keys / calls tried; *returned*: attentions of the eager model that equal the"
        " recorded weights.",
        _table(["type", "class", "inputs", "calls", "error", "zeroed", "returned", "status"], [_row(r) for r in results]),
    ]
    return "\n\n".join(parts) + "\n"


def _evidence(exact: Sequence[Result], ran: Sequence[Result]) -> str:
    tried = sum(r.proved + r.opened for r in ran)
    held = sum("1/sigma held" in note for r in exact for note in r.notes)
    return (
        f"Outputs while recording are bit-equal to those of the same forward without recording in"
        f" {sum(r.same for r in ran)} of {len(ran)} types (torch's fused fast path switched off for both).\n\n"
        f"The exact types make {sum(r.calls for r in exact)} calls; the worst certificate error is"
        f" {max((r.worst for r in exact), default=0.0):.1e} of the attention part. The proof does not use the certificate:\n\n"
        f"* *A key is zeroed inside the running model*, one level below where recording looks: what the output projection"
        f" then lacks is the record's own vector, in {sum(r.proved for r in ran)} of the {tried} calls tried"
        f" (worst difference {max((r.proof_error for r in ran), default=0.0):.1e} of the output;"
        f" {sum(r.opened for r in ran)} calls could not be tried, {sum(len(r.wrong) for r in ran)} disagreed)."
        f" In {held} types 1/σ of a norm between attention and W_O was held at its value, as a record holds it.\n"
        f"* *Returned attentions*: {sum(r.attentions[0] for r in ran)} attention tensors that the eager models return equal"
        f" the recorded weights to 1e-5, {sum(r.attentions[1] for r in ran)} do not.\n"
        f"* *Nothing is overlooked*: no exact type computes more weighted means than it has recorded calls, and no type"
        f" without attention computes any."
    )


def _grouped(title: str, results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for r in results:
        groups[_reason(r)].append(r.model_type)
    rows = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [f"## {title}", _table(["types", "reason", "which"], [[str(len(t)), why, ", ".join(t)] for why, t in rows])]


def _reason(result: Result) -> str:
    """Without the names of modules, so that equal reasons are counted together."""
    reason = result.reason
    return reason.split("): ", 1)[1] if result.status == "refused" and "): " in reason else reason


def _row(r: Result) -> list[str]:
    if r.status == "unbuilt":
        return [r.model_type, r.cls, "", "", "", "", "", f"unbuilt: {r.reason}"]
    calls = ", ".join(f"{n} {kind}" for kind, n in r.kinds.items()) + (f" ({r.gated} gated)" if r.gated else "")
    notes = "; ".join(r.notes)
    status = r.status if r.status in ("exact", "none") else f"{r.status}: {_reason(r)}"
    return [
        r.model_type, r.cls, r.inputs, calls, f"{r.worst:.1e}" if r.calls else "",
        f"{r.proved}/{r.proved + r.opened}" if r.calls else "", str(r.attentions[0] or ""),
        status + (f" ({notes})" if notes else ""),
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("__", "\\_\\_")


if __name__ == "__main__":
    sys.exit(main())
