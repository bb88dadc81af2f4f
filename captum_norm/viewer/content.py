"""What does the page show?  Attention maps as plain data: calls, axes of tokens, and packed numbers, padding left out.

Numbers of single heads are stored once where they can be: where ‖αf(x)‖ is α times one length for each key, which it is
without a gate that depends on the query, the page multiplies instead of holding a second map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_norm.measures import MEASURES
from captum_norm.viewer.labels import Mark, mark_of, mark_shown, readable
from captum_norm.viewer.packing import COARSE, FINE, MOST_FINE, Packed
from captum_norm.viewer.pictures import Picture, data_uri

TokenLabels: TypeAlias = "Sequence[str] | Sequence[Sequence[str]]"
_ALIKE = 1e-4  # a norm per head is α times a length for each key where they differ by less of the largest


@dataclass(frozen=True)
class Additions:
    """What a caller of ``to_html`` adds to the maps; see there."""

    title: str | None = None
    tokens: TokenLabels | Mapping[str, TokenLabels] | None = None
    prompt: int | Sequence[int] | None = None
    images: Picture | Sequence[Picture] | None = None
    examples: int | Sequence[int] | None = None
    tokenizer: Any = None


def content(maps: Any, choices: Additions) -> dict[str, Any]:
    """Everything the page holds, ready for JSON.

    Args:
        maps: ``AttentionMaps``, or anything with its public attributes.
        choices: what the caller adds.

    Raises:
        ValueError: for maps without a call or without a map, and choices that do not fit them.
    """
    reader = _ExampleReader(maps, choices)
    packed = [reader.example(number) for number in reader.examples]
    return {
        "title": choices.title or f"{maps.versions.get('model', 'Attention')}: where it looks, and what it takes",
        "versions": maps.versions,
        "quantities": reader.quantities,
        "looks": {name: _look(name) for name in reader.quantities},
        "bits": reader.bits,
        "calls": reader.calls(),
        "axes": reader.axes.held,
        "examples": packed,
    }


def count_numbers(maps: Any) -> int:
    """How many numbers a page of all examples holds, padding among them; norms of heads stand in their weights."""
    names = [name for name in maps.quantities if "key" in _axes_of(name)]
    kept = [name for name in names if name != "head_norms" or "weights" not in names]
    found = [_found(maps, name, i) for name in kept for i in range(len(maps.calls))]
    return sum(tensor.numel() for tensor in found if isinstance(tensor, Tensor))


@dataclass
class _Axes:
    """The tokens of rows and columns, each list once."""

    held: list[dict[str, Any]] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, axis: dict[str, Any]) -> int:
        key = repr(axis)
        if key not in self._numbers:
            self._numbers[key] = len(self.held)
            self.held.append(axis)
        return self._numbers[key]


class _ExampleReader:
    """Reads one example after the other."""

    def __init__(self, maps: Any, choices: Additions) -> None:
        self.maps, self.choices, self.axes = maps, choices, _Axes()
        self.mark, self.marks = mark_of(choices.tokenizer), dict[str, Mark | None]()
        self.quantities = tuple(name for name in maps.quantities if "key" in _axes_of(name))
        if not len(maps.calls) or not any("query" in _axes_of(name) for name in self.quantities):
            raise ValueError(
                "to_html: maps hold no map over queries and keys: ask for some, "
                "attention_maps(model, inputs, quantities=('weights', 'head_norms', 'summed_norms'))."
            )
        self.results = [{name: _found(maps, name, i) for name in self.quantities} for i in range(len(maps.calls))]
        self.batches = [max(map(len, _tensors(results)), default=0) for results in self.results]
        self.examples = self._chosen_examples()
        self.pictures = self._pictures()
        self.prompts = self._per_example("prompt", choices.prompt)
        self.generating = {str(maps.keys[i].source) for i, call in enumerate(maps.calls) if self._causal(i)}
        numbers = count_numbers(maps) * len(self.examples) / max(self.batches)
        self.bits = FINE if numbers <= MOST_FINE else COARSE

    def calls(self) -> list[dict[str, Any]]:
        """What the page says of each call."""
        told = []
        for i, (call, certificate, place) in enumerate(
            zip(self.maps.calls, self.maps.certificate, call_labels(self.maps.calls), strict=True)
        ):
            held = self.maps.head_indices
            told.append(
                {
                    "name": call.name,
                    "kind": call.kind,
                    "call": call.call,
                    "projection": call.projection,
                    "heads": list(range(call.heads)) if held is None else [head % call.heads for head in held],
                    "allHeads": call.heads,
                    "group": place.group,
                    "label": place.label,
                    "error": float(certificate),
                    "tolerance": float(certificate.tolerance),
                    "absent": {name: r for name, r in self.results[i].items() if isinstance(r, str)},
                }
            )
        return told

    def example(self, number: int) -> dict[str, Any]:
        """One example of the batch: its name, its picture, its maps by call."""
        maps = [self._call(i, number) if number < self.batches[i] else None for i in range(len(self.batches))]
        return {"number": number, "picture": self.pictures.get(number), "maps": maps}

    def _call(self, i: int, example: int) -> dict[str, Any]:
        rows, columns = self._real("query", i, example), self._real("key", i, example)
        packed = Packed(self.bits)
        arrays = {name: r for name, r in self.results[i].items() if isinstance(r, Tensor) and example < len(r)}
        keys = self._size("key", i)
        taken = {name: _cut(name, tensor[example], rows, columns, keys, i) for name, tensor in arrays.items()}
        lengths = _lengths(taken)
        if lengths is not None:
            taken = {name: values for name, values in taken.items() if name != "head_norms"}
            packed.add("lengths", lengths, bits=FINE)
        for name, values in taken.items():
            packed.add(name, values)
        return {
            "queries": self.axes.number(self._axis("query", i, example, rows)),
            "keys": self.axes.number(self._axis("key", i, example, columns)),
            "arrays": packed.arrays,
            "data": packed.as_text(),
        }

    def _real(self, axis: str, i: int, example: int) -> Tensor:
        """The positions of an axis that are no padding."""
        mask = getattr(self.maps, "query_masks" if axis == "query" else "key_masks")[i]
        if mask is None or example >= len(mask):
            return torch.arange(self._size(axis, i))
        return mask[example].detach().cpu().nonzero().flatten()

    def _size(self, axis: str, i: int) -> int:
        """How long an axis of a call is; the residual's column, which some maps have, is none of the keys."""
        where = (self.maps.queries if axis == "query" else self.maps.keys)[i]
        if where is not None:
            return len(where.index)
        found = [
            tensor.shape[_axes_of(name).index(axis)]
            for name, tensor in self.results[i].items()
            if isinstance(tensor, Tensor) and axis in _axes_of(name)
        ]
        return min(found)

    def _axis(self, axis: str, i: int, example: int, real: Tensor) -> dict[str, Any]:
        where = (self.maps.queries if axis == "query" else self.maps.keys)[i]
        labels = (self.maps.query_tokens if axis == "query" else self.maps.key_tokens)(i, example)
        places = list(range(len(labels))) if where is None else where.index.tolist()
        source = "" if where is None else str(where.source)
        given = self._given_tokens(source, example)
        needed = 1 + max((places[i] for i in real.tolist() if i < len(places)), default=-1)
        if given is not None and len(given) < needed:
            raise ValueError(f"to_html: tokens holds {len(given)} labels; example {example} has {needed} tokens.")
        if given is not None:
            labels = [given[p] if 0 <= p < len(given) else label for label, p in zip(labels, places, strict=False)]
        kept = [i for i in real.tolist() if i < len(places)]
        grid = _two_sides(None if where is None else where.grid)
        told: dict[str, Any] = {"source": source, "known": where is not None, "places": [places[i] for i in kept]}
        if grid is not None:
            named = [f"{p // grid[1]},{p % grid[1]}" if p >= 0 else "(no patch)" for p in told["places"]]
            return told | {"grid": grid, "tokens": named, "written": named, "glued": []}
        prompt = self.prompts.get(example)
        if prompt is not None and (source in self.generating or not self.generating):
            if not 0 <= prompt <= needed:
                raise ValueError(f"to_html: prompt={prompt}, but example {example} has {needed} tokens.")
            told["prompt"] = prompt
        return told | readable([labels[i] for i in kept], self._mark(source))

    def _mark(self, source: str) -> Mark | None:
        """How words are marked in an input: as the tokenizer does it, else as all its tokens show."""
        if source not in self.marks:
            texts = [given for n in self.examples if (given := self._given_tokens(source, n)) is not None]
            texts = texts or [list(map(str, tokens)) for tokens in self.maps.input_tokens.get(source, ())]
            self.marks[source] = mark_shown(texts) if texts and self.mark is None else self.mark
        return self.marks[source]

    def _given_tokens(self, source: str, example: int) -> Sequence[str] | None:
        """The labels that the caller gave for an input, one for each position."""
        given = self.choices.tokens
        if given is None:
            return None
        if not isinstance(given, Mapping):
            first = next(iter(self.maps.input_tokens), source)
            given = {first: given}
        labels = given.get(source)
        if labels is None:
            return None
        if isinstance(labels, str) or not len(labels):
            raise ValueError(f"to_html: tokens should be a list of labels for each example, got {labels!r}.")
        each: Any = [labels] if isinstance(labels[0], str) else labels
        if example >= len(each):
            raise ValueError(f"to_html: tokens holds labels of {len(each)} examples, but the batch has more.")
        return [str(label) for label in each[example]]

    def _causal(self, i: int) -> bool:
        return self.maps.calls[i].kind == "causal" and self.maps.keys[i] is not None

    def _chosen_examples(self) -> list[int]:
        count, chosen = max(self.batches), self.choices.examples
        numbers = range(count) if chosen is None else [chosen] if isinstance(chosen, int) else list(chosen)
        wrong = [number for number in numbers if not -count <= number < count]
        if wrong or not len(numbers):
            found = f"{wrong[0]}" if wrong else "nothing"
            raise ValueError(f"to_html: examples names {found}, but the batch holds {count} (0 to {count - 1}).")
        return [number % count for number in numbers]

    def _per_example(self, name: str, given: Any) -> dict[int, Any]:
        """What the caller gave once for all examples, or one for each of the batch."""
        count = max(self.batches)
        if given is None:
            return {}
        if isinstance(given, int):
            return dict.fromkeys(range(count), given)
        if len(given) != count:
            raise ValueError(f"to_html: {name} holds {len(given)} entries, but the batch holds {count} examples.")
        return dict(enumerate(given))

    def _pictures(self) -> dict[int, str]:
        images: Any = self.choices.images
        if images is None:
            return {}
        one = not isinstance(images, list | tuple) and not (isinstance(images, Tensor) and images.ndim == 4)
        each = self._per_example("images", [images] if one else images)
        return {number: data_uri(each[number]) for number in self.examples}


