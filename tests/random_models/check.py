"""Is what the package says of a random transformer right, refused by name, wrong without a word, or a crash?"""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

import captum_norm
from tests.random_models.config import Config
from tests.random_models.definitions import METHODS, Answer, definitions
from tests.random_models.model import RandomTransformer, arguments, make_model
from tests.random_models.oracle import Oracle
from tests.random_models.parameters import Inputs, Parameters, draw_inputs, draw_parameters
from tests.random_models.truth import Call, Truth

Status = Literal["right", "refused", "silent", "crash"]
CHECKS = ("attention_maps", *METHODS)

TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""How far numbers may be from the truth, relative to the largest: rounding of a whole model, and no more."""

_MAGNIFY = ("ALTI", "DecompX")  # differences of lengths, and units that are on or off

ROUNDED_MODELS = 2048
"""How many models a rounding away are tried before a 16-bit answer is called wrong."""

_PACKAGE = str(Path(captum_norm.__file__).parent)
_OURS = (ValueError, TypeError, NotImplementedError, captum_norm.InexactCaptureError)


@dataclass(frozen=True)
class Finding:
    """What came of one check on one model.

    Attributes:
        check: ``"attention_maps"`` or the method's name.
        status: ``"right"``, ``"refused"`` (an error of ours), ``"silent"`` (an answer that is not the truth) or
            ``"crash"`` (another error).
        what: the error's type, or what is wrong with the answer.
        message: the error's text.
        named: whether a refusal names a module of the model.
    """

    check: str
    status: Status
    what: str = ""
    message: str = ""
    named: bool = False


class Case:
    """A random transformer, its inputs, and the truth about both.

    Raises:
        AssertionError: by ``truth``, if the second form of the function does not give the model's output: a fault of
            this machine, not of the package.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.parameters: Parameters = draw_parameters(config)
        self.inputs: Inputs = draw_inputs(config)
        self.model: RandomTransformer = make_model(config, self.parameters, self.inputs.row)
        self.tensors, self.told = arguments(config, self.inputs)

    @cached_property
    def output(self) -> Tensor:
        """The model's own."""
        with torch.no_grad():
            return self.model(*self.tensors, *self.told)

    @cached_property
    def truth(self) -> Truth:
        truth = Oracle(self.config, self.parameters, self.inputs).run()
        error = self._error_of(self._twin_output, truth)
        if not error <= 1e-7:
            raise AssertionError(f"two forms of one function differ by {error:.1e}: {self.config}")
        return truth

    @cached_property
    def tolerance(self) -> float:
        """How far an answer may be from the truth: rounding of the output shows how much this model magnifies it."""
        return max(TOLERANCE[self.config.dtype], 10 * self._error_of(self.output, self.truth))

    @cached_property
    def tolerance_of_states(self) -> float:
        """The same, with rounding of the states, which a norm over two numbers, hardly more than a sign, hides."""
        states = list(zip(_states(self.model, self.tensors, self.told), _states(*self._twin), strict=True))
        return max(self.tolerance, *(10 * distance(ours, exact) for ours, exact in states))

    @cached_property
    def _twin(self) -> tuple[RandomTransformer, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same modules with the same parameters in float64, and what they take."""
        exact = replace(self.config, dtype="float64")
        return make_model(exact, self.parameters, self.inputs.row), *arguments(exact, self.inputs)

    @cached_property
    def _twin_output(self) -> Tensor:
        model, tensors, told = self._twin
        with torch.no_grad():
            return model(*tensors, *told)

    def _error_of(self, found: Tensor, truth: Truth) -> float:
        expected = truth.output
        if found.ndim == 3 and found.shape[1] == truth.real.shape[1]:
            expected, found = expected[truth.real], found[truth.real]
        return distance(found, expected)

    @cached_property
    def answers(self) -> dict[str, Answer | None]:
        return definitions(self.truth)

    def ask_for_maps(self) -> Any:
        """The package's maps."""
        given = (*self.tensors, *self.told)
        return captum_norm.attention_maps(self.model, given if len(given) > 1 else given[0])

    def ask(self, method: str) -> Answer:
        """The package's answer of one method, (batch, position) for each input."""
        without = method == "AttentionBlockNorm" and self.config.norm == "none"  # which it would miss
        how: dict[str, Any] = {"layer_norm": False} if without else {}
        attribution = getattr(captum_norm, method)(self.model, **how)
        needs_target = method == "DecompX" or self.config.readout != "every position"
        given = self.tensors if len(self.tensors) > 1 else self.tensors[0]
        scores = attribution.attribute(
            given, target=self.truth.target if needs_target else None, additional_forward_args=self.told or None
        )
        return flat(scores)

    def findings(self, checks: tuple[str, ...] = CHECKS) -> list[Finding]:
        """Every check, classified."""
        assert self.truth
        return [self._checked(check) for check in checks]

    def _checked(self, check: str) -> Finding:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = self.ask_for_maps() if check == "attention_maps" else self.ask(check)
        except Exception as error:
            return classified_error(check, error, self.model)
        return self.judged(check, answer)

    def judged(self, check: str, answer: Any) -> Finding:
        """An answer beside the truth."""
        wrong = self._wrong(check, answer, self.tolerance)
        if wrong and self.config.dtype == "float32":
            wrong = self._wrong(check, answer, self.tolerance_of_states)
        if wrong and check in _MAGNIFY and self.config.dtype.endswith("16") and self.answers[check] is not None:
            wrong = "" if self._is_right_of_a_rounded_model(check, answer) else wrong
        return Finding(check, "silent" if wrong else "right", wrong)

    def _wrong(self, check: str, answer: Any, tolerance: float) -> str:
        if check == "attention_maps":
            return wrong_maps(answer, self.truth, tolerance)
        return wrong_scores(answer, self.answers[check], tolerance)

    def _is_right_of_a_rounded_model(self, check: str, answer: Answer) -> bool:
        """Whether every example's scores are those that the definition gives where parameters are rounded otherwise.

        A unit of a ReLU whose input rounds to another sign changes DecompX, and ALTI's differences of lengths magnify
        what a format of 16 bits rounds.  Such an answer is that of a model a rounding away; no distance is granted.
        """
        generator, size = torch.Generator().manual_seed(0), torch.finfo(getattr(torch, self.config.dtype)).eps
        right = torch.zeros(len(answer[0]), dtype=torch.bool)
        for _ in range(ROUNDED_MODELS):
            rounded = _rounded(self.parameters, size, generator)
            expected = definitions(Oracle(self.config, rounded, self.inputs).run())[check]
            if expected is not None:
                right |= torch.tensor(
                    [
                        not wrong_scores(tuple(a[n] for a in answer), tuple(e[n] for e in expected), self.tolerance)
                        for n in range(len(right))
                    ]
                )
            if right.all():
                return True
        return False


def flat(scores: Tensor | tuple[Tensor, ...]) -> Answer:
    """(batch, position) for each input, whatever else an input has summed up."""
    scores = scores if isinstance(scores, tuple) else (scores,)
    scores = tuple(s.detach().double() for s in scores)
    return tuple(s if s.ndim == 2 else s.flatten(2).sum(-1) for s in scores)


def classified_error(check: str, error: Exception, model: Module) -> Finding:
    """An error in the place of an answer."""
    names = {name for name, _ in model.named_modules() if name}
    message = str(error)
    named = any(name in message for name in names)
    status: Status = "refused" if _is_ours(error) else "crash"
    return Finding(check, status, type(error).__name__, message, named)


def _states(model: RandomTransformer, tensors: tuple[Tensor, ...], told: tuple[Tensor, ...]) -> list[Tensor]:
    """What each module of a model gives out, in the order in which they finish."""
    states: list[Tensor] = []

    def note(module: Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.is_floating_point():
            states.append(out.detach().double())

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with torch.no_grad():
        model(*tensors, *told)
    for hook in hooks:
        hook.remove()
    return states


def _rounded(told: Any, size: float, generator: torch.Generator) -> Any:
    """Parameters of any structure, each number changed by a random part of this size."""
    if isinstance(told, Tensor) and told.is_floating_point():
        return told * (1 + size * torch.randn(told.shape, generator=generator, dtype=told.dtype))
    if isinstance(told, list | tuple):
        return type(told)(_rounded(one, size, generator) for one in told)
    if isinstance(told, dict):
        return {name: _rounded(one, size, generator) for name, one in told.items()}
    if is_dataclass(told) and not isinstance(told, type):
        return replace(told, **{one.name: _rounded(getattr(told, one.name), size, generator) for one in fields(told)})
    return told


def _is_ours(error: Exception) -> bool:
    """An error that the package raised by a statement of its own."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, _OURS):
        return False
    file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    return file.startswith(_PACKAGE) and linecache.getline(file, line).strip().startswith("raise")


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number expected; infinite for other shapes and for NaN."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    return float((found.double() - expected).abs().max()) / (scale or 1.0) if expected.numel() else 0.0


def wrong_scores(answer: Answer, expected: Answer | None, tolerance: float) -> str:
    """What is wrong with scores; ``""`` if nothing."""
    if expected is None:
        return "an answer where there is none"
    errors = [distance(a, e) for a, e in zip(answer, expected, strict=True)]
    worst = max(errors)
    return f"off by {worst:.2g} of the largest score" if worst > tolerance else ""


def wrong_maps(maps: Any, truth: Truth, tolerance: float) -> str:
    """What is wrong with the maps of all calls; ``""`` if nothing."""
    found = list(range(len(maps.calls)))
    for number, call in enumerate(truth.calls):
        here = next((i for i in found if not _differs(maps, i, call, truth, tolerance)), None)
        if here is not None:
            found.remove(here)
        elif number in truth.used:
            near = f": {_differs(maps, number, call, truth, tolerance)}" if number < len(maps.calls) else ""
            return f"call {number} of {len(truth.calls)} is not among the {len(maps.calls)} maps{near}"
    return f"map {found[0]} is none of the model's calls" if found else ""


def _differs(maps: Any, i: int, call: Call, truth: Truth, tolerance: float) -> str:
    """In what a map differs from a call; ``""`` if in nothing.  Rows of padding are not looked at."""
    norms, weights = call.summed_norms(), call.weights
    if call.groups is not None and maps.keys[i] is None:  # each window an example of its own, its positions untold
        rows, keys = call.groups.sort(1).values[:, :, None], call.groups[:, None]  # rows are in the order of the output
        norms, weights = norms[:, rows, keys].flatten(0, 1), weights[:, :, rows, keys].transpose(1, 2).flatten(0, 1)
    answered = call.answered if maps.summed_norms[i].shape[1] < norms.shape[1] else None
    if answered is not None:  # a map of the answered alone
        norms = norms.gather(1, answered[..., None].expand(-1, -1, norms.shape[2]))
        weights = weights.gather(2, answered[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3]))
    room = torch.zeros(*norms.shape[:2], truth.room, dtype=norms.dtype)
    norms = torch.cat([norms, room], 2)
    if maps.summed_norms[i].shape != norms.shape:
        return f"its shape is {tuple(maps.summed_norms[i].shape)}, that of the call {tuple(norms.shape)}"
    rows = torch.ones(norms.shape[:2], dtype=torch.bool)
    if call.query_source == len(truth.lengths) - 1 and rows.shape == truth.never_hidden.shape:
        rows = truth.never_hidden
    found = maps.weights[i].double()[..., : weights.shape[-1]]
    if found.shape[1] == 1 and torch.equal(weights, weights[:, :1].expand_as(weights)):
        found = found.expand_as(weights)  # one map for all heads that share it
    if found.shape != weights.shape:
        return f"its weights have {found.shape[1]} heads, those of the call {weights.shape[1]}"
    pairs = {
        "summed_norms": (maps.summed_norms[i].double()[rows], norms[rows]),
        "weights": (found.transpose(1, 2)[rows], weights.transpose(1, 2)[rows]),
    }
    for name, (a, b) in pairs.items():
        error = distance(a, b)
        if error > tolerance:
            return f"its {name} are off by {error:.2g}"
    kind = call.kind
    if maps.keys[i] is None and kind != "cross" and answered is not None:  # which rows these are is not known
        kind = "self"
    elif maps.keys[i] is None and kind != "cross" and call.key_index is not None:  # rows count, and no positions
        kind = "self" if weights.triu(1).any() else "causal"
    if maps.calls[i].kind != kind:
        return f"it is called {maps.calls[i].kind!r}, and is {kind!r}"
    said = None if maps.keys[i] is None else maps.keys[i].index.tolist()
    known = None if call.key_index is None else [*call.key_index.clamp(min=-1).tolist(), *[-1] * truth.room]
    return f"its keys are said to be {said}, and are {known or 'no positions'}" if said not in (None, known) else ""


def broken(case: Case, check: str, break_it: Callable[[Any], Any]) -> Finding:
    """What the machine says of an answer that was made wrong on purpose."""
    answer = case.ask_for_maps() if check == "attention_maps" else case.ask(check)
    return case.judged(check, break_it(answer))
