"""Attention maps as the arguments of bertviz's views and of CircuitsVis.

Both draw weights between 0 and 1.  Norms have a unit of the model's own, so they are given as shares of their row: what
a token takes from each other, as a part of all that it takes.

Axes: h head, q query, k key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm.maps import AttentionMaps
from captum_norm.measures import MEASURES


def bertviz_arguments(maps: AttentionMaps, quantity: str = "head_norms", example: int = 0) -> dict[str, Any]:
    """What ``bertviz.head_view`` and ``bertviz.model_view`` take: ``head_view(**bertviz_arguments(maps))``.

    Args:
        maps: with ``quantity``, of any model whose calls have equally many heads.
        quantity: ``"weights"``, ``"head_norms"``, or a measure without heads, which is given as one.  Norms are given
            as shares of their row.
        example: which of the batch; its padding is left out.

    Returns:
        ``attention``, a list over calls of (1, head, query, key), and ``tokens``; for an encoder-decoder
        ``encoder_attention``, ``decoder_attention``, ``cross_attention``, ``encoder_tokens`` and ``decoder_tokens``.
        bertviz numbers layers as they stand in ``maps.calls``.

    Raises:
        ValueError: for a measure without queries and keys, calls that differ in their heads or tokens, rows that are
            not the columns in their order (``positions=``), and heads that are not all up to one (``head_indices=``).

    Example:
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> maps = attention_maps(encoder, torch.randn(1, 3, 8), quantities=("weights", "head_norms"))
        >>> given = bertviz_arguments(maps)
        >>> [tuple(one.shape) for one in given["attention"]], given["tokens"]
        ([(1, 2, 3, 3)], ['0', '1', '2'])
    """
    found = [_drawn(maps, quantity, call, example) for call in range(len(maps))]
    shapes = {len(one.scores) for one in found}
    if len(shapes) > 1:
        raise ValueError(f"bertviz_arguments: bertviz needs as many heads in every call, found {sorted(shapes)}.")
    heads = _heads(maps, 0)
    if MEASURES[quantity].has_axis("head") and heads != list(range(len(heads))):
        raise ValueError(
            f"bertviz_arguments: maps hold heads {', '.join(map(str, heads))}, and bertviz counts heads from 0. Leave "
            "head_indices= out; circuitsvis_arguments and captum_norm.viewer name chosen heads."
        )
    cross = [i for i, call in enumerate(maps.calls) if call.kind == "cross"]
    if not cross:
        _check_over("all calls", found, found[0].rows)
        return {"attention": _listed(found, range(len(found))), "tokens": found[0].rows.tokens}
    decoder = _source(maps, cross[0])
    own = [i for i in range(len(found)) if i not in cross]
    writes = [i for i in own if _source(maps, i) == decoder]
    reads = [i for i in own if i not in writes]
    first = found[cross[0]]
    _check_over("the encoder", [found[i] for i in reads], first.columns)
    _check_over("the decoder", [found[i] for i in writes], first.rows)
    _check_over("cross-attention", [found[i] for i in cross], first.rows, first.columns)
    return {
        "encoder_attention": _listed(found, reads) or None,
        "decoder_attention": _listed(found, writes) or None,
        "cross_attention": _listed(found, cross),
        "encoder_tokens": first.columns.tokens,
        "decoder_tokens": first.rows.tokens,
    }


def circuitsvis_arguments(
    maps: AttentionMaps, call: int, quantity: str = "head_norms", example: int = 0
) -> dict[str, Any]:
    """What ``circuitsvis.attention.attention_heads`` takes for one attention call.

    Args:
        maps, quantity, example: as for `bertviz_arguments`.
        call: which attention call.

    Returns:
        ``attention`` (head, query, key), ``tokens``, ``attention_head_names`` and ``mask_upper_tri``, which is True for
        a causal call whose tokens stand in their order.

    Raises:
        ValueError: for cross-attention, and rows that are not the columns in their order (``positions=``); CircuitsVis
            has one list of tokens.

    Example:
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> circuitsvis_arguments(attention_maps(encoder, torch.randn(1, 3, 8)), 0, "weights")["attention_head_names"]
        ['head 0', 'head 1']
    """
    drawn = _drawn(maps, quantity, call, example)
    if drawn.rows.places != drawn.columns.places:
        raise ValueError(
            f"circuitsvis_arguments: rows and columns of call {call} are not the same tokens in one order, and "
            f"CircuitsVis has one list for both.{_CHOSEN} captum_norm.viewer shows any, cross-attention among them, "
            "and bertviz cross-attention."
        )
    places = [place for _, place in drawn.rows.places]
    by_head = MEASURES[quantity].has_axis("head")
    return {
        "attention": drawn.scores,
        "tokens": drawn.rows.tokens,
        "attention_head_names": [f"head {number}" for number in _heads(maps, call)] if by_head else ["all heads"],
        "mask_upper_tri": maps.calls[call].kind == "causal" and places == sorted(places),
    }


_CHOSEN = " Where rows were chosen, leave positions= out."


@dataclass(frozen=True)
class _Axis:
    """The entries of an axis that are drawn: their tokens, and where each lies, (input, position)."""

    tokens: list[str]
    places: list[tuple[str | None, int]]

    def only(self, kept: Sequence[int]) -> _Axis:
        """Some of the entries."""
        return _Axis([self.tokens[n] for n in kept], [self.places[n] for n in kept])


@dataclass(frozen=True)
class _Drawn:
    """A call as it is drawn: (head, query, key), and both axes."""

    scores: Tensor
    rows: _Axis
    columns: _Axis


def _drawn(maps: AttentionMaps, quantity: str, call: int, example: int) -> _Drawn:
    """A call in shares of a row, padding left out."""
    if quantity in MEASURES and not (MEASURES[quantity].has_axis("query") and MEASURES[quantity].has_axis("key")):
        raise ValueError(f"{quantity} is no map over queries and keys. Take weights, head_norms or summed_norms.")
    scores: Tensor = getattr(maps, quantity)[call][example].detach().float().cpu()
    scores = scores if scores.ndim == 3 else scores[None]
    rows, columns = _axes(maps, call, example)
    for axis, mask in ((1, maps.query_masks[call]), (2, maps.key_masks[call])):
        if mask is not None:
            real = mask[example].cpu().nonzero().flatten()
            scores = scores.index_select(axis, real)
            rows, columns = (rows.only(real.tolist()), columns) if axis == 1 else (rows, columns.only(real.tolist()))
    if MEASURES[quantity].role == "norm":
        scores = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return _Drawn(scores, rows, columns.only(range(min(scores.shape[-1], len(columns.tokens)))))


def _axes(maps: AttentionMaps, call: int, example: int) -> tuple[_Axis, _Axis]:
    """Rows and columns; of an axis that lies nowhere known the entries are counted, or are those that were chosen."""
    axes = maps.queries[call], maps.keys[call]
    tokens = maps.query_tokens(call, example), maps.key_tokens(call, example)
    apart = all(where is not None and where.rows is not None for where in axes)  # entries that are no input, too
    found = []
    for where, labels, chosen in zip(axes, tokens, (maps.positions, None), strict=True):
        counted = chosen or range(len(labels))
        numbers = None if where is None else where.rows if apart else where.index
        source = None if where is None else str(where.source)
        found.append(_Axis(labels, [(source, n) for n in (counted if numbers is None else numbers.tolist())]))
    return found[0], found[1]


def _heads(maps: AttentionMaps, call: int) -> list[int]:
    """The heads that a call's quantities hold, counted from 0."""
    count = maps.calls[call].heads
    return list(range(count)) if maps.head_indices is None else [number % count for number in maps.head_indices]


def _listed(found: Sequence[_Drawn], calls: Iterable[int]) -> list[Tensor]:
    return [found[i].scores[None] for i in calls]


def _check_over(what: str, drawn: Sequence[_Drawn], rows: _Axis, columns: _Axis | None = None) -> None:
    """That calls are over these rows and columns; without columns, over the rows both ways."""
    for one in drawn:
        if one.rows.places != rows.places or one.columns.places != (columns or rows).places:
            raise ValueError(
                f"bertviz_arguments: rows or columns of {what} are not the same tokens in one order, and bertviz has "
                f"one list of them.{_CHOSEN} captum_norm.viewer shows any."
            )


def _source(maps: AttentionMaps, call: int) -> str | None:
    queries = maps.queries[call]
    return None if queries is None else str(queries.source)
