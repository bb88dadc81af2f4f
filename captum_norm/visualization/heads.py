"""Which heads are sinks, and which are idle: a square for each head, layers below each other.  Sizes are inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from captum_norm.visualization.letters import PANEL, SMALL, printable, widest
from captum_norm.visualization.numbers import drawable
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.style import MUTED, ink_on, look_of

_EDGE, _GAP, _SIDE = 0.35, 0.45, 0.3
_TITLES = {
    "first_weight": "first token, by weight",
    "first_norm": "first token, by norm",
    "special_weight": "special tokens, by weight",
    "special_norm": "special tokens, by norm",
    "first_length": "length of the first token's f(x)",
    "activity": "activity",
}


def head_grid(
    means: Mapping[str, Sequence[Tensor]], *, layers: Sequence[str] | None = None, title: str | None = None
) -> Page:
    """One panel for each quantity: rows are layers, columns heads, darker is more.

    Args:
        means: quantity -> (head,) for each layer, as `HeadActivity.means`; layers may differ in their heads.
        layers: what to call the layers; by default their numbers.
        title: what the figure shows.

    Returns:
        The figure.  Shares are on a scale from 0 to 1, all else from 0 to its largest.

    Raises:
        ValueError: if there is nothing to draw, or numbers are not finite.

    Example:
        >>> import torch
        >>> figure = head_grid({"first_weight": [torch.tensor([0.1, 0.9])], "activity": [torch.tensor([1.5, 0.5])]})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['first token, by weight', 'activity']
    """
    if not means or not all(len(of) for of in means.values()):
        raise ValueError("head_grid: there is nothing to draw: means should be quantity -> (head,) for each layer.")
    rows = max(len(of) for of in means.values())
    names = list(layers) if layers is not None else [str(number) for number in range(rows)]
    heads = max(len(row) for of in means.values() for row in of)
    left, top = _EDGE + widest(names, SMALL) + 0.1, _EDGE + (0.45 if title else 0.0) + 0.45
    width = max(heads * _SIDE, 2.0)
    with page(left + len(means) * (width + _GAP), top + rows * _SIDE + 0.25, title, _EDGE) as figure:
        for number, (name, of) in enumerate(means.items()):
            axes = figure.box(left + number * (width + _GAP), top, heads * _SIDE, rows * _SIDE, label=name)
            _panel(axes, name, of, heads, names if number == 0 else [""] * rows)
    return figure


def _panel(axes: Any, name: str, of: Sequence[Tensor], heads: int, layers: Sequence[str]) -> None:
    grid = np.full((len(of), heads), np.nan)
    for number, row in enumerate(of):
        grid[number, : len(row)] = drawable("head_grid", f"means[{name!r}][{number}]", row, "head")
    high = 1.0 if name.endswith(("_weight", "_norm")) else float(np.nanmax(grid)) or 1.0
    colours = look_of("weights" if name.endswith("_weight") else "head_norms").colours
    image = axes.imshow(grid, cmap=colours, vmin=0, vmax=high)
    axes.set_title(printable(_TITLES.get(name, name)), fontsize=PANEL, loc="left", pad=5, parse_math=False)
    axes.set_xticks(range(heads), [str(head) for head in range(heads)], fontsize=SMALL, color=MUTED)
    axes.set_yticks(range(len(of)), [printable(layer) for layer in layers], fontsize=SMALL, color=MUTED)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.title.set_position((0.0, 1.0))
    for (row, head), value in np.ndenumerate(grid):
        if np.isfinite(value):
            text = f"{100 * value:.0f}" if high == 1.0 else f"{value:.1f}"
            axes.text(head, row, text, ha="center", va="center", fontsize=SMALL - 1, color=ink_on(image.to_rgba(value)))
