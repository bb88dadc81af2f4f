"""Run every model type of transformers and write the page that says which attention is read exactly.

    python -m tests.coverage.run --output docs/coverage.md --jobs 2

Each type has a process of its own, with a limit of time and of memory.  Results are kept as JSON lines in the temporary
folder while the run goes on, so that an interrupted run goes on where it was; ``--fresh`` forgets them.
"""

from __future__ import annotations

import argparse
import json
import os
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
from tests.coverage.page import libraries_part, page, summary

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
        before = options.output.read_text() if options.output.exists() else ""
        _write(options.output, page(results) + libraries_part(before))
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
                    _keep(
                        store, model_type, target, f"it took longer than {timeout:g} s" if late else "its process died"
                    )
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
    except Exception as error:  # the check's own fault: never to be taken for a process that died
        target.write_text(json.dumps(asdict(Result(model_type, status="wrong", reason=f"the check failed: {error!r}"))))
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


if __name__ == "__main__":
    sys.exit(main())
