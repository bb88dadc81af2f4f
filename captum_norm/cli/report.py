"""``captum-norm report``: what a study has found, from its store."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import check_outputs, say, write_figure, write_text
from captum_norm.suggestions import did_you_mean

if TYPE_CHECKING:
    from captum_norm.study import Results
    from captum_norm.study.report.stability import Move, RankInterval
    from captum_norm.study.report.tables import StudyTable

SUMMARY = "tables and figures of a study, from its store"
EXAMPLE = "captum-norm report films.db --latex films.tex --figures figures"
DESCRIPTION = """\
Prints what a study has found: every metric of every method with bootstrap intervals, differences to one of them with
tests, what each method took, how far methods agree, and how far their ranks hold over other examples and variants.
Neither the model nor the data is needed, and the study need not be finished."""

_MEASURES = ("spearman", "kendall_tau_b", "top_k_overlap", "rank_biased_overlap")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("store", metavar="STORE", help="the study's store")
    parser.add_argument("--reference", metavar="METHOD", help="test others against it (default: AttentionNorm)")
    parser.add_argument("--test", choices=("bootstrap", "permutation"), default="bootstrap", help="of the differences")
    parser.add_argument("--correction", choices=("metric", "table"), default="metric", help="Holm's, over which tests")
    parser.add_argument("--cases", choices=("complete", "available"), default="complete", help="over which examples")
    parser.add_argument(
        "--predictions", choices=("all", "right", "wrong"), default="all", help="only examples predicted so"
    )
    parser.add_argument("--margin", type=float, metavar="X", help="mark what is level: differences within X")
    parser.add_argument("--agreement", choices=_MEASURES, default="spearman", help="measured how (default: spearman)")
    parser.add_argument("--level", choices=("token", "word"), default="token", help="agreement on what")
    parser.add_argument("--special", choices=("mask", "keep"), default="mask", help="special tokens in the agreement")
    parser.add_argument("--csv", metavar="FILE", help="save every value; - prints it alone")
    parser.add_argument("--parquet", metavar="FILE", help="save every value")
    parser.add_argument("--latex", metavar="FILE", help="save the table; - prints it alone")
    parser.add_argument("--markdown", metavar="FILE", help="save the table; - prints it alone")
    parser.add_argument("--document", action="store_true", help="--latex as a whole document, which compiles by itself")
    parser.add_argument("--cells", metavar="FILE", help="save means, differences, p, effects and n as CSV")
    parser.add_argument("--scores", metavar="FILE", help="save every example's tokens and scores as JSONL")
    parser.add_argument("--figures", metavar="FOLDER", help="save metrics.png, agreement.png, ranks.png ... there")


def run(asked: argparse.Namespace) -> int:
    """Check, read, print and save; the exit code."""
    check_outputs(asked.csv, asked.parquet, asked.latex, asked.markdown, asked.cells, asked.scores)
    if asked.parquet == "-":
        raise ValueError("--parquet - : a table in this format is no text for standard output. Name a file.")
    folder = None if asked.figures is None else Path(asked.figures)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--figures {folder}: there is no such folder. Make it first.")
    from captum_norm.study import Results

    results = Results(asked.store, asked.predictions)
    reference = _known(results, asked.reference)
    table = results.table(
        reference, test=asked.test, correction=asked.correction, cases=asked.cases, margin=asked.margin
    )
    text = printed(results, table, measure=asked.agreement, level=asked.level, special=asked.special)
    say(text, asked.csv, asked.latex, asked.markdown)
    _save(results, table, asked)
    for name, figure in (results.figures(table=table) if folder is not None else {}).items():
        write_figure(Path(str(folder)) / f"{name}.png", figure)
    return 0


def printed(results: Results, table: StudyTable, **agreement: Any) -> str:
    """All that is said of a study."""
    width, alike = draw.screen_width(), results.agreement(**agreement)
    parts = [table.to_text(width, draw.emphasised), table.differences_as_text(width), alike.to_text(width)]
    return "\n\n".join([*parts, *_stability(results), *_failures(results)])


def _save(results: Results, table: StudyTable, asked: argparse.Namespace) -> None:
    if asked.csv == "-":
        write_text("-", results.to_pandas().to_csv(index=False))
    elif asked.csv:
        results.to_csv(asked.csv)
    if asked.parquet:
        results.to_parquet(asked.parquet)
    if asked.latex:
        write_text(asked.latex, table.to_latex(document=asked.document) + "\n")
    if asked.cells:
        write_text(asked.cells, table.to_pandas().to_csv(index=False))
    if asked.scores:
        results.to_scores(asked.scores)
    if asked.markdown:
        write_text(asked.markdown, table.to_markdown() + "\n")


def _stability(results: Results) -> list[str]:
    """Ranks over other examples, and what variants change."""
    width = draw.screen_width()
    ranks = {metric: results.ranks(metric) for metric in results.metrics}
    methods = [method for method in results.methods if any(method in of for of in ranks.values())]
    rows = [[method, *(_rank(of.get(method)) for of in ranks.values())] for method in methods]
    title = "ranks, with 95% intervals over other examples"
    parts = [f"{title}\n{draw.table(['', *ranks], rows, width=width)}"] if rows else []
    moves = [
        [metric, move.variant, f"{move.rank:g} → {move.moved_to:g}", f"{move.difference:+.3f}", _limits(move)]
        for metric in results.metrics
        for move in results.moves(metric)
    ]
    if moves:
        moved = draw.table(["", "variant", "rank", "mean", ""], moves, left=(0, 1), width=width)
        parts.append(f"how far variants move their methods\n{moved}")
        changes = [(metric, results.order_changes(metric)) for metric in results.metrics]
        shown = [(metric, of) for metric, of in changes if not math.isnan(of.largest)]
        rows = [[metric, str(len(of.universes)), f"{of.largest:.0%}"] for metric, of in shown]
        pairs = draw.table(["", "rankings", "most"], rows, width=width)
        parts.append(f"how often the pair that changes order most does\n{pairs}")
    return parts


def _rank(of: RankInterval | None) -> str:
    return "·" if of is None else f"{of.rank:g} [{of.low:g}, {of.high:g}]"


def _limits(move: Move) -> str:
    return f"[{move.low:.3f}, {move.high:.3f}]"


def _failures(results: Results) -> list[str]:
    found = results.failures()
    shown = [
        draw.wrap(f"{f.method}{f' by {f.metric}' if f.metric else ''} failed on example {f.key}: {draw.shown(f.error)}")
        for f in found[:5]
    ]
    return ["\n".join([*shown, *([f"and {len(found) - 5} more failures"] if len(found) > 5 else [])])] if found else []


def _known(results: Results, reference: str | None) -> str | None:
    if reference is None:
        return None
    by_lower = {name.lower(): name for name in results.methods}
    if reference.lower() not in by_lower:
        raise ValueError(
            f"--reference {reference}: the study has no such method. It has: {', '.join(results.methods)}."
            f"{did_you_mean(reference, results.methods)}"
        )
    return by_lower[reference.lower()]

