"""Attention maps as the arguments of bertviz's views and of CircuitsVis.

Both draw weights between 0 and 1.  Norms have a unit of the model's own, so they are given as shares of their row: what
a token takes from each other, as a part of all that it takes.

Axes: h head, q query, k key.
"""

from __future__ import annotations

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

    Raises:
        ValueError: for a measure without queries and keys, and calls that differ in their heads or tokens.

    Example:
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> maps = attention_maps(encoder, torch.randn(1, 3, 8), quantities=("weights", "head_norms"))
        >>> given = bertviz_arguments(maps)
        >>> [tuple(one.shape) for one in given["attention"]], given["tokens"]
        ([(1, 2, 3, 3)], ['0', '1', '2'])
    """
    found = [_drawn(maps, quantity, call, example) for call in range(len(maps))]
    shapes = {scores.shape[0] for scores, _, _ in found}
    if len(shapes) > 1:
        raise ValueError(f"bertviz_arguments: bertviz needs as many heads in every call, found {sorted(shapes)}.")
    cross = [i for i, call in enumerate(maps.calls) if call.kind == "cross"]
    if not cross:
        return {"attention": _listed(found, range(len(found))), "tokens": _tokens(found, range(len(found)))}
    decoder = _source(maps, cross[0])
    own = [i for i in range(len(found)) if i not in cross]
    writes = [i for i in own if _source(maps, i) == decoder]
    reads = [i for i in own if i not in writes]
    return {
        "encoder_attention": _listed(found, reads) or None,
        "decoder_attention": _listed(found, writes) or None,
        "cross_attention": _listed(found, cross),
        "encoder_tokens": found[cross[0]][2],
        "decoder_tokens": found[cross[0]][1],
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
        a causal call.

    Raises:
        ValueError: for cross-attention, whose rows and columns have different tokens; CircuitsVis has one list.

    Example:
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> circuitsvis_arguments(attention_maps(encoder, torch.randn(1, 3, 8)), 0, "weights")["attention_head_names"]
        ['head 0', 'head 1']
    """
    scores, rows, columns = _drawn(maps, quantity, call, example)
    if rows != columns:
        raise ValueError(
            f"circuitsvis_arguments: rows and columns of call {call} have different tokens, and CircuitsVis has one "
            "list for both. captum_norm.viewer shows cross-attention, and so does bertviz."
        )
    numbers = maps.head_indices if maps.head_indices is not None else range(len(scores))
    by_head = MEASURES[quantity].has_axis("head")
    return {
        "attention": scores,
        "tokens": rows,
        "attention_head_names": [f"head {number}" for number in numbers] if by_head else ["all heads"],
        "mask_upper_tri": maps.calls[call].kind == "causal",
    }


def _drawn(maps: AttentionMaps, quantity: str, call: int, example: int) -> tuple[Tensor, list[str], list[str]]:
    """(head, query, key) in shares of a row, padding left out, and the tokens of both axes."""
    if quantity in MEASURES and not (MEASURES[quantity].has_axis("query") and MEASURES[quantity].has_axis("key")):
        raise ValueError(f"{quantity} is no map over queries and keys. Take weights, head_norms or summed_norms.")
    scores: Tensor = getattr(maps, quantity)[call][example].detach().float().cpu()
    scores = scores if scores.ndim == 3 else scores[None]
    rows, columns = maps.query_tokens(call, example), maps.key_tokens(call, example)
    for axis, mask in ((1, maps.query_masks[call]), (2, maps.key_masks[call])):
        if mask is not None:
            real = mask[example].cpu().nonzero().flatten()
            scores = scores.index_select(axis, real)
            kept = [(rows, columns)[axis - 1][place] for place in real.tolist()]
            rows, columns = (kept, columns) if axis == 1 else (rows, kept)
    if MEASURES[quantity].role == "norm":
        scores = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return scores, rows, columns[: scores.shape[-1]]


def _listed(found: list[tuple[Tensor, list[str], list[str]]], calls: Any) -> list[Tensor]:
    return [found[i][0][None] for i in calls]


def _tokens(found: list[tuple[Tensor, list[str], list[str]]], calls: Any) -> list[str]:
    tokens = [found[i][1] for i in calls]
    if any(rows != tokens[0] or found[i][2] != tokens[0] for i, rows in zip(calls, tokens, strict=True)):
        raise ValueError("bertviz_arguments: the attention calls are over different tokens; bertviz has one list.")
    return tokens[0]


def _source(maps: AttentionMaps, call: int) -> str | None:
    queries = maps.queries[call]
    return None if queries is None else str(queries.source)
