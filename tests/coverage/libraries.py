"""Models of seventeen libraries: their attention proved one level below, and how many of eight methods answer.

    python -m tests.coverage.libraries --output docs/coverage.md

The libraries are an extra of their own (``pip install captum-norm[libraries]``); litgpt (with lightning) and
transformer-lens ask for older packages and are installed beside them with ``--no-deps``, as are fair-esm, diffusers,
perceiver-pytorch, conformer and local-attention.  What is missing is passed over.  ``libraries_before.json`` has how
many methods answered when the page was made first, or before a model that was added later.
The page is the second part of the coverage page: what stands before it stays.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from captum_norm.capture import InexactCaptureError, recording
from captum_norm.forward.one_mapping import by_keywords
from captum_norm.proof import Finding, Prover
from tests.coverage.library_models import Example, examples
from tests.coverage.methods import METHODS, asked, line, missing
from tests.coverage.page import LIBRARIES, cell

MOST_PROVED = 4
BEFORE = Path(__file__).parent / "libraries_before.json"


@dataclass
class Found:
    """What became of one model: its calls, what was proved of them, and each method's refusal ("": it answered)."""

    library: str
    name: str
    calls: int = 0
    blocks: int = 0
    refused: list[str] = field(default_factory=list)
    proved: int = 0
    opened: int = 0
    wrong: list[str] = field(default_factory=list)
    error: float = 0.0
    answers: dict[str, str] = field(default_factory=dict)
    unbuilt: str = ""

    @property
    def answered(self) -> int:
        return sum(not answer for answer in self.answers.values())

    @property
    def exact(self) -> bool:
        return bool(self.calls) and not self.refused and not self.wrong


def look(library: str, name: str, make: Callable[[], Example]) -> Found:
    """Build a model, prove its attention, and ask each method."""
    found = Found(library, name)
    try:
        torch.manual_seed(0)
        example = make()
        with torch.no_grad():
            by_keywords(example.forward)(example.given)
    except Exception as error:
        found.unbuilt = line(error)
        return found
    _prove(example, found)
    for method in METHODS:
        found.answers[method] = asked(method, example.forward, example.given, example.target)
    return found


def _prove(example: Example, found: Found) -> None:
    forward, refused = by_keywords(example.forward), list[InexactCaptureError]()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        sources = (example.given,)
        with (
            torch.no_grad(),
            recording(sources=sources, model=example.model, on_inexact=refused.append, blocks=True) as records,
        ):
            forward(example.given)
        found.calls, found.refused = len(records), [str(error) for error in refused]
        found.blocks = sum(record.block is not None for record in records)
        generator = torch.Generator().manual_seed(0)
        prover = Prover(example.model, lambda: forward(example.given))
        chosen = torch.randperm(len(records), generator=generator)[:MOST_PROVED].tolist()
        findings: list[Finding] = [prover.prove(records[i], generator) for i in sorted(chosen)]
        found.proved = sum(finding.status == "proved" for finding in findings)
        found.opened = sum(finding.status == "open" for finding in findings)
        found.wrong = [f"{finding.name}: {finding.error:.1e}" for finding in findings if finding.status == "wrong"]
        found.error = max((finding.error or 0.0 for finding in findings), default=0.0)
    except Exception as error:
        found.refused.append(f"{line(error)} ({traceback.extract_tb(error.__traceback__)[-1].name})")
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def page(results: Sequence[Found]) -> str:
    """The second part of the coverage page, Markdown."""
    ran = [found for found in results if not found.unbuilt and (found.calls or found.refused)]
    proved, opened = sum(f.proved for f in ran), sum(f.opened for f in ran)
    lines = [
        LIBRARIES, "",
        f"{len(ran)} tiny random models of {len({f.library: f for f in ran})} libraries, proved as above. Made by",
        "", "```bash", "python -m tests.coverage.libraries --output docs/coverage.md", "```", "",
        f"* **Read.** {sum(f.exact for f in ran)} of {len(ran)} in every call.",
        f"* **Proved one level below.** {proved} of {proved + opened + sum(len(f.wrong) for f in ran)} calls tried "
        f"(largest difference {max((f.error for f in ran), default=0.0):.1e} of the output; {opened} could not be "
        f"tried, {sum(len(f.wrong) for f in ran)} disagreed).",
        f"* **Answered.** {sum(f.answered == len(METHODS) for f in ran)} models by all eight methods "
        f"({', '.join(METHODS)}); before: how many did when it was first made.", "",
        "| library | models | every call read | calls proved | all eight methods | methods, mean |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    by_library: dict[str, list[Found]] = defaultdict(list)
    for found in ran:
        by_library[found.library].append(found)
    for library, group in by_library.items():
        tried = sum(f.proved + f.opened + len(f.wrong) for f in group)
        mean = sum(f.answered for f in group) / len(group)
        lines.append(
            f"| {library} | {len(group)} | {sum(f.exact for f in group)} | {sum(f.proved for f in group)}/{tried} | "
            f"{sum(f.answered == len(METHODS) for f in group)} | {mean:.1f} |"
        )
    lines += [
        "",
        "| library | model | calls | proved | blocks | before | methods | who does not answer |", "|" + " --- |" * 8,
    ]  # fmt: skip
    before = json.loads(BEFORE.read_text())
    lines += [_row(found, before.get(f"{found.library}: {found.name}")) for found in ran]
    return "\n".join(lines) + "\n"


def _row(found: Found, before: int | None) -> str:
    refused = f" ({len(found.refused)} refused)" if found.refused else ""
    return (
        f"| {found.library} | {cell(found.name)} | {found.calls}{refused} | {found.proved} | {found.blocks} | "
        f"{'' if before is None else before} | {found.answered} | "
        f"{cell(missing(found.answers))} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage.libraries", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="the page whose second part is written, Markdown")
    parser.add_argument("--only", nargs="+", metavar="LIBRARY", help="these libraries")
    parser.add_argument("--store", type=Path, help="results so far, JSON lines: an interrupted run goes on")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    known = {(f.library, f.name): f for f in _load(options.store)}
    results = []
    for library, name, make in examples():
        if options.only and library not in options.only:
            continue
        found = known.get((library, name)) or look(library, name, make)
        results.append(found)
        if options.store and (library, name) not in known:
            with options.store.open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")
        print(f"{library:22s} {name:38s} {found.calls} calls, {found.proved} proved, {found.answered} of 8 "
              f"{found.unbuilt or ' '.join(found.wrong)}", file=sys.stderr)  # fmt: skip
    if options.output:
        before = options.output.read_text().partition(LIBRARIES)[0].rstrip() + "\n\n" if options.output.exists() else ""
        options.output.write_text(before + page(results))
    return int(any(found.wrong for found in results))


def _load(store: Path | None) -> Iterable[Found]:
    if store is None or not store.exists():
        return []
    return [Found(**json.loads(line)) for line in store.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
