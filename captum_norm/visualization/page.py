"""A page measured in inches, in the house look whatever the user's rcParams say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text

from captum_norm.visualization.letters import BODY, PANEL, SMALL, TITLE, font_families, printable, text_width
from captum_norm.visualization.style import FAINT, INK, MUTED

DPI = 160
_PIXELS = 96  # of a browser in an inch


class Page(Figure):
    """A figure laid out in inches from its upper left corner, which notebooks show without pyplot."""

    def box(self, left: float, top: float, width: float, height: float, **kwargs: Any) -> Axes:
        """Axes at this place."""
        page_width, page_height = self.get_size_inches()
        place = (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
        return self.add_axes(place, **kwargs)

    def write(self, left: float, top: float, text: str, size: float = BODY, **kwargs: Any) -> None:
        """Text whose upper left corner is at this place."""
        page_width, page_height = self.get_size_inches()
        place: Any = {"ha": "left", "va": "top", "color": INK, "parse_math": False} | kwargs
        self.text(left / page_width, 1 - top / page_height, printable(text), fontsize=size, **place)

    def fit(self, width: float | None = None, font_size: float | None = None) -> Page:
        """The same figure at another size, letters and lines with it: ``plot(maps, call=2).fit(width=3.3)``.

        Args:
            width: in inches, such as that of a column; it is kept exactly by ``savefig("figure.pdf")``.
            font_size: of the text in the body, in points, such as the paper's; the width follows.

        Returns:
            The figure itself.

        Raises:
            ValueError: if not exactly one of them is given, or it is no positive number.
        """
        given = [size for size in (width, font_size) if size is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ValueError(f"fit: give width or font_size, one of them and positive, got {width} and {font_size}.")
        factor = width / self.get_figwidth() if width is not None else given[0] / (BODY * self._factor)
        self._factor *= factor
        self.set_size_inches(*(self.get_size_inches() * factor))
        scaled(self, factor)
        return self

    _factor = 1.0

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """As matplotlib saves; text stays text: whole fonts in PDF (type 42), letters in SVG."""
        with matplotlib.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}):
            super().savefig(fname, **kwargs)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """With the width that it is shown at: letters of ten points in every figure that the page has room for."""
        picture = BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue(), {"width": round(_PIXELS * self.get_figwidth())}


def scaled(figure: Any, factor: float) -> None:
    """Everything in points times ``factor``: letters, their distances, lines, marks."""
    for axes in figure.axes:
        # matplotlib sets a title's distance together with its text only
        title, pad = axes.get_title(loc="left"), axes.titleOffsetTrans.get_matrix()[1, 2] * 72 / figure.dpi
        for place, held in (("left", title), ("center", axes.get_title())):
            if held:
                size = {"left": axes._left_title, "center": axes.title}[place].get_fontsize()
                axes.set_title(held, loc=place, pad=pad * factor, fontsize=size)
        for axis in (axes.xaxis, axes.yaxis):
            axis.labelpad *= factor
            for tick in axis.get_major_ticks():
                tick.set_pad(tick.get_pad() * factor)
    for text in figure.findobj(Text):
        text.set_fontsize(text.get_fontsize() * factor)
        if isinstance(text, Annotation) and text.anncoords == "offset points":
            across, up = text.xyann
            text.xyann = factor * across, factor * up
    for line in figure.findobj(Line2D):
        line.set(linewidth=line.get_linewidth() * factor, markersize=line.get_markersize() * factor)
    for patch in figure.findobj(Patch):
        patch.set_linewidth(patch.get_linewidth() * factor)
    for marks in figure.findobj(PathCollection):
        marks.set_sizes([size * factor**2 for size in marks.get_sizes()])


@contextmanager
def page(width: float, height: float, title: str | None = None, edge: float = 0.3) -> Iterator[Page]:
    """A page in the house look, whatever the user's rcParams say; they are as before afterwards.

    It is wide enough for its title, which stands ``edge`` inches from its upper left corner.
    """
    width = max(width, 2 * edge + text_width(title, TITLE)) if title else width
    with matplotlib.style.context(["default", _house_style()]):
        figure = Page(figsize=(width, height), dpi=DPI)
        if title:
            figure.write(edge, edge, title, TITLE)
        yield figure


def _house_style() -> dict[str, Any]:
    """What differs from matplotlib's own defaults."""
    ticks = {"color": INK, "labelsize": SMALL, "major.size": 0}
    return {
        "font.family": list(font_families()),
        "font.size": BODY,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": MUTED,
        "axes.labelsize": SMALL,
        "axes.titlesize": PANEL,
        "axes.titlelocation": "left",
        "xtick.major.pad": 3,
        "ytick.major.pad": 4,
        **{f"axes.spines.{side}": False for side in ("top", "right", "left", "bottom")},
        **{f"{axis}tick.{part}": look for axis in "xy" for part, look in ticks.items()},
    }
