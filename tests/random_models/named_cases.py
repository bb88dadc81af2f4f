"""Faults that were found, each kept as a small model of its own: a JSON file with its config in ``cases/``.

A file says what was wrong and which checks are wrong without a word today; all others must be right or refused.  When a
check becomes right or refused, its name is taken off the list: the test fails until it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tests.random_models.check import Case
from tests.random_models.config import Config, consistent

FOLDER = Path(__file__).parent / "cases"
KNOWN_FAULTS = Path(__file__).parent / "known_faults.json"


@dataclass(frozen=True)
class NamedCase:
    """A model at which something was wrong.

    Attributes:
        name: of the file.
        about: what was wrong, in a sentence.
        config: the model.
        silent: the checks that are wrong without a word today.
    """

    name: str
    about: str
    config: Config
    silent: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> NamedCase:
        told = json.loads(path.read_text())
        config, silent = Config(**told["config"]), tuple(told["silent"])
        return cls(path.stem, told["about"], config, silent)

    def save(self, folder: Path = FOLDER) -> Path:
        path = folder / f"{self.name}.json"
        told = {"about": self.about, "config": self.config.to_json(), "silent": list(self.silent)}
        path.write_text(json.dumps(told, indent=1) + "\n")
        return path


def named_cases() -> list[NamedCase]:
    """All that are kept, by name."""
    return [NamedCase.load(path) for path in sorted(FOLDER.glob("*.json"))]


def silences(config: Config) -> tuple[str, ...]:
    """The checks that are wrong without a word."""
    return tuple(f.check for f in Case(config).findings() if f.status == "silent")


def shrunk(config: Config, check: str) -> Config:
    """The plainest model at which the check is still wrong without a word: each property that can go, goes."""

    def is_silent(candidate: Config) -> bool:
        try:
            [found] = Case(candidate).findings((check,))
        except Exception:  # no model at all
            return False
        return found.status == "silent"

    plain = {f.name: f.default for f in fields(Config) if f.name not in ("seed", "kind", "variant", "ordinary")}
    for name, default in plain.items():
        if getattr(config, name) != default:
            candidate = consistent(replace(config, **{name: default}))
            config = candidate if is_silent(candidate) else config
    return config


def known_faults() -> dict[tuple[int, str], str]:
    """(seed, check) -> reason, of the ordinary models that are tested on every change."""
    told = json.loads(KNOWN_FAULTS.read_text())
    return {(seed, check): one["reason"] for one in told for check in one["checks"] for seed in one["seeds"]}
