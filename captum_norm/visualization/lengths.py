"""How long are the vectors that attention moves: by class of token, and against the weight they receive?

Figures 4 and 5 of Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102.  Sizes in the code are inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from captum_norm.ranks import spearman
from captum_norm.visualization.letters import BODY, PANEL, SMALL, printable
from captum_norm.visualization.numbers import check_count, drawable
from captum_norm.visualization.one_example import OneExample
from captum_norm.visualization.page import page
from captum_norm.visualization.style import CLASS_COLOURS, FAINT, INK, MUTED, SPECIAL_CLASS_COLOURS

_EDGE, _WIDTH, _HEIGHT = 0.35, 4.4, 2.9
_OTHER = "#9aa4af"  # the rest of the text, where it is drawn in lines and dots


def class_lengths(
    lengths: Tensor, classes: Sequence[str], *, layers: Sequence[str] | None = None, title: str | None = None,
    ax: Axes | None = None,
) -> Any:  # fmt: skip
    """Mean ‖f(x)‖ of each class of tokens, layer by layer: special tokens and punctuation are short where norms say so.

    Args:
        lengths: (layer, class), such as ``TokenShares.f_norms``; NaN where there is none.
        classes: the classes.
        layers: what to call the layers; by default their numbers, from 0.
        title: what the figure shows.
        ax: axes to draw into, instead of a page of its own.

    Returns:
        The figure: one line per class.

    Raises:
        ValueError: for lengths that are no (layer, class) table, and names that do not fit.

    Example:
        >>> import torch
        >>> figure = class_lengths(torch.tensor([[0.5, 2.0], [0.4, 2.5]]), ["[SEP]", "other"])
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['[SEP]', 'other']
    """
    table = drawable("class_lengths", "lengths", lengths.nan_to_num(nan=-1.0), "layer class")
    check_count("class_lengths", "classes", classes, "class", table.shape[1])
    names = [str(i) for i in range(len(table))] if layers is None else [str(layer) for layer in layers]
    check_count("class_lengths", "layers", names, "layer", len(table))

    def draw(axes: Axes) -> None:
        places = np.arange(len(table))
        for column, (name, colour) in enumerate(zip(classes, _colours(classes), strict=True)):
            held = table[:, column] >= 0
            look: Any = {"color": colour, "linewidth": 1.6, "markersize": 3.5, "label": printable(name)}
            axes.plot(places[held], table[held, column], "-o", **look)
        axes.set_xticks(places, labels=[printable(name) for name in names])
        axes.set_ylim(0, None)
        _name_axes(axes, "Layer", "Mean ‖f(x)‖")
        _legend(axes)

    return _drawn(draw, title, ax)


def weights_against_lengths(
    maps: Any,
    call: int,
    *,
    classes: Sequence[str] | None = None,
    example: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
) -> Any:
    """The weight that each key receives against the length of its vector: a dot for each head and key of one call.

    Args:
        maps: ``attention_maps(..., quantities=("weights", "transformed_norms"))``.
        call: which attention call.
        classes: the class of each token of the example, padding left out (``token_classes`` gives it), for the
            colours; None draws all alike.
        example: which of the batch.
        title: what the figure shows; by default which call it is, with Spearman's rho.
        ax: axes to draw into, instead of a page of its own.

    Returns:
        The figure.  Weights are means over the queries, on a logarithmic axis.

    Raises:
        ValueError: for maps without these measures, and classes that do not fit.

    Example:
        >>> import torch
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> maps = attention_maps(encoder, torch.randn(1, 5, 8), quantities=("weights", "transformed_norms"))
        >>> len(weights_against_lengths(maps, 0).axes[0].collections[0].get_offsets())
        10
    """
    chosen = OneExample(maps, example)
    for name in ("weights", "transformed_norms"):
        chosen.quantities([name], None)
    call = chosen.checked_call(call)
    weights = chosen.map("weights", call, "each").double().mean(1).cpu()  # (head, key)
    lengths = chosen.map("transformed_norms", call, None).double().cpu()
    kinds = ["token"] * weights.shape[1] if classes is None else list(map(str, classes))
    check_count("weights_against_lengths", "classes", kinds, "key", weights.shape[1])
    names = sorted(dict.fromkeys(kinds), key=["punctuation", "other"].count)  # special tokens first
    rho = float(spearman(weights.flatten(), lengths.flatten()))
    strength = f"{rho:+.2f}".replace("-", "−")
    said = f"{maps.calls[call].name or f'Attention call {call}'}: Spearman's ρ {strength}" if title is None else title

    def draw(axes: Axes) -> None:
        for name, colour in zip(names, _colours(names), strict=True):
            held = [place for place, kind in enumerate(kinds) if kind == name]
            points = weights[:, held].flatten().numpy(), lengths[:, held].flatten().numpy()
            axes.scatter(*points, s=11, color=colour, alpha=0.75, linewidths=0, label=printable(name))
        axes.set_xscale("log")
        axes.set_ylim(0, None)
        _name_axes(axes, "Weight that a token receives, α (mean over queries)", "‖f(x)‖")
        if classes is not None:
            _legend(axes)

    return _drawn(draw, said, ax)


def _drawn(draw: Any, title: str | None, ax: Axes | None) -> Any:
    """The figure that ``draw`` fills: the caller's axes, or a page of its own."""
    if ax is not None:
        draw(ax)
        if title:
            ax.set_title(printable(title), loc="left", fontsize=PANEL, parse_math=False)
        return ax.get_figure(root=True)
    top = _EDGE + (0.42 if title else 0.05)
    with page(_EDGE + 0.55 + _WIDTH + 1.35 + _EDGE, top + _HEIGHT + 0.6, None, _EDGE) as figure:
        if title:
            figure.write(_EDGE, _EDGE - 0.05, title, PANEL)
        draw(figure.box(_EDGE + 0.55, top, _WIDTH, _HEIGHT, label="lengths"))
    return figure


def _colours(classes: Sequence[str]) -> list[str]:
    strong = cycle(SPECIAL_CLASS_COLOURS)
    own = CLASS_COLOURS | {"other": _OTHER, "token": "#3a84bf", "punctuation": "#4d5660"}
    return [own.get(name) or next(strong) for name in classes]


def _name_axes(axes: Axes, across: str, up: str) -> None:
    axes.grid(visible=True, which="major", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    axes.set_xlabel(across, fontsize=SMALL, color=MUTED, parse_math=False)
    axes.set_ylabel(up, fontsize=SMALL, color=MUTED, parse_math=False)


def _legend(axes: Axes) -> None:
    """Beside the axes, so that it covers nothing."""
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=BODY, handlelength=1.2)
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)
