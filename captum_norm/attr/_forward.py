"""What running a model for a method takes: what cannot be read is refused, and what it is given is made ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import DataParallel, Module, TransformerEncoder

from captum_norm.attr._captum import run_forward
from captum_norm.attr._position import PositionType
from captum_norm.forward import HFForward
from captum_norm.forward.at_hand import held_by
from captum_norm.forward.inputs import check_inputs, check_model
from captum_norm.forward.keywords import unwrapped
from captum_norm.forward.modules import modules_within
from captum_norm.operations.operation import swapped

Forward = Callable[..., Any]
Given = TypeVar("Given")


@contextmanager
def readable(
    title: str, forward_func: Forward, inputs: tuple[Tensor, ...], extras: tuple[Any, ...]
) -> Iterator[tuple[Tensor, ...]]:
    """Stands around a run of the model: refuses what cannot be read, and says what to do about float token ids.

    Yields:
        The tensors whose positions are the inputs' positions: in gate mode, the ids that the gate belongs to.

    Raises:
        TypeError: if the model looks up token ids, and an input holds float numbers; for what is no model.
        ValueError: for replicas in other threads, or for what a Hugging Face model cannot take (empty or too long
            texts, ids it does not know).
    """
    forward = unwrapped(forward_func)
    checks = isinstance(forward, Module) and not isinstance(forward, HFForward)  # which checks for itself
    if not checks:
        check_model(forward_func)
    _refuse_replicas(title, forward_func)
    try:
        if checks:
            check_inputs(forward, (*inputs, *extras))
        gated = getattr(forward, "mode", None) == "gate" and extras and isinstance(extras[0], Tensor)
        yield (extras[0], *inputs[1:]) if gated else inputs
    except (RuntimeError, TypeError) as error:
        _explain_float_ids(title, inputs, error)
        raise


def refuse_fused_path(
    title: str, forward_func: Forward, inputs: tuple[Tensor, ...], extras: tuple[Any, ...],
    chosen: Callable[[Any], Tensor | None], seen: Tensor,
) -> None:  # fmt: skip
    """Refuse an answer about another output than the caller's own call gives.

    torch's fused path for ``nn.TransformerEncoder`` writes zeros at padding, and is off while a model is read: what
    pools over padding is another number then.

    Args:
        title: the method's name.
        forward_func, inputs, extras: what is run.
        chosen: what is explained of an output.
        seen: what was chosen while the model was read.

    Raises:
        ValueError: if a plain call gives something else.
    """
    if not any(_may_fuse(module) for model in models_in(forward_func) for module in modules_within(model)):
        return
    with torch.no_grad():
        plain = chosen(run_forward(forward_func, inputs, extras))
    if plain is None or plain.ndim > 2:  # a row for each position: those of padding do not matter
        return
    if plain.shape != seen.shape or not torch.allclose(plain, seen, rtol=1e-3, atol=1e-4 * float(plain.abs().max())):
        worst = int((plain - seen).abs().argmax()) if plain.shape == seen.shape else 0
        call, read = float(plain.flatten()[worst]), float(seen.flatten()[worst])
        raise ValueError(
            f"{title}: torch's fused path for nn.TransformerEncoder writes zeros at padding, which the output reads: a "
            f"call gives {call:.4g}, and {read:.4g} while the model is read. Leave padding "
            "out of what is pooled, or make both one with nn.TransformerEncoder(..., enable_nested_tensor=False)."
        )


def models_in(forward_func: Forward) -> list[Module]:
    """The model, or the modules that a function has at hand: in what it encloses, or by a global name."""
    if isinstance(forward_func, Module):
        return [forward_func]
    return [value for value in held_by(forward_func) if isinstance(value, Module)]


def _may_fuse(module: Module) -> bool:
    if not isinstance(module, TransformerEncoder) or module.training:
        return False
    return bool(getattr(module, "use_nested_tensor", False)) and torch.backends.mha.get_fastpath_enabled()


def distinct(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One tensor given twice (the same text to encoder and decoder) is two inputs, each with scores of its own."""
    return tuple(
        tensor.clone() if any(tensor is other for other in inputs[:index]) else tensor
        for index, tensor in enumerate(inputs)
    )


def position_given(forward_func: Forward, extras: tuple[Any, ...]) -> PositionType:
    """HFForward's position: the last of the extras if it was passed along, else the object's own."""
    forward = unwrapped(forward_func)
    names = getattr(forward, "names", None)
    if not isinstance(names, tuple):
        return None
    passed = extras[len(names) + (getattr(forward, "mode", None) == "gate") :]
    return passed[0] if passed and passed[0] is not None else getattr(forward, "position", None)


@contextmanager
def outside_inference_mode(given: Given) -> Iterator[Given]:
    """Inference mode, whose tensors no graph may hold, is off for the length of the ``with``.

    Yields:
        What was given, with plain tensors in it: those made in inference mode are copied, all others are the same.

    Example:
        >>> with torch.inference_mode():
        ...     x = torch.ones(2)
        ...     with outside_inference_mode((x, "a")) as (y, _):
        ...         print(y.is_inference(), torch.is_inference_mode_enabled())
        False False
    """
    with torch.inference_mode(False):
        yield swapped(given, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


def _refuse_replicas(title: str, forward_func: Forward) -> None:
    modules = modules_within(forward_func) if isinstance(forward_func, Module) else ()
    for module in modules:
        if isinstance(module, DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"{title}: DataParallel runs replicas on devices {module.device_ids} in threads that cannot be read. "
                "Pass its .module, or DataParallel(module, device_ids=[0])."
            )


def _explain_float_ids(title: str, inputs: tuple[Tensor, ...], error: Exception) -> None:
    """Raise what to do instead if the model refused float numbers where it looks up ids."""
    floats = [index for index, tensor in enumerate(inputs) if tensor.is_floating_point()]
    if floats and any(
        words in str(error) for words in ("'indices' to have one of the following", "looks up token ids")
    ):
        raise TypeError(
            f"{title}: inputs[{floats[0]}] holds float numbers, but the model looks up token ids (long). Methods that "
            "add noise to the inputs or scale them (NoiseTunnel, sensitivity_max) need HFForward(model, mode='gate') "
            "or mode='embeds'."
        ) from error