@dataclass(frozen=True)
class CallLabel:
    """Where a call stands at a glance: in which group of calls, and under which name there."""

    group: str
    label: str


def call_labels(calls: Sequence[Any]) -> list[CallLabel]:
    """Calls whose names differ only in numbers are one group, ``encoder.layer.#``; the numbers are their labels.

    Example:
        >>> from captum_norm.capture import AttentionCall
        >>> call_labels([AttentionCall(f"encoder.layer.{i}.self", "self", 0, 12, "") for i in range(2)])[1]
        CallLabel(group='encoder.layer.#.self', label='1')
    """
    names = [re.split(r"\b(\d+)\b", call.name) for call in calls]
    groups = [("".join(["#" if at % 2 else part for at, part in enumerate(name)]), call.kind)
              for name, call in zip(names, calls, strict=True)]  # fmt: skip
    told = []
    for i, (group, name) in enumerate(zip(groups, names, strict=True)):
        fellows = [names[j] for j, other in enumerate(groups) if other == group]
        differing = [at for at in range(1, len(name), 2) if len({fellow[at] for fellow in fellows}) > 1]
        places = differing or ([1] if len(name) > 1 else [])
        numbers = [tuple(fellow[at] for at in places) for fellow in fellows]
        label = ".".join(name[at] for at in places) if len(set(numbers)) == len(fellows) and places else f"call {i}"
        told.append(CallLabel(group[0], label))
    return told


