"""Methods against each other on one text: the text once per method, each word on the colour of its score.

Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from captum_norm.visualization.letters import BODY, SMALL, printable, shorten, text_width, widest
from captum_norm.visualization.numbers import Numbers, check_count, drawable
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.style import MUTED, SIGNED_COLOURS, UNSIGNED_COLOURS, ink_on

_EDGE, _CELL, _LEADING, _STAVE, _BETWEEN = 0.35, 0.29, 0.34, 0.3, 0.035
_RAMP = 1.1
_LONGEST = 24  # characters of a word
_SCALE = "scaled to each row's maximum"
_CENTRED: dict[str, Any] = {"va": "center_baseline", "parse_math": False}


@dataclass(frozen=True)
class _Strip:
    method: str
    scores: Numbers
    signed: bool

    @property
    def largest(self) -> float:
        return float(np.abs(self.scores).max())

    @property
    def maximum(self) -> str:
        return f"max {self.largest:.2g}" if self.largest else "all 0"

    def colour(self, word: int) -> tuple[float, float, float, float]:
        part = self.scores[word] / self.largest if self.largest else 0.0
        return SIGNED_COLOURS((1 + part) / 2) if self.signed else UNSIGNED_COLOURS(part)


def method_strips(
    scores: Mapping[str, Tensor | Sequence[float]], words: Sequence[str], *, signed: Collection[str] | None = None,
    title: str | None = None, width: float = 11.0,
) -> Page:  # fmt: skip
    """Each method's score of each word, as the colour under the word; one row per method, long texts in several lines.

    Methods measure in units of their own, so each is divided by its own largest absolute score, which stands beside
    its name ("max").  Unsigned scores run from paper to orange, signed ones from blue (negative) to orange (positive).

    Args:
        scores: method -> (word,).
        words: the words, in order.
        signed: the methods whose scores have a sign; by default those with a negative score.
        title: what the figure shows.
        width: of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: where a method's scores do not fit the words, are NaN or infinite, or are negative in a method that
            is said to be unsigned.

    Example:
        >>> figure = method_strips({"AttentionNorm": [0.1, 0.4], "InputXGradient": [-1.0, 2.0]}, ["great", "film"])
        >>> [text.get_text() for text in figure.axes[0].texts][:8]
        ['AttentionNorm', 'max 0.4', 'great', 'film', 'InputXGradient', 'max 2', 'great', 'film']
    """
    strips = _strips(scores, words, signed)
    shown = [printable(shorten(str(word), _LONGEST)) for word in words]
    names = widest(list(scores), BODY) + 0.2 + widest([strip.maximum for strip in strips], SMALL)
    left = _EDGE + max(names, text_width(_SCALE, SMALL)) + 0.2
    widths = [max(text_width(word, BODY), 0.08) + 0.16 for word in shown]
    lines = _lines(widths, max(width - left - _EDGE, max(widths)))
    longest = max(sum(widths[i] + _BETWEEN for i in line) for line in lines)
    ramps = {("−max", "max") if strip.signed else ("0", "max") for strip in strips}
    key_width = sum(_RAMP + 0.44 + text_width(low + high, SMALL) for low, high in ramps) - 0.3
    across = left + max(longest, key_width) + _EDGE
    top = _EDGE + (0.5 if title else 0.0)
    stave = len(strips) * _LEADING + _STAVE
    with page(across, top + len(lines) * stave + 0.55, title, _EDGE) as figure:
        sheet = figure.box(0, 0, *figure.get_size_inches(), label="strips")
        sheet.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))
        sheet.set_axis_off()
        for number, line in enumerate(lines):
            for row, strip in enumerate(strips):
                y = top + number * stave + row * _LEADING
                _name(sheet, y, left, strip, with_maximum=number == 0)
                _cells(sheet, left, y, strip, line, shown, widths)
        _key(figure, sheet, left, top + len(lines) * stave + 0.02, strips)
    return figure


def _strips(
    scores: Mapping[str, Tensor | Sequence[float]], words: Sequence[str], signed: Collection[str] | None
) -> list[_Strip]:
    """Every method's scores, after a look at whether they fit the words."""
    if not scores:
        raise ValueError("method_strips: scores is empty: there is nothing to draw.")
    unknown = set(signed or ()) - set(scores)
    if unknown:
        raise ValueError(f"method_strips: signed names {sorted(unknown)[0]!r}, which is no method of scores.")
    strips = []
    for method, values in scores.items():
        array = drawable("method_strips", f"scores[{method!r}]", values, "word")
        check_count("method_strips", "words", words, "word", len(array))
        negative = bool((array < 0).any())
        if negative and signed is not None and method not in signed:
            raise ValueError(
                f"method_strips: scores[{method!r}] holds negative numbers but is not among signed; name it there."
            )
        strips.append(_Strip(method, array, negative if signed is None else method in signed))
    return strips


def _lines(widths: Sequence[float], room: float) -> list[list[int]]:
    """The words of each line, as many as there is room for."""
    lines: list[list[int]] = [[]]
    used = 0.0
    for word, width in enumerate(widths):
        if lines[-1] and used + width > room:
            lines.append([])
            used = 0.0
        lines[-1].append(word)
        used += width + _BETWEEN
    return lines


def _name(sheet: Axes, y: float, left: float, strip: _Strip, with_maximum: bool) -> None:
    middle = y + _CELL / 2
    sheet.text(_EDGE, middle, printable(strip.method), ha="left", fontsize=BODY, **_CENTRED)
    if with_maximum:
        sheet.text(left - 0.15, middle, strip.maximum, ha="right", fontsize=SMALL, color=MUTED, **_CENTRED)


def _cells(
    sheet: Axes, x: float, y: float, strip: _Strip, line: Sequence[int], words: Sequence[str], widths: Sequence[float]
) -> None:
    box, style = "round,pad=0,rounding_size=0.04", _CENTRED | {"ha": "center", "fontsize": BODY}
    for word in line:
        colour, width = strip.colour(word), widths[word]
        sheet.add_patch(FancyBboxPatch((x, y), width, _CELL, box, facecolor=colour, linewidth=0))
        sheet.text(x + width / 2, y + _CELL / 2, words[word], color=ink_on(colour), **style)
        x += width + _BETWEEN


def _key(figure: Page, sheet: Axes, left: float, top: float, strips: Sequence[_Strip]) -> None:
    """What the colours mean, and that every row has a scale of its own."""
    if any(not strip.signed for strip in strips):
        left = _ramp(figure, sheet, left, top, UNSIGNED_COLOURS, "0", "max")
    if any(strip.signed for strip in strips):
        _ramp(figure, sheet, left, top, SIGNED_COLOURS, "−max", "max")
    sheet.text(_EDGE, top + 0.08, _SCALE, va="center_baseline", fontsize=SMALL, color=MUTED)


def _ramp(figure: Page, sheet: Axes, x: float, top: float, colours: Colormap, low: str, high: str) -> float:
    style = _CENTRED | {"fontsize": SMALL, "color": MUTED}
    sheet.text(x, top + 0.08, low, **style)
    x += text_width(low, SMALL) + 0.07
    bar = figure.box(x, top + 0.01, _RAMP, 0.13, label="key")
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto", interpolation="nearest")
    bar.set_axis_off()
    sheet.text(x + _RAMP + 0.07, top + 0.08, high, **style)
    return x + _RAMP + 0.07 + text_width(high, SMALL) + 0.3
