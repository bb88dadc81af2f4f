"""Each token that a language model wrote, and what it rests on.  Sizes in the code are inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from captum_norm.viewer.labels import mark_of, readable
from captum_norm.visualization.letters import PANEL, SMALL, printable, shorten, text_width, widest
from captum_norm.visualization.numbers import drawable
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.panels import draw_map
from captum_norm.visualization.style import MUTED, SIGNED_COLOURS, UNSIGNED_COLOURS, colour_scale

_EDGE, _CELL, _LETTERS = 0.35, 0.3, 9.5
_LONGEST = 14


def written_tokens(result: Any, *, shares: bool = True, title: str | None = None, tokenizer: Any = None) -> Page:
    """What each written token takes from each token of the prompt: a row for each written token.

    Scores without a sign run from paper to orange; a method's signed scores from blue (against) to orange (for), zero
    being paper.  Captum's own figure colours every score red to green around zero, as if scores of attention had signs.

    Args:
        result: what ``LLMAttentionAttribution.attribute`` or Captum's ``LLMAttribution`` returned, with ``token_attr``.
        shares: each row divided by the sum of its sizes, so that rows can be compared.
        title: what the figure shows.
        tokenizer: for tokens as its vocabulary writes them, which those of Captum's ``LLMAttribution`` are: they are
            shown as the text that they stand for.  Else tokens are shown as they are.

    Returns:
        The figure; the probability of each written token stands beside it where the result has it.

    Raises:
        ValueError: for a result without scores for each token.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> result = SimpleNamespace(token_attr=torch.rand(2, 3), input_tokens=list("abc"), output_tokens=["d", "e"])
        >>> [label.get_text() for label in written_tokens(result).axes[0].get_yticklabels()]
        ['d', 'e']
    """
    if getattr(result, "token_attr", None) is None:
        raise ValueError("written_tokens: result has no token_attr: ask the method for scores of each token.")
    values = drawable("written_tokens", "token_attr", result.token_attr, "written prompt")
    signed = bool((values < 0).any())
    if shares:
        sizes = np.abs(values).sum(1, keepdims=True)
        values = np.divide(values, sizes, out=np.zeros_like(values), where=sizes != 0)
    rows, columns = (
        [shorten(text, _LONGEST) for text in _texts(tokens, tokenizer)]
        for tokens in (result.output_tokens, result.input_tokens)
    )
    chances = getattr(result, "output_probs", None)
    left = _EDGE + 0.2 + widest(rows, _LETTERS)
    cell = min(_CELL, 9.0 / len(columns))
    behind = 0.0 if chances is None else 0.15 + text_width("100 %", SMALL)
    above, below = (0.45 if title else 0.0), 0.2 + widest(columns, _LETTERS)
    legend = _legend(signed, shares, chances is not None)
    across = max(left + cell * len(columns) + behind, _EDGE + widest(legend, SMALL)) + _EDGE
    top = _EDGE + above + 0.3
    with page(across, top + _CELL * len(rows) + below + 0.2 + 0.16 * len(legend), title, _EDGE) as figure:
        box = figure.box(left, top, cell * len(columns), _CELL * len(rows), label="written")
        draw_map(box, values, colour_scale(values, log=False), SIGNED_COLOURS if signed else UNSIGNED_COLOURS)
        style: Any = {"fontsize": min(_LETTERS, 72 * cell * 0.75), "parse_math": False}
        box.set_xticks(range(len(columns)), labels=[printable(token) for token in columns], rotation=90, **style)
        box.set_yticks(range(len(rows)), labels=[printable(t) for t in rows], fontsize=_LETTERS, parse_math=False)
        box.set_title("Prompt", fontsize=PANEL, pad=6)
        if chances is not None:
            for row, chance in enumerate(chances.tolist()):
                place = left + cell * len(columns) + 0.1, top + (row + 0.5) * _CELL
                figure.write(*place, f"{chance:.0%}", SMALL, va="center", color=MUTED)
        for line, text in enumerate(legend):
            figure.write(_EDGE, top + _CELL * len(rows) + below + 0.16 * line, text, SMALL, color=MUTED)
    return figure


def _texts(tokens: Sequence[Any], tokenizer: Any) -> list[str]:
    """Tokens as they can stand beside rows."""
    given = list(map(str, tokens))
    texts: list[str] = given if tokenizer is None else readable(given, mark_of(tokenizer))["written"]
    return [text.strip(" ") or "␣" for text in texts]


def _legend(signed: bool, shares: bool, chances: bool) -> list[str]:
    """What rows, colours and the numbers beside them are."""
    lines = [f"Rows: written tokens{', with their probabilities' if chances else ''}"]
    lines += ["Colours: shares of each row's sum" if shares else "Colours: scores as they are"]
    return [*lines, "Orange for the token, blue against"] if signed else lines
