"""Do the tests of studies hold their level, their intervals their coverage, and what does a large report cost?

    python tests/benchmarks/bench_statistics.py [--tables 300] [--examples 10000] [--store films.db]

Differences are drawn without any effect, from a normal, an exponential (skewed) and a mostly-zero distribution, and
with ``--store`` from the differences of all pairs of methods in a study, each pair by a metric centred at 0.  Printed
are: how often Holm's correction over 11 tests finds something (family-wise error, nominal 0.05), how often the 95%
intervals of means hold the true one, and how often the test of equivalence finds methods level whose difference is the
margin (nominal 0.05 at most).  The last line is the time of a whole table of 11 methods and 8 metrics.
"""

import argparse
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np

from captum_norm.study import Results
from captum_norm.study.report.cells import Statistics, cells_of
from captum_norm.study.report.statistics import (
    bootstrap_interval,
    equivalence_test,
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


def intervals_and_margins(draw: Callable, n: int, tables: int) -> tuple[float, float, float]:
    """How often either interval holds the true mean, 0, and how often a mean of the margin is found within it."""
    generator = np.random.default_rng(n)
    held = []
    for _ in range(tables * METHODS):
        values = draw(generator, n)
        studentised = bootstrap_interval(values, resamples=RESAMPLES)
        bca = bootstrap_interval(values, resamples=RESAMPLES, kind="bca")
        level = equivalence_test(values + 0.5, np.zeros(n), 0.5, resamples=RESAMPLES).p < 0.05
        held.append([studentised.low <= 0 <= studentised.high, bca.low <= 0 <= bca.high, level])
    return tuple(np.mean(held, axis=0).tolist())


def real_draw(path: str) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Draws from the centred differences of a study's methods, of a random pair by a random metric each time."""
    results = Results(path)
    differences = []
    for metric in results.metrics:
        for a, b in combinations([of for name, of in results.values(metric).items() if name != "oracle"], 2):
            kept = (a - b)[~np.isnan(a - b)]
            if len(kept) > 1 and np.ptp(kept) > 1e-9:
                differences.append((kept - kept.mean()) / kept.std())
    return lambda generator, n: generator.choice(differences[generator.integers(len(differences))], n)


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
    parser.add_argument("--store", help="a study, for real differences")
    asked = parser.parse_args()
    draws = DRAWS | ({"real": real_draw(asked.store)} if asked.store else {})
    print("n    differences  bootstrap  permutation  studentised interval  BCa interval  equivalence")
    for n in (20, 50, 200):
        for name, draw in draws.items():
            errors = [family_wise_error(test, draw, n, asked.tables) for test in TESTS.values()]
            held = intervals_and_margins(draw, n, max(1, asked.tables // 3))
            shown = zip([*errors, *held], (10, 12, 21, 13, 0), strict=True)
            print(f"{n:<4} {name:<12}", *(f"{of:<{width}.3f}" for of, width in shown), flush=True)
    print(f"a table of {asked.examples} examples: {seconds_of_a_table(asked.examples):.0f} s")


if __name__ == "__main__":
    main()
