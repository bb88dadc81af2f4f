"""The methods that can be compared on a text: ours and Captum's, one row each, all through the same forward.

Attention methods read a model while it runs; gradient and perturbation methods scale each token's embedding by a gate
of ones (`captum_norm.forward.HFForward`).  Every method gives one score per token, so they can be laid side by side:
``captum-norm compare`` does so on one text, `captum_norm.study` on many.  Nothing here imports captum, or even
torch, until a method is run: a list of names should cost nothing.

Axes: b batch, s token.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from captum_norm.attr import CLASSES
from captum_norm.suggestions import did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from captum_norm.forward import HFForward, Position


@dataclass(frozen=True)
class TokenMethod:
    """How to run one method that scores tokens: a row of the table.

    Attributes:
        source: the module its class is imported from.  Captum's own classes are run through a gate of ones.
        explains: ``"position"``, what one position's representation is made of (attention methods, which do not look at
            the class), or ``"target"``, what one output rests on.
        arguments: what ``attribute`` gets besides the model's inputs.
        signed: whether its scores tell for from against.
        seeded: whether it draws random numbers; they are drawn from a given seed.
        options: what its class is made with, besides the forward.
        over: the method that it wraps, for those that wrap one.
        baseline: whether ``attribute`` must be told what absence is: a gate of zeros.
        decoders: whether it refuses all but causal language models.
        alone: whether an example's scores depend on the padding beside it, or the method takes one example at a time.
    """

    source: str
    explains: Literal["position", "target"]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    signed: bool = False
    seeded: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    over: str = ""
    baseline: bool = False
    decoders: bool = False
    alone: bool = False

    @property
    def mode(self) -> Literal["ids", "gate"]:
        """What its inputs are, as `HFForward` calls it."""
        return "gate" if self.source.split(".")[0] == "captum" else "ids"


_captums = partial(TokenMethod, "captum.attr", "target")

# Our own methods are told in `captum_norm.attr`; a new one of Captum's is one row here, by the name of its class.
METHODS: dict[str, TokenMethod] = {
    **{
        name: TokenMethod("captum_norm.attr", row.explains, signed=row.signed, decoders=row.decoders)
        for name, row in CLASSES.items()
        if row.explains
    },
    "IntegratedGradients": _captums({"n_steps": 50, "internal_batch_size": 16}, signed=True),
    "InputXGradient": _captums(signed=True),
    "Saliency": _captums(),
    "DeepLift": _captums(signed=True),
    "GradientShap": _captums({"n_samples": 25}, signed=True, seeded=True, baseline=True, alone=True),
    "FeatureAblation": _captums(signed=True),
    "Occlusion": _captums({"sliding_window_shapes": (3,)}, signed=True, alone=True),
    "ShapleyValueSampling": _captums({"n_samples": 25}, signed=True, seeded=True, alone=True),
    "KernelShap": _captums({"n_samples": 200, "perturbations_per_eval": 16}, signed=True, seeded=True, alone=True),
    "Lime": _captums({"n_samples": 200, "perturbations_per_eval": 16}, signed=True, seeded=True, alone=True),
    "NoiseTunnel": _captums(
        {"nt_type": "smoothgrad", "nt_samples": 10, "nt_samples_batch_size": 10, "stdevs": 0.2},
        seeded=True, over="Saliency", alone=True,
    ),
}  # fmt: skip

DEFAULT = (
    "AttentionNorm",
    "AttentionWeights",
    "AttentionRollout",
    "IntegratedGradients",
    "InputXGradient",
    "FeatureAblation",
)
"""The methods compared where none are named: those that take seconds, however long the text."""


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
    names = [names] if isinstance(names, str) else names
    unknown = [name for name in names if str(name).lower() not in by_lower]
    if unknown:
        guess = did_you_mean(str(unknown[0]), METHODS)
        raise ValueError(f"unknown method {unknown[0]!r}.{guess} There are: {', '.join(METHODS)}.")
    return tuple(dict.fromkeys(by_lower[name.lower()] for name in names))


class Attributor:
    """One method made ready for one model, to be asked about many texts.

    Args:
        name: which of `METHODS`.
        model: a Hugging Face model, in evaluation mode.
        options: what the class is made with, over what its row says (``aggregate="rollout"``).
        arguments: what ``attribute`` gets, over what its row says (``n_steps=20``).
        over: the method that it wraps, over what its row says; only for methods that wrap one.
        position: whose row is explained, as for `HFForward`.
        show_progress: whether a method that can say so says how much longer it takes, as Captum's do.
        mixers_as_identity: as for ``attribute`` of methods that compose attention calls; others have no such choice.

    Raises:
        ValueError: for an unknown method or one that cannot be wrapped, and for options its class does not take.

    Example:
        >>> from captum_norm.models import load_sentiment
        >>> model, tokenizer = load_sentiment()
        >>> rollout = Attributor("AttentionNorm", model, options={"aggregate": "rollout"})
        >>> rollout(tokenizer(["A warm film."], return_tensors="pt")).shape
        torch.Size([1, 6])
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        options: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        over: str | None = None,
        position: Position = None,
        show_progress: bool = False,
        mixers_as_identity: bool = False,
    ) -> None:
        from captum_norm.forward import HFForward

        [self.name] = known_methods([name])
        self.method = METHODS[self.name]
        self.forward_func = HFForward(model, mode=self.method.mode, position=position)
        self.options = {**self.method.options, **(options or {})}
        self.over = self._checked(over)
        inner = METHODS[self.over].arguments if self.over else {}
        self.arguments = {**inner, **self.method.arguments, **(arguments or {})}
        self.attribution = self._made(self.forward_func)
        if show_progress and "show_progress" in signature(self.attribution.attribute).parameters:
            self.arguments["show_progress"] = True
        if mixers_as_identity and "mixers_as_identity" in signature(self.attribution.attribute).parameters:
            self.arguments["mixers_as_identity"] = True

    def __call__(
        self, encoding: Mapping[str, Any], target: int | Tensor | None = None, seed: int = 0,
        position: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """One score per token.

        Args:
            encoding: the tokenizer's output as tensors.
            target: the class or token id whose output is explained, or one per example; attention methods ignore it.
            seed: where the method's random numbers start; the caller's are left as they were.
            position: one row for each example, in place of the one that it was made with.

        Returns:
            (batch, token), detached, on the model's device.

        Raises:
            ValueError: for a method that explains an output where ``target`` is None.
        """
        if self.method.explains == "target" and target is None:
            raise ValueError(
                f"{self.name} explains one output of the model, so it needs a target: a class or token id."
            )
        return self._run(self.attribution, self.forward_func.inputs(encoding, position), target, seed)

    def on(
        self,
        forward_func: HFForward,
        inputs: Tensor,
        *,
        target: int | Tensor | None = None,
        additional_forward_args: Any = None,
        seed: int = 0,
    ) -> Tensor:
        """The same method on another forward: on perturbed inputs, or on a model with other weights.

        Args:
            forward_func: the forward; in mode "gate" for all methods, attention methods included.
            inputs: what it takes first.
            target: as for a call.
            additional_forward_args: what it takes after ``inputs``.
            seed: as for a call.
        """
        given = {"inputs": inputs, "additional_forward_args": additional_forward_args}
        return self._run(self._made(forward_func), given, target, seed)

    def _run(self, attribution: Any, given: Mapping[str, Any], target: int | Tensor | None, seed: int) -> Tensor:
        import torch

        if self.method.alone and len(given["inputs"]) > 1:
            rows = range(len(given["inputs"]))
            each = target if isinstance(target, torch.Tensor) and target.numel() > 1 else None  # one is for all
            parts = [(_row(given, row), target if each is None else each[row : row + 1]) for row in rows]
            return torch.cat([self._run(attribution, one, wanted, seed) for one, wanted in parts])
        arguments = {**given, **self.arguments, "target": target}
        if self.method.baseline:
            arguments.setdefault("baselines", torch.zeros_like(given["inputs"]))
        with warnings.catch_warnings(), _seeded(seed if self.method.seeded else None, given["inputs"].device):
            warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
            warnings.filterwarnings("ignore", "Setting forward, backward hooks and attributes on non-linear")
            try:
                scores: Tensor = attribution.attribute(**arguments)
            except (AssertionError, IndexError) as error:
                if target is None or getattr(attribution, "explains", None) is not None:
                    raise
                from captum_norm.attr._captum import target_problem

                raise ValueError(f"{self.name}: {target_problem(target)}") from error
        return scores.detach()

    def _made(self, forward_func: HFForward) -> Any:
        make = getattr(import_module(self.method.source), self.name)
        inner: Any = forward_func
        if self.over:
            inner = getattr(import_module(METHODS[self.over].source), self.over)(forward_func)
        try:
            return make(inner, **self.options)
        except TypeError as error:
            raise ValueError(f"{self.name} cannot be made with {self.options}: {error}.") from error

    def _checked(self, over: str | None) -> str:
        """The method that is wrapped; "" for none."""
        if over is None:
            return self.method.over
        [inner] = known_methods([over])
        if not self.method.over:
            raise ValueError(f"{self.name} wraps no other method, so over={over!r} says nothing.")
        if METHODS[inner].mode != "gate" or METHODS[inner].over:
            raise ValueError(f"{self.name} changes its inputs, which are a gate; {inner} reads ids or wraps another.")
        return inner


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
    attributor = Attributor(name, model)
    start = time.perf_counter()
    scores = attributor(encoding, target).cpu()  # a GPU has finished only when its numbers are here
    return TokenScores(scores, time.perf_counter() - start)


def _row(given: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One example of a batch of arguments."""
    from torch import Tensor

    extras = given["additional_forward_args"]
    one = None if extras is None else tuple(e[row : row + 1] if isinstance(e, Tensor) else e for e in extras)
    return {"inputs": given["inputs"][row : row + 1], "additional_forward_args": one}


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """The same random numbers every time, and the caller's left as they were; with None nothing is touched."""
    if seed is None:
        yield
        return
    import numpy as np  # GradientShap draws from numpy
    import torch

    state = np.random.get_state()
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)
