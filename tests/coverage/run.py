"""Run every model type of transformers and write the page that says which attention is read exactly.

    python -m tests.coverage.run --output docs/coverage.md --jobs 2

Each type has a process of its own, with a limit of time and of memory.  Results are kept as JSON lines in the temporary
folder while the run goes on, under the code that gave them, so that an interrupted run goes on where it was;
``--fresh`` forgets them.  The exit status tells of the types that were asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import captum_norm
from tests.coverage.check import Result, check
from tests.coverage.page import libraries_part, page, summary
from tests.coverage.refusals import answered_anyway

MEMORY = 8 << 30  # bytes of address space per process


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    everything = every_type()
    unknown = sorted(set(options.only or ()) - set(everything))
    if unknown:
        print(f"No such model type in transformers {transformers.__version__}: {', '.join(unknown)}", file=sys.stderr)
        return 2
    store = options.store or kept("types")
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
    for name in answered_anyway({r.model_type: r.answers for r in results if r.answers}):
        print(f"{name} is told to be refused, and has an answer")
    return 1 if any(known[t].status == "wrong" for t in options.only or known) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage.run", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="the page to write, Markdown")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="run these types (again)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per type")
    parser.add_argument("--store", type=Path, help="where results are kept while running (JSON lines)")
    parser.add_argument("--fresh", action="store_true", help="forget what was kept")
    return parser.parse_args(arguments)


def run(
    types: Iterable[str], store: Path, jobs: int, timeout: float, examine: Callable[[str], Any] = check,
    result: Callable[..., Any] = Result, minutes: float | None = None,
) -> None:  # fmt: skip
    """Each type in a forked process, at most ``jobs`` at a time; every result is appended as it comes.

    Args:
        types, store, jobs, timeout: as the options say.
        examine: what is done with a type; a dataclass of the kind of ``result`` comes of it.
        minutes: after which no type is started.
    """
    end = time.monotonic() + 60 * (float("inf") if minutes is None else minutes)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    waiting, running = list(types), {}
    done, total = 0, len(waiting)
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            waiting = waiting if time.monotonic() < end else []
            while waiting and len(running) < jobs:
                model_type = waiting.pop(0)
                target = Path(folder) / f"{len(waiting)}.json"
                running[_start(model_type, target, examine, result)] = model_type, target, time.monotonic()
            time.sleep(0.02)
            for pid, (model_type, target, since) in list(running.items()):
                late = time.monotonic() - since > timeout
                if late:
                    os.kill(pid, signal.SIGKILL)
                if os.waitpid(pid, 0 if late else os.WNOHANG)[0]:
                    del running[pid]
                    why = f"it took longer than {timeout:g} s" if late else "its process died"
                    _keep(store, target, result(model_type, reason=why))
                    done += 1
                    print(f"\r{done}/{total} {model_type:40s}", end="", file=sys.stderr, flush=True)
    if total:
        print(file=sys.stderr)


def _start(model_type: str, target: Path, examine: Callable[[str], Any], result: Callable[..., Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (closed with the process)
        target.write_text(json.dumps(asdict(examine(model_type))))
    except Exception as error:  # the check's own fault: never to be taken for a process that died
        failed = result(model_type, reason=f"the check failed: {error!r}")
        if isinstance(failed, Result):
            failed.status = "wrong"
        else:
            failed.different = [failed.reason]
        target.write_text(json.dumps(asdict(failed)))
    finally:
        os._exit(0)


def _keep(store: Path, target: Path, otherwise: Any) -> None:
    line = target.read_text() if target.exists() else json.dumps(asdict(otherwise))
    with store.open("a") as file:
        file.write(line + "\n")


def load(store: Path, result: Callable[..., Any] = Result) -> dict[str, Any]:
    """The last result of each type, of the kind of ``result``."""
    if not store.exists():
        return {}
    results = (result(**json.loads(line)) for line in store.read_text().splitlines() if line.strip())
    return {one.model_type: one for one in results}


def every_type() -> list[str]:
    """The types of this version of transformers."""
    return list(MODEL_MAPPING_NAMES)


def kept(what: str) -> Path:
    """Where results are kept: those of other code or of other versions of transformers and torch are other files."""
    code = hashlib.sha256()
    for folder in (Path(captum_norm.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            code.update(file.read_bytes())
    versions = f"transformers-{transformers.__version__}_torch-{torch.__version__}"
    name = f"{what}_{versions}_{code.hexdigest()[:12]}.jsonl"
    return Path(tempfile.gettempdir()) / "captum-norm-coverage" / name


def _write(path: Path, text: str) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
