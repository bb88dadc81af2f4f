"""Who is calling: the modules that are running right now, and what they were given.

Read from Python's own stack, so that no hook is ever put on a model.
"""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module


class Caller(NamedTuple):
    """One running module and the arguments of its forward, by name."""

    module: Module
    arguments: dict[str, Any]


def running_modules() -> tuple[Caller, ...]:
    """The modules whose forward is on the stack of this thread, outermost first."""
    callers: list[Caller] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_varnames[:1] == ("self",) and code.co_name in ("_call_impl", "forward"):
            variables = frame.f_locals
            module = variables.get("self")
            if isinstance(module, Module):
                if code.co_name == "_call_impl":
                    arguments = _bind(module, variables.get("args", ()), variables.get("kwargs", {}))
                    if callers and callers[-1].module is module and not callers[-1].arguments:
                        callers.pop()  # the frame of its forward, seen a moment ago
                    callers.append(Caller(module, arguments))
                elif not callers or callers[-1].module is not module:
                    callers.append(Caller(module, {}))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(reversed(callers))


def how_many_run(callers: tuple[Caller, ...]) -> int:
    """How many of these modules, outermost first, are still running."""
    running = set()
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_varnames[:1] == ("self",) and code.co_name in ("_call_impl", "forward"):
            running.add(id(frame.f_locals.get("self")))
        frame = frame.f_back  # type: ignore[assignment]
    count = 0
    while count < len(callers) and id(callers[count].module) in running:
        count += 1
    return count


def _bind(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = _positional(type(module).forward)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@lru_cache(maxsize=4096)
def _positional(forward: Any) -> tuple[str, ...]:
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):  # pragma: no cover - a forward written in C
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


# The names under which modules are told which tokens are real (True at real tokens), and, as in torch.nn, which are
# padding (False here).  Whose tokens: the module's own, those of what it cross-attends to, or those of a decoder seen
# from the whole encoder-decoder.
_OWN = {
    "attention_mask": True, "padding_mask": True, "input_mask": True,
    "key_padding_mask": False, "src_key_padding_mask": False, "tgt_key_padding_mask": False,
}  # fmt: skip
_DECODERS_OWN = {"attention_mask": True, "tgt_key_padding_mask": False}
_DECODER_FROM_OUTSIDE = {"decoder_attention_mask": True}
_MEMORY = {"encoder_attention_mask": True, "memory_key_padding_mask": False}
_MEMORY_OF_ATTENTION = {"key_padding_mask": False}  # nn.MultiheadAttention speaks of its keys
_MEMORY_FROM_OUTSIDE = {"attention_mask": True, "src_key_padding_mask": False}


def received_mask(callers: tuple[Caller, ...], batch: int, length: int, memory: bool = False) -> Tensor | None:
    """Which positions are real tokens, by the mask that the model itself received.

    Args:
        callers: the running modules, outermost first.
        batch, length: the shape sought.  A longer mask belongs to a cache: its last ``length`` columns are meant.
        memory: the mask of what is cross-attended to, instead of the module's own sequence.

    Returns:
        (batch, length) bool, True at real tokens; None where no running module was given a mask (all are real).
    """
    in_decoder = False
    for _, arguments in reversed(callers):
        names = _memory_names(arguments, in_decoder) if memory else _own_names(arguments, in_decoder)
        for name, marks_real in names.items():
            mask = arguments.get(name)
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == batch and mask.shape[1] >= length:
                marked = torch.isinf(mask) if mask.is_floating_point() and not marks_real else mask != 0
                return (marked if marks_real else ~marked)[:, -length:].detach()
        in_decoder = in_decoder or _is_decoder(arguments)
    return None


def _own_names(arguments: dict[str, Any], in_decoder: bool) -> dict[str, bool]:
    if in_decoder and ("decoder_attention_mask" in arguments or "decoder_input_ids" in arguments):
        return _DECODER_FROM_OUTSIDE
    return _DECODERS_OWN if in_decoder or "memory" in arguments or "tgt" in arguments else _OWN


def _memory_names(arguments: dict[str, Any], in_decoder: bool) -> dict[str, bool]:
    if (in_decoder and "decoder_attention_mask" in arguments) or "decoder_input_ids" in arguments:
        return _MEMORY_FROM_OUTSIDE
    if not _is_decoder(arguments) and "key_padding_mask" in arguments:
        return _MEMORY_OF_ATTENTION
    return _MEMORY


def _is_decoder(arguments: dict[str, Any]) -> bool:
    """A module that was given something to cross-attend to."""
    return any(isinstance(arguments.get(name), Tensor) for name in ("encoder_hidden_states", "memory"))
