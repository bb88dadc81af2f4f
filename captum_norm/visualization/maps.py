"""Token × token maps: weight beside norm for one attention call, or many heads or calls as a grid.

A row is a query (the token that attends), a column a key (the token attended to).  All panels of a figure have the same
tokens in the same order.  Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_norm.visualization.look import (
    BODY,
    MUTED,
    PANEL,
    PAPER,
    QUANTITY_LOOKS,
    SIGNED_COLOURS,
    SMALL,
    TITLE,
    Page,
    page,
    printable,
    quantity_look,
    shorten,
    text_width,
    widest,
)
from captum_norm.visualization.numbers import Numbers, check_count, drawable

_EDGE = 0.3
_LONGEST = 14  # characters of a token
_LETTERS = (6.5, BODY)  # the smallest and largest size of token labels, in points
_LOWEST = 1e-4  # where a logarithmic scale ends, as a part of the largest score
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    colours: Colormap
    values: Numbers


@dataclass(frozen=True)
class _Labels:
    """The tokens of both axes, and which of them are named."""

    rows: Sequence[str]
    columns: Sequence[str]
    named_rows: Sequence[int]
    named_columns: Sequence[int]
    size: float


def token_map(
    scores: Tensor | Mapping[str, Tensor],
    tokens: Sequence[str] | None = None,
    *,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    title: str | None = None,
    unit: str = "score",
    log: bool = False,
) -> Page:
    """One or more maps over the same tokens side by side, each with its own colour bar.

    Args:
        scores: (query, key), or several under their names, which become the panels in this order.  The papers' names
            (``"weights"``, ``"head_norms"``, ``"summed_norms"``) bring their titles, units and colours along.
        tokens: the tokens of both axes (self-attention).
        query_tokens: the tokens of the rows, where they are others.
        key_tokens: the tokens of the columns, where they are others.
        title: what the figure shows.
        unit: what a map that brings no unit along is measured in; stands at its colour bar.
        log: colours by order of magnitude, down to 1/10000 of the largest score; smaller ones are drawn as that.

    Returns:
        The figure.  Where tokens are too many to name them all, those that receive most are named.

    Raises:
        ValueError: for scores that are no map, or not all of one shape, NaN or infinite, tokens that do not fit the
            axes, and negative scores with ``log``.

    Example:
        >>> import torch
        >>> figure = token_map(torch.eye(3), ["a", "b", "c"], unit="α")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['a', 'b', 'c']
    """
    named = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    panels = [_panel("token_map", name, values, unit) for name, values in named.items()]
    rows, columns = _axis_tokens("token_map", panels, tokens, query_tokens, key_tokens)
    return _side_by_side(panels, rows, columns, title, log)


def map_grid(
    scores: Tensor | Sequence[Tensor] | Mapping[str, Tensor | Sequence[Tensor]],
    titles: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    *,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    title: str | None = None,
    unit: str = "score",
    log: bool = False,
    scale: Literal["shared", "each"] = "shared",
    columns: int | None = None,
) -> Page:
    """Many small maps over the same tokens: the heads of a layer, or the layers of a model.

    Args:
        scores: (panel, query, key), or a list of (query, key); or several such under their names, which are drawn in
            rows below each other.
        titles: the title of each panel.
        tokens, query_tokens, key_tokens: as in ``token_map``; named only where there is room.
        title: what the figure shows.
        unit: as in ``token_map``.
        log: as in ``token_map``.
        scale: ``"shared"``: one colour scale for all panels of a name, so that they can be compared; ``"each"``: each
            panel runs to its own largest score, which is written above it.
        columns: panels beside each other; by default at most six.

    Returns:
        The figure.

    Raises:
        ValueError: as ``token_map``, and where names differ in their number of panels.
    """
    if scale not in ("shared", "each"):
        raise ValueError(f"map_grid: scale should be 'shared' or 'each', got {scale!r}.")
    named = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    lines = {
        name: [_panel("map_grid", name, one, unit, f"[{i}]") for i, one in enumerate(maps)]
        for name, maps in named.items()
    }
    flat = [panel for line in lines.values() for panel in line]
    counts = {len(line) for line in lines.values()}
    if len(counts) > 1:
        raise ValueError(
            f"map_grid: scores should have as many panels under each name, got {', '.join(map(str, counts))}."
        )
    rows, keys = _axis_tokens("map_grid", flat, tokens, query_tokens, key_tokens)
    if titles is not None:
        check_count("map_grid", "titles", titles, "panel", counts.pop())
    across = min(len(next(iter(lines.values()))), columns or 6)
    return _grid(list(lines.values()), titles, rows, keys, title, log, scale, across)


def plot(
    maps: Any,
    call: int | None = None,
    *,
    example: int = 0,
    heads: int | Literal["each"] | None = None,
    quantities: Sequence[str] | None = None,
    title: str | None = None,
    log: bool = False,
    scale: Literal["shared", "each"] = "shared",
) -> Page:
    """What ``attention_maps`` found: weight beside norm for one attention call, or a grid over calls or heads.

    Args:
        maps: ``AttentionMaps``, or anything with ``calls`` and, under the name of each quantity, a list over calls.
        call: which attention call; None draws all calls as a grid (or the only one).
        example: which example of the batch; its padding is left out.
        heads: None: the weights on the mean over heads beside ``summed_norms``; an int: that head's weights beside
            its ``head_norms``; ``"each"``: a grid over the heads of one call.
        quantities: which quantities instead.
        title: what the figure shows; by default which call it is.
        log: as in ``token_map``.
        scale: of a grid, as in ``map_grid``.

    Returns:
        The figure.

    Raises:
        ValueError: for a call, head or example that is not there, or a quantity that was not computed.

    Example:
        >>> import torch
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> figure = plot(attention_maps(encoder, torch.randn(1, 3, 8)))
        >>> [axes.get_title(loc="left") for axes in figure.axes[::2]]
        ['Attention weight', 'Norm of the sum over heads']
    """
    source = _Source(maps, example)
    if call is None and len(maps.calls) == 1:
        call = 0
    names = source.quantities(quantities, heads)
    if call is None:
        if heads == "each":
            raise ValueError("plot: heads='each' draws the heads of one attention call; say which with call=.")
        chosen = range(len(maps.calls))
        lines = {name: [source.map(name, i, heads) for i in chosen] for name in names}
        return map_grid(lines, _call_titles(maps.calls), **source.common_tokens(), title=title, log=log, scale=scale)
    call = source.checked_call(call)
    title = title if title is not None else _call_title(maps.calls[call], call)
    rows, columns = source.tokens(call)
    if heads == "each":
        lines = {name: list(source.map(name, call, heads)) for name in names}
        heads_held = source.head_numbers(call, len(lines[names[0]]))
        titles = [f"Head {head}" for head in heads_held]
        return map_grid(lines, titles, query_tokens=rows, key_tokens=columns, title=title, log=log, scale=scale)
    panels = []
    for name in names:
        panel = _panel("plot", name, source.map(name, call, heads), "score")
        panels.append(replace(panel, unit=source.unit(name, call, heads)))
    rows, columns = _axis_tokens("plot", panels, None, rows, columns)
    return _side_by_side(panels, rows, columns, title, log)


class _Source:
    """Reads maps of one example out of ``AttentionMaps``; padding is cut away."""

    def __init__(self, maps: Any, example: int) -> None:
        self.maps, self.example = maps, example
        if not len(maps.calls):
            raise ValueError("plot: maps holds no attention call: there is nothing to draw.")

    def quantities(self, wanted: Sequence[str] | None, heads: int | str | None) -> list[str]:
        """The quantities to draw; an error where one was not computed."""
        held = [name for name in ("weights", "head_norms", "summed_norms") if hasattr(self.maps, name)]
        default = ["weights", "summed_norms" if heads is None else "head_norms"]
        names = [wanted] if isinstance(wanted, str) else list(wanted or [name for name in default if name in held])
        missing = [name for name in names if not hasattr(self.maps, name)]
        if missing or not names:
            what = repr(missing[0]) if missing else " or ".join(map(repr, default))
            raise ValueError(
                f"plot: maps does not hold {what}; ask for it: attention_maps(model, inputs, quantities=(...)). "
                f"It holds {', '.join(held) or 'no map'}."
            )
        return names

    def checked_call(self, call: int) -> int:
        count = len(self.maps.calls)
        if not -count <= call < count:
            raise ValueError(f"plot: call is {call}, but maps holds {count} attention calls.")
        return call % count

    def map(self, name: str, call: int, heads: int | str | None) -> Tensor:
        """(query, key) of this example, or (head, query, key) for ``heads="each"``, real tokens only."""
        found: Tensor = getattr(self.maps, name)[call]
        if found.ndim not in (3, 4):
            raise ValueError(f"plot: {name} of call {call} is no map over queries and keys, {tuple(found.shape)}.")
        if not -len(found) <= self.example < len(found):
            raise ValueError(f"plot: example is {self.example}, but the batch holds {len(found)}.")
        one = found[self.example]
        if one.ndim == 3 and heads is None:
            one = one.mean(0)
        elif one.ndim == 3 and isinstance(heads, int):
            numbers = self.head_numbers(call, len(one))
            if heads not in numbers:
                raise ValueError(f"plot: heads is {heads}, but call {call} holds heads {', '.join(map(str, numbers))}.")
            one = one[numbers.index(heads)]
        elif one.ndim == 2 and heads is not None:
            raise ValueError(f"plot: {name} has no heads; leave heads out, or draw head_norms.")
        queries, keys = self._real("query_masks", call), self._real("key_masks", call)
        one = one if queries is None else one[..., queries, :]
        return one if keys is None else one[..., keys]

    def head_numbers(self, call: int, count: int) -> list[int]:
        """The model's number of each head that the maps hold."""
        held = getattr(self.maps, "head_indices", None)
        return [h % self.maps.calls[call].heads for h in held] if held is not None else list(range(count))

    def unit(self, name: str, call: int, heads: int | str | None) -> str:
        unit = quantity_look(name).unit
        shape = getattr(self.maps, name)[call].shape
        if len(shape) == 3:
            return unit
        if heads is not None:
            return f"{unit}, head {heads}"
        return unit if shape[1] == 1 else f"{unit}, mean of {shape[1]} heads"

    def tokens(self, call: int) -> tuple[list[str] | None, list[str] | None]:
        """The labels of the queries and of the keys."""
        return self._labels("query", call), self._labels("key", call)

    def common_tokens(self) -> dict[str, list[str] | None]:
        """The labels where all calls have the same ones."""
        rows, columns = zip(*map(self.tokens, range(len(self.maps.calls))), strict=True)
        same = lambda labels: labels[0] if all(one == labels[0] for one in labels) else None  # noqa: E731
        return {"query_tokens": same(rows), "key_tokens": same(columns)}

    def _labels(self, axis: str, call: int) -> list[str] | None:
        method = getattr(self.maps, f"{axis}_tokens", None)
        if method is not None:
            labels = list(method(call, self.example))
        elif getattr(self.maps, "tokens", None) is not None and self.maps.calls[call].kind != "cross":
            labels = list(map(str, self.maps.tokens[self.example]))
        else:
            return None
        real = self._real(f"{axis}_masks", call)
        return labels if real is None else [label for label, keep in zip(labels, real, strict=False) if keep]

    def _real(self, masks: str, call: int) -> Tensor | None:
        held = getattr(self.maps, masks, None)
        return None if held is None or held[call] is None else held[call][self.example]


