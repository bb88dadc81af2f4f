"""``python -m tests.random_models``: random transformers, asked everything, and how many answers are right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.random_models.check import CHECKS, Case
from tests.random_models.config import KINDS, drawn, seeds_of
from tests.random_models.named_cases import NamedCase, shrunk, silences
from tests.random_models.positions import Positions
from tests.random_models.table import Asked, Outcome, Table
from tests.random_models.twins import Twins


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if no answer is wrong without a word, 1 if one is, 2 if this machine itself failed."""
    told = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    asked = Twins if told.twins else Positions if told.positions else Case
    if told.keep:
        return _keep(told.seed, told.keep, told.check, told.about)
    if told.show:
        return _show(told.seed, asked)
    seeds = seeds_of(told.kind, told.seed, told.models)
    table = Table(_outcomes(seeds, told.jobs, asked))
    print(table.text())
    if told.details:
        print(table.details())
    if told.json:
        told.json.write_text(json.dumps(table.to_json(), indent=1) + "\n")
    return 2 if table.faults else int(table.count("silent") > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.random_models", description=__doc__)
    parser.add_argument("--models", type=int, default=160, help="how many (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--kind", choices=tuple(dict.fromkeys(KINDS)), help="one kind only")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", type=Path, help="write every answer that is not right to this file")
    parser.add_argument(
        "--twins", action="store_true", help="ask other methods, beside the same function in its usual form"
    )
    parser.add_argument("--positions", action="store_true", help="ask AttentionNorm for rows by their positions")
    parser.add_argument("--details", action="store_true", help="print the reasons, too")
    parser.add_argument("--show", action="store_true", help="print the model of --seed and every answer about it")
    parser.add_argument("--keep", metavar="NAME", help="make a named case of the model of --seed, as plain as it gets")
    parser.add_argument("--check", choices=CHECKS, default="AttentionNorm", help="with --keep: which answer")
    parser.add_argument("--about", default="", help="with --keep: what is wrong, in a sentence")
    return parser


def _outcomes(seeds: list[int], jobs: int, asked: Asked) -> Iterator[Outcome]:
    outcome = partial(Outcome.of, asked=asked)
    if jobs == 1:
        yield from _counted(map(outcome, seeds), len(seeds))
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from _counted(pool.map(outcome, seeds, chunksize=16), len(seeds))


def _counted(outcomes: Iterator[Outcome], total: int) -> Iterator[Outcome]:
    for number, outcome in enumerate(outcomes, start=1):
        if number % 500 == 0:
            print(f"{number} of {total}", file=sys.stderr)
        yield outcome


def _show(seed: int, asked: Asked) -> int:
    config = drawn(seed)
    print(config)
    found = asked(config).findings()
    width = max((len(finding.check) for finding in found), default=0) + 2
    for finding in found:
        print(f"  {finding.check:<{width}}{finding.status:<9}{finding.what} {finding.message}".rstrip())
    return int(any(finding.status == "silent" for finding in found))


def _keep(seed: int, name: str, check: str, about: str) -> int:
    if check not in silences(drawn(seed)):
        print(f"{check} is not wrong without a word at seed {seed}: nothing to keep", file=sys.stderr)
        return 2
    config = shrunk(drawn(seed), check)
    print(NamedCase(name, about, config, silences(config)).save())
    return 1


if __name__ == "__main__":
    sys.exit(main())
