"""What gives a score to every token?  A method of the table, a Captum object, a function, a file, a floor, a ceiling.

All are asked alike: ``scorer(batch) -> (b, s)`` float64.  What a study is given as ``methods=`` becomes scorers here,
each with a description that decides whether a store may be continued.

Axes: b batch, s token (padding included).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.methods import METHODS, Attributor, known_methods
from captum_norm.study.batches import Batch, Padding, Tokenized
from captum_norm.study.metrics import Attribute

SPECIAL = ("mask", "keep", "report")
RANDOM, ORACLE = "random", "oracle"

Function = Callable[[HFForward, Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A method of `captum_norm.methods.METHODS` with choices of its own; a study may list several of one method.

    Attributes:
        method: its name in the table.
        name: what it is called in the results; None makes one of the choices.
        options: what its class is made with (``{"aggregate": "rollout"}``).
        arguments: what ``attribute`` gets (``{"n_steps": 20}``).
        over: the method that it wraps, for NoiseTunnel.
        special: what becomes of special tokens, over what the study says.

    Example:
        >>> Variant("AttentionNorm", options={"aggregate": "rollout", "residual": True}).title
        'AttentionNorm(aggregate=rollout, residual=True)'
    """

    method: str
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    over: str | None = None
    special: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", known_methods([self.method])[0])
        if self.special is not None:
            check_special(self.special)

    @property
    def choice(self) -> str:
        """What it chooses, in words; "" for nothing."""
        chosen = {**({"over": self.over} if self.over else {}), **self.options, **self.arguments}
        chosen |= {"special": self.special} if self.special else {}
        return ", ".join(f"{key}={value}" for key, value in chosen.items())

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or (f"{self.method}({self.choice})" if self.choice else self.method)


@dataclass(frozen=True)
class StoredScores:
    """Scores from elsewhere: JSONL with an object per example, ``{"id": key, "scores": [one per token or word]}``.

    Attributes:
        name: what the method is called.
        path: the file.

    Words are those between white space; the score of a word is shared evenly by its tokens.
    """

    name: str
    path: str | Path


class Scorer(ABC):
    """What gives a score to every token of a batch.

    Attributes:
        name: what it is called in the results.
        special: what becomes of special tokens: ``"mask"``, ``"keep"`` or ``"report"``.
        family: the method that it is a variant of; its own name for all others.
        alone: whether it takes one example at a time, without padding.
        attribute: the method on another forward, for metrics that run it again; None where there is none.
    """

    name: str
    special: str
    alone: bool = False

    @abstractmethod
    def score(self, batch: Batch) -> Tensor:
        """(b, s), in any float dtype, on any device."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides its scores, as JSON: a study is not continued with another."""

    @property
    def family(self) -> str:
        return self.name

    def attribute(self, batch: Batch) -> Attribute | None:
        """The method on a forward of a metric's choice."""
        return None

    def __call__(self, batch: Batch, pad: Padding) -> Tensor:
        """One score per token of each example.

        Returns:
            (b, s) float64 on the CPU, 0 at padding.

        Raises:
            ValueError: where the scores are not one per token, or not finite.
        """
        if not self.alone or len(batch) == 1:
            return _checked(self.name, self.score(batch), batch)
        scores = torch.zeros(batch.real.shape, dtype=torch.float64)
        for row in range(len(batch)):
            single = batch.single(row, pad)
            scores[row, batch.real[row]] = _checked(self.name, self.score(single), single)[0]
        return scores


@dataclass
class TableMethod(Scorer):
    """A method of the table."""

    variant: Variant
    attributor: Attributor
    special: str
    seed: int

    def __post_init__(self) -> None:
        self.name = self.variant.title
        # Random numbers are drawn for one example at a time, so that they do not depend on who stands beside it.
        self.alone = self.attributor.method.alone or self.attributor.method.seeded

    @property
    def family(self) -> str:
        return self.variant.method

    def score(self, batch: Batch) -> Tensor:
        return self.attributor(batch.inputs, batch.target, seed=batch.examples[0].seed(self.seed))

    def attribute(self, batch: Batch) -> Attribute:
        seed = batch.examples[0].seed(self.seed)

        def again(forward: HFForward, inputs: Tensor, **arguments: Any) -> Tensor:
            return self.attributor.on(forward, inputs, seed=seed, **arguments)

        return again

    def describe(self) -> dict[str, Any]:
        a = self.attributor
        said = {"method": a.name, "options": a.options, "arguments": a.arguments, "over": a.over}
        return {"name": self.name, **_plain(said), "choice": self.variant.choice, "special": self.special}


