"""Which classes of tokens receive the attention of each layer, one panel per measure.  Sizes in the code are inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_norm.visualization.letters import BODY, PANEL, SMALL, printable, text_width, widest
from captum_norm.visualization.numbers import Numbers, check_count, drawable
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.style import CLASS_COLOURS, MUTED, PAPER, SPECIAL_CLASS_COLOURS, ink_on, look_of

_EDGE, _GAP, _WIDTH = 0.35, 0.4, 3.1
_MEAN = "mean"


def class_shares(
    shares: Mapping[str, Tensor], classes: Sequence[str], *, layers: Sequence[str] | None = None,
    title: str | None = None,
) -> Page:  # fmt: skip
    """How the attention of each layer divides among classes of tokens, by several measures side by side.

    Args:
        shares: measure -> (layer, class), non-negative.  The papers' names (``"weights"``, ``"head_norms"``,
            ``"summed_norms"``) bring their titles along.  Where every layer's shares add up to 1 they are written as
            per cent; else (the paper's unnormalised sums) as they are, each measure on its own scale.
        classes: the classes, in the order in which they are stacked from the left.
        layers: what to call the layers; by default their numbers, from 0 as in the models' own names.
        title: what the figure shows.

    Returns:
        The figure: one bar per layer, the first layer on top, and the mean over layers below.

    Raises:
        ValueError: for shares that are no (layer, class) table, negative, NaN or infinite, or names that do not fit.

    Example:
        >>> import torch
        >>> figure = class_shares({"weights": torch.tensor([[0.7, 0.3], [0.5, 0.5]])}, ["[CLS]", "other"])
        >>> [round(bar.get_width(), 2) for bar in figure.axes[0].patches]     # two layers and their mean
        [0.7, 0.3, 0.5, 0.5, 0.6, 0.4]
    """
    tables = {name: drawable("class_shares", f"shares[{name!r}]", one, "layer class") for name, one in shares.items()}
    rows = [*_layers(tables, classes, layers), _MEAN]
    strong = cycle(SPECIAL_CLASS_COLOURS)
    colours = [CLASS_COLOURS.get(name) or next(strong) for name in classes]
    step = 0.32 if len(rows) <= 16 else 0.24
    height = step * (len(rows) + 0.4)
    width = _WIDTH if len(tables) > 1 else 1.8 * _WIDTH
    left = _EDGE + 0.25 + widest(rows, SMALL)
    top = _EDGE + (0.48 if title else 0.0) + 0.4 + 0.3
    legend = sum(0.45 + text_width(name, BODY) for name in classes)
    across = left + max(len(tables) * (width + _GAP) - _GAP, legend) + _EDGE
    with page(across, top + height + 0.65, title, _EDGE) as figure:
        _legend(figure, left, top - 0.68, classes, colours)
        for place, (name, table) in enumerate(tables.items()):
            look = look_of(name)
            box = figure.box(left + place * (width + _GAP), top, width, height, label=look.title)
            box.set_title(printable(look.title), fontsize=PANEL, pad=7, parse_math=False)
            _bars(box, np.vstack([table, table.mean(0)]), colours, width)
            _axes(box, table, rows if place == 0 else [], look.unit)
    return figure


def _layers(tables: Mapping[str, Numbers], classes: Sequence[str], layers: Sequence[str] | None) -> list[str]:
    """The names of the layers, after a look at whether everything fits."""
    if not tables:
        raise ValueError("class_shares: shares is empty: there is nothing to draw.")
    counts = {len(table) for table in tables.values()}
    if len(counts) > 1:
        raise ValueError(f"class_shares: all measures should have as many layers, got {', '.join(map(str, counts))}.")
    for name, table in tables.items():
        check_count("class_shares", "classes", classes, "class", table.shape[1])
        if (table < 0).any():
            raise ValueError(f"class_shares: shares[{name!r}] holds negative numbers, which are no shares.")
    count = counts.pop()
    if layers is not None:
        check_count("class_shares", "layers", layers, "layer", count)
    return [str(layer) for layer in (range(count) if layers is None else layers)]


def _legend(figure: Page, left: float, top: float, classes: Sequence[str], colours: Sequence[str]) -> None:
    page_width, page_height = figure.get_size_inches()
    for name, colour in zip(classes, colours, strict=True):
        place, size = (left / page_width, 1 - (top + 0.15) / page_height), (0.14 / page_width, 0.14 / page_height)
        figure.add_artist(Rectangle(place, *size, color=colour, lw=0, transform=figure.transFigure))
        figure.write(left + 0.2, top + 0.08, name, BODY, va="center")
        left += 0.45 + text_width(name, BODY)


def _bars(box: Axes, table: Numbers, colours: Sequence[str], width: float) -> None:
    full = float(table.sum(1).max()) or 1.0
    percent = _adds_up(table)
    for row, shares in enumerate(table):
        y, x = _place(row, len(table)), 0.0
        for share, colour in zip(shares.tolist(), colours, strict=True):
            # A hair of paper between neighbours, as between the cells of a map.
            box.add_patch(Rectangle((x, y - 0.41), share, 0.82, facecolor=colour, edgecolor=PAPER, linewidth=0.6))
            text = f"{100 * share:.0f}" if percent else f"{share:.2g}"
            if share / full * width > text_width(text, SMALL) + 0.1:
                middle, ink = x + share / 2, MUTED if colour == CLASS_COLOURS["other"] else ink_on(to_rgb(colour))
                box.text(middle, y, text, ha="center", va="center_baseline", fontsize=SMALL, color=ink)
            x += share
    box.set_xlim(0, full)
    box.set_ylim(len(table) - 0.5 + 0.4, -0.5)


def _place(row: int, rows: int) -> float:
    """The mean stands a little apart."""
    return row + (0.4 if row == rows - 1 else 0.0)


def _adds_up(table: Numbers) -> bool:
    return bool(np.allclose(table.sum(1), 1, atol=1e-3))


def _axes(box: Axes, table: Numbers, rows: Sequence[str], unit: str) -> None:
    box.set_yticks([_place(row, len(rows)) for row in range(len(rows))], labels=[printable(r) for r in rows])
    for label in box.get_yticklabels():
        label.set_parse_math(False)
    if rows:
        box.set_ylabel("Layer", color=MUTED, labelpad=6)
    if _adds_up(table):
        box.set_xticks([0, 0.5, 1], labels=["0", "50", "100"], color=MUTED)
        box.set_xlabel("Share, %", color=MUTED)
    else:
        full = float(table.sum(1).max()) or 1.0
        box.set_xticks([0, full], labels=["0", f"{full:.3g}"], color=MUTED)
        box.set_xlabel(f"Sum over the class of {unit}", color=MUTED)
