"""Many small maps over the same tokens as a grid: the heads of a layer, the layers of a model.  Sizes are inches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from torch import Tensor

from captum_norm.visualization.colour_bars import bar_width, colour_bar, short
from captum_norm.visualization.letters import SMALL, printable, widest
from captum_norm.visualization.numbers import check_count
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.panels import (
    LETTERS,
    Panel,
    axis_tokens,
    choose_labels,
    draw_map,
    name_tokens,
    outside,
    panel_of,
    scale_of,
)
from captum_norm.visualization.style import MUTED

_EDGE = 0.3


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
    scale_without: Collection[str] = (),
) -> Page:
    """Many small maps over the same tokens: the heads of a layer, or the layers of a model.

    Args:
        scores: (panel, query, key), or a list of (query, key); or several such under their names, which are drawn in
            rows below each other.
        titles: the title of each panel.
        tokens, query_tokens, key_tokens: as in ``token_map``; named only where there is room.
        title: what the figure shows.
        unit, log: as in ``token_map``.
        scale: ``"shared"``: one colour scale for all panels of a name, so that they can be compared; ``"each"``: each
            panel runs to its own largest score, which is written above it.
        columns: panels beside each other; by default at most six.
        scale_without: as in ``token_map``.

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
        found = ", ".join(map(str, counts))
        raise ValueError(f"map_grid: scores should have as many panels under each name, got {found}.")
    rows, keys = axis_tokens("map_grid", flat, tokens, query_tokens, key_tokens)
    if titles is not None:
        check_count("map_grid", "titles", titles, "panel", counts.pop())
    across = min(len(next(iter(lines.values()))), columns or 6)
    return _grid(list(lines.values()), titles, rows, keys, title, log, scale, across, scale_without)


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

    def page(self, panels: int) -> tuple[float, float]:
        width = self.x(self.across - 1) + self.width + self.right
        return width, self.top + ceil(panels / self.across) * self.block + _EDGE - 0.2


def _grid(
    lines: Sequence[Sequence[Panel]], titles: Sequence[str] | None, rows: Sequence[str], columns: Sequence[str],
    title: str | None, log: bool, scale: str, across: int, scale_without: Collection[str],
) -> Page:  # fmt: skip
    note = outside(columns, scale_without).removeprefix("; ")
    cell = min(max(8.4 / across, 1.2), 2.6) / max(len(rows), len(columns))
    labels = choose_labels([panel for line in lines for panel in line], rows, columns, cell)
    named = cell * 72 * 0.8 >= LETTERS[0]  # whether there is room for tokens at all
    raster = _Raster(
        across=across,
        lines=len(lines),
        left=_EDGE + 0.35 + (widest(rows, labels.size) if named else 0.0),
        top=_EDGE + (0.5 if title else 0.1) + (0.2 if note else 0.0),
        above=0.24 if titles or scale == "each" else 0.0,
        titled=scale == "each",
        below=0.08 + widest(columns, labels.size) if named else 0.0,
        width=cell * len(columns),
        height=max(cell * len(rows), 0.5),
        right=_EDGE if scale == "each" else bar_width([line[0] for line in lines]) - 0.1,
    )
    with page(*raster.page(len(lines[0])), title, _EDGE) as figure:
        if note:
            figure.write(_EDGE, raster.top - 0.3, note[0].upper() + note[1:], SMALL, color=MUTED)
        for number, line in enumerate(lines):
            shared = scale_of(line, columns, log, scale_without)
            for place, panel in enumerate(line):
                x, y, first = raster.x(place), raster.y(place, number), place % across == 0
                name = titles[place] if titles else ""
                box = figure.box(x, y, raster.width, raster.height, label=f"{panel.title} {name}".strip())
                norm = shared if scale == "shared" else scale_of([panel], columns, log, scale_without)
                image = draw_map(box, panel.values, norm, panel.colours)
                name_tokens(box, labels, False, named and first, named and number == len(lines) - 1)
                above = [name] if name and (number == 0 or scale == "each") else []
                above += [f"max {short(float(np.abs(panel.values).max()))}"] if scale == "each" else []
                box.set_title(printable(", ".join(above)), fontsize=SMALL, pad=4, parse_math=False)
                if first:
                    box.set_ylabel(printable(panel.title), fontsize=SMALL, color=MUTED, labelpad=6, parse_math=False)
                if scale == "shared" and (place % across == across - 1 or place == len(line) - 1):
                    bar = figure.box(x + raster.width + 0.12, y + 0.19, 0.08, raster.height - 0.19, label="colour bar")
                    colour_bar(figure, bar, image, panel)
    return figure