def _call_title(call: Any, index: int) -> str:
    return f"Attention call {index}: {call.name or 'unnamed'} ({call.kind})"


def _call_titles(calls: Sequence[Any]) -> list[str]:
    """What tells the calls apart: "Layer 3" where their names differ in one number only, else "Call 3"."""
    parts = [call.name.split(".") for call in calls]
    if len({len(part) for part in parts}) == 1:
        differing = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
        if len(differing) == 1 and differing[0] > 0 and len({tuple(part) for part in parts}) == len(parts):
            place = differing[0]
            if all(part[place].isdigit() for part in parts):
                return [f"{part[place - 1].rstrip('s').capitalize()} {part[place]}" for part in parts]
    return [f"Call {i}" for i in range(len(calls))]


def _panel(caller: str, name: str, values: Tensor | Sequence[Any], unit: str, place: str = "") -> _Panel:
    known = quantity_look(name)
    array = drawable(caller, f"scores{f'[{name!r}]' if name else ''}{place}", values, "query key")
    colours = SIGNED_COLOURS if (array < 0).any() else known.colours
    return _Panel(known.title, known.unit if name in QUANTITY_LOOKS else unit, colours, array)


def _axis_tokens(
    caller: str,
    panels: Sequence[_Panel],
    tokens: Sequence[str] | None,
    query_tokens: Sequence[str] | None,
    key_tokens: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """The labels of rows and columns, positions where no tokens were given; all panels must fit them."""
    if not panels:
        raise ValueError(f"{caller}: scores is empty: there is nothing to draw.")
    if tokens is not None and (query_tokens is not None or key_tokens is not None):
        raise ValueError(f"{caller}: tokens names both axes; give it, or query_tokens and key_tokens.")
    shapes = {panel.values.shape for panel in panels}
    if len(shapes) > 1:
        raise ValueError(
            f"{caller}: all maps of a figure should have one shape (query, key), got {', '.join(map(str, shapes))}."
        )
    labels = []
    for axis, given, size in zip(("query", "key"), (query_tokens, key_tokens), shapes.pop(), strict=True):
        one = given if given is not None else tokens
        if one is not None:
            check_count(caller, "tokens" if given is None else f"{axis}_tokens", one, axis, size)
        labels.append([shorten(str(label), _LONGEST) for label in one] if one is not None else _positions(size))
    return labels[0], labels[1]


def _positions(size: int) -> list[str]:
    return [str(position) for position in range(size)]


def _side_by_side(
    panels: Sequence[_Panel], rows: Sequence[str], columns: Sequence[str], title: str | None, log: bool
) -> Page:
    panels = [_checked_for(log, panel) for panel in panels]
    cell = _cell(max(len(rows), len(columns)))
    labels = _labels(panels, rows, columns, cell)
    width, height = cell * len(columns), cell * len(rows)
    left = _EDGE + 0.3 + widest([rows[i] for i in labels.named_rows], labels.size)
    slot = max(width + 1.1, max(text_width(panel.title, PANEL) for panel in panels) + 0.25)
    top = _EDGE + (0.45 if title else 0) + (0.32 if any(panel.title for panel in panels) else 0)
    upright = _upright(columns, labels, cell)
    below = 0.45 + (0.15 if upright else widest([columns[i] for i in labels.named_columns], labels.size))
    across = max(left + slot * len(panels) + _EDGE - 0.15, 2 * _EDGE + (text_width(title, TITLE) if title else 0))
    with page(across, top + max(height + below, 1.2) + 0.12) as figure:
        if title:
            figure.write(_EDGE, _EDGE, title, TITLE)
        for place, panel in enumerate(panels):
            box = figure.box(left + place * slot, top, width, height, label=panel.title or "map")
            image = _draw(box, panel.values, _norm(panel.values, log), panel.colours)
            box.set_title(printable(panel.title), fontsize=PANEL, pad=8, parse_math=False)
            _name_tokens(box, labels, upright, with_rows=place == 0)
            bar = figure.box(left + place * slot + width + 0.12, top, 0.1, max(height, 0.9), label="colour bar")
            _colour_bar(figure, bar, image, panel)
    return figure


def _grid(
    lines: Sequence[Sequence[_Panel]],
    titles: Sequence[str] | None,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None,
    log: bool,
    scale: str,
    across: int,
) -> Page:
    lines = [[_checked_for(log, panel) for panel in line] for line in lines]
    blocks = ceil(len(lines[0]) / across)
    cell = min(max(10.2 / across, 1.2), 2.6) / max(len(rows), len(columns))
    width, height = cell * len(columns), max(cell * len(rows), 0.3)
    named = cell * 72 * 0.8 >= _LETTERS[0]
    labels = _labels([panel for line in lines for panel in line], rows, columns, cell)
    left = _EDGE + 0.35 + (widest(rows, labels.size) if named else 0)
    below = (0.12 + widest(columns, labels.size)) if named else 0.0
    above, gap = (0.24 if titles or scale == "each" else 0.0), 0.16
    line_height = above + height + gap
    block_height = line_height * len(lines) + below + 0.2
    top = _EDGE + (0.5 if title else 0)
    full_width = max(left + across * (width + gap) + 0.9, 2 * _EDGE + (text_width(title, TITLE) if title else 0))
    with page(full_width, top + blocks * block_height + _EDGE - 0.3) as figure:
        if title:
            figure.write(_EDGE, _EDGE, title, TITLE)
        for number, line in enumerate(lines):
            shared = _norm(np.stack([panel.values for panel in line]), log)
            for place, panel in enumerate(line):
                block, column = divmod(place, across)
                y = top + block * block_height + number * line_height + above
                name = titles[place] if titles else ""
                box = figure.box(left + column * (width + gap), y, width, height, label=f"{panel.title} {name}".strip())
                norm = shared if scale == "shared" else _norm(panel.values, log)
                image = _draw(box, panel.values, norm, panel.colours)
                heading = [name] if number == 0 or scale == "each" else []
                if scale == "each":
                    heading.append(f"max {_short(float(np.abs(panel.values).max()))}")
                box.set_title(printable("  ".join(heading)), fontsize=SMALL, pad=4, parse_math=False)
                _name_tokens(box, labels, False, named and column == 0, named and number == len(lines) - 1, plain=True)
                if column == 0 and panel.title:
                    box.set_ylabel(printable(panel.title), fontsize=SMALL, color=MUTED, labelpad=6, parse_math=False)
                if scale == "shared" and (column == across - 1 or place == len(line) - 1):
                    bar = figure.box(left + column * (width + gap) + width + 0.12, y, 0.08, height, label="colour bar")
                    _colour_bar(figure, bar, image, panel)
    return figure


def _checked_for(log: bool, panel: _Panel) -> _Panel:
    if log and (panel.values < 0).any():
        raise ValueError(f"{panel.title or 'scores'}: negative scores have no logarithm; draw them with log=False.")
    return panel


def _cell(count: int) -> float:
    """The side of a cell: large for few tokens, while a map of very many fills a large page."""
    return min(0.42, max(5.0, min(7.5, 0.07 * count)) / count)


def _labels(panels: Sequence[_Panel], rows: Sequence[str], columns: Sequence[str], cell: float) -> _Labels:
    """All tokens where there is room; else those that receive most, as far apart as letters need."""
    size = float(np.clip(cell * 72 * 0.62, *_LETTERS))
    spacing = size * 1.3 / 72
    if spacing <= cell * 1.2:
        return _Labels(rows, columns, range(len(rows)), range(len(columns)), size)
    received = np.sum([np.abs(p.values).sum(0) / max(float(np.abs(p.values).sum()), 1e-300) for p in panels], axis=0)
    chosen: list[int] = []
    for column in np.argsort(-received, kind="stable").tolist():
        if all(abs(column - other) * cell >= spacing for other in chosen):
            chosen.append(column)
    every = ceil(spacing / cell)
    named_rows = sorted(chosen) if list(rows) == list(columns) else list(range(0, len(rows), every))
    return _Labels(rows, columns, named_rows, sorted(chosen), size)


def _upright(columns: Sequence[str], labels: _Labels, cell: float) -> bool:
    """Whether the column labels fit side by side without turning them."""
    widths = [text_width(columns[i], labels.size) for i in labels.named_columns]
    return all((a + b) / 2 + 0.08 <= cell for a, b in pairwise(widths)) if len(widths) > 1 else True


def _draw(box: Axes, values: Numbers, norm: Normalize, colours: Colormap) -> ScalarMappable:
    # A logarithm has no place for zero: it is drawn as the lowest colour.
    image = box.imshow(
        values,
        norm=norm,
        cmap=colours.with_extremes(bad=colours(0.0), under=colours(0.0)),
        aspect="auto",
        interpolation="nearest",
    )
    if max(values.shape) <= 48:  # thin lines of paper between cells; on larger maps they would pale the colours
        box.set_xticks(np.arange(0.5, values.shape[1] - 1), minor=True)
        box.set_yticks(np.arange(0.5, values.shape[0] - 1), minor=True)
        box.grid(which="minor", color=PAPER, linewidth=1.0 if max(values.shape) <= 24 else 0.5)
        box.tick_params(which="minor", length=0)
    return image


def _name_tokens(
    box: Axes,
    labels: _Labels,
    upright: bool,
    with_rows: bool = True,
    with_columns: bool = True,
    plain: bool = False,
) -> None:
    style: dict[str, Any] = {"fontsize": labels.size, "parse_math": False}
    named_columns, named_rows = labels.named_columns, labels.named_rows
    box.set_xticks(
        named_columns if with_columns else [],
        labels=[printable(labels.columns[i]) for i in named_columns] if with_columns else [],
        rotation=0 if upright else 90,
        **style,
    )
    box.set_yticks(
        named_rows if with_rows else [],
        labels=[printable(labels.rows[i]) for i in named_rows] if with_rows else [],
        **style,
    )
    if not plain:
        few = len(named_columns) < len(labels.columns)
        note = f" ({len(labels.columns)}; those that receive most are named)" if few else ""
        box.set_xlabel(f"Attended token{note}", fontsize=SMALL, color=MUTED, labelpad=6)
        if with_rows:
            box.set_ylabel("Attending token", fontsize=SMALL, color=MUTED, labelpad=6)


def _norm(values: Numbers, log: bool) -> Normalize:
    largest = float(np.abs(values).max()) or 1.0
    if log:
        positive = values[values > 0]
        smallest = float(positive.min()) if positive.size else largest * _LOWEST
        return LogNorm(min(max(smallest, largest * _LOWEST), largest * 0.5), largest)
    return Normalize(-largest if (values < 0).any() else 0.0, largest)


def _colour_bar(figure: Page, box: Axes, image: ScalarMappable, panel: _Panel) -> None:
    bar = figure.colorbar(image, cax=box)
    bar.outline.set_visible(False)  # type: ignore[operator]
    ticks, labels = _bar_ticks(image.norm, panel.values)
    bar.set_ticks(ticks, labels=labels)
    bar.ax.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=MUTED, pad=3)
    bar.ax.minorticks_off()
    bar.set_label(panel.unit, fontsize=SMALL, color=MUTED, labelpad=4, parse_math=False)


def _bar_ticks(norm: Normalize, values: Numbers) -> tuple[list[float], list[str]]:
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 1.0)
    if not isinstance(norm, LogNorm):
        ticks = [float(t) for t in MaxNLocator(4).tick_values(low, high) if low - 1e-12 <= t <= high + 1e-12]
        return ticks, [_short(t) for t in ticks]
    powers = range(ceil(np.log10(low) + 0.1), int(np.floor(np.log10(high))) + 1)
    bottom = f"{'≤ ' if (values < low).any() else ''}{_short(low)}"  # the lowest colour stands for all below
    return [low, *(10.0**p for p in powers)], [bottom, *(f"10{str(p).translate(_SUPERSCRIPTS)}" for p in powers)]


def _short(number: float) -> str:
    """Three digits that matter, with a true minus sign."""
    return f"{number:.3g}".replace("-", "−") if abs(number) > 1e-12 else "0"
