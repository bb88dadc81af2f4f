"""Do intervals hold what they should, and do tests find nothing where there is nothing?  Studies of made-up numbers.

    python -m captum_norm.study.report.simulations [--tables 400] [--examples 20 50 200] [--store films.db]

Every interval and every test that a report offers is tried on tables whose truth is known: 11 methods against a
reference by 8 metrics, differences normal, exponential (skewed) or mostly zero (sparse), and with ``--store`` those of
a study: all methods together, each shifted so that none differs, and its examples drawn anew.  Printed are, as rows of
Markdown,

- how often Holm's correction over the tests of a metric, and over the whole table, finds something (nominal 0.05), by
  the studentised bootstrap and by flipping signs; how often a pair is told apart in groups, with Holm's over all pairs
- how often methods are found level whose difference is the margin (nominal 0.05, each by itself)
- how often 95 % intervals hold the truth: of means and differences (one computation) by the studentised bootstrap and
  BCa, the 90 % interval of the equivalence test, and those of ranks, of methods that differ by a fifth of the
  standard deviation, and of methods that are all the same
- how many examples `Results.needed_examples` names for a difference that a t-test would find in so many, and how often
  that many star it (nominal 0.8)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from captum_norm.study.report.cells import Cell, Statistics, cells_of, complete_cases
from captum_norm.study.report.effects import needed_examples
from captum_norm.study.report.measured import Measured
from captum_norm.study.report.stability import critical_groups, rank_intervals
from captum_norm.study.report.statistics import bootstrap_interval, equivalence_test, holm, paired_permutation_test
from captum_norm.study.variants import ORACLE, RANDOM

Numbers: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = Callable[[np.random.Generator, int], Numbers]
"""(generator, n) -> (method, n): differences to the reference, all of mean 0 and a standard deviation of about 1."""

METHODS, METRICS = 11, 8
_LEVEL = 0.05
_SMALL = 0.2  # of the standard deviation, between neighbours in rank


def _alike(shape: Callable[[np.random.Generator, tuple[int, int]], Numbers]) -> Draw:
    return lambda generator, n: shape(generator, (METHODS, n))


def _sparse(generator: np.random.Generator, size: tuple[int, int]) -> Numbers:
    drawn = (generator.random(size) < 0.2) * generator.exponential(size=size) - 0.2
    return drawn / 0.6  # its standard deviation


DRAWS: dict[str, Draw] = {
    "normal": _alike(lambda generator, size: generator.normal(size=size)),
    "skewed": _alike(lambda generator, size: generator.exponential(size=size) - 1),
    "sparse": _alike(_sparse),
}


def real_draw(path: str | Path) -> Draw:
    """Draws of a study's differences: a metric and a reference at random, every method shifted to the reference's mean.

    Args:
        path: a study's store; the oracle takes no part, and where there are too few methods some stand more than once.

    Raises:
        ValueError: if no metric has two methods on two examples.
    """
    results = Measured(path)
    tables = []
    for metric in results.metrics:
        complete = complete_cases({name: of for name, of in results.values(metric).items() if name != ORACLE})
        rows = np.stack([of for name, of in complete.items() if name != RANDOM or np.ptp(of[~np.isnan(of)]) > 0])
        rows = rows[:, ~np.isnan(rows).any(axis=0)]
        if len(rows) > 1 and rows.shape[1] > 1:
            tables.append(rows - rows.mean(axis=1, keepdims=True))
    if not tables:
        raise ValueError(f"{path}: no metric has values of two methods on two examples.")

    def draw(generator: np.random.Generator, n: int) -> Numbers:
        table = tables[generator.integers(len(tables))]
        reference, *rest = generator.permutation(len(table))
        others = generator.choice(rest, METHODS, replace=len(rest) < METHODS)
        differences = table[others] - table[reference]
        scale = np.maximum(differences.std(axis=1, keepdims=True), 1e-12)
        drawn: Numbers = (differences / scale)[:, generator.integers(0, table.shape[1], n)]
        return drawn

    return draw


def simulated(draw: Draw, n: int, tables: int, seed: int = 0) -> dict[str, float]:
    """All shares of one kind of differences and number of examples; see the module for what they are.

    Example:
        >>> shares = simulated(DRAWS["normal"], n=20, tables=1)
        >>> 0.9 < shares["interval"] <= 1
        True
    """
    generator = np.random.default_rng([seed, n])
    return {
        **_tables(draw, n, tables, generator),
        **_others(draw, n, tables, generator),
        **_ranks(draw, n, tables, generator),
        **_power(draw, n, tables, generator),
    }


def _tables(draw: Draw, n: int, tables: int, generator: np.random.Generator) -> dict[str, float]:
    """The tests and intervals of whole tables, as a report makes them."""
    by_metric, by_table, held = [], [], []
    for _ in range(tables):
        cells = _cells([draw(generator, n) for _ in range(METRICS)])
        by_metric += [any(cell.p_holm < _LEVEL for cell in row) for row in cells]
        every = [cell for row in cells for cell in row]
        by_table.append(bool(np.nanmin(holm([cell.p for cell in every])) < _LEVEL))
        held += [cell.difference_low <= 0 <= cell.difference_high for cell in every]
    return {"test": _share(by_metric), "test, table": _share(by_table), "interval": _share(held)}


def _others(draw: Draw, n: int, tables: int, generator: np.random.Generator) -> dict[str, float]:
    """What a report offers besides: flipped signs, BCa, equivalence."""
    flipped, bca, level, narrow = [], [], [], []
    zeros = np.zeros(n)
    for _ in range(tables):
        rows = draw(generator, n)
        p_values = [paired_permutation_test(row, zeros, resamples=1999).p for row in rows]
        flipped.append(bool(np.nanmin(holm(p_values)) < _LEVEL))
        row = rows[0]
        interval = bootstrap_interval(row, resamples=9999, kind="bca")
        bca.append(interval.low <= 0 <= interval.high)
        edge = equivalence_test(row + _SMALL, zeros, _SMALL)
        level.append(edge.p < _LEVEL)
        narrow.append(edge.low <= _SMALL <= edge.high)
    return {"signs": _share(flipped), "BCa": _share(bca), "level": _share(level), "90 %": _share(narrow)}


def _ranks(draw: Draw, n: int, tables: int, generator: np.random.Generator) -> dict[str, float]:
    """Groups of methods of whom none differ, and intervals of ranks."""
    apart, spread, alike = [], [], []
    for _ in range(tables):
        values = {str(place): row for place, row in enumerate(draw(generator, n))}
        apart.append(len(critical_groups(values)[0]) < METHODS)
        alike += [of.low <= (METHODS + 1) / 2 <= of.high for of in rank_intervals(values).values()]
        better = {name: row - _SMALL * int(name) for name, row in values.items()}
        spread += [of.low <= int(name) + 1 <= of.high for name, of in rank_intervals(better).items()]
    return {"groups": _share(apart), "ranks": _share(spread), "ranks, tied": _share(alike)}


def _power(draw: Draw, n: int, tables: int, generator: np.random.Generator) -> dict[str, float]:
    """How many examples a difference needs that n of normal differences would find, and how often they star it."""
    pilot = draw(generator, 2000)[0]
    size = next(
        size
        for size in np.geomspace(5, 0.01, 400)
        if needed_examples(pilot, 0 * pilot, size, tests=METHODS, test="t") >= n
    )
    needed = needed_examples(pilot, 0 * pilot, size, tests=METHODS)
    found = []
    for _ in range(tables):
        rows = draw(generator, needed)
        rows[0] += size
        found.append(_cells([rows])[0][0].p_holm < _LEVEL)
    return {"needed n": needed, "power": _share(found)}


def _cells(metrics: list[Numbers]) -> list[list[Cell]]:
    """The cells of methods whose reference is 0 everywhere."""
    values = {
        str(metric): {"reference": np.zeros(rows.shape[1]), **{str(place): row for place, row in enumerate(rows)}}
        for metric, rows in enumerate(metrics)
    }
    return [[cell for name, cell in row.items() if name != "reference"] for row in
            cells_of(values, "reference", Statistics()).values()]


def _share(found: list[bool]) -> float:
    return float(np.mean(found))


def rows(draws: dict[str, Draw], sizes: list[int], tables: int, seed: int = 0) -> Iterator[str]:
    """Rows of Markdown, as they are finished."""
    for place, (n, (name, draw)) in enumerate(product(sizes, draws.items())):
        shares = simulated(draw, n, tables, seed)
        if place == 0:
            yield f"| n | differences | {' | '.join(shares)} |"
            yield f"|---:|---|{'---:|' * len(shares)}"
        yield f"| {n} | {name} | {' | '.join(_shown(of) for of in shares.values())} |"


def _shown(share: float) -> str:
    return str(share) if isinstance(share, int) else f"{share:.3f}"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        prog="python -m captum_norm.study.report.simulations",
        description="How far a report's intervals and tests hold their level, on tables whose truth is known.",
    )
    parser.add_argument("--tables", type=int, default=400, metavar="N", help="of each kind (default: 400)")
    parser.add_argument("--examples", type=int, nargs="+", default=[20, 50, 200], metavar="N", help="in a table")
    parser.add_argument("--only", choices=(*DRAWS, "real"), help="one kind of differences")
    parser.add_argument("--store", metavar="FILE", help="a study, for real differences")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    asked = parser.parse_args()
    draws = DRAWS | ({"real": real_draw(asked.store)} if asked.store else {})
    if asked.only:
        draws = {asked.only: draws[asked.only]}
    for row in rows(draws, asked.examples, asked.tables, asked.seed):
        print(row, flush=True)


if __name__ == "__main__":
    main()
