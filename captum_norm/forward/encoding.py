"""What of a tokenizer's encoding does a model take, and in which order does Captum pass it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.keywords import keywords_of, title
from captum_norm.forward.position import Position, as_indices


def tensors_of(
    encoding: Mapping[str, Any], model: nn.Module, main: str, names: Sequence[str], fixed: Mapping[str, Any],
    refuses: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """The entries of an encoding that are passed on, on the model's device.

    Args:
        encoding: a tokenizer's or processor's.
        model: the model.
        main: the keyword of its own input.
        names: the keywords of the extras.
        fixed: what it is given in every call.
        refuses: whether an entry that the model takes and ``names`` does not pass on is an error.

    Raises:
        TypeError: if ``encoding`` is no mapping.
        ValueError: if the model's input is missing, an entry would be lost, or is ragged.
    """
    if not isinstance(encoding, Mapping):
        raise TypeError(
            f"HFForward.inputs takes a tokenizer's encoding, got {type(encoding).__name__}. Tokenize first: "
            "forward.inputs(tokenizer(text, return_tensors='pt'))."
        )
    present = [name for name, value in encoding.items() if value is not None]
    if main not in present:
        raise ValueError(
            f"HFForward.inputs: the model needs {main}, the encoding has {', '.join(present) or 'nothing'}."
        )
    wanted = {main, *names, "labels"}
    known = keywords_of(model)
    lost = [name for name in present if name in known and name not in wanted | fixed.keys()]
    if lost and refuses:
        raise ValueError(
            f"HFForward.inputs: the encoding has {lost[0]}, which the model takes but names does not pass on. "
            f"HFForward(model, names={(*names, lost[0])})."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {name: _as_tensor(name, encoding[name], device) for name in present if name in wanted}


def positional(given: Mapping[str, Tensor], names: Sequence[str], position: Position, main: Tensor) -> tuple[Any, ...]:
    """The extras in the order of ``names``, and positions given one per example; no None at the end.

    Raises:
        ValueError: if there are more or fewer positions than examples in ``main``, the model's own input.
    """
    extras: list[Any] = [given.get(name) for name in names]
    indices = None if position is None or isinstance(position, str) else as_indices(position)
    if indices is not None and indices.ndim:
        if len(indices) != len(main):
            raise ValueError(
                f"HFForward.inputs: position has {len(indices)} entries, but the encoding has {len(main)} examples."
            )
        extras.append(indices.to(main.device))
    while extras and extras[-1] is None:
        del extras[-1]
    return tuple(extras)


def decoder_start(given: Mapping[str, Tensor], model: Any, main: Tensor) -> dict[str, Tensor]:
    """``decoder_input_ids`` where the encoding has none: from its labels, or the start token alone.

    Raises:
        ValueError: if the model needs them, and its config does not say how they start.
    """
    if not getattr(model, "can_generate", lambda: False)():
        return {}  # such models make the decoder's input from their own
    if "labels" in given and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=given["labels"])}
    configs = [getattr(model, name, None) for name in ("config", "generation_config")]
    start = [getattr(config, "decoder_start_token_id", None) for config in configs]
    found = [token for token in start if token is not None]
    if not found:
        raise ValueError(
            f"HFForward.inputs: {title(model)} needs decoder_input_ids, and its config has no "
            "decoder_start_token_id. Add decoder_input_ids to the encoding."
        )
    return {"decoder_input_ids": torch.full((len(main), 1), found[0], device=main.device)}


def _as_tensor(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"HFForward.inputs: {name} cannot be a tensor ({error}). Texts of different lengths need padding: "
            "tokenizer(texts, return_tensors='pt', padding=True)."
        ) from error
