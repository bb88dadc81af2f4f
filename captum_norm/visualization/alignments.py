"""Source words against target words: scores, the links read off them, the gold links.  Sizes in the code are inches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_norm.visualization.letters import PANEL, SMALL, printable, widest
from captum_norm.visualization.numbers import check_count, drawable
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.panels import cell_size, draw_map
from captum_norm.visualization.style import INK, MUTED, NORM_COLOURS, PAPER, colour_scale

Link = tuple[int, int]

_EDGE = 0.35
_LETTERS = 9.5


def alignment_matrix(
    scores: Tensor,
    source: Sequence[str],
    target: Sequence[str],
    *,
    links: Collection[Link] = (),
    gold: Any = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Any:
    """How much each target word takes from each source word, with the links found as dots and gold links as frames.

    Args:
        scores: (target word, candidate), such as ``AlignedPair.scores``; each row is divided by its sum.
        source: the candidates: source words, then special tokens (``AlignedPair.candidates``).
        target: the target words.
        links: (source word, target word), drawn as dots.
        gold: ``GoldLinks``, or links; sure ones have a whole frame, possible ones a dashed one.
        title: what the figure shows.
        ax: axes to draw into, instead of a page of its own.

    Returns:
        The figure.

    Raises:
        ValueError: for scores that do not fit the words, and links to words that are not there.

    Example:
        >>> import torch
        >>> figure = alignment_matrix(torch.eye(2), ["das", "haus"], ["the", "house"], links=[(0, 0)], gold=[(1, 1)])
        >>> len(figure.axes[0].lines), len(figure.axes[0].patches)
        (1, 1)
    """
    values = drawable("alignment_matrix", "scores", scores, "target source")
    check_count("alignment_matrix", "source", source, "source", values.shape[1])
    check_count("alignment_matrix", "target", target, "target", values.shape[0])
    sure = set(map(tuple, gold.sure if hasattr(gold, "sure") else gold or ()))
    possible = set(map(tuple, getattr(gold, "possible", ()))) - sure
    for s, t in {*links, *sure, *possible}:
        if not (0 <= s < len(source) and 0 <= t < len(target)):
            raise ValueError(f"alignment_matrix: link ({s}, {t}) is to a word that is not there.")
    total = values.sum(1, keepdims=True)
    shares = np.divide(values, total, out=np.zeros_like(values), where=total != 0)

    def draw(axes: Axes) -> None:
        draw_map(axes, shares, colour_scale(shares, log=False), NORM_COLOURS)
        for s, t in links:
            axes.plot([s], [t], "o", markerfacecolor=PAPER, markeredgecolor=INK, markeredgewidth=0.8, markersize=5.5)
        for s, t in sorted(sure | possible):
            dashes = "-" if (s, t) in sure else (0, (2, 1.5))
            look: Any = {"fill": False, "edgecolor": INK, "lw": 1.4, "ls": dashes, "zorder": 3}
            axes.add_patch(Rectangle((s - 0.45, t - 0.45), 0.9, 0.9, **look))
        style: Any = {"fontsize": _LETTERS, "parse_math": False}
        axes.set_xticks(range(len(source)), labels=[printable(word) for word in source], rotation=90, **style)
        axes.set_yticks(range(len(target)), labels=[printable(word) for word in target], **style)
        axes.tick_params(which="both", length=0)

    if ax is not None:
        draw(ax)
        if title:
            ax.set_title(printable(title), loc="left", fontsize=PANEL, parse_math=False)
        return ax.get_figure(root=True)
    return _page(draw, source, target, title, _legend(bool(links), sure, possible))


def _legend(linked: bool, sure: Collection[Link], possible: Collection[Link]) -> str:
    parts = [("dots: links found", linked), ("frames: gold", bool(sure)), ("dashed: possible", bool(possible))]
    return ", ".join(["Colour: share of the row", *(text for text, held in parts if held)])


def _page(draw: Any, source: Sequence[str], target: Sequence[str], title: str | None, legend: str) -> Page:
    cell = max(cell_size(max(len(source), len(target))), 0.2)
    left = _EDGE + 0.15 + widest(list(target), _LETTERS)
    top = _EDGE + (0.45 if title else 0.0)
    across = left + max(cell * len(source), widest([legend], SMALL) - left + _EDGE) + _EDGE
    below = 0.2 + widest(list(source), _LETTERS)
    with page(across, top + cell * len(target) + below + 0.4, title, _EDGE) as figure:
        draw(figure.box(left, top, cell * len(source), cell * len(target), label="alignment"))
        figure.write(_EDGE, top + cell * len(target) + below + 0.06, legend, SMALL, color=MUTED)
    return figure
