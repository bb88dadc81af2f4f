"""How every figure looks: its colours, its letters, and a page measured in inches.

Blue is always the weight, orange always the norm, green a share of a whole; all run from paper to ink in even steps of
lightness, so they read in grey and to colour-blind eyes.  Signed scores run from blue through paper to orange.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

INK, MUTED, FAINT, PAPER = "#1d232b", "#69727d", "#e6e9ec", "#ffffff"

_BLUES = ("#f5f8fc", "#d6e4f3", "#a9cae7", "#70a9d6", "#3a84bf", "#14609f", "#053f78", "#03254c")
_ORANGES = ("#fdf7f2", "#fbe0cb", "#f8bf94", "#f0965a", "#dc6c2a", "#b54a12", "#84310a", "#521c05")
_GREENS = ("#f4f9f5", "#d3eadb", "#a5d3b6", "#6cb78c", "#3a9668", "#17744a", "#075231", "#02321d")

WEIGHT_COLOURS = LinearSegmentedColormap.from_list("captum_norm.weight", _BLUES)
NORM_COLOURS = LinearSegmentedColormap.from_list("captum_norm.norm", _ORANGES)
SHARE_COLOURS = LinearSegmentedColormap.from_list("captum_norm.share", _GREENS)
# The darkest two steps are left out: words are printed on these colours.
SIGNED_COLOURS = LinearSegmentedColormap.from_list("captum_norm.signed", [*_BLUES[5:0:-1], "#f7f7f7", *_ORANGES[1:6]])
UNSIGNED_COLOURS = LinearSegmentedColormap.from_list("captum_norm.unsigned", _ORANGES[:6])

# Okabe and Ito's colours, told apart by colour-blind eyes; the rest of the text stays in the background.
SPECIAL_CLASS_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
CLASS_COLOURS = {"punctuation": "#8b96a3", "other": "#dfe3e7", "no token": "#f3dfa2"}

DPI = 160
TITLE, PANEL, BODY, SMALL, TINY = 14.0, 11.0, 10.0, 8.5, 6.0  # letter sizes in points

_SANS = ("Inter", "Source Sans 3", "Helvetica Neue", "Arial", "Liberation Sans")
_OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Segoe UI Symbol",
    "Symbola",
)


@dataclass(frozen=True)
class QuantityLook:
    """How a quantity is called, its unit on a colour bar, and its colours."""

    title: str
    unit: str
    colours: Colormap


QUANTITY_LOOKS = {
    "weights": QuantityLook("Attention weight", "α", WEIGHT_COLOURS),
    "head_norms": QuantityLook("Norm per head", "‖αf(x)‖", NORM_COLOURS),
    "summed_norms": QuantityLook("Norm of the sum over heads", "‖Σαf(x)‖", NORM_COLOURS),
    "transformed_norms": QuantityLook("Norm of the transformed vector", "‖f(x)‖", NORM_COLOURS),
    "res_norms": QuantityLook("Norm with the residual", "‖Σαf(x) + x‖", NORM_COLOURS),
    "res_ln_norms": QuantityLook("Norm behind LayerNorm", "‖LN(Σαf(x) + x)‖", NORM_COLOURS),
    "globenc_norms": QuantityLook("Norm behind the layer", "‖LN₂(LN(Σαf(x) + x))‖", NORM_COLOURS),
    "alti": QuantityLook("ALTI: share of output", "share", SHARE_COLOURS),
    "mixing_weights": QuantityLook("By weight: attention alone", "ratio", SHARE_COLOURS),
    "mixing_res_weights": QuantityLook("By weight: with the residual", "ratio", SHARE_COLOURS),
    "mixing_attn": QuantityLook("By norm: attention alone", "ratio", SHARE_COLOURS),
    "mixing_res": QuantityLook("By norm: with the residual", "ratio", SHARE_COLOURS),
    "mixing_res_ln": QuantityLook("By norm: with residual and LayerNorm", "ratio", SHARE_COLOURS),
}


def quantity_look(name: str) -> QuantityLook:
    """The look of a known quantity; any other name is its own title."""
    return QUANTITY_LOOKS.get(name, QuantityLook(name, "score", NORM_COLOURS))


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
def page(width: float, height: float) -> Iterator[Page]:
    """A page in the house look, whatever the user's rcParams say; they are as before afterwards."""
    with look():
        drawn = Page(figsize=(width, height), dpi=DPI)
        yield drawn


@contextmanager
def look() -> Iterator[None]:
    """matplotlib's own defaults with the house look on top, for as long as the block lasts."""
    ours = {
        "font.family": list(font_families()),
        "font.size": BODY,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": MUTED,
        "axes.labelsize": SMALL,
        "axes.titlesize": PANEL,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.spines.bottom": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.major.pad": 3,
        "ytick.major.pad": 4,
    }
    with matplotlib.style.context(["default", ours]):
        yield


@lru_cache(maxsize=1)
def font_families() -> tuple[str, ...]:
    """The installed families to take letters from, first choice first; DejaVu Sans comes with matplotlib."""
    installed = set(fontManager.get_font_names())
    sans = [name for name in _SANS if name in installed][:1]
    return (*sans, "DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed))


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    fonts = (get_font(findfont(FontProperties(family=[name]))) for name in font_families())
    return any(font.get_char_index(ord(character)) for font in fonts)


def printable(text: str) -> str:
    """Text that the installed fonts can draw: a box for a letter they lack, marks for line breaks and tabs.

    matplotlib would warn of each missing letter whenever the figure is drawn, long after the call that could be asked.
    """
    shown = []
    for character in text:
        if character in "\n\r":
            shown.append("⏎")
        elif character == "\t":
            shown.append("⇥")
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mn", "Me") and not _has_glyph(character):
            continue  # joiners, direction marks, variants: nothing to see by themselves
        elif unicodedata.category(character) == "Cc":
            shown.append("·")
        else:
            shown.append(character if _has_glyph(character) else "□")
    return "".join(shown)


def shorten(text: str, most: int) -> str:
    """At most ``most`` characters, the last one an ellipsis where some were cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def text_width(text: str, size: float, **kwargs: Any) -> float:
    """The width of a text in inches."""
    renderer: Any = RendererAgg(1, 1, 72)  # type: ignore[no-untyped-call]
    prop = FontProperties(family=list(font_families()), size=size, **kwargs)
    width, _, _ = renderer.get_text_width_height_descent(printable(text), prop, ismath=False)
    return float(width) / 72


def widest(texts: Sequence[str], size: float, **kwargs: Any) -> float:
    """The width of the widest text in inches; 0 where there is none."""
    return max((text_width(text, size, **kwargs) for text in texts), default=0.0)


def ink_on(colour: Any) -> str:
    """Dark letters on light colours, white ones on dark: by the light a screen gives off for an sRGB colour."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.27 else PAPER
