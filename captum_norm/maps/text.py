"""Maps in a few lines of text, for the prompt and the log."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from captum_norm.measures import MEASURES

Maps = Any  # AttentionMaps, whose module imports this one

_WIDTH = 120


def described(maps: Maps) -> str:
    """What ``repr(maps)`` says: the model, the calls, the shape of each measure, the tokens of the first example."""
    count = f"{len(maps)} attention call{'' if len(maps) == 1 else 's'}"
    model = maps.versions.get("model")
    lines = [f"AttentionMaps{f' of {model}' if model else ''}: {count}", *_calls(maps)]
    lines += [f"{name}: {_shapes(name, results)}" for name, results in maps.results.items()]
    if maps.head_indices is not None:
        lines.append(f"heads: {_listed(maps.head_indices)}")
    if maps.positions is not None:
        lines.append(f"rows: {_listed(maps.positions)}")
    for name, examples in maps.input_tokens.items():
        more = f" (the first of {len(examples)} examples)" if len(examples) > 1 else ""
        lines.append(f"{name}{more}: {' '.join(_shown(token) for token in (examples or ((),))[0][:64])}")
    return "\n  ".join(textwrap.shorten(line, _WIDTH, placeholder=" …") for line in lines)


def _calls(maps: Maps) -> list[str]:
    """The first call and the last, and how many of each kind lie between."""
    if not maps.calls:
        return []
    named = [f"{i} {maps.calls[i].name!r} ({maps.calls[i].kind})" for i in sorted({0, len(maps) - 1})]
    kinds = Counter(call.kind for call in maps.calls)
    mixed = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) if len(kinds) > 1 else ""
    return [f"call{'s' if len(named) > 1 else ''}: {' to '.join(named)}{f'; {mixed}' if mixed else ''}"]


def _shapes(name: str, results: Sequence[Tensor | str]) -> str:
    """``(batch 1, head 12, query 9, key 9)``; with their numbers where calls differ."""
    axes = MEASURES[name].axes.split()
    shapes = Counter(
        ", ".join(f"{axis} {size}" for axis, size in zip(axes, result.shape, strict=True))
        for result in results
        if isinstance(result, Tensor)
    )
    held = shapes.total()
    if held == len(results) and len(shapes) == 1:
        return f"({next(iter(shapes))})"
    parts = [f"{number} × ({shape})" for shape, number in shapes.items()]
    return ", ".join([*parts, *([f"{len(results) - held} without"] if held < len(results) else [])])


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _shown(token: str | int) -> str:
    text = str(token)
    return text if text.isprintable() and text.strip() else repr(text)
