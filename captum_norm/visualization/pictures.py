"""Where in a picture do the scores lie?  The picture, and beside it one heat map over it per method.

Scores are per pixel, as ``attribute`` gives them for ``pixel_values``, or per patch.  The picture is pale and grey
below a heat map, so that colour is score and nothing else.  Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from captum_norm.visualization.letters import PANEL, SMALL, TITLE, printable
from captum_norm.visualization.numbers import Numbers, drawable
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.style import INK, MUTED, SIGNED_COLOURS, Look, look_of

_EDGE, _PICTURE, _TITLE, _GAP, _BAR = 0.3, 2.1, 0.32, 0.68, 0.09
_PALE = 0.25  # how much of the picture is left below a heat map


def picture_maps(
    picture: Tensor,
    scores: Tensor | Mapping[str, Tensor],
    *,
    outline: Tensor | None = None,
    title: str | None = None,
    unit: str = "score",
    columns: int = 3,
) -> Page:
    """A picture and heat maps over it, side by side, each with its own colour bar.

    Args:
        picture: (channel, height, width) with one or three channels, or (height, width); its smallest number is drawn
            black, its largest white.
        scores: (channel, height, width), summed over channels, or (height, width), or a coarser grid of patches that
            divides the picture; or several under their names.  Names known from ``token_map`` bring their colours.
        outline: (height, width) bool, a part of the picture to draw a line around.
        title: what the figure shows.
        unit: what scores are measured in, where the name brings no unit along.
        columns: panels beside each other at most.

    Returns:
        The figure.  Signed scores run from blue through white to orange, all others from white to dark.

    Raises:
        ValueError: for scores that do not fit the picture, NaN or infinity, or another number of channels.

    Example:
        >>> import torch
        >>> figure = picture_maps(torch.rand(3, 8, 8), {"by patch": torch.eye(2)})
        >>> [axes.get_title(loc="left") for axes in figure.axes if axes.images and axes.get_label() != "colour bar"]
        ['picture', 'by patch']
    """
    shown = _picture(picture)
    named = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    maps = {name: _over(shown, name, one) for name, one in named.items()}
    line = None if outline is None else _over(shown, "outline", outline.float())
    across = min(columns, 1 + len(maps))
    height = _PICTURE * shown.shape[0] / shown.shape[1]
    top = _EDGE + (0.4 if title else 0.0)
    rows = -(-(1 + len(maps)) // across)
    with page(_EDGE + across * (_PICTURE + _GAP), top + rows * (_TITLE + height + _EDGE)) as figure:
        if title:
            figure.write(_EDGE, _EDGE - 0.05, title, TITLE)
        for number, name in enumerate(["picture", *maps]):
            left = _EDGE + (number % across) * (_PICTURE + _GAP)
            place = (left, top + (number // across) * (_TITLE + height + _EDGE) + _TITLE, _PICTURE, height)
            box = figure.box(*place, xticks=[], yticks=[])
            panel_title = printable(look_of(name).title if number else name)
            box.set_title(panel_title, fontsize=PANEL, loc="left", pad=5, parse_math=False)
            if number:
                _heat(figure, box, place, shown, maps[name], look_of(name, unit))
            else:
                box.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if line is not None:
                box.contour(line, levels=[0.5], colors=INK, linewidths=1.2)
        return figure


def _picture(picture: Tensor) -> Numbers:
    """(height, width) or (height, width, 3), from 0 to 1."""
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[0] not in (1, 3)):
        raise ValueError(
            "picture_maps: picture should be (height, width), or (channel, height, width) with one or three channels, "
            f"got shape {tuple(picture.shape)}. Draw the pictures of a batch one by one."
        )
    axes = "channel height width" if picture.ndim == 3 else "height width"
    colours = drawable("picture_maps", "picture", picture, axes)
    colours = (colours - colours.min()) / (np.ptp(colours) or 1.0)
    if colours.ndim == 3:
        colours = colours[0] if len(colours) == 1 else np.moveaxis(colours, 0, -1)
    return colours


def _over(shown: Numbers, name: str, scores: Tensor) -> Numbers:
    """Scores for each pixel of the picture."""
    if scores.ndim == 3:
        scores = scores.sum(0)
    values = drawable("picture_maps", f"scores[{name!r}]" if name else "scores", scores, "height width")
    height, width = shown.shape[:2]
    if height % values.shape[0] or width % values.shape[1]:
        raise ValueError(
            f"picture_maps: {f'scores {name!r}' if name else 'scores'} are {values.shape[0]} x "
            f"{values.shape[1]}, which does not divide the picture of {height} x {width}."
        )
    return values.repeat(height // values.shape[0], 0).repeat(width // values.shape[1], 1)


def _heat(figure: Page, box: Axes, place: Sequence[float], shown: Numbers, values: Numbers, look: Look) -> None:
    signed = bool((values < 0).any())
    largest = float(np.abs(values).max()) or 1.0
    lowest = -largest if signed else 0.0
    colours = SIGNED_COLOURS if signed else look.colours
    grey = shown if shown.ndim == 2 else shown.mean(-1)
    heat = colours(Normalize(lowest, largest)(values))[..., :3]
    # Multiplied, so that the picture shows through as lighter and darker, and where nothing is scored as grey.
    box.imshow(heat * (1 - _PALE + _PALE * grey[..., None]), interpolation="nearest")
    left, top, width, height = place
    bar: Any = figure.box(left + width + 0.07, top, _BAR, height, label="colour bar")
    bar.imshow(np.linspace(largest, lowest, 128)[:, None], cmap=colours, aspect="auto", extent=(0, 1, lowest, largest))
    bar.set(xticks=[], yticks=[lowest, largest])
    bar.set_yticklabels([_number(lowest), _number(largest)], fontsize=SMALL, color=MUTED)
    bar.yaxis.tick_right()
    bar.tick_params(length=0, pad=3)
    for label, side in zip(bar.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set_verticalalignment(side)
    bar.set_title(printable(look.unit), fontsize=SMALL, color=MUTED, pad=5, parse_math=False)


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−") if value else "0"
