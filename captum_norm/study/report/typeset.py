"""A study's tables as text: for a terminal, for a page, for a paper."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

from captum_norm.study.report.cells import Agreements, Cell, Cells

_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}


def table_as_text(table: Cells, width: int = 100, emphasised: Callable[[str], str] = str) -> str:
    """Blocks of metrics that fit side by side, then what each method took.

    Args:
        table: the table.
        width: columns to fill.
        emphasised: what marks the best mean of a metric.
    """
    room = width - max(map(len, table.methods))
    columns = [_column(table, metric, header) for metric, header in zip(table.metrics, table.headers(), strict=True)]
    blocks = [*_fitting(columns, room), *_fitting(_cost_columns(table), room)]
    shown = [_aligned([list(table.methods), *block], emphasised) for block in blocks]
    return "\n\n".join([*shown, "\n".join(textwrap.fill(line, width) for line in table.explanation())])


def table_as_markdown(table: Cells, metrics: Sequence[str] | None = None) -> str:
    """A row per method, the best mean of each metric in bold; all metrics or some."""
    heads = dict(zip(table.metrics, table.headers(), strict=True))
    chosen = list(heads) if metrics is None else list(metrics)
    lines = [f"| | {' | '.join(heads[m] for m in chosen)} | s / example |", f"|---|{'---:|' * (len(chosen) + 1)}"]
    for method in table.methods:
        cells = [_marked(table, method, metric, "**{}**".format) for metric in chosen]
        cost = table.costs.get(method)
        lines.append(f"| {method} | {' | '.join(cells)} | {'' if cost is None else f'{cost.seconds:.3g}'} |")
    return "\n".join([*lines, "", *table.explanation()])


def table_as_latex(table: Cells) -> str:
    """A booktabs ``tabular``; what must be known to read it stands above as comments."""
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    heads = [_tex(header[:-1]) + arrows[header[-1]] for header in table.headers()]
    lines = [f"% {line}" for line in table.explanation()]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule", rf" & {' & '.join(heads)} \\", r"\midrule"]
    for method in table.methods:
        cells = [_tex_cell(table, method, metric) for metric in table.metrics]
        lines.append(rf"{_tex(method)} & {' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def agreement_as_text(table: Agreements) -> str:
    """The lower half of the square, columns by number."""
    rows = [f"{i + 1} {name}" for i, name in enumerate(table.methods)]
    columns = [["", *rows]]
    for j in range(len(rows)):
        cells = ["" if i < j else "1" if i == j else _signed(float(table.means[i, j])) for i in range(len(rows))]
        columns.append([str(j + 1), *cells])
    lines = _lines(columns)
    return "\n".join([table.title, *lines])


def number(value: float) -> str:
    """Three digits after the point, or as many as tell small numbers from 0.

    Example:
        >>> number(0.25), number(-0.00012), number(float("nan"))
        ('0.250', '-1.2e-04', '·')
    """
    if math.isnan(value):
        return "·"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.1e}"


def _column(table: Cells, metric: str, header: str) -> list[list[str]]:
    """Header and cells, each as (mean, interval): two columns under one head."""
    best = table.best(metric)
    means, intervals = [header], [""]
    for method in table.methods:
        cell = table.cells[method][metric]
        means.append(number(cell.mean) + ("*" if table.differs(method, metric) else " "))
        intervals.append(_interval(cell))
        if method == best:
            means[-1] = f"\0{means[-1]}"  # marked for emphasis once widths are known
    return [means, intervals]


def _aligned(columns: Sequence[list[list[str]] | list[str]], emphasised: Callable[[str], str]) -> str:
    """Lines of methods and their cells; a metric's header stands over both of its columns."""
    names = ["", *(str(name) for name in columns[0])]
    texts = [name.ljust(max(map(len, names))) for name in names]
    for pair in columns[1:]:
        means, intervals = pair
        wide = max(len(cell.lstrip("\0")) for cell in means[1:])
        wide_interval = max(map(len, intervals))
        head = str(means[0])
        gap = " " if wide_interval else ""
        extra = max(0, len(head) - wide - len(gap) - wide_interval)
        for i, (mean, interval) in enumerate(zip(means, intervals, strict=True)):
            if i == 0:
                cell = head.rjust(wide + extra + len(gap) + wide_interval)
            else:
                bare = mean.lstrip("\0").rjust(wide + extra)
                cell = (emphasised(bare) if mean.startswith("\0") else bare) + gap + interval.rjust(wide_interval)
            texts[i] += f"  {cell}"
    return "\n".join(text.rstrip() for text in texts)


def _cost_columns(table: Cells) -> list[list[list[str]]]:
    columns: dict[str, list[str]] = {"ms / example": [], "measuring": [], "peak MiB": []}
    for method in table.methods:
        cost = table.costs.get(method)
        columns["ms / example"].append("·" if cost is None else f"{1000 * cost.seconds:.1f}")
        columns["measuring"].append("·" if cost is None else f"{1000 * cost.metric_seconds:.1f}")
        unknown = cost is None or cost.peak_bytes is None
        columns["peak MiB"].append("·" if unknown else f"{(cost.peak_bytes or 0) / 2**20:.0f}")  # type: ignore[union-attr]
    if table.failures:
        columns["failed"] = [str(table.failures.get(method, 0)) for method in table.methods]
    if table.special_shares:
        shares = table.special_shares
        columns["special tokens"] = [f"{shares[m]:.1%}" if m in shares else "·" for m in table.methods]
    return [[[head, *cells], [""] * (len(cells) + 1)] for head, cells in columns.items()]


def _fitting(columns: Sequence[list[list[str]]], room: int) -> list[list[list[list[str]]]]:
    """Columns in blocks that fit side by side."""
    blocks: list[list[list[list[str]]]] = []
    left = 0
    for means, intervals in columns:
        need = 2 + max(len(means[0]), max(len(c.lstrip("\0")) for c in means[1:]) + 1 + max(map(len, intervals)))
        if not blocks or need > left:
            blocks.append([])
            left = room
        blocks[-1].append([means, intervals])
        left -= need
    return blocks


def _lines(columns: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _marked(table: Cells, method: str, metric: str, bold: Callable[[str], str]) -> str:
    cell = table.cells[method][metric]
    mean = number(cell.mean)
    shown = bold(mean) if method == table.best(metric) else mean
    star = r"\*" if table.differs(method, metric) else ""
    return f"{shown}{star} {_interval(cell)}".strip()


def _tex_cell(table: Cells, method: str, metric: str) -> str:
    cell = table.cells[method][metric]
    if math.isnan(cell.mean):
        return "--"
    mean = rf"\textbf{{{number(cell.mean)}}}" if method == table.best(metric) else number(cell.mean)
    star = "$^{*}$" if table.differs(method, metric) else ""
    return rf"{mean}{star} {{\scriptsize {_interval(cell)}}}"


def _interval(cell: Cell) -> str:
    return "" if math.isnan(cell.low) else f"[{number(cell.low)}, {number(cell.high)}]"


def _signed(value: float) -> str:
    return "·" if math.isnan(value) else f"{value:+.2f}"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
