"""The tables of ``docs/benchmarks.md``, measured anew: one command, at most twenty minutes of one core.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_page [--json rows.json] [--page docs/benchmarks.md]

Both files are written after each setting, so that what was measured stays when the run is cut short; what has not begun
after ``--minutes`` is named on the page as not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from captum_norm.cli.loading import Loaded
from captum_norm.cli.tokens import _batches, _count
from captum_norm.files import replacing
from captum_norm.models import load_sentiment
from tests.benchmarks.bench_length import above_the_forward
from tests.benchmarks.bench_rows import Setting, bert_rows, generation_rows, rows
from tests.benchmarks.bench_study import sentences
from tests.benchmarks.measuring import in_a_process
from tests.benchmarks.tables_of_rows import tables

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
SEQUENCES = 1000


def ratio_of_tokens(sequences: int) -> float:
    """What ``captum-norm tokens`` takes beside the embedded model's own passes, on sequences of about 70 tokens."""
    torch.set_num_threads(1)
    model, tokenizer = load_sentiment()
    loaded = Loaded(model, tokenizer, "the sentiment model", "classes")
    words = iter(sentences(4 * sequences))
    texts = [" ".join(next(words) for _ in range(4)) for _ in range(sequences)]
    _count(loaded, texts[:8], 512, 8)
    start = time.process_time()
    with torch.no_grad():
        for encoding in _batches(loaded, texts, 512, 8):
            model(**encoding)
    own = time.process_time() - start
    start = time.process_time()
    _count(loaded, texts, 512, 8)
    return (time.process_time() - start) / own


def throughput(sequences: int) -> list[dict[str, Any]]:
    """The line of ``captum-norm tokens``."""
    ratio = in_a_process(ratio_of_tokens, sequences)
    return [{"method": "captum-norm tokens", "sequences": sequences, "ratio": ratio}]


def curve(*lengths: int) -> list[dict[str, Any]]:
    """The memory of a token at several lengths, of one layer."""
    found = {length: in_a_process(above_the_forward, length) for length in lengths}
    return [{"method": "memory", "tokens": length, "MiB": of} for length, of in found.items()]


# What is measured, its arguments, and how it is told of.
PLAN: list[tuple[Callable[..., list[dict[str, Any]]], tuple[Any, ...]]] = [
    (rows, (Setting(512, "sdpa", "float32", 1), 4, 3)),
    (rows, (Setting(2048, "sdpa", "float32", 1), 2, 3)),
    (bert_rows, (128, "sdpa", 5)),
    (bert_rows, (512, "sdpa", 3)),
    (bert_rows, (128, "eager", 5)),
    (bert_rows, (512, "eager", 3)),
    (generation_rows, (1024, 4, 2)),
    (rows, (Setting(4096, "sdpa", "float32", 1), 2, 3)),
    (rows, (Setting(8192, "sdpa", "float32", 1), 2, 2)),
    (throughput, (SEQUENCES,)),
    (rows, (Setting(128, "sdpa", "float32", 1), 4, 3)),
    (rows, (Setting(16384, "sdpa", "float32", 1), 1, 1)),
    (curve, (8192, 16384, 32768, 65536)),
    (rows, (Setting(512, "eager", "float32", 1), 4, 1)),
    (rows, (Setting(512, "sdpa", "bfloat16", 1), 2, 1)),
    (rows, (Setting(512, "sdpa", "float32", 8), 2, 1)),
]

TRIAL: list[tuple[Callable[..., list[dict[str, Any]]], tuple[Any, ...]]] = [
    (rows, (Setting(16, "sdpa", "float32", 1), 1, 1)),
    (bert_rows, (16, "sdpa", 1)),
    (throughput, (8,)),
    (curve, (64, 128)),
]


def as_page(found: list[dict[str, Any]], seconds: float, left: list[str]) -> str:
    """The part of the page that is measured; ``left``: what is not."""
    measured = sorted((row for row in found if "length" in row), key=lambda row: row["dtype"] != "float32")
    measured.sort(key=lambda row: (row["batch"], row["dtype"] != "float32", row["attention"] != "sdpa", row["length"]))
    parts = [tables(measured)]
    for row in found:
        if "sequences" in row:
            parts.append(
                f"`{row['method']}` on {row['sequences']:,} sequences: {row['ratio']:.2f} times the model's own "
                f"passes, so {1 / row['ratio']:.0%} of its throughput (goal 65%)."
            )
    lengths = [row for row in found if "MiB" in row]
    if lengths:
        names = list(lengths[0]["MiB"])
        lines = ["| MiB for 1,024 tokens, one layer | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
        for row in lengths:
            lines.append(f"| {row['tokens']:,} | " + " | ".join(f"{row['MiB'][name]:.2f}" for name in names) + " |")
        parts.append("\n".join(lines))
    if left:
        parts.append("Not measured in this run: " + "; ".join(left) + ".")
    parts.append(f"Measured in {seconds / 60:.0f} minutes, at a load of {os.getloadavg()[0]:.1f}.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--page", type=Path, help=f"a page that has a line {BEGIN.strip()!r} and one {END.strip()!r}")
    parser.add_argument("--only", type=int, nargs="+", help="which lines of the plan, from 0; all by default")
    parser.add_argument("--minutes", type=float, default=20, help="begin nothing after this")
    parser.add_argument("--trial", action="store_true", help="small sizes: whether it runs, not what it costs")
    asked = parser.parse_args()
    if asked.page and not asked.page.is_file():
        parser.error(f"--page: there is no {asked.page}")
    start, found, left = time.time(), [], []
    for number, (measure, arguments) in enumerate(TRIAL if asked.trial else PLAN):
        if asked.only is not None and number not in asked.only:
            continue
        began = time.time()
        if began - start > 60 * asked.minutes:
            left.append(" ".join(map(str, (measure.__name__, *arguments))))
            continue
        found += measure(*arguments)
        print(measure.__name__, *arguments, f"{time.time() - began:.0f} s", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")
        if asked.page:
            _write(asked.page, as_page(found, time.time() - start, left))
    if left and asked.page:
        _write(asked.page, as_page(found, time.time() - start, left))
    print(as_page(found, time.time() - start, left))


def _write(page: Path, written: str) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    with replacing(page) as unfinished:
        unfinished.write_text(before + BEGIN + "\n" + written + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
