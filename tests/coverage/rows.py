"""Are the rows that were asked for alone those of whole maps?  For every model type of transformers.

    python -m tests.coverage.rows [--only TYPE ...] [--jobs 2] [--page docs/certificate.md]

Each type is built tiny and run as in ``run``.  Of each of its attention calls some rows, other ones in each example,
are asked for one by one and together, and six measures of them are compared with those of the whole map; then six
methods are asked for single positions, and for all.  Results are kept as ``run`` keeps them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import captum_norm
from captum_norm.capture import AttentionRecord, InexactCaptureError, recording
from captum_norm.measures import compute_measures
from captum_norm.operations.operation import swapped
from tests.coverage.check import Explained, Result, build, forward
from tests.coverage.run import every_type, kept, load, run

MEASURES = ("weights", "head_norms", "summed_norms", "res_norms", "res_ln_norms", "globenc_norms")
METHODS: dict[str, Callable[..., Any]] = {
    "AttentionWeights": captum_norm.AttentionWeights,
    "AttentionNorm": captum_norm.AttentionNorm,
    "AttentionBlockNorm": captum_norm.AttentionBlockNorm,
    "AttentionRollout": captum_norm.AttentionRollout,
    "AttentionNorm, rollout": lambda forward: captum_norm.AttentionNorm(forward, aggregate="rollout"),
    "GlobEnc": captum_norm.GlobEnc,
}
# Of the row's largest score; where what goes into a softmax is large, as much as half of its last digit makes of it.
ALLOWED = 1e-6


@dataclass
class RowsResult:
    """What one type showed.

    Attributes:
        model_type: transformers' name of the type.
        reason: why nothing was compared; "" where something was.
        calls, rows, answers: attention calls, rows of them, and answers of methods that were compared.
        worst: by measure and by method the largest difference, as a part of the row's largest score.
        each: the same as a part of the score itself.
        allowed: what may differ, of the calls so far.
        different: what differs by more, and methods that answer for all positions and not for one.
    """

    model_type: str
    reason: str = ""
    calls: int = 0
    rows: int = 0
    answers: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    each: dict[str, float] = field(default_factory=dict)
    allowed: float = ALLOWED
    different: list[str] = field(default_factory=list)

    def compare(self, name: str, where: str, row: Tensor, whole: Tensor) -> None:
        """Take note of how far a row is from that of the whole map."""
        if row.shape != whole.shape or not bool((row.isnan() == whole.isnan()).all()):
            self.different.append(f"{where}, {name}: {tuple(row.shape)} beside {tuple(whole.shape)}, or not a number")
            return
        size = whole.nan_to_num().abs().clamp_min(torch.finfo(torch.float32).tiny)
        difference = (row - whole).nan_to_num().abs()
        error = float((difference / size.amax(-1, keepdim=True)).max())
        self.worst[name] = max(self.worst.get(name, 0.0), error)
        self.each[name] = max(self.each.get(name, 0.0), float((difference / size).max()))
        if error > self.allowed:
            self.different.append(f"{where}, {name}: off by {error:.1e}")


def check_rows(model_type: str, dtype: torch.dtype | None = None) -> RowsResult:
    """Build one type and compare, in its own precision or another; what cannot be built or read, ``run`` tells of."""
    result, found = RowsResult(model_type), Result(model_type)
    built = build(model_type, found)
    if built is None:
        result.reason = found.reason
        return result
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    generator = torch.Generator().manual_seed(0)
    refused: list[InexactCaptureError] = []
    model, inputs = built
    if dtype is not None:
        model, inputs = model.to(dtype), swapped(inputs, lambda t: t.to(dtype) if t.is_floating_point() else t)
    try:
        with recording(lambda one: _compare_rows(one, generator, result), model=model, on_inexact=refused.append,
                       blocks=True):  # fmt: skip
            forward(model, inputs)
        if result.calls:
            _compare_answers(Explained(model, inputs), result)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    result.reason = "" if result.calls else str(refused[0])[:240] if refused else "no softmax attention"
    return result


def _compare_rows(record: AttentionRecord, generator: torch.Generator, result: RowsResult) -> None:
    """Rows before the whole, so that no weights of the whole stand in for them."""
    batch, _, query, _ = record.shape
    several = torch.randint(query, (batch, min(3, query)), generator=generator)
    single = int(torch.randint(query, (), generator=generator))
    asked: list[slice | Tensor] = [several, torch.full((batch, 1), single), slice(query // 2, query)]
    parts = [(rows, _measures(record.at(rows))) for rows in asked]
    whole = _measures(record)
    result.calls += 1
    result.allowed = max(result.allowed, torch.finfo(torch.float32).eps / 2 * _range(record.weights))
    for rows, found in parts:
        for name, of_whole in whole.items():
            expected = _rows_of(of_whole, rows)
            result.rows += expected.shape[0] * expected.shape[-2]
            where = f"{record.call.name} (call {record.call.call})"
            result.compare(name, where, found[name], expected)


def _range(weights: Tensor) -> float:
    """The largest difference of two scores of a row in front of the softmax, as far as weights tell."""
    logs = weights.float().nan_to_num().abs().log()
    lowest = logs.masked_fill(logs == -torch.inf, torch.inf).amin(-1)
    return float((logs.amax(-1) - lowest).nan_to_num(0, 0, 0).amax())


def _measures(record: AttentionRecord) -> dict[str, Tensor]:
    return {name: of for name, of in compute_measures(record, MEASURES).items() if isinstance(of, Tensor)}


def _rows_of(whole: Tensor, rows: slice | Tensor) -> Tensor:
    """Rows of a map (batch, [head,] query, key)."""
    if isinstance(rows, slice):
        return whole[..., rows, :]
    index = rows.view(len(rows), *[1] * (whole.ndim - 3), -1, 1)
    return whole.take_along_dim(index, -2)


def _compare_answers(explained: Explained, result: RowsResult) -> None:
    given = explained.given
    for name, method in METHODS.items():
        try:
            whole = method(explained).attribute(given, position="all")
        except Exception:
            continue  # what is refused, and why, is in the page of ``run``
        for position in sorted({whole.shape[1] // 2, whole.shape[1] - 1}):
            try:
                row = method(explained).attribute(given, position=position)
            except Exception as error:
                if "is padding" not in str(error):
                    result.different.append(f"{name}, position {position}: {type(error).__name__}: {str(error)[:160]}")
                continue
            result.answers += 1
            expected = whole[:, position]
            if row.ndim > expected.ndim and row.shape[:2] == expected.shape:  # vectors: each has its score in parts
                row = row.flatten(2).sum(-1)
            elif row.shape != expected.shape:  # pixels
                row, expected = row.flatten(1).double().sum(1), expected.flatten(1).double().sum(1)
            result.compare(name, f"position {position}", row, expected)


def as_paragraph(results: Sequence[RowsResult]) -> str:
    """What was found, for a page."""
    compared = [one for one in results if one.calls]
    worst = max((error for one in compared for error in one.worst.values()), default=0.0)
    norms = max((error for one in compared for name, error in one.each.items() if "orm" in name), default=0.0)
    counts = [sum(getattr(one, name) for one in compared) for name in ("calls", "rows", "answers")]
    different = sum(bool(one.different) for one in compared)
    return (
        f"Rows that are asked for alone are those of whole maps: in {len(compared)} types {counts[0]:,} attention "
        f"calls, {counts[1]:,} rows of six measures and {counts[2]:,} answers of six methods were compared. The "
        f"largest difference is {worst:.1e} of the row's largest score, and {norms:.1e} of the score itself for norms; "
        f"{different} types differ by more than {ALLOWED:.0e} and the last digit of scores explains, or in kind.\n"
    )


BEGIN, END = "<!-- rows: begin -->\n", "<!-- rows: end -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    store = options.store or kept("rows")
    store.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        store.unlink(missing_ok=True)
    known = load(store, RowsResult)
    run(options.only or [t for t in every_type() if t not in known], store, options.jobs, options.timeout, check_rows,
        RowsResult, options.minutes)  # fmt: skip
    known = load(store, RowsResult)
    results = [known[t] for t in every_type() if t in known]
    print(as_paragraph(results))
    asked = [known[t] for t in options.only or known if t in known]
    for line in _told(asked):
        print(line)
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        options.page.write_text(before + BEGIN + "\n" + as_paragraph(results) + "\n" + END + rest.partition(END)[2])
    return 1 if any(one.different for one in asked) else 0


def _told(results: Sequence[RowsResult]) -> Iterator[str]:
    for one in results:
        for what in one.different[:4]:
            yield f"{one.model_type}: {what}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage.rows", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="run these types (again)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per type")
    parser.add_argument("--minutes", type=float, help="start no type after this; the next run goes on")
    parser.add_argument("--store", type=Path, help="where results are kept while running (JSON lines)")
    parser.add_argument("--fresh", action="store_true", help="forget what was kept")
    parser.add_argument("--page", type=Path, help=f"a page that has a line {BEGIN.strip()!r} and one {END.strip()!r}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
