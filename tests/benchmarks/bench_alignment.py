"""What alignment costs beside the model's own teacher-forced forward passes, on the embedded translation model.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_alignment --source test.de --target test.en [--repeats 5]

The forward passes are those of the whole model on the same batches, their inputs ready made; alignment includes cutting
words into pieces, batching, reading, merging and linking.  Processor time, interleaved, medians of ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from captum_norm.alignment import METHODS, read_sentences
from captum_norm.alignment.batches import PairEncoder
from captum_norm.alignment.embedded import embedded_aligner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["norm", "weights", "block_norm", "alti", "rollout"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pairs = read_sentences(asked.source, asked.target)
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    aligners = {name: embedded_aligner(name) for name in asked.methods if name in METHODS}
    first = next(iter(aligners.values()))
    teacher = PairEncoder(first.model, first.tokenizer)
    inputs = [batch.inputs for batch in teacher.batches(teacher.encode(sources, targets), first.batch_size)]

    @torch.no_grad()
    def forward() -> None:
        for one in inputs:
            first.model(**one)

    functions: dict[str, Callable[[], object]] = {"forward": forward}
    functions |= {name: lambda a=aligner: a.align(sources, targets) for name, aligner in aligners.items()}
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(asked.repeats + 1):  # the first round makes what is kept per parameter
        for name, function in functions.items():
            start = time.process_time()
            function()
            taken[name].append(time.process_time() - start)
    print(f"{len(pairs)} pairs: forward passes {statistics.median(taken['forward'][1:]):.2f} s")
    for name in aligners:
        ratio = statistics.median(t / f for t, f in zip(taken[name][1:], taken["forward"][1:], strict=True))
        print(f"{name:14} {ratio:.2f} times the forward passes")


if __name__ == "__main__":
    main()
