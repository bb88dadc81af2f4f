"""Which of eight methods answer for a model, and what the others say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import captum_norm

METHODS = ("AttentionNorm", "AttentionRollout", "AttentionBlockNorm", "GlobEnc", "ALTI", "ValueZeroing",
           "AttentionRelevance", "DecompX")  # fmt: skip
WITH_TARGET = ("AttentionRelevance", "DecompX")


def asked(method: str, forward: Callable[..., Any], given: Tensor, target: Any) -> str:
    """What keeps a method from answering; "": it answered."""
    chosen = {"target": target} if method in WITH_TARGET else {}
    try:
        scores = getattr(captum_norm, method)(forward).attribute(given, **chosen)
    except Exception as error:
        return line(error)
    return "" if bool(torch.isfinite(scores).all()) else "not finite"


def line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


_REASONS = {
    "was not found: of the modules": "no module is a layer",
    "positions are mixed": "something else mixes positions",
    "cannot be taken in": "no block that can be read",
    "not known to be input positions": "keys are no input positions",
    "which rows the output was read from": "rows read are not known",
    "is read by no attention call": "frames or features are no input positions",
    "InexactCaptureError": "a call is refused",
    "NotFrozenError": "not a frozen linear map",
    "rolled out": "calls cannot be composed",
    "something leads past": "something leads past a call",
    "hold nothing of what was there": "rows are replaced between calls",
    "run side by side": "calls side by side",
    "within another sequence": "read within another sequence",
    "have no mean": "calls of different keys",
    "keys are not those": "calls of different keys",
    "no softmax attention was seen": "no attention",
    "cannot be told apart by example": "no axis of examples",
    "which tokens are real became known": "real tokens known late",
}


def reason(answer: str) -> str:
    """The kind of a refusal."""
    return next((short for words, short in _REASONS.items() if words in answer), answer[:80])


def missing(answers: Mapping[str, str]) -> str:
    """Which methods do not answer, by kind of refusal."""
    silent: dict[str, list[str]] = defaultdict(list)
    for method, answer in answers.items():
        if answer:
            silent[reason(answer)].append(method)
    return "; ".join(f"{', '.join(methods)}: {why}" for why, methods in silent.items())
