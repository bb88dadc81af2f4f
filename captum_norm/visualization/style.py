"""The colours of every figure.

Blue is always the weight, orange always the norm, green a share of a whole; all run from paper to ink in even steps of
lightness, so they read in grey and to colour-blind eyes.  Signed scores run from blue through paper to orange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize

from captum_norm.measures import MEASURES, Role
from captum_norm.visualization.numbers import Numbers

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

_LOWEST = 1e-4  # where a logarithmic scale ends, as a part of the largest score

ROLE_COLOURS: dict[Role, Colormap] = {"weight": WEIGHT_COLOURS, "norm": NORM_COLOURS, "share": SHARE_COLOURS}


@dataclass(frozen=True)
class Look:
    """What a map is called, its unit on a colour bar, and its colours."""

    title: str
    unit: str
    colours: Colormap


def look_of(name: str, unit: str = "score") -> Look:
    """The look of a measure; any other name is its own title, in ``unit``, in the norms' colours."""
    if name not in MEASURES:
        return Look(name, unit, NORM_COLOURS)
    measure = MEASURES[name]
    return Look(measure.title, measure.unit, ROLE_COLOURS[measure.role])


def colour_scale(values: Numbers, log: bool) -> Normalize:
    """From the numbers of a map, or of several, to where its colours begin and end."""
    largest = float(np.abs(values).max()) or 1.0
    if log:
        positive = values[values > 0]
        smallest = float(positive.min()) if positive.size else largest * _LOWEST
        return LogNorm(min(max(smallest, largest * _LOWEST), largest * 0.5), largest)
    return Normalize(-largest if (values < 0).any() else 0.0, largest)


def ink_on(colour: Any) -> str:
    """Dark letters on light colours, white ones on dark: by the light a screen gives off for an sRGB colour."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.27 else PAPER
