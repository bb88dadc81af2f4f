"""The letters that figures are written in: installed fonts, text that they can draw, and how wide it is."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from matplotlib import get_cachedir
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

_EAST_ASIAN = "Noto Sans CJK"
_FONTS = {
    "emoji": "Noto Emoji", "CJK": _EAST_ASIAN, "HIRAGANA": _EAST_ASIAN, "KATAKANA": _EAST_ASIAN, "HANGUL": _EAST_ASIAN,
}  # fmt: skip
TITLE, PANEL, BODY, SMALL = 14.0, 11.0, 10.0, 8.5  # sizes in points

_SANS = ("Inter", "Source Sans 3", "Helvetica Neue", "Arial", "Liberation Sans")
_OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "PingFang SC", "Hiragino Sans",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS",
    "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Segoe UI Symbol", "Symbola",
)  # fmt: skip


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
    Here each script that no font has is told once, with a font that has it.
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
            if not (known := _has_glyph(character)):
                _tell(_script(character))
            shown.append(character if known else "□")
    return "".join(shown)


def _script(character: str) -> str:
    """The script a letter belongs to, as the first word of its name: "CJK", "ARABIC"; "emoji" for symbols."""
    if unicodedata.category(character) == "So":
        return "emoji"
    return unicodedata.name(character, "").partition(" ")[0]


@lru_cache(maxsize=64)
def _tell(script: str) -> None:
    """Warn of letters that are drawn as boxes, once for each script."""
    if not script:  # a code point without a name has no font either
        return
    font = _FONTS.get(script, f"Noto Sans {script.title()}")
    warnings.warn(
        f"no installed font has the letters of {script}: they are drawn as □. {font} has them: install it and remove "
        f"matplotlib's list of fonts ({get_cachedir()}).",
        stacklevel=3,
    )


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