def _lengths(taken: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """(head, key): the lengths by which weights become norms per head; None where there are no such."""
    if "head_norms" not in taken or "weights" not in taken:
        return None
    weights, norms = taken["weights"], taken["head_norms"]
    rows = np.abs(weights).argmax(axis=1)[:, None]  # where a key has most, its length is read off best
    most = np.take_along_axis(weights, rows, axis=1)[:, 0]
    read = (np.take_along_axis(norms, rows, axis=1)[:, 0] / np.where(most == 0, 1, np.abs(most))).astype(np.float32)
    largest = float(np.abs(norms).max(initial=0.0))
    wrong = np.abs(np.abs(weights) * read[:, None] - norms).max(initial=0.0)
    return read if wrong <= _ALIKE * largest else None


def _cut(name: str, tensor: Tensor, rows: Tensor, columns: Tensor, keys: int, call: int) -> NDArray[np.float32]:
    """(map, query, key) or (head, key) of an example, without padding; ``keys`` of the columns are keys."""
    tensor = tensor.detach().cpu().float()
    axes = _axes_of(name)[1:]
    beyond = torch.arange(keys, tensor.shape[axes.index("key")])  # the residual's column
    tensor = tensor.index_select(axes.index("key"), torch.cat([columns, beyond]))
    if "query" in axes:
        tensor = tensor.index_select(axes.index("query"), rows)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"to_html: {name} of attention call {call} holds NaN or infinity: there is nothing to draw.")
    if "head" not in axes:
        tensor = tensor[None]
    return tensor.numpy()


def _look(name: str) -> dict[str, str]:
    measure = MEASURES[name]
    return {"title": measure.title, "unit": measure.unit, "colours": measure.role}


def _found(maps: Any, name: str, i: int) -> Tensor | str:
    """The quantity of a call, or the reason why the call has none."""
    try:
        return getattr(maps, name)[i]
    except ValueError as error:
        return str(error)


def _tensors(results: Mapping[str, Tensor | str]) -> Iterable[Tensor]:
    return (result for result in results.values() if isinstance(result, Tensor))


def _axes_of(name: str) -> list[str]:
    return MEASURES[name].axes.split()


def _two_sides(grid: tuple[int, ...] | None) -> list[int] | None:
    """Rows and columns of a picture; the frames of a film stand below each other."""
    if grid is None or len(grid) < 2:
        return None
    return [int(np.prod(grid[:-1])), int(grid[-1])]
