"""Token × token maps: weight beside norm for one attention call, or many heads or calls as a grid.

A row is a query (the token that attends), a column a key (the token attended to).  All panels of a figure have the same
tokens in the same order.  Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_norm.visualization.look import (
    BODY,
    MUTED,
    PANEL,
    PAPER,
    QUANTITY_LOOKS,
    SIGNED_COLOURS,
    SMALL,
    TITLE,
    Page,
    page,
    printable,
    quantity_look,
    shorten,
    text_width,
    widest,
)
from captum_norm.visualization.numbers import Numbers, check_count, drawable

ATTENDING = "Attending token"
_EDGE = 0.3
_LONGEST = 14  # characters of a token
_LETTERS = (6.5, BODY)  # the smallest and largest size of token labels, in points
_LOWEST = 1e-4  # where a logarithmic scale ends, as a part of the largest score
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Panel:
    """One map with what stands around it: ``values`` is (query, key)."""

    title: str
    unit: str
    colours: Colormap
    values: Numbers


@dataclass(frozen=True)
class _Labels:
    """The tokens of both axes, and which of them are named."""

    rows: Sequence[str]
    columns: Sequence[str]
    named_rows: Sequence[int]
    named_columns: Sequence[int]
    size: float

    def up_to(self, columns: int) -> _Labels:
        """The same for fewer columns."""
        return replace(
            self, columns=self.columns[:columns], named_columns=[i for i in self.named_columns if i < columns]
        )


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
) -> Page:
    """One or more maps over the same tokens side by side, each with its own colour bar.

    Args:
        scores: (query, key), or several under their names, which become the panels in this order.  The papers' names
            (``"weights"``, ``"head_norms"``, ``"summed_norms"``) bring their titles, units and colours along.
        tokens: the tokens of both axes (self-attention).
        query_tokens: the tokens of the rows, where they are others.
        key_tokens: the tokens of the columns, where they are others.
        query_axis: what the rows are, where they are no tokens; ``""`` where their names say it.
        title: what the figure shows.
        unit: what a map that brings no unit along is measured in; stands at its colour bar.
        log: colours by order of magnitude, down to 1/10000 of the largest score; smaller ones are drawn as that.

    Returns:
        The figure.  Where tokens are too many to name them all, those that receive most are named.

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
    return side_by_side(panels, rows, columns, title, log, query_axis)


def map_grid(
    scores: Tensor | Sequence[Tensor] | Mapping[str, Tensor | Sequence[Tensor]],
    titles: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    *,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    title: str | None = None,
    unit: str = "score",
    log: bool = False,
    scale: Literal["shared", "each"] = "shared",
    columns: int | None = None,
) -> Page:
    """Many small maps over the same tokens: the heads of a layer, or the layers of a model.

    Args:
        scores: (panel, query, key), or a list of (query, key); or several such under their names, which are drawn in
            rows below each other.
        titles: the title of each panel.
        tokens, query_tokens, key_tokens: as in ``token_map``; named only where there is room.
        title: what the figure shows.
        unit: as in ``token_map``.
        log: as in ``token_map``.
        scale: ``"shared"``: one colour scale for all panels of a name, so that they can be compared; ``"each"``: each
            panel runs to its own largest score, which is written above it.
        columns: panels beside each other; by default at most six.

    Returns:
        The figure.

    Raises:
        ValueError: as ``token_map``, and where names differ in their number of panels.
    """
    if scale not in ("shared", "each"):
        raise ValueError(f"map_grid: scale should be 'shared' or 'each', got {scale!r}.")
    named = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    lines = {
        name: [panel_of("map_grid", name, one, unit, log, f"[{i}]") for i, one in enumerate(maps)]
        for name, maps in named.items()
    }
    flat = [panel for line in lines.values() for panel in line]
    counts = {len(line) for line in lines.values()}
    if len(counts) > 1:
        raise ValueError(
            f"map_grid: scores should have as many panels under each name, got {', '.join(map(str, counts))}."
        )
    rows, keys = axis_tokens("map_grid", flat, tokens, query_tokens, key_tokens)
    if titles is not None:
        check_count("map_grid", "titles", titles, "panel", counts.pop())
    across = min(len(next(iter(lines.values()))), columns or 6)
    return _grid(list(lines.values()), titles, rows, keys, title, log, scale, across)


