"""Methods that compute scores: those of the table, Captum objects, functions of the caller's.

Axes: b batch, s token (padding included).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.forward.lead import Lead
from captum_norm.methods import Attributor
from captum_norm.study.batches import TextBatch
from captum_norm.study.metrics import Attribute
from captum_norm.study.scorers.scorer import Scorer
from captum_norm.study.variants import Variant

Function = Callable[[HFForward, Mapping[str, Tensor], Tensor], Tensor]


@dataclass
class TableMethod(Scorer):
    """A method of the table."""

    variant: Variant
    attributor: Attributor
    special: str
    seed: int

    def __post_init__(self) -> None:
        self.name = self.variant.title
        # Random numbers are drawn for one example at a time, so that they do not depend on the rest of the batch.
        self.alone = self.attributor.method.alone or self.attributor.method.seeded

    @property
    def family(self) -> str:
        return self.variant.method

    def score(self, batch: TextBatch) -> Tensor:
        seed = batch.examples[0].seed(self.seed)
        if batch.foil is None or self.attributor.method.explains == "position":
            return self.attributor(batch.inputs, batch.target, seed, batch.rows)
        scores = []
        for row, foil in enumerate(batch.foil.tolist()):
            lead, one = Lead(self.attributor.forward_func, foil), slice(row, row + 1)
            rows = None if batch.rows is None else batch.rows[one]
            given = lead.inputs({name: value[one] for name, value in batch.inputs.items()}, rows)
            scores.append(self.attributor.on(lead, **given, target=batch.target[one], seed=seed))
        return torch.cat(scores)

    def attribute(self, batch: TextBatch) -> Attribute:
        seed = batch.examples[0].seed(self.seed)

        def again(forward: HFForward, inputs: Tensor, **arguments: Any) -> Tensor:
            return self.attributor.on(forward, inputs, seed=seed, **arguments)

        return again

    def describe(self) -> dict[str, Any]:
        attributor = self.attributor
        choices = _as_json(
            {
                "method": attributor.name,
                "options": attributor.options,
                "arguments": attributor.arguments,
                "over": attributor.over,
            }
        )
        return {"name": self.name, **choices, "choice": self.variant.choice, "special": self.special}


@dataclass
class CaptumObject(Scorer):
    """An attribution object that the caller has made: anything with Captum's ``attribute`` over an `HFForward`."""

    name: str
    attribution: Any
    special: str

    def __post_init__(self) -> None:
        self.forward = _forward_of(self.name, self.attribution)

    def score(self, batch: TextBatch) -> Tensor:
        _refuse_foil(self.name, batch)
        scores: Tensor = self.attribution.attribute(
            **self.forward.inputs(batch.inputs, batch.rows), target=batch.target
        )
        return scores.sum(-1) if self.forward.mode == "embeds" else scores

    def describe(self) -> dict[str, Any]:
        kind = type(self.attribution)
        simple = {n: v for n, v in vars(self.attribution).items() if isinstance(v, bool | int | float | str)}
        return {
            "name": self.name,
            "object": f"{kind.__module__}.{kind.__qualname__}",
            "mode": self.forward.mode,
            "options": simple,
            "special": self.special,
        }


@dataclass
class FunctionScorer(Scorer):
    """A function of the caller's: ``function(forward, inputs, target) -> (b, s)``."""

    name: str
    function: Function
    forward: HFForward
    special: str

    def score(self, batch: TextBatch) -> Tensor:
        _refuse_foil(self.name, batch)
        device = next((p.device for p in self.forward.model.parameters()), torch.device("cpu"))
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        forward = self.forward if batch.rows is None else HFForward(self.forward.model, position=batch.rows)
        return torch.as_tensor(self.function(forward, inputs, batch.target.to(device)))

    def describe(self) -> dict[str, Any]:
        kind = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        try:
            source = hashlib.blake2b(inspect.getsource(self.function).encode(), digest_size=8).hexdigest()
        except (OSError, TypeError):
            source = "unknown"
        return {"name": self.name, "function": kind, "source": source, "special": self.special}


def _refuse_foil(name: str, batch: TextBatch) -> None:
    if batch.foil is not None:
        raise ValueError(
            f"{name} is asked of one class, not of two: in a study of contrasts methods are names or Variants."
        )


def _forward_of(name: str, attribution: Any) -> HFForward:
    for holder in (attribution, getattr(attribution, "attribution_method", None)):
        for attr in ("forward_func", "model"):  # DeepLift keeps its forward as its model
            forward = getattr(holder, attr, None)
            if isinstance(forward, HFForward):
                return forward
    raise ValueError(f"{name}: its forward should be an HFForward, which knows what the model takes, got none.")


def _as_json(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices as they come out of JSON; what JSON has no form for becomes its repr."""
    plain: dict[str, Any] = json.loads(json.dumps(choices, default=repr))
    return plain
