"""What does a report of a large study cost?  Time and memory of ``captum-norm report`` and of one agreement.

    python tests/benchmarks/bench_report.py [--examples 10000] [--tokens 25] [--keep folder]

A store of made-up numbers, 11 methods by 8 metrics, written batch by batch as a study does; then the command line in
a process of its own (9,999 resamples, all checksums compared), and Kendall's agreement of words, read from the store.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from captum_norm.study import Results
from captum_norm.study.batches import Explained
from captum_norm.study.run.finished import SCORING, Cost, Finished
from captum_norm.study.run.store import Store

METHODS = [f"method {number}" for number in range(10)] + ["random"]
METRICS = [f"metric {number}" for number in range(8)]
BATCH = 50


def make(path: Path, examples: int, tokens: int) -> None:
    """A finished study's store."""
    chance = torch.Generator().manual_seed(0)
    config = {
        "model": {"class": "None"},
        "data": [{"examples": examples}],
        "methods": [{"name": name, "family": name, "choice": "", "special": "mask"} for name in METHODS],
        "metrics": [{"name": name, "arguments": {}, "higher_is_better": True, "generation": 0} for name in METRICS],
        "target": "predicted",
        "special": "mask",
        "seed": 0,
    }
    words = [[f"w{token}" for token in range(tokens)], list(range(tokens))]
    rows = [
        (e, e // BATCH, str(e), "text", None, None, json.dumps(words[0]), json.dumps(words), bytes(tokens), None)
        for e in range(examples)
    ]
    with Store(path) as store:
        store.begin(config, {"versions": {}, "run": {}}, rows)
        for batch in range(examples // BATCH):
            numbers = range(batch * BATCH, (batch + 1) * BATCH)
            zeros = torch.zeros(BATCH, dtype=torch.long)
            store.add_targets(batch, numbers, Explained(zeros, zeros, zeros.double(), (None,) * BATCH))
            for method in range(len(METHODS)):
                scores = torch.randn(BATCH, tokens, generator=chance, dtype=torch.float64)
                values = torch.randn(len(METRICS), BATCH, generator=chance, dtype=torch.float64) + method / 100
                found = {(m, e): float(values[m, i]) for m in range(len(METRICS)) for i, e in enumerate(numbers)}
                costs = {(method, SCORING): Cost(1.0)} | {(method, m): Cost(1.0) for m in range(len(METRICS))}
                kept = dict(zip(numbers, scores, strict=True))
                store.add(Finished(method, batch, numbers, costs, kept, found, metrics=tuple(range(len(METRICS)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=25)
    parser.add_argument("--keep", help="a folder for the store, which is made once")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(asked.keep or folder) / f"report-{asked.examples}-{asked.tokens}.db"
        if not path.is_file():
            make(path, asked.examples, asked.tokens)
        start = time.perf_counter()
        command = [sys.executable, "-m", "captum_norm", "report", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = f"{used.ru_utime + used.ru_stime:.0f} s of a processor"
        taken = f"{seconds:.0f} s, {processor}, peak {used.ru_maxrss / 2**20:.2f} GiB"
        print(f"report of {asked.examples} x {len(METHODS)} x {len(METRICS)}: {taken}")
        results = Results(path)
        for measure in ("kendall_tau_b", "spearman", "rank_biased_overlap", "top_k_overlap"):
            start, processor = time.perf_counter(), time.process_time()
            results.agreement(measure, level="word")
            taken = f"{time.perf_counter() - start:.0f} s, {time.process_time() - processor:.0f} s of a processor"
            print(f"agreement by {measure}: {taken}")


if __name__ == "__main__":
    main()
