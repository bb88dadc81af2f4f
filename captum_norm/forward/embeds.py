"""The embeddings of ids, where a model makes the same of them as of the ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.causal import private_randomness
from captum_norm.forward.keywords import title, unwrapped

RealRows = Callable[[Tensor], "Tensor | None"]
"""From an output (batch, sequence, class) to its rows that are no padding, (batch, sequence) bool; None: all."""


def embeddings_of(
    model: nn.Module, name: str, keywords: dict[str, Any], run: Callable[[dict[str, Any]], Tensor], real: RealRows
) -> Tensor:
    """What the model looks up for its ids, (batch, sequence, model), to be given to it as ``inputs_embeds``.

    Args:
        model: the model.
        name: the keyword of the ids.
        keywords: what the model is called with.
        run: the model's output for keywords.
        real: which rows of it count.

    Raises:
        ValueError: if the model does not run from embeddings, or makes something else of them.
    """
    core: Any = unwrapped(model)
    others = {other: value for other, value in keywords.items() if other != name}
    with torch.no_grad():
        try:
            with private_randomness(model):
                embeds: Tensor = core.get_input_embeddings()(keywords[name])
                found = run({**others, "inputs_embeds": embeds})
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"HFForward(mode='embeds'): {title(core)} does not run from inputs_embeds here ({error}). "
                "Use mode='gate', which changes nothing but the embeddings."
            ) from error
        with private_randomness(model):
            expected = run(keywords)
    difference, size = _difference(expected, found, real)
    if not difference <= torch.finfo(expected.dtype).eps ** 0.75 * size:
        raise ValueError(
            f"HFForward(mode='embeds'): {title(core)} returns something else for inputs_embeds than for the ids "
            f"they come from: off by {difference:.2g}, where the largest output is {size:.2g}. It derives "
            "positions from the padding, scales its embeddings, or reads the ids otherwise. Use mode='gate'."
        )
    return embeds.detach()


def _difference(expected: Tensor, found: Tensor, real: RealRows) -> tuple[float, float]:
    """The largest difference and the largest size, over rows that are no padding."""
    size = float(expected.abs().max())
    if expected.shape != found.shape:
        return float("inf"), size
    rows = real(expected) if expected.ndim == 3 else None
    if rows is not None:
        expected, found = expected[rows], found[rows]
    return float((expected - found).abs().max()), size
