"""Token × token maps side by side, each with its own colour bar: weight beside norm.  Sizes in the code are inches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from captum_norm.visualization.colour_bars import bar_width, colour_bar
from captum_norm.visualization.letters import PANEL, SMALL, printable, text_width, widest
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.panels import (
    Panel,
    axis_tokens,
    cell_size,
    choose_labels,
    draw_map,
    name_tokens,
    outside,
    panel_of,
    scale_of,
)
from captum_norm.visualization.style import MUTED

ATTENDING = "Attending token"
_EDGE = 0.3
_ACROSS = 2  # panels beside each other: letters of three are too small on a page


def token_map(
    scores: Tensor | Mapping[str, Tensor],
    tokens: Sequence[str] | None = None,
    *,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    query_axis: str = ATTENDING,
    title: str | None = None,
    unit: str = "score",
    log: bool = False,
    scale_without: Collection[str] = (),
    ax: Axes | None = None,
) -> Page:
    """One or more maps over the same tokens side by side, each with its own colour bar.

    Args:
        scores: (query, key), or several under their names, which become the panels in this order.  The papers' names
            (``"weights"``, ``"head_norms"``, ``"summed_norms"``) bring their titles, units and colours along.
        tokens: the tokens of both axes (self-attention).
        query_tokens, key_tokens: the tokens of the rows and of the columns, where these differ.
        query_axis: what the rows are, where they are no tokens; ``""`` where their names say it.
        title: what the figure shows.
        unit: what a map that brings no unit along is measured in; stands at its colour bar.
        log: colours by order of magnitude, down to 1/10000 of the largest score; smaller ones are drawn as that.
        scale_without: attended tokens that the colour scale does not look at, such as ``("[CLS]", "[SEP]")``, so that
            they do not flatten the rest; what is more than the scale has the darkest colour, and the figure says so.
        ax: axes to draw one map into, with its colour bar, instead of a page of its own.

    Returns:
        The figure, that of ``ax`` where it is given.  Where tokens are too many to name them all, those that receive
        most are named.

    Raises:
        ValueError: for scores that are no map, or not all of one shape, NaN or infinite, tokens that do not fit the
            axes, and negative scores with ``log``.

    Example:
        >>> import torch
        >>> figure = token_map(torch.eye(3), ["a", "b", "c"], unit="α")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['a', 'b', 'c']
    """
    named = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    panels = [panel_of("token_map", name, values, unit, log) for name, values in named.items()]
    rows, columns = axis_tokens("token_map", panels, tokens, query_tokens, key_tokens)
    if ax is not None:
        return _into(ax, panels, rows, columns, title, log, query_axis, scale_without)
    return side_by_side(panels, rows, columns, title, log, query_axis, scale_without)


def side_by_side(
    panels: Sequence[Panel],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None,
    log: bool,
    query_axis: str = ATTENDING,
    scale_without: Collection[str] = (),
) -> Page:
    """Panels with the same rows, two beside each other, each with its colour bar; some may lack the last columns."""
    across = min(len(panels), _ACROSS)
    cell = cell_size(max(len(rows), len(columns)), across)
    labels = choose_labels(panels, rows, columns, cell)
    width, height = cell * len(columns), cell * len(rows)
    left = _EDGE + 0.3 + widest([rows[i] for i in labels.named_rows], labels.size)
    slot = max(width + bar_width(panels) + 0.15, max(text_width(panel.title, PANEL) for panel in panels) + 0.25)
    # A title that reaches the colour bar stands above the bar's unit, not beside it.
    lift = 0.22 if any(text_width(panel.title, PANEL) > width for panel in panels) else 0.0
    above = 0.32 + lift if any(panel.title for panel in panels) else 0.15
    top = _EDGE + (0.45 if title else 0) + above
    widths = [text_width(columns[i], labels.size) for i in labels.named_columns]
    upright = all((a + b) / 2 + 0.08 <= cell for a, b in pairwise(widths))  # they fit side by side without being turned
    line = max(height + 0.45 + (0.15 if upright else max(widths)), 1.2) + 0.12
    lines = ceil(len(panels) / across)
    size = left + slot * across + _EDGE - 0.15, top + lines * line + (lines - 1) * above
    axis_style: Any = {"fontsize": SMALL, "color": MUTED, "labelpad": 6}
    with page(*size, title, _EDGE) as figure:
        for place, panel in enumerate(panels):
            own = labels.up_to(panel.values.shape[1])
            panel_width = cell * len(own.columns)
            x, y, first = left + place % across * slot, top + place // across * (line + above), place % across == 0
            box = figure.box(x, y, panel_width, height, label=panel.title or "map")
            image = draw_map(box, panel.values, scale_of([panel], columns, log, scale_without), panel.colours)
            box.set_title(printable(panel.title), fontsize=PANEL, pad=8 + 72 * lift, parse_math=False)
            name_tokens(box, own, upright, with_rows=first)
            count = len(own.columns)
            note = f" ({count}; those that receive most are named)" if len(own.named_columns) < count else ""
            note += outside(columns, scale_without) if place == 0 else ""
            box.set_xlabel(printable(f"Attended token{note}"), parse_math=False, **axis_style)
            if query_axis and first and height > 1.1:
                box.set_ylabel(printable(query_axis), parse_math=False, **axis_style)
            bar = figure.box(x + panel_width + 0.12, y, 0.1, max(height, 0.9), label="colour bar")
            colour_bar(figure, bar, image, panel)
    return figure


def _into(
    ax: Axes, panels: Sequence[Panel], rows: Sequence[str], columns: Sequence[str], title: str | None, log: bool,
    query_axis: str, scale_without: Collection[str],
) -> Any:  # fmt: skip
    """One panel in axes of the caller's, as large as they are."""
    if len(panels) > 1:
        raise ValueError(f"token_map: ax holds one map, but scores has {len(panels)}: one call and one ax for each.")
    [panel] = panels
    figure: Any = ax.get_figure(root=True)
    size = ax.get_window_extent().width / figure.dpi / len(columns)
    labels = choose_labels(panels, rows, columns, size)
    image = draw_map(ax, panel.values, scale_of([panel], columns, log, scale_without), panel.colours)
    name_tokens(ax, labels, upright=False)
    ax.tick_params(which="both", length=0)
    ax.set_title(printable(title or panel.title), fontsize=PANEL, parse_math=False)
    ax.set_xlabel(printable(f"Attended token{outside(columns, scale_without)}"), parse_math=False, fontsize=SMALL)
    ax.set_ylabel(printable(query_axis), parse_math=False, fontsize=SMALL)
    bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.04)
    bar.ax.set_title(printable(panel.unit), fontsize=SMALL, parse_math=False)
    bar.outline.set_visible(False)
    return figure
