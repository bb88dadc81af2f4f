"""What a model is given beside a prompt, and how that goes on over a target: known by its name, or refused.

Axes: token of the prompt, then of the target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

# Of one entry for each token, (1, token): what a token of a text has that a model has written or is to write.
_OF_TEXT = {
    "attention_mask": 1,  # it is read
    "token_type_ids": 0,  # or of the type that is asked for
    "mm_token_type_ids": 0,  # it is no picture, film or sound
    "moe_mm_token_type_ids": 0,
    "image_embeds_position_mask": 0,
}
_POSITIONS = "position_ids"
# So end the names of what is told of positions.  So begin those of what is no text, whose sizes may be the prompt's.
_OF_POSITIONS = ("mask", "type_ids", "position", "positions", "position_ids", "bias", "labels", "embeds")
_OF_NO_TEXT = ("pixel_", "aspect_", "feature_", "input_features")
_ROWS_KEPT = ("logits_to_keep", "num_logits_to_keep")
_CACHES = ("past_key_values", "cache_params")


def check_beside(fixed: Mapping[str, Any], prompt: int, whole: int | None = None) -> None:
    """Refuse keywords of a prompt of so many tokens of which it is not known how they go on behind it.

    Args:
        fixed: the keywords.
        prompt: the number of its tokens.
        whole: of those and all that are read behind them; None where that is not known yet, and there may be some.

    Raises:
        ValueError: naming the keyword.
    """
    for name, value in fixed.items():
        if name in _ROWS_KEPT and value is not None and not (isinstance(value, int) and value == 0):
            raise ValueError(
                f"LLMAttentionAttribution: HFForward fixes {name}, which drops rows of the logits, but a target token "
                "is predicted from the row before it. Leave it out."
            )
        if name in _CACHES and value is not None:
            raise ValueError(
                f"LLMAttentionAttribution: HFForward fixes {name}, to which each pass adds, so that the next would "
                "read another text. Leave it out: the prompt is read as a whole."
            )
        if value is None or whole == prompt or not _is_of_tokens(name, value, prompt):
            continue
        if name not in _OF_TEXT and name != _POSITIONS:
            raise _unknown(name, value, prompt, "it is not known what it says of a target")
        if not isinstance(value, Tensor) or value.shape != (1, prompt):
            raise _unknown(name, value, prompt, f"only (1, {prompt}) is known to go on over a target")
        if name == _POSITIONS and not _counts_on(value):
            raise _unknown(name, value, prompt, f"it ends in {value[0, -2:].tolist()}, from which no count goes on")


def continued(fixed: Mapping[str, Any], prompt: int, whole: int, of_type: int = 0) -> dict[str, Any]:
    """Keywords of a prompt's tokens for what follows it, too, which is text of a type: positions count on.

    Raises:
        ValueError: where it is not known how a keyword goes on.

    Example:
        >>> continued({"position_ids": torch.tensor([[3, 4]]), "attention_mask": torch.tensor([[0, 1]])}, 2, 4)
        {'position_ids': tensor([[3, 4, 5, 6]]), 'attention_mask': tensor([[0, 1, 1, 1]])}
    """
    check_beside(fixed, prompt, whole)
    if whole == prompt:
        return dict(fixed)
    values = {**_OF_TEXT, "token_type_ids": of_type}

    def longer(name: str, value: Any) -> Any:
        if value is None or not _is_of_tokens(name, value, prompt):
            return value
        if name != _POSITIONS:
            return nn.functional.pad(value, (0, whole - prompt), value=values[name])
        return torch.cat([value, value[:, -1:] + torch.arange(1, whole - prompt + 1).to(value)], dim=1)

    return {name: longer(name, value) for name, value in fixed.items()}


def check_written_with(arguments: Mapping[str, Any], fixed: Mapping[str, Any], keywords: Collection[str]) -> None:
    """Refuse arguments of ``generate`` that give the model what the pass that is explained would not be given.

    Args:
        arguments: of ``generate``.
        fixed: what each pass is given.
        keywords: what the model takes.

    Raises:
        ValueError: naming the argument.
    """
    if "input_ids" in arguments or "inputs" in arguments:
        name = "input_ids" if "input_ids" in arguments else "inputs"
        raise ValueError(f"gen_args has {name}, which is the prompt itself: leave it out.")
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or name not in keywords or value is fixed.get(name):
            continue
        if name == "attention_mask" and name not in fixed and bool((value == 1).all()):
            continue
        raise ValueError(
            f"gen_args has {name}, which the model would read while it writes and not while it is explained. Build the "
            f"method on HFForward(model, {name}=...), which gives it both times."
        )


@contextmanager
def counting_on(model: Module, fixed: Mapping[str, Any]) -> Iterator[None]:
    """Refuse what ``generate`` writes within where its positions do not go on from the fixed ones by one each time.

    Raises:
        ValueError: naming the positions.
    """
    positions = fixed.get(_POSITIONS)
    if positions is None:
        yield
        return
    last: list[int] = []

    def read(_module: Module, _args: tuple[Any, ...], given: dict[str, Any]) -> None:
        one = given.get(_POSITIONS)
        last.append(int(one.reshape(-1)[-1]) if isinstance(one, Tensor) else -1)

    handle = model.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    counted = [int(positions[0, -1]) + step for step in range(len(last))]
    if last != counted:
        raise ValueError(
            f"LLMAttentionAttribution: HFForward fixes position_ids, but while {type(model).__name__} wrote, the last "
            f"position was {last}, not {counted}. Give the target that is to be explained: target=."
        )


def _is_of_tokens(name: str, value: Any, prompt: int) -> bool:
    """Whether a keyword says something of each token of the prompt."""
    if name in _OF_TEXT or name == _POSITIONS:
        return True
    if not isinstance(value, Tensor) or name.startswith(_OF_NO_TEXT):
        return False
    one_for_each = value.shape in ((prompt,), (1, prompt))
    return one_for_each or (name.endswith(_OF_POSITIONS) and prompt in value.shape)


def _counts_on(positions: Tensor) -> bool:
    """Whether positions go up by one at their end, and none before was higher."""
    last = positions[0, -2:]
    whole = not positions.is_floating_point() and positions.dtype is not torch.bool
    return whole and bool(last[-1] == positions.max()) and (len(last) == 1 or int(last[1]) - int(last[0]) == 1)


def _unknown(name: str, value: Any, prompt: int, why: str) -> ValueError:
    found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return ValueError(
        f"LLMAttentionAttribution: HFForward fixes {name}, {found}, for a prompt of {prompt} tokens, and {why}. Leave "
        f"it out, or use the method itself: attribute(ids, position=...), ids and {name} with the target in them."
    )