@dataclass
class CaptumObject(Scorer):
    """An attribution object that the caller has made: anything with Captum's ``attribute`` over an `HFForward`."""

    name: str
    attribution: Any
    special: str

    def __post_init__(self) -> None:
        self.forward = _forward_of(self.name, self.attribution)

    def score(self, batch: Batch) -> Tensor:
        scores: Tensor = self.attribution.attribute(**self.forward.inputs(batch.inputs), target=batch.target)
        return scores.sum(-1) if self.forward.mode == "embeds" else scores

    def describe(self) -> dict[str, Any]:
        kind = type(self.attribution)
        simple = {n: v for n, v in vars(self.attribution).items() if isinstance(v, bool | int | float | str)}
        said = {"object": f"{kind.__module__}.{kind.__qualname__}", "mode": self.forward.mode, "options": simple}
        return {"name": self.name, **said, "special": self.special}


@dataclass
class FunctionScorer(Scorer):
    """A function of the caller's: ``function(forward, inputs, target) -> (b, s)``."""

    name: str
    function: Function
    forward: HFForward
    special: str

    def score(self, batch: Batch) -> Tensor:
        device = next((p.device for p in self.forward.model.parameters()), torch.device("cpu"))
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        return torch.as_tensor(self.function(self.forward, inputs, batch.target.to(device)))

    def describe(self) -> dict[str, Any]:
        kind = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        try:
            source = hashlib.blake2b(inspect.getsource(self.function).encode(), digest_size=8).hexdigest()
        except (OSError, TypeError):
            source = "unknown"
        return {"name": self.name, "function": kind, "source": source, "special": self.special}


@dataclass
class StoredScorer(Scorer):
    """Scores that were computed elsewhere."""

    stored: StoredScores
    special: str

    def __post_init__(self) -> None:
        self.name = self.stored.name
        self.by_key = _read_scores(Path(self.stored.path))

    def score(self, batch: Batch) -> Tensor:
        scores = torch.zeros(batch.real.shape, dtype=torch.float64)
        for row, one in enumerate(batch.examples):
            scores[row, batch.real[row]] = self._scores(one)
        return scores

    def describe(self) -> dict[str, Any]:
        digest = hashlib.blake2b(Path(self.stored.path).read_bytes(), digest_size=16).hexdigest()
        return {"name": self.name, "stored": digest, "special": self.special}

    def _scores(self, one: Tokenized) -> Tensor:
        given = self.by_key.get(one.example.key)
        if given is None:
            raise ValueError(f"{self.stored.path} has no scores for {one.example.where} (key {one.example.key!r}).")
        if len(given) == len(one):
            return torch.tensor(given, dtype=torch.float64)
        plain = [None if is_special else word for word, is_special in zip(one.words.index, one.special, strict=True)]
        words = list(dict.fromkeys(word for word in plain if word is not None))
        if len(given) != len(words):
            raise ValueError(
                f"{self.stored.path}: {one.example.where} has {len(one)} tokens and {len(words)} words, "
                f"but {len(given)} scores."
            )
        score = dict(zip(words, given, strict=True))
        return torch.tensor([0.0 if w is None else score[w] / plain.count(w) for w in plain], dtype=torch.float64)


@dataclass
class RandomFloor(Scorer):
    """Numbers between 0 and 1, drawn for each text by itself: what a method is worth that knows nothing."""

    seed: int
    special: str
    name: str = RANDOM

    def score(self, batch: Batch) -> Tensor:
        scores = torch.zeros(batch.real.shape, dtype=torch.float64)
        for row, one in enumerate(batch.examples):
            chance = torch.Generator().manual_seed(one.seed(self.seed, RANDOM))
            scores[row, batch.real[row]] = torch.rand(len(one), generator=chance, dtype=torch.float64)
        return scores

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed, "special": self.special}


