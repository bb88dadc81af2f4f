"""What DecompX costs beside a plain forward of the same model: time at several lengths, and how its memory grows.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_decompx [--lengths 128 512 2048] [--repeats 5] [--layers 12]

A BERT-base-shaped classifier (random weights, one example) under SDPA, one thread, everything in one process and
interleaved; medians of ratios of processor time.  Memory: the peak of the process while attribute() runs, beyond what
it held before, each length in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from captum_norm.attr.decompx import DecompX


def classifier(length: int, layers: int) -> BertForSequenceClassification:
    config = BertConfig(
        attn_implementation="sdpa", max_position_embeddings=max(512, length), num_hidden_layers=layers, num_labels=2
    )
    return BertForSequenceClassification(config).eval()


def ratio(plain: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds of ``plain`` and the median ratio of ``other`` to it, measured in turn."""
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 1):  # the first round warms up
        both = []
        for function in (plain, other):
            start = time.process_time()
            function()
            both.append(time.process_time() - start)
        times.append((both[0], both[1]))
    times = times[1:]
    return statistics.median(t[0] for t in times), statistics.median(t[1] / t[0] for t in times)


def peak(length: int, layers: int) -> float:
    """MiB that attribute() takes at its peak beyond what the process held before."""
    model, ids = classifier(length, layers), torch.randint(999, (1, length))
    with torch.no_grad():
        model(ids[:, :8])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins to count here
    before = _kib("VmRSS")
    DecompX(model).attribute(ids, target=1)
    return (_kib("VmHWM") - before) / 1024


def _kib(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 512, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--peak", type=int, help="print the peak memory at this length and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print(peak(given.peak, given.layers))
        return
    for length in given.lengths:
        model, ids = classifier(length, given.layers), torch.randint(999, (1, length))
        method = DecompX(model)

        @torch.no_grad()
        def plain(model: torch.nn.Module = model, ids: torch.Tensor = ids) -> object:
            return model(ids)

        def ours(method: DecompX = method, ids: torch.Tensor = ids) -> object:
            return method.attribute(ids, target=1)

        seconds, times = ratio(plain, ours, given.repeats)
        print(f"L = {length}: forward {1000 * seconds:.0f} ms, DecompX {times:.2f} times that", flush=True)
    command = [sys.executable, "-m", "tests.benchmarks.bench_decompx", "--layers", str(given.layers), "--peak"]
    peaks = {n: float(subprocess.check_output([*command, str(n)])) for n in (512, 2048)}
    print(f"peak memory beyond the model: {peaks[512]:.0f} MiB at L = 512, {peaks[2048]:.0f} MiB at 2048: "
          f"{peaks[2048] / peaks[512]:.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
