"""Maps in one safetensors file: their tensors under names such as ``"weights/0"``, all else as JSON beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captum_norm.capture import AttentionCall, Certificate, Positions
from captum_norm.files import replacing
from captum_norm.measures import MEASURES

FORMAT = "captum_norm.AttentionMaps"
_TENSOR_LISTS = ("key_masks", "query_masks")
_POSITION_LISTS = ("keys", "queries")


def write_fields(path: str | os.PathLike[str], maps: Mapping[str, Any]) -> None:
    """Write the fields of an ``AttentionMaps``, without its modules, whole or not at all."""
    tensors = _tensors(maps)
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {FORMAT: json.dumps(_description(maps))})


def read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields that ``write_fields`` wrote, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, cut off, or holds something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"AttentionMaps.load: the file should be named by a text or a Path, got {path!r}.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file. AttentionMaps.save(path) writes one.")
    try:
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {}).get(FORMAT)
            if description is None:
                raise _unreadable(path, "it is a safetensors file of something else")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, f"it is damaged, cut off or no safetensors file ({error})") from error
    try:
        return _fields(tensors, json.loads(description))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(path, f"its description does not fit its tensors ({error})") from error


def _tensors(maps: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors under names such as ``"weights/0"``."""
    lists = {
        **maps["results"],
        **{name: maps[name] for name in _TENSOR_LISTS},
        **{name: [where and where.index for where in maps[name]] for name in _POSITION_LISTS},
    }
    # Masks may be views of one tensor, which safetensors refuses to write: each gets its own memory.
    return {
        f"{name}/{i}": entry.cpu().clone(memory_format=torch.contiguous_format)
        for name, entries in lists.items()
        for i, entry in enumerate(entries)
        if isinstance(entry, Tensor)
    }


def _description(maps: Mapping[str, Any]) -> dict[str, Any]:
    """Everything else, as JSON has it."""
    return {
        "calls": [{f.name: getattr(c, f.name) for f in fields(c) if f.name != "modules"} for c in maps["calls"]],
        "certificate": [asdict(certificate) for certificate in maps["certificate"]],
        **{
            name: [None if where is None else {"source": where.source, "grid": where.grid} for where in maps[name]]
            for name in _POSITION_LISTS
        },
        **{name: maps[name] for name in ("input_tokens", "versions", "head_indices", "positions")},
        "absent": {
            name: {str(i): reason for i, reason in enumerate(results) if isinstance(reason, str)}
            for name, results in maps["results"].items()
        },
    }


def _fields(tensors: dict[str, Tensor], description: dict[str, Any]) -> dict[str, Any]:
    count = range(len(description["calls"]))
    certificates = description["certificate"]
    return {
        "calls": tuple(AttentionCall(**call) for call in description["calls"]),
        "certificate": tuple(_certificate(**one) for one in certificates),
        **{
            name: tuple(_positions(tensors, f"{name}/{i}", where) for i, where in enumerate(description[name]))
            for name in _POSITION_LISTS
        },
        **{name: tuple(tensors.get(f"{name}/{i}") for i in count) for name in _TENSOR_LISTS},
        "input_tokens": {name: tuple(map(tuple, tokens)) for name, tokens in description["input_tokens"].items()},
        "versions": dict(description["versions"]),
        "head_indices": _tuple_or_none(description["head_indices"]),
        "positions": _tuple_or_none(description["positions"]),
        "results": {
            name: [_result(tensors, name, i, absent) for i in count] for name, absent in description["absent"].items()
        },
    }


def _certificate(covers: list[str], rows: list[list[int]] | None = None, **numbers: float) -> Certificate:
    return Certificate(**numbers, covers=tuple(covers), rows=None if rows is None else tuple(map(tuple, rows)))


def _positions(tensors: dict[str, Tensor], name: str, where: dict[str, Any] | None) -> Positions | None:
    return None if where is None else Positions(where["source"], tensors[name], _tuple_or_none(where["grid"]))


def _result(tensors: dict[str, Tensor], name: str, i: int, absent: dict[str, str]) -> Tensor | str:
    if str(i) in absent:
        return str(absent[str(i)])
    tensor, axes = tensors[f"{name}/{i}"], MEASURES[name].axes
    if tensor.ndim != len(axes.split()):
        raise ValueError(f"{name} should be ({axes.replace(' ', ', ')}), got shape {tuple(tensor.shape)}")
    return tensor


def _tuple_or_none(entries: list[int] | None) -> tuple[int, ...] | None:
    return None if entries is None else tuple(entries)


def _unreadable(path: str | os.PathLike[str], problem: str) -> ValueError:
    return ValueError(
        f"{os.fspath(path)} cannot be read as attention maps: {problem}. "
        "Compute the maps again with attention_maps(...) and write them with .save(path)."
    )
