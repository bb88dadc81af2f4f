"""Do intervals hold what they should, and do tests find nothing where there is nothing?  Studies of made-up numbers.

    python -m captum_norm.study.report.simulations [--tables 400] [--examples 20 50 200] [--store films.db]

Every interval and every test that a report offers is tried on tables whose truth is known: 11 methods against a
reference by 8 metrics, differences normal, exponential (skewed) or mostly zero (sparse), and with ``--store`` those of
a study: all methods together, each shifted so that none differs, and its examples drawn anew.  Printed are, as rows of
Markdown, with their standard errors over tables in units of the last digit,

- how often Holm's correction over the tests of a metric, and over the whole table, finds something (nominal 0.05), by
  the studentised bootstrap and by flipping signs; how often a pair is told apart in groups, with Holm's over all pairs
- how often methods are found level whose difference is the margin (nominal 0.05, each by itself)
- how often 95 % intervals hold the truth: of means and differences (one computation) by the studentised bootstrap and
  BCa, the 90 % interval of the equivalence test, and those of ranks, of methods that differ by a fifth of the
  standard deviation, and of methods that are all the same
- of a difference that a t-test of normal values would find in so many examples with a power of 0.8: how often they star
  it, by the bootstrap and by t-tests, how many `Results.needed_examples` names, and how often that many star it
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from captum_norm.optional_packages import required
from captum_norm.study.report.cells import Cell, Statistics, complete_cases, corrected_cells
from captum_norm.study.report.effects import needed_examples
from captum_norm.study.report.measured import Measured
from captum_norm.study.report.resampling import Pivot, bca_limits, moments, resampled_means
from captum_norm.study.report.sign_flips import flipped_p
from captum_norm.study.report.stability import critical_groups, rank_intervals
from captum_norm.study.report.statistics import holm
from captum_norm.study.variants import ORACLE, RANDOM

Numbers: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = Callable[[np.random.Generator, int], Numbers]
"""(generator, n) -> (method, n): differences to the reference, all of mean 0 and a standard deviation of about 1."""

Shares: TypeAlias = dict[str, tuple[float, float]]
"""Column -> its share of the tables, and the standard error of that share over tables."""

METHODS, METRICS = 11, 8
_LEVEL = 0.05
_SMALL, _MARGIN = 0.2, 0.5  # of the standard deviation: between neighbours in rank, and what counts as level


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


def simulated(draw: Draw, n: int, tables: int, seed: int = 0) -> Shares:
    """All shares of one kind of differences and number of examples; see the module for what they are.

    Example:
        >>> shares = simulated(DRAWS["normal"], n=20, tables=2)
        >>> 0.9 < shares["interval"][0] <= 1
        True
    """
    generator = np.random.default_rng([seed, n])
    size, needed = _needed(draw, n, generator)
    found, others = [], np.random.default_rng([seed, n, 1])
    for _ in range(tables):
        metrics = [draw(generator, n) for _ in range(METRICS)]
        power = {"power": _starred(_planted(draw, needed, size, generator))}
        planted = _planted(draw, n, size, others)
        power |= {"power at n": _starred(planted), "t at n": _starred_by_t(planted)}
        found.append(_tests(metrics) | _others(metrics[0]) | _ranks(metrics[0]) | power)
    shares: Shares = {}
    for name in found[0]:
        of = np.array([table[name] for table in found])
        shares[name] = float(of.mean()), float(of.std() / math.sqrt(max(1, tables - 1)))
    return shares | {"needed n": (needed, 0)}


def _tests(metrics: list[Numbers]) -> dict[str, float]:
    """The tests and intervals of a whole table, as a report makes them."""
    cells = _cells(metrics, Statistics(correction="table"))
    every = [cell for row in cells for cell in row]
    return {
        "test": _share(bool(np.nanmin(holm([cell.p for cell in row])) < _LEVEL) for row in cells),
        "test, table": float(any(cell.p_holm < _LEVEL for cell in every)),
        "interval": _share(cell.difference_low <= 0 <= cell.difference_high for cell in every),
    }


def _others(rows: Numbers) -> dict[str, float]:
    """What a report offers besides: flipped signs, BCa, equivalence."""
    how = Statistics()
    p_values = flipped_p(rows.T, how.permutations, how.seed)
    means, _ = resampled_means(rows.T, how.resamples, how.seed)
    limits = [bca_limits(means[:, place], row, how.confidence) for place, row in enumerate(rows)]
    [edge] = _cells([rows + _MARGIN], Statistics(margin=_MARGIN, confidence=0.9))
    return {
        "signs": float(np.nanmin(holm(p_values)) < _LEVEL),
        "BCa": _share(low <= 0 <= high for low, high in limits),
        "level": _share(cell.p_equivalent < _LEVEL for cell in edge),
        "90 %": _share(cell.difference_low <= _MARGIN <= cell.difference_high for cell in edge),
    }


def _ranks(rows: Numbers) -> dict[str, float]:
    """Groups of methods of whom none differ, and intervals of ranks."""
    values = {str(place): row for place, row in enumerate(rows)}
    better = {name: row - _SMALL * int(name) for name, row in values.items()}
    return {
        "groups": float(len(critical_groups(values)[0]) < METHODS),
        "ranks": _share(of.low <= int(name) + 1 <= of.high for name, of in rank_intervals(better).items()),
        "ranks, tied": _share(of.low <= (METHODS + 1) / 2 <= of.high for of in rank_intervals(values).values()),
    }


def _needed(draw: Draw, n: int, generator: np.random.Generator) -> tuple[float, int]:
    """The difference that a t-test would find in n examples, and how many `needed_examples` names for it."""
    pilot = draw(generator, 2000)[0]
    size = next(
        size
        for size in np.geomspace(5, 0.01, 400)
        if needed_examples(pilot, 0 * pilot, size, tests=METHODS, test="t") >= n
    )
    return float(size), needed_examples(pilot, 0 * pilot, size, tests=METHODS)


def _cells(metrics: list[Numbers], how: Statistics | None = None) -> list[list[Cell]]:
    """The cells of methods whose reference is 0 everywhere: means and differences are one computation."""
    how = how or Statistics()
    columns = np.concatenate([moments(row[None]) for rows in metrics for row in rows], axis=1)
    means, counts = resampled_means(columns, how.resamples, how.seed)
    cells: dict[str, dict[str, Cell]] = {}
    pivots: dict[tuple[str, str], Pivot] = {}
    margin = how.margin_of("")
    for metric, rows in enumerate(metrics):
        cells[str(metric)] = {}
        for method, row in enumerate(rows):
            place = 2 * len(pivots)
            pivot = Pivot.of(row[None], means[:, place : place + 2], counts[:, place])
            limits, equal = pivot.limits(how.confidence), math.nan if margin is None else pivot.p_equivalent(margin)
            pivots[str(metric), str(method)] = pivot
            cells[str(metric)][str(method)] = Cell(
                pivot.mean, *limits, len(row), pivot.mean, *limits, p=pivot.p(), p_equivalent=equal
            )
    return [list(row.values()) for row in corrected_cells(cells, pivots, how).values()]


def _planted(draw: Draw, n: int, size: float, generator: np.random.Generator) -> Numbers:
    """Differences of which the first is of this size."""
    differences = draw(generator, n)
    differences[0] += size
    return differences


def _starred(rows: Numbers) -> float:
    return float(_cells([rows])[0][0].p_holm < _LEVEL)


def _starred_by_t(rows: Numbers) -> float:
    stats = required("scipy.stats", "simulations")
    return float(holm(stats.ttest_1samp(rows, 0, axis=1).pvalue)[0] < _LEVEL)


def _share(found: Iterable[bool]) -> float:
    return float(np.mean(list(found)))


def rows(
    draws: dict[str, Draw], sizes: list[int], tables: int, seed: int = 0, kept: Path | None = None
) -> Iterator[str]:
    """Rows of Markdown, as they are finished; those in the file are not made again, and others are added to it."""
    known = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    for place, (n, (name, draw)) in enumerate(product(sizes, draws.items())):
        key = f"{name}, {n} examples, {tables} tables, seed {seed}"
        if key not in known:
            known[key] = simulated(draw, n, tables, seed)
            if kept is not None:
                kept.write_text(json.dumps(known, indent=1))
        if place == 0:
            yield f"| n | differences | {' | '.join(known[key])} |"
            yield f"|---:|---|{'---:|' * len(known[key])}"
        yield f"| {n} | {name} | {' | '.join(_shown(*of) for of in known[key].values())} |"


def _shown(share: float, error: float) -> str:
    return f"{share:.3f} ({1000 * error:.0f})" if isinstance(share, float) else str(share)


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
    parser.add_argument("--keep", type=Path, metavar="FILE", help="rows that are finished, to go on from after a kill")
    asked = parser.parse_args()
    draws = DRAWS | ({"real": real_draw(asked.store)} if asked.store else {})
    if asked.only:
        draws = {asked.only: draws[asked.only]}
    for row in rows(draws, asked.examples, asked.tables, asked.seed, asked.keep):
        print(row, flush=True)


if __name__ == "__main__":
    main()
