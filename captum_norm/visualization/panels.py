"""One map as a panel of a figure: its numbers and words checked, its cells drawn, its tokens written beside it.

A row is a query (the token that attends), a column a key (the token attended to).  All panels of a figure have the same
tokens in the same order.  Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from torch import Tensor

from captum_norm.visualization.letters import BODY, printable, shorten
from captum_norm.visualization.numbers import Numbers, check_count, drawable
from captum_norm.visualization.style import PAPER, SIGNED_COLOURS, colour_scale, look_of

_LONGEST = 14  # characters of a token
LETTERS = (7.5, BODY)  # the smallest and largest size of token labels, in points


@dataclass(frozen=True)
class Panel:
    """One map with what stands around it: ``values`` is (query, key)."""

    title: str
    unit: str
    colours: Colormap
    values: Numbers


@dataclass(frozen=True)
class Labels:
    """The tokens of both axes, and which of them are named."""

    rows: Sequence[str]
    columns: Sequence[str]
    named_rows: Sequence[int]
    named_columns: Sequence[int]
    size: float

    def up_to(self, columns: int) -> Labels:
        """The same for fewer columns."""
        named = [i for i in self.named_columns if i < columns]
        return replace(self, columns=self.columns[:columns], named_columns=named)


def panel_of(caller: str, name: str, scores: Tensor | Sequence[Any], unit: str, log: bool, place: str = "") -> Panel:
    """Scores under a name, (query, key), checked, with the look of that name."""
    look = look_of(name, unit)
    called = f"scores{f'[{name!r}]' if name else ''}{place}"
    values = drawable(caller, called, scores, "query key")
    negative = bool((values < 0).any())
    if log and negative:
        raise ValueError(f"{caller}: {called} holds negative scores, which have no logarithm; draw it with log=False.")
    return Panel(look.title, look.unit, SIGNED_COLOURS if negative else look.colours, values)


def axis_tokens(
    caller: str, panels: Sequence[Panel], tokens: Sequence[str] | None, query_tokens: Sequence[str] | None,
    key_tokens: Sequence[str] | None,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """The labels of rows and columns, positions where no tokens were given; all panels must fit them."""
    if not panels:
        raise ValueError(f"{caller}: scores is empty: there is nothing to draw.")
    if tokens is not None and (query_tokens is not None or key_tokens is not None):
        raise ValueError(f"{caller}: tokens names both axes; give it, or query_tokens and key_tokens.")
    shapes = {panel.values.shape for panel in panels}
    if len(shapes) > 1:
        found = ", ".join(map(str, shapes))
        raise ValueError(f"{caller}: all maps of a figure should have one shape (query, key), got {found}.")
    labels = []
    for axis, given, size in zip(("query", "key"), (query_tokens, key_tokens), shapes.pop(), strict=True):
        names = tokens if given is None else given
        if names is not None:
            check_count(caller, "tokens" if given is None else f"{axis}_tokens", names, axis, size)
        labels.append([str(i) for i in range(size)] if names is None else [shorten(str(t), _LONGEST) for t in names])
    return labels[0], labels[1]


def cell_size(count: int, across: int = 1) -> float:
    """The side of a cell: large for few tokens, while maps of very many fill the width of a large page."""
    least, most = (5.0, 6.2) if across == 1 else (3.9, 4.6)
    return min(0.4, max(least, min(most, 0.14 * count)) / count)


def choose_labels(panels: Sequence[Panel], rows: Sequence[str], columns: Sequence[str], cell: float) -> Labels:
    """All tokens where there is room; else those that receive most, as far apart as letters need."""
    size = float(np.clip(cell * 72 * 0.7, *LETTERS))
    spacing = size * 1.3 / 72
    if spacing <= cell * 1.2:
        return Labels(rows, columns, range(len(rows)), range(len(columns)), size)
    received = np.zeros(len(columns))
    for panel in panels:
        sizes = np.abs(panel.values).sum(0)
        received[: len(sizes)] += sizes / max(float(sizes.sum()), 1e-300)
    chosen: list[int] = []
    for column in np.argsort(-received, kind="stable").tolist():
        if all(abs(column - other) * cell >= spacing for other in chosen):
            chosen.append(column)
    every = ceil(spacing / cell)
    named_rows = sorted(chosen) if list(rows) == list(columns) else list(range(0, len(rows), every))
    return Labels(rows, columns, named_rows, sorted(chosen), size)


def scale_of(panels: Sequence[Panel], columns: Sequence[str], log: bool, without: Collection[str] = ()) -> Normalize:
    """The colour scale of panels together, over the columns of all tokens but some; of all where no other is left."""
    values = np.stack([panel.values for panel in panels])
    kept = [place for place, token in enumerate(columns[: values.shape[-1]]) if token not in without]
    return colour_scale(values[..., kept] if kept else values, log)


def outside(columns: Sequence[str], without: Collection[str]) -> str:
    """What a figure says of tokens that its scale does not look at."""
    found = [token for token in dict.fromkeys(columns) if token in without]
    return f"; colours are scaled without {', '.join(found)}" if found else ""


def draw_map(box: Any, values: Numbers, norm: Normalize, colours: Colormap) -> ScalarMappable:
    """A map (row, column) as cells in ``box``, with thin lines between them where they are few."""
    # A logarithm has no place for zero: it is drawn as the lowest colour.
    shown = colours.with_extremes(bad=colours(0.0), under=colours(0.0))
    image = box.imshow(values, norm=norm, cmap=shown, aspect="auto", interpolation="nearest")
    if max(values.shape) <= 48:  # thin lines of paper between cells; on larger maps they would pale the colours
        box.set_xticks(np.arange(0.5, values.shape[1] - 1), minor=True)
        box.set_yticks(np.arange(0.5, values.shape[0] - 1), minor=True)
        box.grid(which="minor", color=PAPER, linewidth=1.0 if max(values.shape) <= 24 else 0.5)
        box.tick_params(which="minor", length=0)
    return cast(ScalarMappable, image)


def name_tokens(box: Axes, labels: Labels, upright: bool, with_rows: bool = True, with_columns: bool = True) -> None:
    """Write the tokens beside the rows and below the columns, as many as there is room for."""
    style: dict[str, Any] = {"fontsize": labels.size, "parse_math": False}
    columns, rows = labels.named_columns if with_columns else [], labels.named_rows if with_rows else []
    turned = 0 if upright else 90
    box.set_xticks(columns, labels=[printable(labels.columns[i]) for i in columns], rotation=turned, **style)
    box.set_yticks(rows, labels=[printable(labels.rows[i]) for i in rows], **style)
