"""From what a study is given as ``methods=`` to what scores tokens: everything that takes part, each under one name."""

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
