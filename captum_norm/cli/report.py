"""``captum-norm report``: what a study has found, from its store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import check_outputs, write_figure
from captum_norm.files import replacing

if TYPE_CHECKING:
    from captum_norm.study import Results

SUMMARY = "tables and figures of a study, from its store"
EXAMPLE = "captum-norm report films.db --latex films.tex --figures figures"
DESCRIPTION = """\
Prints what a study has found: every metric of every method with bootstrap intervals and permutation tests against one
of them, what each method took, how far methods agree, and how stable their ranking is over variants. Neither the model
nor the data is needed, and the study need not be finished."""

_MEASURES = ("spearman", "kendall_tau_b", "top_k_overlap", "rank_biased_overlap")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("store", metavar="STORE", help="the study's store")
    parser.add_argument("--reference", metavar="METHOD", help="test others against it (default: AttentionNorm)")
    parser.add_argument("--agreement", choices=_MEASURES, default="spearman", help="measured how (default: spearman)")
    parser.add_argument("--level", choices=("token", "word"), default="token", help="agreement on what")
    parser.add_argument("--special", choices=("mask", "keep"), default="mask", help="special tokens in the agreement")
    parser.add_argument("--csv", metavar="FILE", help="save every value")
    parser.add_argument("--parquet", metavar="FILE", help="save every value")
    parser.add_argument("--latex", metavar="FILE", help="save the table")
    parser.add_argument("--markdown", metavar="FILE", help="save the table")
    parser.add_argument("--figures", metavar="FOLDER", help="save metrics.png and agreement.png there")


def run(asked: argparse.Namespace) -> int:
    """Check, read, print and save; the exit code."""
    check_outputs(asked.csv, asked.parquet, asked.latex, asked.markdown)
    folder = None if asked.figures is None else Path(asked.figures)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--figures {folder}: there is no such folder. Make it first.")
    from captum_norm.study import Results

    results = Results(asked.store)
    reference = _known(results, asked.reference)
    print(printed(results, reference, measure=asked.agreement, level=asked.level, special=asked.special))
    _save(results, reference, asked)
    for name, figure in (results.figures(reference) if folder is not None else {}).items():
        write_figure(Path(str(folder)) / f"{name}.png", figure)
    return 0


def printed(results: Results, reference: str | None, **agreement: Any) -> str:
    """All that is said of a study."""
    table, alike = results.table(reference), results.agreement(**agreement)
    parts = [table.as_text(draw.screen_width(), draw.emphasised), alike.as_text()]
    return "\n\n".join([*parts, *_stability(results), *_failures(results)])


def _save(results: Results, reference: str | None, asked: argparse.Namespace) -> None:
    if asked.csv:
        results.to_csv(asked.csv)
    if asked.parquet:
        results.to_parquet(asked.parquet)
    if asked.latex:
        results.to_latex(asked.latex, reference)
    if asked.markdown:
        with replacing(asked.markdown) as unfinished:
            unfinished.write_text(results.table(reference).to_markdown() + "\n", encoding="utf-8")


def _stability(results: Results) -> list[str]:
    stability = results.stability()
    if not stability:
        return []
    rows = []
    for metric, found in stability.items():
        most = max(found.first, key=found.first.__getitem__) if found.first else "·"
        rows.append([metric, str(found.variants), _number(found.w), _number(found.mean_tau), most])
    head = "how stable the ranking of the methods is over variants"
    return [f"{head}\n{draw.table(['', 'variants', 'W', 'mean τ', 'most often first'], rows, left=(0, 4))}"]


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
        )
    return by_lower[reference.lower()]


def _number(value: float) -> str:
    return "·" if value != value else f"{value:.2f}"