def panel_of(caller: str, name: str, scores: Tensor | Sequence[Any], unit: str, log: bool, place: str = "") -> Panel:
    """Scores under a name, (query, key), checked, with the look of that name."""
    known = quantity_look(name)
    called = f"scores{f'[{name!r}]' if name else ''}{place}"
    values = drawable(caller, called, scores, "query key")
    negative = bool((values < 0).any())
    if log and negative:
        raise ValueError(f"{caller}: {called} holds negative scores, which have no logarithm; draw it with log=False.")
    colours = SIGNED_COLOURS if negative else known.colours
    return Panel(known.title, known.unit if name in QUANTITY_LOOKS else unit, colours, values)


def axis_tokens(
    caller: str,
    panels: Sequence[Panel],
    tokens: Sequence[str] | None,
    query_tokens: Sequence[str] | None,
    key_tokens: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """The labels of rows and columns, positions where no tokens were given; all panels must fit them."""
    if not panels:
        raise ValueError(f"{caller}: scores is empty: there is nothing to draw.")
    if tokens is not None and (query_tokens is not None or key_tokens is not None):
        raise ValueError(f"{caller}: tokens names both axes; give it, or query_tokens and key_tokens.")
    shapes = {panel.values.shape for panel in panels}
    if len(shapes) > 1:
        raise ValueError(
            f"{caller}: all maps of a figure should have one shape (query, key), got {', '.join(map(str, shapes))}."
        )
    labels = []
    for axis, given, size in zip(("query", "key"), (query_tokens, key_tokens), shapes.pop(), strict=True):
        one = given if given is not None else tokens
        if one is not None:
            check_count(caller, "tokens" if given is None else f"{axis}_tokens", one, axis, size)
        labels.append(
            [shorten(str(label), _LONGEST) for label in one] if one is not None else [str(i) for i in range(size)]
        )
    return labels[0], labels[1]


def side_by_side(
    panels: Sequence[Panel],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None,
    log: bool,
    query_axis: str = ATTENDING,
) -> Page:
    """Panels with the same rows beside each other, each with its colour bar; some may lack the last columns."""
    cell = cell_size(max(len(rows), len(columns)))
    labels = choose_labels(panels, rows, columns, cell)
    width, height = cell * len(columns), cell * len(rows)
    left = _EDGE + 0.3 + widest([rows[i] for i in labels.named_rows], labels.size)
    slot = max(width + _bar_width(panels) + 0.15, max(text_width(panel.title, PANEL) for panel in panels) + 0.25)
    # A title that reaches the colour bar stands above the bar's unit, not beside it.
    lift = 0.22 if any(text_width(panel.title, PANEL) > width for panel in panels) else 0.0
    top = _EDGE + (0.45 if title else 0) + (0.32 + lift if any(panel.title for panel in panels) else 0.15)
    upright = _upright(columns, labels, cell)
    below = 0.45 + (0.15 if upright else widest([columns[i] for i in labels.named_columns], labels.size))
    across = max(left + slot * len(panels) + _EDGE - 0.15, 2 * _EDGE + (text_width(title, TITLE) if title else 0))
    with page(across, top + max(height + below, 1.2) + 0.12) as figure:
        if title:
            figure.write(_EDGE, _EDGE, title, TITLE)
        for place, panel in enumerate(panels):
            own = labels.up_to(panel.values.shape[1])
            panel_width = cell * len(own.columns)
            box = figure.box(left + place * slot, top, panel_width, height, label=panel.title or "map")
            image = draw_map(box, panel.values, _norm(panel.values, log), panel.colours)
            box.set_title(printable(panel.title), fontsize=PANEL, pad=8 + 72 * lift, parse_math=False)
            name_tokens(box, own, upright, with_rows=place == 0)
            _name_axes(box, own, query_axis if place == 0 and height > 1.1 else "")
            bar = figure.box(left + place * slot + panel_width + 0.12, top, 0.1, max(height, 0.9), label="colour bar")
            colour_bar(figure, bar, image, panel)
    return figure


@dataclass(frozen=True)
class _Raster:
    """Where the panels of a grid stand: blocks of lines, one line per name, ``across`` panels in each."""

    across: int
    lines: int
    left: float
    top: float
    above: float  # room for titles over the first line of a block, or over every line
    titled: bool  # whether every line has titles
    below: float  # room for the names of columns under the last line of a block
    width: float
    height: float
    right: float  # room for colour bars

    def x(self, place: int) -> float:
        return self.left + place % self.across * (self.width + 0.16)

    def y(self, place: int, line: int) -> float:
        return self.top + place // self.across * self.block + self.above + line * self.line

    @property
    def line(self) -> float:
        return self.height + (0.1 + self.above if self.titled else 0.16)

    @property
    def block(self) -> float:
        titles = 0.0 if self.titled else self.above
        return titles + self.lines * self.line + self.below + 0.1

    def page(self, panels: int, title: str | None) -> tuple[float, float]:
        width = self.x(self.across - 1) + self.width + self.right
        if title:
            width = max(width, 2 * _EDGE + text_width(title, TITLE))
        return width, self.top + ceil(panels / self.across) * self.block + _EDGE - 0.2


def _grid(
    lines: Sequence[Sequence[Panel]],
    titles: Sequence[str] | None,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None,
    log: bool,
    scale: str,
    across: int,
) -> Page:
    cell = min(max(10.2 / across, 1.2), 2.6) / max(len(rows), len(columns))
    labels = choose_labels([panel for line in lines for panel in line], rows, columns, cell)
    named = cell * 72 * 0.8 >= _LETTERS[0]  # whether there is room for tokens at all
    raster = _Raster(
        across=across,
        lines=len(lines),
        left=_EDGE + 0.35 + (widest(rows, labels.size) if named else 0.0),
        top=_EDGE + (0.5 if title else 0.1),
        above=0.24 if titles or scale == "each" else 0.0,
        titled=scale == "each",
        below=0.08 + widest(columns, labels.size) if named else 0.0,
        width=cell * len(columns),
        height=max(cell * len(rows), 0.5),
        right=_EDGE if scale == "each" else _bar_width([line[0] for line in lines]) - 0.1,
    )
    with page(*raster.page(len(lines[0]), title)) as figure:
        if title:
            figure.write(_EDGE, _EDGE, title, TITLE)
        for number, line in enumerate(lines):
            shared = _norm(np.stack([panel.values for panel in line]), log)
            for place, panel in enumerate(line):
                x, y, first = raster.x(place), raster.y(place, number), place % across == 0
                name = titles[place] if titles else ""
                box = figure.box(x, y, raster.width, raster.height, label=f"{panel.title} {name}".strip())
                norm = shared if scale == "shared" else _norm(panel.values, log)
                image = draw_map(box, panel.values, norm, panel.colours)
                name_tokens(box, labels, False, named and first, named and number == len(lines) - 1)
                box.set_title(_grid_title(panel, name, number, scale), fontsize=SMALL, pad=4, parse_math=False)
                if first:
                    box.set_ylabel(printable(panel.title), fontsize=SMALL, color=MUTED, labelpad=6, parse_math=False)
                if scale == "shared" and (place % across == across - 1 or place == len(line) - 1):
                    bar = figure.box(x + raster.width + 0.12, y + 0.19, 0.08, raster.height - 0.19, label="colour bar")
                    colour_bar(figure, bar, image, panel)
    return figure


def _grid_title(panel: Panel, name: str, line: int, scale: str) -> str:
    parts = [name] if name and (line == 0 or scale == "each") else []
    if scale == "each":
        parts.append(f"max {_short(float(np.abs(panel.values).max()))}")
    return printable(", ".join(parts))


def cell_size(count: int) -> float:
    """The side of a cell: large for few tokens, while a map of very many fills a large page."""
    return min(0.4, max(5.0, min(6.2, 0.14 * count)) / count)


def choose_labels(panels: Sequence[Panel], rows: Sequence[str], columns: Sequence[str], cell: float) -> _Labels:
    """All tokens where there is room; else those that receive most, as far apart as letters need."""
    size = float(np.clip(cell * 72 * 0.7, *_LETTERS))
    spacing = size * 1.3 / 72
    if spacing <= cell * 1.2:
        return _Labels(rows, columns, range(len(rows)), range(len(columns)), size)
    received = np.zeros(len(columns))
    for panel in panels:
        sizes = np.abs(panel.values).sum(0)
        received[: len(sizes)] += sizes / max(float(sizes.sum()), 1e-300)
    chosen: list[int] = []
    for column in np.argsort(-received, kind="stable").tolist():
        if all(abs(column - other) * cell >= spacing for other in chosen):
            chosen.append(column)
    every = ceil(spacing / cell)
    named_rows = sorted(chosen) if list(rows) == list(columns) else list(range(0, len(rows), every))
    return _Labels(rows, columns, named_rows, sorted(chosen), size)


def _upright(columns: Sequence[str], labels: _Labels, cell: float) -> bool:
    """Whether the column labels fit side by side without turning them."""
    widths = [text_width(columns[i], labels.size) for i in labels.named_columns]
    return all((a + b) / 2 + 0.08 <= cell for a, b in pairwise(widths)) if len(widths) > 1 else True


def draw_map(box: Any, values: Numbers, norm: Normalize, colours: Colormap) -> ScalarMappable:
    """A map (row, column) as cells in ``box``, with thin lines between them where they are few."""
    # A logarithm has no place for zero: it is drawn as the lowest colour.
    image = box.imshow(
        values,
        norm=norm,
        cmap=colours.with_extremes(bad=colours(0.0), under=colours(0.0)),
        aspect="auto",
        interpolation="nearest",
    )
    if max(values.shape) <= 48:  # thin lines of paper between cells; on larger maps they would pale the colours
        box.set_xticks(np.arange(0.5, values.shape[1] - 1), minor=True)
        box.set_yticks(np.arange(0.5, values.shape[0] - 1), minor=True)
        box.grid(which="minor", color=PAPER, linewidth=1.0 if max(values.shape) <= 24 else 0.5)
        box.tick_params(which="minor", length=0)
    return cast(ScalarMappable, image)


def name_tokens(
    box: Axes,
    labels: _Labels,
    upright: bool,
    with_rows: bool = True,
    with_columns: bool = True,
) -> None:
    """Write the tokens beside the rows and below the columns, as many as there is room for."""
    style: dict[str, Any] = {"fontsize": labels.size, "parse_math": False}
    named_columns, named_rows = labels.named_columns, labels.named_rows
    box.set_xticks(
        named_columns if with_columns else [],
        labels=[printable(labels.columns[i]) for i in named_columns] if with_columns else [],
        rotation=0 if upright else 90,
        **style,
    )
    box.set_yticks(
        named_rows if with_rows else [],
        labels=[printable(labels.rows[i]) for i in named_rows] if with_rows else [],
        **style,
    )


def _name_axes(box: Axes, labels: _Labels, query_axis: str) -> None:
    few = len(labels.named_columns) < len(labels.columns)
    note = f" ({len(labels.columns)}; those that receive most are named)" if few else ""
    box.set_xlabel(f"Attended token{note}", fontsize=SMALL, color=MUTED, labelpad=6)
    if query_axis:
        box.set_ylabel(printable(query_axis), fontsize=SMALL, color=MUTED, labelpad=6, parse_math=False)


def _norm(values: Numbers, log: bool) -> Normalize:
    largest = float(np.abs(values).max()) or 1.0
    if log:
        positive = values[values > 0]
        smallest = float(positive.min()) if positive.size else largest * _LOWEST
        return LogNorm(min(max(smallest, largest * _LOWEST), largest * 0.5), largest)
    return Normalize(-largest if (values < 0).any() else 0.0, largest)


def _bar_width(panels: Sequence[Panel]) -> float:
    """How much room colour bars need behind a panel, their ticks and units included."""
    return max(0.95, *(0.12 + text_width(panel.unit, SMALL) + 0.15 for panel in panels))


def colour_bar(figure: Page, box: Axes, image: ScalarMappable, panel: Panel) -> None:
    """Draw a panel's colours with their ticks into ``box``, its unit above."""
    bar: Any = figure.colorbar(image, cax=box)
    bar.outline.set_visible(False)
    ticks, labels = _bar_ticks(image.norm, panel.values)
    bar.set_ticks(ticks, labels=labels)
    bar.ax.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=MUTED, pad=3)
    bar.ax.minorticks_off()
    # Upright and above the bar, where it can be read without turning one's head.
    bar.ax.set_title(printable(panel.unit), fontsize=SMALL, color=MUTED, pad=5, parse_math=False)


def _bar_ticks(norm: Any, values: Numbers) -> tuple[list[float], list[str]]:
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 1.0)
    if not isinstance(norm, LogNorm):
        ticks = [float(t) for t in MaxNLocator(4).tick_values(low, high) if low - 1e-12 <= t <= high + 1e-12]
        return ticks, [_short(t) for t in ticks]
    lowest, highest = np.log10(low), np.log10(high)
    room = 0.08 * (highest - lowest)  # that the lowest tick needs for its own label
    powers = range(ceil(lowest + room), int(np.floor(highest)) + 1)
    bottom = f"{'≤ ' if (values < low).any() else ''}{low:.1g}"  # the lowest colour stands for all below
    return [low, *(10.0**p for p in powers)], [bottom, *(f"10{str(p).translate(_SUPERSCRIPTS)}" for p in powers)]


def _short(number: float) -> str:
    """Three digits that matter, with a true minus sign."""
    return f"{number:.3g}".replace("-", "−") if abs(number) > 1e-12 else "0"
