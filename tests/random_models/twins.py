"""Two forms of one function have one answer: a random model beside its twin, which is written as plainly as can be.

The oracle has the definitions of a few methods.  Whether any other reads a form as what it is shows beside the twin,
which computes the same from the same parameters by ordinary modules and operations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch.nn import Module

import captum_norm
from tests.random_models.check import Case, Finding, classified_error, distance, flat
from tests.random_models.config import MASK_FORMS, Config, function_of
from tests.random_models.definitions import Answer
from tests.random_models.model import RandomTransformer, make_model

METHODS: dict[str, Callable[[Module], Any]] = {
    "AttentionNorm, rollout": lambda model: captum_norm.AttentionNorm(model, aggregate="rollout"),
    "AttentionBlockNorm, rollout": lambda model: captum_norm.AttentionBlockNorm(model, aggregate="rollout"),
    "AttentionBlockNorm, feed-forward": lambda model: captum_norm.AttentionBlockNorm(model, feed_forward=True),
    "GlobEnc": captum_norm.GlobEnc,
    "GlobEnc, feed-forward": lambda model: captum_norm.GlobEnc(model, feed_forward=True),
    "AttentionFlow": captum_norm.AttentionFlow,
    "AttentionRelevance": captum_norm.AttentionRelevance,
    "ValueZeroing": captum_norm.ValueZeroing,
}

OUT_OF_SIGHT = ("by numpy", "in detached memory", "halved by its data", "halved in detached memory")
"""Residuals that are written where autograd does not see it."""

TOLERANCE = 1e-3
"""How far two answers may be apart, relative to the largest score of any input."""


def plain(config: Config) -> Config:
    """The same function in the form that is usual."""
    norm, layer = (function_of(form).removesuffix(" by hand") for form in (config.norm_form, config.feed_forward))
    twin = replace(config, linear="", residual="", read_by="", norm_form=norm, feed_forward=layer)
    if config.attention in ("MultiheadAttention", "TransformerEncoderLayer"):
        return twin
    return replace(twin, attention="written", mask_form=MASK_FORMS[0], projection="split", output="linear")


class Twins:
    """A random model and its twin.

    Attributes:
        case: the model, its inputs and the truth about both.
    """

    def __init__(self, config: Config) -> None:
        self.case = Case(config)

    @cached_property
    def twin(self) -> RandomTransformer | None:
        """The same function in its usual form; None where there is no other, or its format rounds it otherwise."""
        case, config = self.case, plain(self.case.config)
        if config == case.config or config.dtype.endswith("16"):
            return None
        try:
            twin = make_model(config, case.parameters, case.inputs.row)
        except (KeyError, RuntimeError, TypeError):  # a change of the weights that goes with its own form alone
            return None
        with torch.no_grad():
            output = twin(*case.tensors, *case.told)
        return twin if distance(output, case.output.double()) < 10 * TOLERANCE else None

    def findings(self) -> list[Finding]:
        """What each method answers about the model, beside its answer about the twin; none where there is no twin."""
        assert self.case.truth
        names = [name for name in METHODS if name != "AttentionRelevance" or self.has_gradient]
        return [] if self.twin is None else [self._checked(name) for name in names]

    @cached_property
    def has_gradient(self) -> bool:
        """Whether torch gives the model the gradient of its function.

        It gives none to what is written by ``out=``, and that of another function where memory is written unseen.
        """
        if self.case.config.residual in OUT_OF_SIGHT:
            return False
        try:
            with torch.enable_grad():
                self.case.model(*self.case.tensors, *self.case.told).sum().backward()
        except RuntimeError:
            return False
        return True

    def _checked(self, name: str) -> Finding:
        answers = []
        for model in (self.case.model, self.twin):
            try:
                answers.append(self._ask(name, model))
            except Exception as error:
                return classified_error(name, error, self.case.model)
        scale = max(float(scores.abs().max()) for scores in answers[1]) or 1.0
        apart = max(float((ours - theirs).abs().max()) / scale for ours, theirs in zip(*answers, strict=True))
        if apart <= max(TOLERANCE, self.case.tolerance):
            return Finding(name, "right")
        return Finding(name, "silent", f"{apart:.2g} of the largest score off the twin's")

    def _ask(self, name: str, model: Module | None) -> Answer:
        case = self.case
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = METHODS[name](model).attribute(
                case.tensors if len(case.tensors) > 1 else case.tensors[0],
                target=case.truth.target, additional_forward_args=case.told or None,
            )  # fmt: skip
        return flat(scores)
