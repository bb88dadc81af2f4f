"""Captum's private names, typed here: the only file that a new Captum version can break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from captum._utils.common import (  # type: ignore[import-untyped]
    _format_additional_forward_args,
    _is_tuple,
    _run_forward,
    _select_targets,
)
from captum.attr import (  # type: ignore[import-untyped]
    Attribution,
    LayerAttribution,
    LLMAttributionResult,
    TextTemplateInput,
    TextTokenInput,
)
from captum.attr._core.llm_attr import DEFAULT_GEN_ARGS, BaseLLMAttribution  # type: ignore[import-untyped]
from captum.log import log_usage  # type: ignore[import-untyped]
from torch import Tensor

from captum_norm.forward.outputs import output_tensor

__all__ = [
    "DEFAULT_GEN_ARGS",
    "Attribution",
    "BaseLLMAttribution",
    "LLMAttributionResult",
    "LayerAttribution",
    "TextTemplateInput",
    "TextTokenInput",
    "as_tuple",
    "check_target",
    "explained",
    "extra_arguments",
    "is_tuple",
    "logged",
    "run_forward",
    "select",
    "selected",
    "target_problem",
]

P = ParamSpec("P")
R = TypeVar("R")

is_tuple = _is_tuple


def logged(function: Callable[P, R]) -> Callable[P, R]:
    """Captum's usage log, whose wrapper also gives ``attribute.__wrapped__``, which NoiseTunnel calls."""
    return cast("Callable[P, R]", log_usage(part_of_slo=True)(function))


def as_tuple(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Captum's ``inputs`` as a tuple.

    Raises:
        TypeError: for anything but a tensor or a tuple of tensors.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not given or not all(isinstance(tensor, Tensor) for tensor in given):
        found = [type(item).__name__ for item in given]
        raise TypeError(
            f"inputs should be a tensor or a tuple of tensors, got {found if isinstance(inputs, tuple) else found[0]}. "
            "A text goes through the tokenizer first: attribute(tokenizer(text, return_tensors='pt'))."
        )
    return given


def extra_arguments(additional_forward_args: Any) -> tuple[Any, ...]:
    """Captum's ``additional_forward_args`` as a tuple; empty where there are none."""
    return cast("tuple[Any, ...]", _format_additional_forward_args(additional_forward_args) or ())


def run_forward(forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> Any:
    """The forward function's own output, called as every Captum method calls it."""
    return _run_forward(forward_func, inputs, None, extras)


def check_target(output: Any, target: Any) -> None:
    """Let Captum judge ``target`` against the output.

    Raises:
        AssertionError, IndexError: as Captum, where the target does not fit the output, with what would.
        TypeError: if a target is given and the output holds no tensor to select it from.
    """
    if target is not None:
        _at_target(_explained_tensor(output), target)


def select(tensor: Tensor, target: Any) -> Tensor:
    """What ``target`` selects of a tensor of the output's shape; all of it without a target."""
    return tensor if target is None else cast("Tensor", _select_targets(tensor, target))


def explained(output: Any, target: Any) -> Tensor | None:
    """What ``target`` selects of an output; None where it holds no tensor."""
    found = output_tensor(output)
    return None if found is None else select(found, target)


def selected(output: Any, target: Any, caller: str) -> Tensor:
    """What ``target`` selects of the output, as Captum selects it: (batch,).

    Raises:
        AssertionError, IndexError: as Captum, where the target does not fit the output, with what would.
        TypeError: if the output holds no tensor to select from.
        ValueError: if no target is given and the output has several numbers per example.
    """
    found = _explained_tensor(output)
    chosen = _at_target(found, target)
    if found.ndim and chosen.numel() != len(found):
        raise ValueError(
            f"{caller} explains one number per example, but of the output, {tuple(found.shape)}, target={target!r} "
            f"leaves {tuple(chosen.shape)}: give a class, or a tuple of indices where the output has more axes than "
            "(batch, class). HFForward(model, position=...) takes one row of such an output."
        )
    return chosen.reshape(-1)


def _at_target(found: Tensor, target: Any) -> Tensor:
    try:
        return cast("Tensor", _select_targets(found, target))
    except (AssertionError, IndexError, RuntimeError) as error:
        if type(error) not in (AssertionError, IndexError, RuntimeError):  # of what holds a model fixed
            raise
        kind = AssertionError if isinstance(error, AssertionError) else IndexError  # a list of targets is gathered
        raise kind(target_problem(target, tuple(found.shape))) from error


def target_problem(target: Any, shape: tuple[int, ...] | None = None) -> str:
    """What is wrong with a target that does not fit an output of ``shape`` (None: not known), and what would fit."""
    if isinstance(target, str):
        return f"target={target!r} should be the number of a class: model.config.label2id[{target!r}] may know it."
    known = "" if shape is None else f", which has the shape {shape}"
    classes = f" Its classes are 0 to {shape[-1] - 1}." if shape and len(shape) == 2 else ""
    return (
        f"target={target!r} does not fit the output of the model{known}.{classes} Give an int for all examples, or one "
        "per example as a list or a 1-d tensor; a tuple for each where the output has more axes."
    )


def _explained_tensor(output: Any) -> Tensor:
    found = output_tensor(output)
    if found is None:
        raise TypeError(
            f"target was given, but forward_func returned {type(output).__name__} without a tensor to select it from. "
            "Let it return the logits, (batch, classes), or leave target out: this method does not depend on it."
        )
    return found
