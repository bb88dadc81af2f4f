"""What gives a score to every token: the methods that a study lists, the oracle, and the random floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captum_norm.forward import HFForward
from captum_norm.methods import METHODS, Attributor
from captum_norm.study.scorers.attributions import CaptumObject, FunctionScorer, TableMethod
from captum_norm.study.scorers.floor_and_ceiling import OracleCeiling, RandomFloor
from captum_norm.study.scorers.from_file import StoredScorer
from captum_norm.study.scorers.scorer import Scorer
from captum_norm.study.variants import ORACLE, RANDOM, StoredScores, Variant


def scorers_of(
    methods: Sequence[Any] | Mapping[str, Any],
    forward: HFForward,
    *,
    special: str,
    seed: int,
    evidence: bool,
    random_draws: int,
) -> list[Scorer]:
    """The scorers of a study: what it lists, then the oracle where there is evidence, then the random floor.

    Args:
        methods: names of the table, `Variant`, `StoredScores`, objects with ``attribute``, functions; or a mapping
            from names to these.
        forward: the model.
        special: what becomes of special tokens where a variant does not say.
        seed: of random numbers.
        evidence: whether any example has evidence.
        random_draws: how many draws the random floor is the mean over.

    Raises:
        TypeError: for an entry of another kind.
        ValueError: for an unknown method, or a name that stands repeated.
    """
    named = methods.items() if isinstance(methods, Mapping) else [(None, method) for method in methods]
    listed = [(name, method) for name, method in named if method not in (RANDOM, ORACLE)]
    scorers = [_scorer(name, method, forward, special, seed) for name, method in listed]
    if not scorers:
        raise ValueError(f"a study needs at least one method. There are: {', '.join(METHODS)}.")
    scorers += [OracleCeiling(special)] if evidence else []
    scorers.append(RandomFloor(seed, special, random_draws))
    names = [scorer.name for scorer in scorers]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"two methods are called {repeated!r}: give one of them another name.")
    return scorers


def _scorer(name: str | None, method: Any, forward: HFForward, special: str, seed: int) -> Scorer:
    if isinstance(method, str):
        method = Variant(method)
    if isinstance(method, Variant):
        variant = Variant(**{**vars(method), "name": name or method.name})
        attributor = Attributor(
            variant.method,
            forward.model,
            options=variant.options,
            arguments=variant.arguments,
            over=variant.over,
            position=forward.position,
        )
        return TableMethod(variant, attributor, variant.special or special, seed)
    if isinstance(method, StoredScores):
        return StoredScorer(method, special)
    if hasattr(method, "attribute"):
        return CaptumObject(name or type(method).__name__, method, special)
    if callable(method):
        return FunctionScorer(name or str(getattr(method, "__name__", type(method).__name__)), method, forward, special)
    raise TypeError(
        f"a method should be a name, a Variant, StoredScores, an object with attribute() or a function, got {method!r}."
    )
