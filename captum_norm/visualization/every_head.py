"""All layers and all heads of a model on one page: a row for each layer, a column for each head.  Sizes are inches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from captum_norm.visualization.colour_bars import bar_width, colour_bar
from captum_norm.visualization.letters import PANEL, SMALL, printable, widest
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.panels import Panel, draw_map, outside, panel_of, scale_of
from captum_norm.visualization.style import FAINT, MUTED

_EDGE, _GAP, _WIDTH = 0.3, 0.06, 6.6
_READING = "Columns are heads. In each map rows attend, columns are attended to."


def every_head(
    blocks: Mapping[str, Sequence[Tensor]],
    layers: Sequence[str],
    tokens: Sequence[str],
    title: str | None,
    log: bool,
    scale: str,
    scale_without: Collection[str],
) -> Page:
    """One block for each measure, below each other.

    Args:
        blocks: measure -> for each layer (head, query, key); layers may differ in their heads.
        layers: what to call them.
        tokens: the attended tokens, which the scale may leave out.
        title: what the figure shows.
        log, scale, scale_without: as in ``plot``.
    """
    heads = max(len(layer) for block in blocks.values() for layer in block)
    side = min(1.0, max(0.36, _WIDTH / heads - _GAP))
    left = _EDGE + 0.12 + widest(list(layers), SMALL)
    drawn = {name: [_panels(name, layer, log, i) for i, layer in enumerate(block)] for name, block in blocks.items()}
    flat = {name: [panel for layer in block for panel in layer] for name, block in drawn.items()}
    tall = 0.72 + len(layers) * (side + _GAP)
    top = _EDGE + (0.45 if title else 0.0)
    across = left + heads * (side + _GAP) + bar_width([panels[0] for panels in flat.values()]) + 0.1
    with page(across, top + len(blocks) * tall + 0.12, title, _EDGE) as figure:
        for number, (name, block) in enumerate(drawn.items()):
            y = top + number * tall
            figure.write(left, y, flat[name][0].title + outside(tokens, scale_without), PANEL)
            shared = scale_of(flat[name], tokens, log, scale_without)
            for row, layer in enumerate(block):
                for head, panel in enumerate(layer):
                    place = left + head * (side + _GAP), y + 0.46 + row * (side + _GAP)
                    box = figure.box(*place, side, side, label=f"{panel.title} {layers[row]} head {head}")
                    norm = shared if scale == "shared" else scale_of([panel], tokens, log, scale_without)
                    image = draw_map(box, panel.values, norm, panel.colours)
                    box.grid(visible=False, which="both")
                    box.set(xticks=[], yticks=[])
                    box.patch.set_edgecolor(FAINT)
                    if row == 0:
                        box.set_title(str(head), loc="center", fontsize=SMALL, color=MUTED, pad=3)
                    if head == 0:
                        style: Any = {"rotation": 0, "ha": "right", "va": "center", "fontsize": SMALL, "color": MUTED}
                        box.set_ylabel(printable(layers[row]), parse_math=False, labelpad=5, **style)
            if scale == "shared":
                high = min(1.6, len(layers) * (side + _GAP))
                bar = figure.box(left + heads * (side + _GAP) + 0.12, y + 0.46, 0.1, high, label="colour bar")
                colour_bar(figure, bar, image, max(flat[name], key=lambda panel: float(panel.values.max())))
        figure.write(left, top + len(blocks) * tall - 0.2, _READING, SMALL, color=MUTED)
    return figure


def _panels(name: str, layer: Tensor, log: bool, number: int) -> list[Panel]:
    return [panel_of("plot", name, scores, "score", log, f"[{number}][{head}]") for head, scores in enumerate(layer)]