@dataclass
class OracleCeiling(Scorer):
    """1 at the evidence, 0 elsewhere: what a method is worth that says what the annotators say."""

    special: str
    name: str = ORACLE

    def score(self, batch: Batch) -> Tensor:
        missing = next((one for one in batch.examples if one.evidence is None), None)
        if missing is not None or batch.evidence is None:
            raise NoEvidenceError(f"{missing.example.where if missing else 'the batch'} has no evidence.")
        return batch.evidence.double()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "special": self.special}


class NoEvidenceError(ValueError):
    """The oracle was asked of an example without evidence; no failure, but nothing to say either."""


def scorers_of(
    methods: Sequence[Any] | Mapping[str, Any], forward: HFForward, *, special: str, seed: int, evidence: bool
) -> list[Scorer]:
    """The scorers of a study: what it lists, then the oracle where there is evidence, then the random floor.

    Args:
        methods: names of the table, `Variant`, `StoredScores`, objects with ``attribute``, functions; or a mapping
            from names to these.
        forward: the model.
        special: what becomes of special tokens where a variant does not say.
        seed: of random numbers.
        evidence: whether any example has evidence.

    Raises:
        TypeError: for an entry of another kind.
        ValueError: for an unknown method, or a name that stands twice.
    """
    named = methods.items() if isinstance(methods, Mapping) else [(None, one) for one in methods]
    wanted = [(name, one) for name, one in named if one not in (RANDOM, ORACLE)]
    scorers = [_scorer(name, one, forward, special, seed) for name, one in wanted]
    if not scorers:
        raise ValueError(f"a study needs at least one method. There are: {', '.join(METHODS)}.")
    scorers += [OracleCeiling(special)] if evidence else []
    scorers.append(RandomFloor(seed, special))
    names = [scorer.name for scorer in scorers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two methods are called {twice!r}: give one of them another name.")
    return scorers


def check_special(special: str) -> None:
    """Refuse a policy for special tokens that is none.

    Raises:
        ValueError: naming those there are.
    """
    if special not in SPECIAL:
        raise ValueError(f"special should be one of {', '.join(map(repr, SPECIAL))}, got {special!r}.")


def _scorer(name: str | None, given: Any, forward: HFForward, special: str, seed: int) -> Scorer:
    if isinstance(given, str):
        given = Variant(given)
    if isinstance(given, Variant):
        variant = Variant(**{**vars(given), "name": name or given.name})
        attributor = Attributor(
            variant.method,
            forward.model,
            options=variant.options,
            arguments=variant.arguments,
            over=variant.over,
            position=forward.position,
        )
        return TableMethod(variant, attributor, variant.special or special, seed)
    if isinstance(given, StoredScores):
        return StoredScorer(given, special)
    if hasattr(given, "attribute"):
        return CaptumObject(name or type(given).__name__, given, special)
    if callable(given):
        return FunctionScorer(name or str(getattr(given, "__name__", type(given).__name__)), given, forward, special)
    raise TypeError(
        f"a method should be a name, a Variant, StoredScores, an object with attribute() or a function, got {given!r}."
    )


def _forward_of(name: str, attribution: Any) -> HFForward:
    for holder in (attribution, getattr(attribution, "attribution_method", None)):
        for attr in ("forward_func", "model"):  # DeepLift keeps its forward as its model
            forward = getattr(holder, attr, None)
            if isinstance(forward, HFForward):
                return forward
    raise ValueError(f"{name}: its forward should be an HFForward, which knows what the model takes, got none.")


def _checked(name: str, scores: Tensor, batch: Batch) -> Tensor:
    if scores.shape != batch.real.shape:
        raise ValueError(
            f"{name} gave scores of shape {tuple(scores.shape)}, not one per token: {tuple(batch.real.shape)}."
        )
    scores = scores.detach().cpu().double()
    wrong = (batch.real & ~torch.isfinite(scores)).nonzero().tolist()
    if wrong:
        raise ValueError(f"{name} gave token {wrong[0][1]} the score {scores[tuple(wrong[0])]}.")
    return scores.masked_fill(~batch.real, 0.0)


def _read_scores(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of scores.")
    found: dict[str, list[float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found[str(record["id"])] = [float(score) for score in record["scores"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}, line {number} should be {{"id": ..., "scores": [...]}}: {error!r}.') from error
    return found


def _plain(said: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON; what JSON does not know, by its own name."""
    plain: dict[str, Any] = json.loads(json.dumps(said, default=repr))
    return plain
