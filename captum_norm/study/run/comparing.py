"""Is this the study that a store was made by, or one that adds to it?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_GROWING = ("methods", "metrics", "data")


class StoreMismatchError(ValueError):
    """The store was made by another study: another model, data, method, metric or version."""


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two configurations differ, in words; lists that may grow differ where the old ones are not their start."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and (len(before) == len(now) or name in _GROWING):
        for place, entries in enumerate(zip(before, now, strict=False)):
            yield from differences(*entries, f"{name}[{place}]")
        if len(now) < len(before):
            yield f"{name} had {len(before)} entries, now {len(now)}"
    elif before != now:
        yield f"{name} was {_short(before)}, now it is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else f"{text[:79]}…"
