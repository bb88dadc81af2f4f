"""Mixing ratios: how much of each token comes from others, layer by layer, as calls × tokens below each other.

Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from captum_norm.visualization.colour_bars import colour_bar
from captum_norm.visualization.letters import PANEL, SMALL, printable, text_width, widest
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.panels import Panel, cell_size, choose_labels, draw_map, name_tokens
from captum_norm.visualization.style import MUTED

_EDGE, _ABOVE, _BETWEEN, _MEAN = 0.35, 0.3, 0.12, 0.5


def below_each_other(
    panels: Sequence[Panel], rows: Sequence[str], tokens: Sequence[str], title: str, scale: Literal["shared", "each"]
) -> Page:
    """Panels over the same tokens in the same columns, the mean of each row behind it.

    Args:
        panels: (row, token) each.
        rows, tokens: the labels of their axes.
        title: what the figure shows.
        scale: ``"shared"``: one colour scale for all panels, so that they can be compared; ``"each"``: its own.
    """
    if scale not in ("shared", "each"):
        raise ValueError(f"plot: scale should be 'shared' or 'each', got {scale!r}.")
    cell = cell_size(len(tokens))
    labels = choose_labels(panels, rows, tokens, cell)
    tall = min(max(cell, 0.2), 0.3)  # the layers have names of their own: they need room however many tokens there are
    width, height = cell * len(tokens), tall * len(rows)
    left = _EDGE + 0.1 + widest(rows, SMALL)
    below = 0.25 + widest([tokens[i] for i in labels.named_columns], labels.size)
    across = left + max(width + _MEAN + 0.75, *(text_width(panel.title, PANEL) for panel in panels)) + _EDGE
    top, step = _EDGE + 0.45, _ABOVE + height + _BETWEEN
    largest = max(float(panel.values.max()) for panel in panels)
    with page(across, top + len(panels) * step + below, title, _EDGE) as figure:
        for number, panel in enumerate(panels):
            y = top + number * step + _ABOVE
            box = figure.box(left, y, width, height, label=panel.title)
            norm = Normalize(0.0, (largest if scale == "shared" else float(panel.values.max())) or 1.0)
            image = draw_map(box, panel.values, norm, panel.colours)
            last = number == len(panels) - 1
            name_tokens(box, labels, False, with_rows=False, with_columns=last)
            box.set_yticks(range(len(rows)), labels=[printable(row) for row in rows], fontsize=SMALL, parse_math=False)
            box.set_title(printable(panel.title), fontsize=PANEL, pad=6, parse_math=False)
            _write_means(box, panel)
            bar = figure.box(left + width + _MEAN + 0.12, y, 0.1, max(height, 0.7), label="colour bar")
            colour_bar(figure, bar, image, panel)
    return figure


def _write_means(box: Axes, panel: Panel) -> None:
    """The mean of each row in figures, where it can be read off."""
    place = panel.values.shape[1] - 0.5
    style: dict[str, Any] = {"fontsize": SMALL, "color": MUTED, "ha": "left"}
    box.annotate("mean", (place, -0.5), (6, 5), textcoords="offset points", va="bottom", **style)
    for row, mean in enumerate(np.mean(panel.values, axis=1)):
        box.annotate(f"{mean:.2f}", (place, row), (6, 0), textcoords="offset points", va="center", **style)
