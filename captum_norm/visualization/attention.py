"""Drawing what ``attention_maps`` found: one attention call, the heads of one, a grid of all calls, mixing ratios."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_norm.visualization.every_head import every_head
from captum_norm.visualization.grids import map_grid
from captum_norm.visualization.mixing import below_each_other
from captum_norm.visualization.one_example import OneExample, by_head, is_ratio
from captum_norm.visualization.page import Page
from captum_norm.visualization.panels import axis_tokens, panel_of
from captum_norm.visualization.side_by_side import ATTENDING, side_by_side

Scale: TypeAlias = Literal["shared", "each"]


def plot(
    maps: Any,
    call: int | None = None,
    *,
    example: int = 0,
    heads: int | Literal["each", "all"] | None = None,
    quantities: Sequence[str] | None = None,
    title: str | None = None,
    log: bool = False,
    scale: Scale = "shared",
    columns: int | None = None,
    scale_without: Collection[str] = (),
) -> Page:
    """What ``attention_maps`` found: weight beside norm for one attention call, or a grid over calls or heads.

    Args:
        maps: ``AttentionMaps``, or anything with ``calls`` and, under the name of each measure, a list over calls.
        call: which attention call; None draws all calls as a grid (or the only one).
        example: which example of the batch; its padding is left out.
        heads: None: the weights on the mean over heads beside ``summed_norms``; an int: that head's weights beside
            its ``head_norms``; ``"each"``: a grid over the heads of one call; ``"all"``: every layer and head on one
            page, the norms below the weights.
        quantities: which measures instead.  ``"transformed_norms"`` has a row per head and stands alone.  Mixing
            ratios are drawn as calls × tokens, one below the other, with the mean of each call.
        title: what the figure shows; by default which call it is.
        log: as in ``token_map``.
        scale, columns: of a grid, as in ``map_grid``.
        scale_without: attended tokens that colour scales do not look at, as in ``token_map``.

    Returns:
        The figure.

    Raises:
        TypeError: for anything without ``calls``, such as a tensor.
        ValueError: for a call, head or example that is not there, or a measure that was not computed.

    Example:
        >>> import torch
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> figure = plot(attention_maps(encoder, torch.randn(1, 3, 8)))
        >>> [axes.get_title(loc="left") for axes in figure.axes[::2]]
        ['Attention weight, mean of 2 heads', 'Norm of the sum over heads']
    """
    if not hasattr(maps, "calls"):
        raise TypeError(
            f"plot draws what attention_maps(model, inputs) returned, got {type(maps).__name__}. token_map draws one "
            "matrix of scores, (query, key): token_map(scores, tokens)."
        )
    chosen = OneExample(maps, example)
    names = chosen.quantities(quantities, heads)
    if is_ratio(names[0]):
        return _ratios(chosen, names, call, title, scale)
    if heads == "all":
        return _every_head(chosen, names, call, title, log, scale, scale_without)
    look: Any = {"log": log, "scale": scale, "columns": columns, "scale_without": scale_without}
    if call is None and len(maps.calls) > 1:
        lines = _all_calls(chosen, names, heads)
        return map_grid(lines, _call_titles(maps.calls), **chosen.common_tokens(names[0]), title=title, **look)
    call = chosen.checked_call(call or 0)
    if title is None:
        title = f"Attention call {call}: {maps.calls[call].name or 'unnamed'} ({maps.calls[call].kind})"
    if heads == "each":
        lines = {name: list(chosen.map(name, call, "each")) for name in names}
        titles = [f"Head {head}" for head in chosen.head_numbers(call, len(lines[names[0]]))]
        return map_grid(lines, titles, **chosen.tokens(call, names[0]), title=title, **look)
    return _one_call(chosen, call, names, heads, title, log, scale_without)


def _every_head(
    example: OneExample, names: Sequence[str], call: int | None, title: str | None, log: bool, scale: Scale,
    scale_without: Collection[str],
) -> Page:  # fmt: skip
    if call is not None:
        raise ValueError('plot: heads="all" draws every call; heads="each" draws the heads of one.')
    count = len(example.maps.calls)
    blocks = {name: [example.map(name, i, "each") for i in range(count)] for name in names}
    if scale not in ("shared", "each"):
        raise ValueError(f"plot: scale should be 'shared' or 'each', got {scale!r}.")
    tokens = example.common_tokens(names[0])["key_tokens"] or []
    said = "Every layer and head" if title is None else title
    return every_head(blocks, _call_titles(example.maps.calls), tokens, said, log, scale, scale_without)


def _ratios(example: OneExample, names: Sequence[str], call: int | None, title: str | None, scale: Scale) -> Page:
    calls = range(len(example.maps.calls)) if call is None else [example.checked_call(call)]
    queries = [example.labels("query", i) for i in calls]
    if any(labels != queries[0] for labels in queries):
        raise ValueError("plot: the attention calls have different queries; say which one with call=.")
    titles = _call_titles(example.maps.calls)
    rows = [torch.stack([example.ratios(name, i) for i in calls]) for name in names]
    panels = [panel_of("plot", name, row, "ratio", log=False) for name, row in zip(names, rows, strict=True)]
    tokens = axis_tokens("plot", panels, None, [titles[i] for i in calls], queries[0])
    return below_each_other(panels, *tokens, title or "Mixing ratio: how much comes from other tokens", scale)


def _all_calls(example: OneExample, names: Sequence[str], heads: int | str | None) -> dict[str, list[Tensor]]:
    """The maps (query, key) of every call, by name."""
    if heads == "each":
        raise ValueError("plot: heads='each' draws the heads of one attention call; say which with call=.")
    lines = {name: [example.map(name, i, heads) for i in range(len(example.maps.calls))] for name in names}
    shapes = sorted({tuple(scores.shape) for line in lines.values() for scores in line})
    if len(shapes) > 1:
        listed = ", ".join(map(str, shapes))
        raise ValueError(f"plot: the attention calls differ in (query, key): {listed}; say which one with call=.")
    return lines


def _one_call(
    example: OneExample, call: int, names: Sequence[str], heads: int | str | None, title: str, log: bool,
    scale_without: Collection[str],
) -> Page:  # fmt: skip
    panels = []
    for name in names:
        panel = panel_of("plot", name, example.map(name, call, heads), "score", log)
        panels.append(replace(panel, title=panel.title + example.which_heads(name, call, heads)))
    # Beside cross-attention some maps have one more column, the residual; the others stop before it.
    widest = max(range(len(panels)), key=lambda i: panels[i].values.shape[1])
    rows, columns = axis_tokens("plot", [panels[widest]], None, **example.tokens(call, names[widest]))
    return side_by_side(panels, rows, columns, title, log, "" if by_head(names[0]) else ATTENDING, scale_without)


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
