"""The methods that can be compared on one text: ours and Captum's, one row each, all through the same forward.

Attention methods read a model while it runs; gradient and perturbation methods scale each token's embedding by a gate
of ones (`captum_norm.forward.HFForward`).  Every method gives one score per token, so they can be laid side by side.
Nothing here imports captum or torch's models until a method is run: a list of names should cost nothing.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Method:
    """How to run one method on a model.

    Attributes:
        source: the module its class is imported from.
        explains: ``"position"``, what one position's representation is made of (attention methods, which do not look at
            the class), or ``"target"``, what one output rests on.
        arguments: what ``attribute`` gets besides the model's inputs.
        signed: whether its scores tell for from against.
        seeded: whether it draws random numbers; they are drawn from a fixed seed.
    """

    source: str
    explains: Literal["position", "target"]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    signed: bool = False
    seeded: bool = False


# A new method is one row here; its name is the name of its class.
METHODS: dict[str, Method] = {
    "AttentionNorm": Method("captum_norm.attr", "position"),
    "AttentionWeights": Method("captum_norm.attr", "position"),
    "AttentionRollout": Method("captum_norm.attr", "position"),
    "AttentionFlow": Method("captum_norm.attr", "position"),
    "IntegratedGradients": Method("captum.attr", "target", {"n_steps": 50, "internal_batch_size": 16}, signed=True),
    "InputXGradient": Method("captum.attr", "target", signed=True),
    "Saliency": Method("captum.attr", "target"),
    "FeatureAblation": Method("captum.attr", "target", signed=True),
    "ShapleyValueSampling": Method("captum.attr", "target", {"n_samples": 25}, signed=True, seeded=True),
}

DEFAULT = (
    "AttentionNorm",
    "AttentionWeights",
    "AttentionRollout",
    "IntegratedGradients",
    "InputXGradient",
    "FeatureAblation",
)
"""The methods compared where none are named: those that take seconds.  AttentionFlow may take minutes on long texts."""


@dataclass(frozen=True)
class TokenScores:
    """What a method said of one text.

    Attributes:
        scores: (batch, token), on the CPU.
        seconds: wall-clock time of its one call.
    """

    scores: Tensor
    seconds: float


def known_methods(names: Sequence[str]) -> tuple[str, ...]:
    """The names as they are written in `METHODS`, whatever their case; each once.

    Raises:
        ValueError: for a name that is no method.

    Example:
        >>> known_methods(["attentionnorm", "Saliency"])
        ('AttentionNorm', 'Saliency')
    """
    by_lower = {name.lower(): name for name in METHODS}
    unknown = [name for name in names if name.lower() not in by_lower]
    if unknown:
        raise ValueError(f"unknown method {unknown[0]!r}. There are: {', '.join(METHODS)}.")
    return tuple(dict.fromkeys(by_lower[name.lower()] for name in names))


def run_method(name: str, model: nn.Module, encoding: Mapping[str, Any], target: int | None = None) -> TokenScores:
    """One score per token by one method.

    Args:
        name: which of `METHODS`.
        model: a Hugging Face model, in evaluation mode.
        encoding: the tokenizer's output as tensors.
        target: the class or token id whose output is explained; attention methods ignore it.

    Raises:
        ValueError: for an unknown method, or a method that explains an output where ``target`` is None.
    """
    from captum_norm.forward import HFForward

    [name] = known_methods([name])
    method = METHODS[name]
    if method.explains == "target" and target is None:
        raise ValueError(f"{name} explains one output of the model, so it needs a target: a class or a token id.")
    forward = HFForward(model, mode="ids" if method.explains == "position" else "gate")
    attribution = getattr(import_module(method.source), name)(forward)
    arguments = {**forward.inputs(encoding), **method.arguments, "target": target}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
        start = time.perf_counter()
        scores = _seeded(attribution.attribute, arguments) if method.seeded else attribution.attribute(**arguments)
        scores = scores.detach().cpu()  # a GPU has finished only when its numbers are here
        seconds = time.perf_counter() - start
    return TokenScores(scores, seconds)


def _seeded(attribute: Callable[..., Tensor], arguments: Mapping[str, Any]) -> Tensor:
    """The same random numbers every time, and the caller's left as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return attribute(**arguments)
