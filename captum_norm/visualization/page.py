"""A page measured in inches, in the house look whatever the user's rcParams say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_norm.visualization.letters import BODY, PANEL, SMALL, TITLE, font_families, printable, text_width
from captum_norm.visualization.style import FAINT, INK, MUTED

DPI = 160


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

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


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
