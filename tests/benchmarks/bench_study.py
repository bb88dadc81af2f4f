"""What does a study cost beside its methods and metrics?  Wall-clock time of the whole run, and what of it is neither.

    python tests/benchmarks/bench_study.py [--examples 24]

The embedded sentiment model on made-up sentences.  Everything a study does is counted, from the model's fingerprint
to the last commit and the reading of the results; the forward that finds what is explained is overhead, too.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch

from captum_norm.models import load_sentiment
from captum_norm.study import Study

METHODS = ["AttentionNorm", "AttentionRollout", "Saliency", "InputXGradient", "FeatureAblation"]
METRICS = ["comprehensiveness", "sufficiency", "aopc_comprehensiveness", "log_odds"]
WORDS = "a the film plot cast is and but warm dull moving thin great never quite delightful tired ending music".split()


def sentences(count: int) -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randint(6, 30))) + "." for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=24)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(*load_sentiment(), METHODS, METRICS)
    with tempfile.TemporaryDirectory() as folder:
        study.run(sentences(2), Path(folder) / "warm.db", progress=False)
        start = time.perf_counter()
        results = study.run(sentences(asked.examples), Path(folder) / "study.db", progress=False)
        whole = time.perf_counter() - start
        costs = results.costs().values()
    inside = asked.examples * sum(cost.seconds + cost.metric_seconds for cost in costs)
    methods = asked.examples * sum(cost.seconds for cost in costs)
    print(f"{asked.examples} examples, {len(results.methods)} methods, {len(METRICS)} metrics: {whole:.2f} s")
    print(f"methods {methods:.2f} s, metrics {inside - methods:.2f} s, the study's own {whole - inside:.2f} s")
    print(f"overhead {(whole - inside) / inside:.1%} of methods and metrics")


if __name__ == "__main__":
    main()
