"""Was a study planned before it was seen?  A plan locked before the run, and what has departed from it since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

CHOICES = ("reference", "cases", "test", "correction", "margin", "confidence", "resamples", "permutations", "seed")


def check_choices(choices: Mapping[str, Any]) -> None:
    """Refuse what is no choice of a table.

    Raises:
        ValueError: naming those there are.
    """
    unknown = next((name for name in choices if name not in CHOICES), None)
    if unknown is not None:
        raise ValueError(f"lock: {unknown!r} is no choice of a table. There are: {', '.join(CHOICES)}.")


def locked_record(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a locked plan."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hash": plan_hash(config, choices),
        "config": dict(config),
        "choices": dict(choices),
    }


def plan_hash(config: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """Of a plan and of how it will be judged.

    Example:
        >>> plan_hash({"seed": 0}, {}) == plan_hash({"seed": 1}, {})
        False
    """
    text = json.dumps([config, choices], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def departures(locked: Mapping[str, Any], config: Mapping[str, Any], choices: Mapping[str, Any]) -> list[str]:
    """What is otherwise than it was locked, in words.

    Args:
        locked: the record.
        config: what the store holds now.
        choices: how it is judged now.
    """
    plan, said = locked["config"], []
    for kind in ("methods", "metrics"):
        added = [of["name"] for of in config[kind][len(plan[kind]) :]]
        said += [f"added since: {', '.join(added)}"] if added else []
    examples = sum(of["examples"] for of in config["data"][len(plan["data"]) :])
    said += [f"{examples} examples added since"] if examples else []
    judged = ((name, wanted, choices[name]) for name, wanted in locked["choices"].items())
    other = [f"{name} {now!r} in place of {wanted!r}" for name, wanted, now in judged if now != wanted]
    return said + ([f"judged by {', '.join(other)}"] if other else [])
