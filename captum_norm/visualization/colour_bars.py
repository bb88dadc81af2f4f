"""The bar beside a map that says which number has which colour.

Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from captum_norm.visualization.letters import SMALL, printable, text_width
from captum_norm.visualization.numbers import Numbers
from captum_norm.visualization.page import Page
from captum_norm.visualization.panels import Panel
from captum_norm.visualization.style import MUTED

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def bar_width(panels: Sequence[Panel]) -> float:
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
        above = "≥ " if float(values.max()) > high * (1 + 1e-9) else ""  # the darkest colour stands for all above
        if above and high - ticks[-1] < 0.12 * (high - low):
            ticks.pop()
        ticks += [high] if above else []
        return ticks, [*map(short, ticks[:-1]), f"{above}{short(ticks[-1])}"]
    lowest, highest = np.log10(low), np.log10(high)
    room = 0.08 * (highest - lowest)  # that the lowest tick needs for its own label
    powers = range(ceil(lowest + room), int(np.floor(highest)) + 1)
    bottom = f"{'≤ ' if (values < low).any() else ''}{low:.1g}"  # the lowest colour stands for all below
    return [low, *(10.0**p for p in powers)], [bottom, *(f"10{str(p).translate(_SUPERSCRIPTS)}" for p in powers)]


def short(number: float) -> str:
    """Three digits that matter, with a true minus sign."""
    return f"{number:.3g}".replace("-", "−") if abs(number) > 1e-12 else "0"
