"""Do the tests of studies hold their level, their intervals their coverage, and what does a large report cost?

    python tests/benchmarks/bench_statistics.py [--tables 300] [--examples 10000]

Differences are drawn without any effect, from a normal, an exponential (skewed) and a mostly-zero distribution.
Printed are: how often Holm's correction over 11 tests finds something (family-wise error, nominal 0.05), and how often
the 95% intervals of means hold the true one.  The last line is the time of a whole table of 11 methods and 8 metrics.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from captum_norm.study.report.cells import Statistics, cells_of
from captum_norm.study.report.statistics import (
    bootstrap_interval,
    holm,
    paired_bootstrap_test,
    paired_permutation_test,
)

METHODS, METRICS, RESAMPLES = 11, 8, 999
DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda generator, n: generator.normal(size=n),
    "skewed": lambda generator, n: generator.exponential(size=n) - 1,
    "sparse": lambda generator, n: (generator.random(n) < 0.2) * generator.exponential(size=n) - 0.2,
}
TESTS = {"bootstrap": paired_bootstrap_test, "permutation": paired_permutation_test}


def family_wise_error(test: Callable, draw: Callable, n: int, tables: int) -> float:
    """In what share of tables without any effect something is found."""
    generator = np.random.default_rng(n)
    zeros = np.zeros(n)
    p_values = [
        [test(draw(generator, n), zeros, resamples=RESAMPLES).p for _ in range(METHODS)] for _ in range(tables)
    ]
    return float(np.mean([np.nanmin(holm(row)) < 0.05 for row in p_values]))


def coverage(draw: Callable, n: int, tables: int, interval: Callable) -> float:
    """How often an interval holds the true mean, 0."""
    generator = np.random.default_rng(n)
    intervals = [interval(draw(generator, n)) for _ in range(tables * METHODS)]
    return float(np.mean([low <= 0 <= high for low, high in intervals]))


def bca(values: np.ndarray) -> tuple[float, float]:
    of_mean = bootstrap_interval(values, resamples=RESAMPLES)
    return of_mean.low, of_mean.high


def studentised(values: np.ndarray) -> tuple[float, float]:
    test = paired_bootstrap_test(values, np.zeros(len(values)), resamples=RESAMPLES)
    return test.low, test.high


def seconds_of_a_table(examples: int) -> float:
    generator = np.random.default_rng(0)
    methods = [f"method {number}" for number in range(METHODS)]
    values = {
        f"metric {number}": {name: generator.normal(size=examples) for name in methods} for number in range(METRICS)
    }
    start = time.perf_counter()
    cells_of(values, methods[0], Statistics(resamples=10_000))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=300, help="how many tables without an effect")
    parser.add_argument("--examples", type=int, default=10_000, help="of the table that is timed")
    asked = parser.parse_args()
    print("n    differences  bootstrap  permutation  BCa of means  interval of differences")
    for n in (20, 50, 200):
        for name, draw in DRAWS.items():
            errors = [family_wise_error(test, draw, n, asked.tables) for test in TESTS.values()]
            held = [coverage(draw, n, asked.tables, interval) for interval in (bca, studentised)]
            print(f"{n:<4} {name:<12} {errors[0]:<10.3f} {errors[1]:<12.3f} {held[0]:<13.3f} {held[1]:.3f}", flush=True)
    print(f"a table of {asked.examples} examples: {seconds_of_a_table(asked.examples):.0f} s")


if __name__ == "__main__":
    main()
