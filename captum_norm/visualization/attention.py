"""Drawing what ``attention_maps`` found: one attention call, the heads of one, a grid of all calls, mixing ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from captum_norm.visualization.look import QUANTITY_LOOKS, Page
from captum_norm.visualization.maps import ATTENDING, axis_tokens, map_grid, panel_of, side_by_side
from captum_norm.visualization.mixing import below_each_other

Scale: TypeAlias = Literal["shared", "each"]
BY_HEAD = "transformed_norms"  # has no query: its rows are heads
_RATIOS = "mixing_"  # have no key: one number per query
_RESIDUAL = "residual"  # the last column of a block's maps in cross-attention


def plot(
    maps: Any,
    call: int | None = None,
    *,
    example: int = 0,
    heads: int | Literal["each"] | None = None,
    quantities: Sequence[str] | None = None,
    title: str | None = None,
    log: bool = False,
    scale: Scale = "shared",
    columns: int | None = None,
) -> Page:
    """What ``attention_maps`` found: weight beside norm for one attention call, or a grid over calls or heads.

    Args:
        maps: ``AttentionMaps``, or anything with ``calls`` and, under the name of each quantity, a list over calls.
        call: which attention call; None draws all calls as a grid (or the only one).
        example: which example of the batch; its padding is left out.
        heads: None: the weights on the mean over heads beside ``summed_norms``; an int: that head's weights beside
            its ``head_norms``; ``"each"``: a grid over the heads of one call.
        quantities: which quantities instead.  ``"transformed_norms"`` has a row per head and stands alone.  Mixing
            ratios are drawn as calls × tokens, one below the other, with the mean of each call.
        title: what the figure shows; by default which call it is.
        log: as in ``token_map``.
        scale, columns: of a grid, as in ``map_grid``.

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
        ['Attention weight, mean of 2 heads', 'Norm of the sum over heads']
    """
    source = _Source(maps, example)
    names = source.quantities(quantities, heads)
    if names[0].startswith(_RATIOS):
        return _ratios(source, names, call, title, scale)
    if call is None and len(maps.calls) > 1:
        return _all_calls(source, names, heads, title, log, scale, columns)
    call = source.checked_call(call or 0)
    if title is None:
        title = f"Attention call {call}: {maps.calls[call].name or 'unnamed'} ({maps.calls[call].kind})"
    if heads == "each":
        return _each_head(source, call, names, title, log, scale, columns)
    return _one_call(source, call, names, heads, title, log)


def _ratios(source: _Source, names: Sequence[str], call: int | None, title: str | None, scale: Scale) -> Page:
    calls = range(len(source.maps.calls)) if call is None else [source.checked_call(call)]
    queries = [source.labels("query", i) for i in calls]
    if any(one != queries[0] for one in queries):
        raise ValueError("plot: the attention calls have different queries; say which one with call=.")
    titles = _call_titles(source.maps.calls)
    rows = [torch.stack([source.ratios(name, i) for i in calls]) for name in names]
    panels = [panel_of("plot", name, one, "ratio", log=False) for name, one in zip(names, rows, strict=True)]
    tokens = axis_tokens("plot", panels, None, [titles[i] for i in calls], queries[0])
    return below_each_other(panels, *tokens, title or "Mixing ratio: how much comes from other tokens", scale)


def _all_calls(
    source: _Source,
    names: Sequence[str],
    heads: int | str | None,
    title: str | None,
    log: bool,
    scale: Scale,
    columns: int | None,
) -> Page:
    if heads == "each":
        raise ValueError("plot: heads='each' draws the heads of one attention call; say which with call=.")
    calls = source.maps.calls
    lines = {name: [source.map(name, i, heads) for i in range(len(calls))] for name in names}
    shapes = {tuple(one.shape) for line in lines.values() for one in line}
    if len(shapes) > 1:
        found = ", ".join(map(str, sorted(shapes)))
        raise ValueError(f"plot: the attention calls differ in (query, key): {found}; say which one with call=.")
    rows, keys = source.common_tokens(names[0])
    tokens: Any = {"query_tokens": rows, "key_tokens": keys}
    return map_grid(lines, _call_titles(calls), **tokens, title=title, log=log, scale=scale, columns=columns)


def _each_head(
    source: _Source, call: int, names: Sequence[str], title: str, log: bool, scale: Scale, columns: int | None
) -> Page:
    lines = {name: list(source.map(name, call, "each")) for name in names}
    titles = [f"Head {head}" for head in source.head_numbers(call, len(lines[names[0]]))]
    rows, keys = source.tokens(call, names[0])
    tokens: Any = {"query_tokens": rows, "key_tokens": keys}
    return map_grid(lines, titles, **tokens, title=title, log=log, scale=scale, columns=columns)


def _one_call(source: _Source, call: int, names: Sequence[str], heads: int | str | None, title: str, log: bool) -> Page:
    panels = []
    for name in names:
        panel = panel_of("plot", name, source.map(name, call, heads), "score", log)
        panels.append(replace(panel, title=panel.title + source.which_heads(name, call, heads)))
    # Beside cross-attention some maps have one more column, the residual; the others stop before it.
    widest = max(range(len(panels)), key=lambda i: panels[i].values.shape[1])
    rows, columns = axis_tokens("plot", [panels[widest]], None, *source.tokens(call, names[widest]))
    return side_by_side(panels, rows, columns, title, log, "" if names[0] == BY_HEAD else ATTENDING)


class _Source:
    """Reads maps of one example out of ``AttentionMaps``; padding is cut away."""

    def __init__(self, maps: Any, example: int) -> None:
        self.maps, self.example = maps, example
        if not len(maps.calls):
            raise ValueError("plot: maps holds no attention call: there is nothing to draw.")

    def quantities(self, wanted: Sequence[str] | None, heads: int | str | None) -> list[str]:
        """The quantities to draw; an error where one was not computed."""
        held = [name for name in QUANTITY_LOOKS if hasattr(self.maps, name)]
        default = ["weights", "summed_norms" if heads is None else "head_norms"]
        names = [wanted] if isinstance(wanted, str) else list(wanted or [name for name in default if name in held])
        missing = [name for name in names if not hasattr(self.maps, name)]
        if missing or not names:
            what = repr(missing[0]) if missing else " or ".join(map(repr, default))
            raise ValueError(
                f"plot: maps does not hold {what}; ask for it: attention_maps(model, inputs, quantities=(...)). "
                f"It holds {', '.join(held) or 'no map'}."
            )
        if BY_HEAD in names and (len(names) > 1 or heads is not None):
            raise ValueError(f"plot: {BY_HEAD} has a row per head, not per query; draw it alone and leave heads out.")
        ratios = [name for name in names if name.startswith(_RATIOS)]
        if ratios and (len(ratios) < len(names) or heads is not None):
            raise ValueError(f"plot: {ratios[0]} has no keys and no heads; draw mixing ratios alone, heads left out.")
        return names

    def ratios(self, name: str, call: int) -> Tensor:
        """(query,) of this example."""
        found: Tensor = getattr(self.maps, name)[call]
        self._check_example(found)
        real = self._real("query_masks", call)
        return found[self.example] if real is None else found[self.example][real]

    def checked_call(self, call: int) -> int:
        count = len(self.maps.calls)
        if not -count <= call < count:
            raise ValueError(f"plot: call is {call}, but maps holds {count} attention calls.")
        return call % count

    def map(self, name: str, call: int, heads: int | str | None) -> Tensor:
        """(query, key) of this example; (head, query, key) for ``heads="each"``; (head, key) for ‖f(x)‖."""
        one = self._scores(name, call)[self.example]
        keys = self._real_keys(call, one.shape[-1])
        if name == BY_HEAD:
            return one if keys is None else one[..., keys]
        if one.ndim == 3 and heads is None:
            one = one.mean(0)
        elif one.ndim == 3 and isinstance(heads, int):
            numbers = self.head_numbers(call, len(one))
            if heads not in numbers:
                raise ValueError(f"plot: heads is {heads}, but call {call} holds heads {', '.join(map(str, numbers))}.")
            one = one[numbers.index(heads)]
        elif one.ndim == 2 and heads is not None:
            raise ValueError(f"plot: {name} has no heads; leave heads out, or draw head_norms.")
        queries = self._real("query_masks", call)
        one = one if queries is None else one[..., queries, :]
        return one if keys is None else one[..., keys]

    def _scores(self, name: str, call: int) -> Tensor:
        """The quantity of this call, (batch, query, key) or (batch, head, query, key)."""
        found: Tensor = getattr(self.maps, name)[call]
        if found.ndim not in (3, 4):
            raise ValueError(f"plot: {name} of call {call} is no map over queries and keys, {tuple(found.shape)}.")
        self._check_example(found)
        return found

    def _check_example(self, found: Tensor) -> None:
        if not -len(found) <= self.example < len(found):
            raise ValueError(f"plot: example is {self.example}, but the batch holds {len(found)}.")

    def head_numbers(self, call: int, count: int) -> list[int]:
        """The model's number of each head that the maps hold."""
        held = getattr(self.maps, "head_indices", None)
        return [h % self.maps.calls[call].heads for h in held] if held is not None else list(range(count))

    def which_heads(self, name: str, call: int, heads: int | str | None) -> str:
        """What a panel's title says of heads."""
        shape = self._scores(name, call).shape
        if len(shape) == 3:
            return ""
        if heads is not None:
            return f", head {heads}"
        return "" if shape[1] == 1 else f", mean of {shape[1]} heads"

    def tokens(self, call: int, name: str) -> tuple[list[str] | None, list[str] | None]:
        """The labels of the rows, which are queries or heads, and of the keys."""
        shape = self._scores(name, call).shape
        if name != BY_HEAD:
            return self.labels("query", call), self.labels("key", call, shape[-1])
        return [f"head {number}" for number in self.head_numbers(call, shape[1])], self.labels("key", call, shape[-1])

    def common_tokens(self, name: str) -> tuple[list[str] | None, list[str] | None]:
        """The labels of all calls, where they have the same ones."""
        labels = [self.tokens(call, name) for call in range(len(self.maps.calls))]
        rows, columns = zip(*labels, strict=True)
        same_rows, same_columns = all(one == rows[0] for one in rows), all(one == columns[0] for one in columns)
        return rows[0] if same_rows else None, columns[0] if same_columns else None

    def labels(self, axis: str, call: int, size: int | None = None) -> list[str] | None:
        """The tokens of an axis, of ``size`` before padding is cut away; None where they are not known."""
        method = getattr(self.maps, f"{axis}_tokens", None)
        if method is not None:
            labels = list(method(call, self.example))
        elif getattr(self.maps, "tokens", None) is not None and self.maps.calls[call].kind != "cross":
            labels = list(map(str, self.maps.tokens[self.example]))
        else:
            return None
        if size is not None:  # labels may be those of maps with the residual's column, or without
            labels = (labels + [_RESIDUAL] * (size - len(labels)))[:size]
        real = self._real_keys(call, len(labels)) if axis == "key" else self._real("query_masks", call)
        return labels if real is None else [label for label, keep in zip(labels, real, strict=False) if keep]

    def _real_keys(self, call: int, size: int) -> Tensor | None:
        """Which of ``size`` columns are no padding; the residual's is none."""
        real = self._real("key_masks", call)
        return None if real is None else torch.cat([real, real.new_ones(size - len(real))])

    def _real(self, masks: str, call: int) -> Tensor | None:
        held = getattr(self.maps, masks, None)
        return None if held is None or held[call] is None else held[call][self.example]


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
