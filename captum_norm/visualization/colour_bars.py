"""How numbers become colours: linear or by order of magnitude, and the bar beside a map that says which.

Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from captum_norm.visualization.letters import SMALL, printable, text_width
from captum_norm.visualization.numbers import Numbers
from captum_norm.visualization.page import Page
from captum_norm.visualization.panels import Panel
from captum_norm.visualization.style import MUTED

_LOWEST = 1e-4  # where a logarithmic scale ends, as a part of the largest score
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def colour_scale(values: Numbers, log: bool) -> Normalize:
    """From the numbers of a map, or of several, to where its colours begin and end."""
    largest = float(np.abs(values).max()) or 1.0
    if log:
        positive = values[values > 0]
        smallest = float(positive.min()) if positive.size else largest * _LOWEST
        return LogNorm(min(max(smallest, largest * _LOWEST), largest * 0.5), largest)
    return Normalize(-largest if (values < 0).any() else 0.0, largest)


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
        return ticks, [short(t) for t in ticks]
    lowest, highest = np.log10(low), np.log10(high)
    room = 0.08 * (highest - lowest)  # that the lowest tick needs for its own label
    powers = range(ceil(lowest + room), int(np.floor(highest)) + 1)
    bottom = f"{'≤ ' if (values < low).any() else ''}{low:.1g}"  # the lowest colour stands for all below
    return [low, *(10.0**p for p in powers)], [bottom, *(f"10{str(p).translate(_SUPERSCRIPTS)}" for p in powers)]


def short(number: float) -> str:
    """Three digits that matter, with a true minus sign."""
    return f"{number:.3g}".replace("-", "−") if abs(number) > 1e-12 else "0"
