"""A study at a glance: means with their intervals, ranks, and how far methods agree.  Sizes are inches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from captum_norm.visualization.letters import BODY, PANEL, SMALL, printable, widest
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.style import FAINT, INK, MUTED, SIGNED_COLOURS, ink_on

Interval = tuple[float, float, float]

_EDGE, _ROW, _PANEL, _GAP, _HEAD = 0.35, 0.26, 2.5, 0.35, 0.62
_REFERENCE, _OTHER = "#dc6c2a", "#3a84bf"
_ACROSS = 3
_DOTS = "Dots: means. Bars: their intervals."
_TESTED = " Orange: what the others are tested against."
_RANKS = "Dots: ranks. Bars: their intervals. A line at the right joins methods that no test tells apart."


def metric_dots(
    means: Mapping[str, Mapping[str, Interval]], higher_is_better: Mapping[str, bool], *, reference: str | None = None
) -> Page:
    """One panel per metric, one line per method: a dot at the mean, a bar over its interval.

    Args:
        means: metric -> method -> (mean, low, high); NaN where there is none.
        higher_is_better: metric -> whether higher is better, which the title says.
        reference: the method that others were tested against; it is orange, with a line through its mean.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> figure = metric_dots({"auprc": {"a": (0.5, 0.4, 0.6), "b": (0.7, 0.6, 0.8)}}, {"auprc": True})
        >>> figure.axes[0].get_title(loc="left")
        'auprc ↑'
    """
    if not means or not all(means.values()):
        raise ValueError(
            "metric_dots: there is nothing to draw: means should be metric -> method -> (mean, low, high)."
        )
    methods = list(next(iter(means.values())))
    names = widest(methods, BODY) + 0.2
    across = min(_ACROSS, len(means))
    down = math.ceil(len(means) / across)
    tall = _ROW * len(methods)
    legend = _DOTS + (_TESTED if reference in methods else "")
    width = 2 * _EDGE + max(names + across * _PANEL + (across - 1) * _GAP, widest([legend], SMALL))
    with page(width, _EDGE + down * (tall + _HEAD) + 0.3) as figure:
        for i, (metric, row) in enumerate(means.items()):
            column, line = i % across, i // across
            left, top = _EDGE + names + column * (_PANEL + _GAP), _EDGE + line * (tall + _HEAD) + 0.12
            axes = figure.box(left, top, _PANEL, tall, label=metric)
            _panel(axes, row, reference, with_names=column == 0)
            axes.set_title(printable(f"{metric} {'↑' if higher_is_better[metric] else '↓'}"), fontsize=PANEL, color=INK)
        figure.write(_EDGE, _EDGE + down * (tall + _HEAD) - 0.05, legend, SMALL, color=MUTED)
    return figure


def agreement_grid(
    table: np.ndarray[tuple[int, int], np.dtype[np.float64]], methods: Sequence[str], title: str
) -> Page:
    """Methods x methods, each cell the agreement of two, from blue (-1) through paper (0) to orange (1).

    Args:
        table: (method, method), -1 to 1; NaN where it is not defined.
        methods: their names.
        title: what was measured.

    Raises:
        ValueError: if the table does not fit the names.

    Example:
        >>> figure = agreement_grid(np.eye(2), ["a", "b"], "Spearman's rho")
        >>> len(figure.axes[0].texts)
        4
    """
    if table.shape != (len(methods), len(methods)):
        raise ValueError(f"agreement_grid: table is {table.shape}, but there are {len(methods)} methods.")
    rows = [f"{number} {name}" for number, name in enumerate(methods, 1)]
    names, cell = widest(rows, BODY) + 0.2, 0.46
    side = cell * len(methods)
    width = 2 * _EDGE + max(names + side, widest([title], SMALL))
    with page(width, 2 * _EDGE + 0.6 + side) as figure:
        figure.write(_EDGE, _EDGE - 0.05, title, SMALL, color=MUTED)
        axes = figure.box(_EDGE + names, _EDGE + 0.6, side, side, label="agreement")
        axes.imshow((1 + np.nan_to_num(table)) / 2, cmap=SIGNED_COLOURS, vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks(range(len(rows)), [printable(row) for row in rows], fontsize=BODY)
        axes.set_xticks(range(len(rows)), [str(number) for number in range(1, len(rows) + 1)], fontsize=BODY)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
        for (i, j), value in np.ndenumerate(table):
            colour = SIGNED_COLOURS((1 + np.nan_to_num(value)) / 2)
            axes.text(j, i, _short(value), ha="center", va="center", fontsize=SMALL, color=ink_on(colour))
    return figure


def rank_lines(ranks: Mapping[str, tuple[Mapping[str, Interval], Sequence[Sequence[str]]]]) -> Page:
    """One panel per metric: a dot at each method's rank, a bar over its interval, lines over methods not told apart.

    Args:
        ranks: metric -> (method -> (rank, low, high), groups of methods); the best method is the first.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> figure = rank_lines({"auprc": ({"a": (1, 1, 2), "b": (2, 1, 2)}, [("a", "b")])})
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['a', 'b']
    """
    if not ranks:
        raise ValueError("rank_lines: there is nothing to draw: ranks should be metric -> (method -> rank, groups).")
    names = max(widest(list(of), BODY) for of, _ in ranks.values()) + 0.2
    across = min(2, len(ranks))
    down, tall = math.ceil(len(ranks) / across), _ROW * max(len(of) for of, _ in ranks.values())
    width = 2 * _EDGE + max(across * (names + _PANEL) + (across - 1) * _GAP, widest([_RANKS], SMALL))
    with page(width, _EDGE + down * (tall + _HEAD) + 0.3) as figure:
        for i, (metric, (of, groups)) in enumerate(ranks.items()):
            left = _EDGE + names + i % across * (names + _PANEL + _GAP)
            axes = figure.box(left, _EDGE + i // across * (tall + _HEAD) + 0.12, _PANEL, tall, label=metric)
            order = sorted(of, key=lambda name: of[name][0])
            _panel(axes, {name: of[name] for name in order}, None, with_names=True)
            together = [group for group in groups if len(group) > 1]
            edge = len(of) + 0.6
            for place, group in enumerate(together):
                rows = [order.index(name) for name in group]
                across_lines = edge + 0.35 * place
                axes.plot([across_lines] * 2, [min(rows) - 0.2, max(rows) + 0.2], color=INK, linewidth=2)
            axes.set_xlim(0.5, edge + 0.35 * max(1, len(together)))
            axes.set_xticks(range(1, len(of) + 1, 1 + len(of) // 8))
            axes.set_title(printable(f"rank by {metric}"), fontsize=PANEL, color=INK)
        figure.write(_EDGE, _EDGE + down * (tall + _HEAD) - 0.05, _RANKS, SMALL, color=MUTED)
    return figure


def rank_grid(
    ranks: np.ndarray[tuple[int, int], np.dtype[np.float64]], methods: Sequence[str], universes: Sequence[str]
) -> Page:
    """Universes x methods: each cell the rank of a method under one combination of choices, orange for the first.

    Args:
        ranks: (universe, method), 1 for the best.
        methods: their names.
        universes: what each ranking chose.

    Raises:
        ValueError: if the ranks do not fit the names.

    Example:
        >>> figure = rank_grid(np.array([[1.0, 2.0], [2.0, 1.0]]), ["a", "b"], ["delete", "mask"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['1', '2', '2', '1']
    """
    if ranks.shape != (len(universes), len(methods)):
        raise ValueError(f"rank_grid: ranks are {ranks.shape} for {len(universes)} universes, {len(methods)} methods.")
    columns = [f"{number} {name}" for number, name in enumerate(methods, 1)]
    names, cell = widest(list(universes), SMALL) + 0.2, 0.4
    legend = 0.17 * len(columns) + 0.3
    wide, tall = cell * len(methods), 0.3 * len(universes)
    with page(2 * _EDGE + names + wide, 2 * _EDGE + legend + tall) as figure:
        for row, column in enumerate(columns):
            figure.write(_EDGE + names, _EDGE - 0.1 + 0.17 * row, column, SMALL, color=MUTED)
        axes = figure.box(_EDGE + names, _EDGE + legend, wide, tall, label="ranks")
        shade = 1 - (ranks - 1) / max(1, len(methods) - 1)
        axes.imshow(shade, cmap=SIGNED_COLOURS, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_yticks(range(len(universes)), [printable(universe) for universe in universes], fontsize=SMALL)
        axes.set_xticks(range(len(methods)), [str(number) for number in range(1, len(methods) + 1)], fontsize=SMALL)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
        for (i, j), rank in np.ndenumerate(ranks):
            colour = ink_on(SIGNED_COLOURS(shade[i, j]))
            axes.text(j, i, f"{rank:g}", ha="center", va="center", fontsize=SMALL, color=colour)
    return figure


def _short(value: float) -> str:
    """Two digits without the zero before the point: ".91", "-.20"; "1" is 1 and a point in the middle is undefined."""
    if math.isnan(value):
        return "·"
    return "1" if value > 0.995 else f"{value:.2f}".replace("0.", ".").replace("-", "−")


def _panel(axes: Axes, row: Mapping[str, Interval], reference: str | None, with_names: bool) -> None:
    axes.set_ylim(len(row) - 0.5, -0.5)
    for y, (method, (mean, low, high)) in enumerate(row.items()):
        axes.axhline(y, color=FAINT, linewidth=0.6, zorder=0)
        if math.isnan(mean):
            continue
        colour = _REFERENCE if method == reference else _OTHER
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [y, y], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
        axes.plot([mean], [y], "o", color=colour, markersize=4.5)
        if method == reference:
            axes.axvline(mean, color=colour, linewidth=0.7, alpha=0.6, zorder=0)
    axes.set_yticks(range(len(row)), [printable(name) if with_names else "" for name in row], fontsize=BODY)
    axes.tick_params(axis="x", labelsize=SMALL, colors=MUTED, pad=2)
    axes.locator_params(axis="x", nbins=5)
