"""What does ``inputs`` have to be in each mode?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from captum_norm.forward.inputs import longest_input
from captum_norm.forward.keywords import title

Mode = Literal["ids", "embeds", "gate"]

MODES = ("ids", "embeds", "gate")


def check_ids(ids: Tensor, name: str, mode: Mode) -> None:
    """Refuse what are no token ids (batch, sequence).

    Args:
        ids: what was given.
        name: under which keyword the model takes them.
        mode: what ``inputs`` is.

    Raises:
        TypeError: if they are no integers.
        ValueError: without a batch axis.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise TypeError(
            f"HFForward(mode={mode!r}) got {name} as {ids.dtype}, but token ids are integers. Methods "
            "that add noise to the inputs or scale them need mode='gate' or mode='embeds' and the arguments of "
            "forward.inputs(encoding)."
        )
    if ids.ndim < 2:
        raise ValueError(
            f"HFForward: {name} should be (batch, sequence), got shape {tuple(ids.shape)}. Ask the "
            "tokenizer for return_tensors='pt', or add the batch axis: ids[None]."
        )


def check_embeds(embeds: Tensor, model: nn.Module) -> None:
    """Refuse what are no embeddings (batch, sequence, model), or more than the model has positions for.

    Raises:
        ValueError: naming what was found.
    """
    if not (embeds.is_floating_point() and embeds.ndim > 2):
        raise ValueError(
            "HFForward(mode='embeds') takes float embeddings (batch, sequence, model), got "
            f"{embeds.dtype} of shape {tuple(embeds.shape)}. forward.inputs(encoding) makes them; token ids go in "
            "with mode='ids' or mode='gate'."
        )
    longest = longest_input(model)
    if longest is not None and embeds.shape[1] > longest:
        raise ValueError(
            f"HFForward: inputs_embeds has {embeds.shape[1]} tokens, but the table of positions of "
            f"{title(model)} (max_position_embeddings) ends at {longest}. Shorten the text."
        )


def check_gate(gate: Tensor, main: Tensor, name: str) -> None:
    """Refuse what is no gate of the model's own input, ``main``, which it takes under a name.

    Raises:
        TypeError: if the gate is no float.
        ValueError: if it is shaped otherwise than ids.
    """
    if not gate.is_floating_point():
        raise TypeError(
            f"HFForward(mode='gate') got inputs of {gate.dtype}, but a gate is float, 1.0 at every token; "
            f"{name} is the first of additional_forward_args. forward.inputs(encoding) makes both."
        )
    if name.endswith("input_ids") and gate.shape != main.shape:
        raise ValueError(
            f"HFForward: the gate is {tuple(gate.shape)}, but {name} is {tuple(main.shape)}; both are "
            "(batch, sequence)."
        )
