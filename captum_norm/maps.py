"""What did every attention call of a model do?  Its weights and its norms, under the papers' names, in one pass.

``attention_layers`` lists the calls, ``attention_maps`` computes quantities call by call while the model runs, and
``AttentionMaps`` holds them as lists over calls (never stacked: calls differ in heads, queries and keys).  Each record
is reduced and dropped as its call finishes, so memory is one call plus the results.

Axes: batch, head, query, key; always batch-first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, SupportsIndex, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, InexactCaptureError, Positions
from captum_norm.capture.running import at_least_float32, run_recorded
from captum_norm.files import replacing
from captum_norm.forward.inputs import ModelInputs, named_inputs, position_sources
from captum_norm.quantities import QUANTITIES, compute_quantities, need_blocks

Tokens = tuple[tuple[str | int, ...], ...]


def attention_layers(model: Callable[..., Any], inputs: ModelInputs) -> list[AttentionCall]:
    """The attention calls of a model in the order they run: what ``layers=`` and ``LayerAttentionNorm`` choose from.

    Args:
        model: any module or function; it runs once, without gradient, in the mode it is in.
        inputs: what it takes: a mapping (passed as keywords), a tensor or a tuple (positionally).

    Returns:
        One `AttentionCall` per call: ``name``, ``module``, ``kind``, ``call``, ``heads``, ``projection`` (W_O's name).
        A call that cannot be read exactly is listed too, so that indices here are those of ``attention_maps``.

    Raises:
        ValueError, TypeError: for inputs the model cannot take, or a model in which no attention was seen.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> [(call.name, call.kind, call.heads) for call in attention_layers(encoder, torch.randn(1, 3, 8))]
        [('self_attn', 'self', 2)]
    """
    return [found.call for found in checked_calls(model, inputs)]


@dataclass(frozen=True)
class CheckedCall:
    """An attention call with its certificate, or with the reason why it could not be read.

    Attributes:
        call: which call.
        certificate: the check it passed, or None.
        refusal: why it could not be read exactly; ``""`` where it could.
        keys_known: whether its keys are known to be positions of an input, which ``attribute()`` needs.
        unknown_keys: why not, in words; ``""`` where they are known.
    """

    call: AttentionCall
    certificate: Certificate | None
    refusal: str = ""
    keys_known: bool = False
    unknown_keys: str = ""


def checked_calls(model: Callable[..., Any], inputs: ModelInputs) -> list[CheckedCall]:
    """Every attention call with its certificate; refused calls are listed with the reason instead of raising.

    Args, Raises: as `attention_layers`.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> [found] = checked_calls(encoder, torch.randn(1, 3, 8))
        >>> float(found.certificate) < found.certificate.tolerance
        True
    """
    found: list[CheckedCall] = []

    def keep(record: AttentionRecord) -> None:
        found.append(CheckedCall(record.call, record.certificate, "", record.keys is not None, record.unknown_keys))

    def refuse(error: InexactCaptureError) -> None:
        found.append(CheckedCall(_call_of(error), None, str(error)))

    run_recorded(model, inputs, keep, refuse)
    return found


def attention_maps(
    model: Callable[..., Any],
    inputs: ModelInputs,
    quantities: Sequence[str] = ("weights", "summed_norms"),
    layers: Sequence[int | str] | int | str | None = None,
    head_indices: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> AttentionMaps:
    """Quantities of every attention call, in one forward pass.

    Args:
        model: any module or function; it runs once, without gradient, in the mode it is in, and stays untouched.
        inputs: what it takes: a mapping (passed as keywords), a tensor or a tuple (positionally).
        quantities: names out of ``weights`` α (batch, head, query, key), ``transformed_norms`` ‖f(x)‖ (batch, head,
            key), ``head_norms`` ‖αf(x)‖ (batch, head, query, key), ``summed_norms`` ‖Σ_h αf(x)‖ (batch, query, key);
            with the residual ``res_norms``, behind the norm ``res_ln_norms``, behind the feed-forward part's norm
            ``globenc_norms``, shares of the output ``alti`` (batch, query, key); how much of it comes from other
            positions ``mixing_attn``, ``mixing_res``, ``mixing_res_ln``, ``mixing_weights``, ``mixing_res_weights``
            (batch, query), 0 to 1.  Norms are L2, in the units of the residual stream.  In cross-attention the four
            with the residual have one more key, the residual.  See :mod:`captum_norm.quantities`.
        layers: which calls, by index in `attention_layers` (negative from the end, at the cost of a second pass), or by
            name: of the call's module or of a module around it.  None: all.
        head_indices: which heads the per-head quantities keep.  ``summed_norms`` always sums over all heads.
        positions: which rows of the query axis to keep, negative from the end.  None: all.

    Returns:
        The maps, on the model's device; float32 for half models, else the model's dtype.

    Raises:
        ValueError: for an unknown quantity, layer, head or position; a quantity that none of the calls can have; inputs
            the model cannot take; a model in which no attention was seen.
        TypeError: for inputs of a wrong kind, such as float ids.
        InexactCaptureError: if a chosen call cannot be read exactly, or is not finite (NaN in the model's weights).

    Source: Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> maps = attention_maps(encoder, torch.randn(1, 3, 8))
        >>> maps.calls[0].name, tuple(maps.weights[0].shape), tuple(maps.summed_norms[0].shape)
        ('self_attn', (1, 2, 3, 3), (1, 3, 3))
    """
    names = _known_quantities(quantities)
    heads, rows = _as_indices("head_indices", head_indices), _as_indices("positions", positions)
    wanted = _Wanted(_as_choices(layers), heads, rows)
    if any(isinstance(choice, int) and choice < 0 for choice in wanted.layers or ()):
        wanted = replace(wanted, layers=wanted.from_the_end(len(attention_layers(model, inputs))))
    reducer = _Reducer(names, wanted, tuple(position_sources(named_inputs(model, inputs))))
    run_recorded(model, inputs, reducer.take, reducer.refuse, blocks=need_blocks(names))
    return reducer.result(_tokens(inputs, named_inputs(model, inputs)), _versions(model))


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Quantities of a model's attention calls, each a list over calls: ``maps.summed_norms[i]`` is (batch, query, key).

    A quantity is an attribute under its name.  One that a call cannot have is absent there, and asking for it raises
    with the reason; one that was not asked for is no attribute.

    Attributes:
        calls: which attention calls, in the order they ran.
        certificate: the check each has passed; ``float(maps.certificate[i])`` is the error.
        keys: where each key lies in the model's input, or None where that is not known.  ``source`` is the name of the
            input.
        queries: the same for the rows.
        key_masks: (batch, key) bool, True at real tokens; None where the model received no mask (all are real).
        query_masks: (batch, query) bool, the same for the rows.
        input_tokens: by input name, the tokens of each example: strings where the inputs came from a tokenizer, else
            ids.
        versions: what computed this: package → version, and the model's class.
        head_indices: which heads the per-head quantities hold; None: all.
        positions: which rows of the query axis are held; None: all.
    """

    calls: tuple[AttentionCall, ...]
    certificate: tuple[Certificate, ...]
    keys: tuple[Positions | None, ...]
    queries: tuple[Positions | None, ...]
    key_masks: tuple[Tensor | None, ...]
    query_masks: tuple[Tensor | None, ...]
    input_tokens: dict[str, Tokens] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    head_indices: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    _results: dict[str, list[Tensor | str]] = field(default_factory=dict, repr=False)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of the quantities held."""
        return tuple(self._results)

    @property
    def tokens(self) -> Tokens | None:
        """The tokens of each example of the model's first input that has any; see ``input_tokens`` for the others."""
        return next(iter(self.input_tokens.values()), None)

    def __len__(self) -> int:
        return len(self.calls)

    def __getattr__(self, name: str) -> list[Tensor]:
        results = self.__dict__.get("_results", {})
        if name in results:
            return _OverCalls(name, results[name], self.calls)
        if name in QUANTITIES:
            raise AttributeError(
                f"AttentionMaps: {name} was not computed, only {', '.join(results)}. "
                f"Ask for it: attention_maps(model, inputs, quantities=({name!r},))."
            )
        raise AttributeError(f"AttentionMaps has no attribute {name!r}; the quantities it can hold: {_known()}.")

    def to(self, device: torch.device | str) -> AttentionMaps:
        """The same maps with all tensors on ``device``."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        def place(where: Positions | None) -> Positions | None:
            return None if where is None else replace(where, index=where.index.to(device))

        return replace(
            self,
            keys=tuple(map(place, self.keys)),
            queries=tuple(map(place, self.queries)),
            key_masks=tuple(map(move, self.key_masks)),
            query_masks=tuple(map(move, self.query_masks)),
            _results={
                name: [r if isinstance(r, str) else r.to(device) for r in results]
                for name, results in self._results.items()
            },
        )

    def key_tokens(self, i: int, example: int = 0) -> list[str]:
        """A label for each key of call ``i``: its token, else its position.

        Args:
            i: which call.
            example: which example of the batch.

        Returns:
            One string per key; keys that are no input read ``"·"``.
        """
        return self._labels(self.keys[i], self._axis_size(i, "key"), example)

    def query_tokens(self, i: int, example: int = 0) -> list[str]:
        """A label for each row of call ``i``, as `key_tokens`."""
        return self._labels(self.queries[i], self._axis_size(i, "query"), example)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the modules to one safetensors file, whole or not at all.

        Example:
            >>> import tempfile
            >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
            >>> maps = attention_maps(encoder, torch.randn(1, 3, 8))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     maps.save(f"{folder}/maps.safetensors")
            ...     again = AttentionMaps.load(f"{folder}/maps.safetensors")
            >>> torch.equal(again.weights[0], maps.weights[0]), again.calls[0].kind
            (True, 'self')
        """
        tensors, described = _packed(self)
        with replacing(path) as unfinished:
            save_file(tensors, unfinished, {_FORMAT: json.dumps(described)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttentionMaps:
        """Read what ``save`` wrote, onto the CPU.  Nothing in the file is executed.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, cut off, or holds something else.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{os.fspath(path)}: no such file. AttentionMaps.save(path) writes one.")
        try:
            with safe_open(path, framework="pt") as file:
                described = (file.metadata() or {}).get(_FORMAT)
                if described is None:
                    raise _unreadable(path, "it is a safetensors file of something else")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, f"it is damaged, cut off or no safetensors file ({error})") from error
        try:
            return _unpacked(tensors, json.loads(described))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(path, f"its description does not fit its tensors ({error})") from error

    def _axis_size(self, i: int, axis: str) -> int:
        for name, results in self._results.items():
            axes = QUANTITIES[name].axes.split()
            if axis in axes and isinstance(result := results[i], Tensor):
                return result.shape[axes.index(axis)]
        raise ValueError(f"AttentionMaps: none of {', '.join(self.quantities)} has the axis {axis}.")

    def _labels(self, where: Positions | None, size: int, example: int) -> list[str]:
        if where is None:
            return [str(position) for position in range(size)]
        tokens = self.input_tokens.get(str(where.source))
        known = {} if tokens is None else dict(enumerate(map(str, tokens[example])))
        labels = ["·" if p < 0 else known.get(p, str(p)) for p in where.index.tolist()]
        return labels + ["residual"] * (size - len(labels))  # cross-attention with its block


class _OverCalls(list[Tensor]):
    """A list over calls in which a quantity may be absent; taking it where it is absent raises with the reason."""

    def __init__(self, name: str, results: Sequence[Tensor | str], calls: Sequence[AttentionCall]) -> None:
        super().__init__(results)  # type: ignore[arg-type]  # a reason (str) stands where the quantity is absent
        self._name, self._calls = name, calls

    @overload
    def __getitem__(self, i: SupportsIndex) -> Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tensor]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> Tensor | list[Tensor]:
        found: Any = super().__getitem__(i)
        if isinstance(i, slice):
            return _OverCalls(self._name, found, self._calls[i])
        if isinstance(found, str):
            raise ValueError(f"{self._calls[int(i)].name} has no {self._name}: {found}.")
        return found

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class _Wanted:
    """Which calls, heads and rows to keep; None: all."""

    layers: tuple[int | str, ...] | None
    heads: tuple[int, ...] | None
    rows: tuple[int, ...] | None

    def from_the_end(self, total: int) -> tuple[int | str, ...]:
        """The choices of calls, with negative indices counted from ``total``."""
        choices = self.layers or ()
        for choice in choices:
            if isinstance(choice, int) and not -total <= choice < total:
                raise ValueError(f"attention_maps: layers holds {choice}, but the model makes {total} attention calls.")
        return tuple(c + total if isinstance(c, int) and c < 0 else c for c in choices)

    def matching(self, index: int, call: AttentionCall) -> set[int | str]:
        """Which of the choices mean this call: its index, its module's name, or the name of a module around it."""
        return {
            choice
            for choice in self.layers or ()
            if choice == index or (isinstance(choice, str) and f"{call.name}.".startswith(f"{choice}."))
        }

    def of(self, record: AttentionRecord) -> tuple[AttentionRecord, AttentionRecord]:
        """The record cut to the rows, and the same cut to the heads too; float32 at least."""
        if self.rows is not None:
            rows = _picked("positions", self.rows, record.weights.shape[2], "rows", record.call)
            record = replace(
                record,
                weights=record.weights[:, :, rows],
                gate=None if record.gate is None else record.gate[:, :, rows],
                block=record.block and record.block.at(torch.tensor(rows).expand(len(record.weights), -1)),
                queries=record.queries and replace(record.queries, index=record.queries.index[rows]),
                query_mask=None if record.query_mask is None else record.query_mask[:, rows],
            )
        record = at_least_float32(record)
        if self.heads is None:
            return record, record
        heads = _picked("head_indices", self.heads, record.weights.shape[1], "heads", record.call)
        few = replace(
            record,
            weights=record.weights[:, heads],
            values=record.values[:, heads],
            W_O=record.W_O[heads],
            gate=None if record.gate is None else record.gate[:, heads],
        )
        return record, few


class _Reducer:
    """From records to results, one call at a time; the record is not kept."""

    def __init__(self, names: Sequence[str], wanted: _Wanted, sources: Sequence[str]) -> None:
        self.names, self.wanted, self.sources = names, wanted, sources
        self.seen: list[AttentionCall] = []
        self.met: set[int | str] = set()
        self.kept: list[AttentionRecord] = []
        self.results: dict[str, list[Tensor | str]] = {name: [] for name in names}

    def take(self, record: AttentionRecord) -> None:
        if not self._chosen(record.call):
            return
        all_heads, heads = self.wanted.of(record)
        per_head = [name for name in self.names if "head" in QUANTITIES[name].axes.split()]
        summed = [name for name in self.names if name not in per_head]
        found = compute_quantities(heads, per_head) | compute_quantities(all_heads, summed)
        for name, result in found.items():
            self.results[name].append(result if isinstance(result, str) else result.detach().contiguous())
        nothing = record.W_O.new_empty(0)
        kept = replace(all_heads, weights=nothing, values=nothing, W_O=nothing, b_O=None, gate=None, block=None)
        self.kept.append(kept)

    def refuse(self, error: InexactCaptureError) -> None:
        if self._chosen(_call_of(error)):
            raise error

    def result(self, tokens: dict[str, Tokens], versions: dict[str, str]) -> AttentionMaps:
        self._check_all_met()
        for name, results in self.results.items():
            reasons = [r for r in results if isinstance(r, str)]
            if len(reasons) == len(results):
                raise ValueError(f"attention_maps: no chosen call has {name}: {self.kept[0].call.name}: {reasons[0]}.")
        return AttentionMaps(
            calls=tuple(r.call for r in self.kept),
            certificate=tuple(r.certificate for r in self.kept),
            keys=tuple(self._named(r.keys) for r in self.kept),
            queries=tuple(self._named(r.queries) for r in self.kept),
            key_masks=tuple(r.key_mask for r in self.kept),
            query_masks=tuple(r.query_mask for r in self.kept),
            input_tokens=tokens,
            versions=versions,
            head_indices=self.wanted.heads,
            positions=self.wanted.rows,
            _results=self.results,
        )

    def _chosen(self, call: AttentionCall) -> bool:
        met = self.wanted.matching(len(self.seen), call)
        self.seen.append(call)
        self.met |= met
        return self.wanted.layers is None or bool(met)

    def _named(self, where: Positions | None) -> Positions | None:
        """The same positions, their source by name."""
        if where is None or isinstance(where.source, str):
            return where
        return replace(where, source=self.sources[where.source])

    def _check_all_met(self) -> None:
        missing = [choice for choice in self.wanted.layers or () if choice not in self.met]
        if missing:
            seen = ", ".join(f"{i} {call.name!r}" for i, call in enumerate(self.seen))
            raise ValueError(
                f"attention_maps: layers holds {missing[0]!r}, which is no attention call of this model. "
                f"The calls seen, by index and name: {seen}."
            )


_FORMAT = "captum_norm.AttentionMaps"
_TENSOR_LISTS = ("key_masks", "query_masks")
_POSITION_LISTS = ("keys", "queries")


def _packed(maps: AttentionMaps) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors under names such as ``"weights/0"``, and everything else as JSON."""
    tensors: dict[str, Tensor] = {}
    # Masks may be views of one tensor, which safetensors refuses to write: each gets its own memory.
    for name, results in maps._results.items():
        tensors |= {f"{name}/{i}": r.cpu().clone() for i, r in enumerate(results) if isinstance(r, Tensor)}
    for name in _TENSOR_LISTS:
        tensors |= {f"{name}/{i}": t.cpu().clone() for i, t in enumerate(getattr(maps, name)) if t is not None}
    for name in _POSITION_LISTS:
        places = enumerate(getattr(maps, name))
        tensors |= {f"{name}/{i}": where.index.cpu().clone() for i, where in places if where is not None}
    described = {
        "calls": [{f.name: getattr(c, f.name) for f in fields(c) if f.name != "modules"} for c in maps.calls],
        "certificate": [asdict(c) for c in maps.certificate],
        **{
            name: [None if w is None else {"source": w.source, "grid": w.grid} for w in getattr(maps, name)]
            for name in _POSITION_LISTS
        },
        "input_tokens": maps.input_tokens,
        "versions": maps.versions,
        "head_indices": maps.head_indices,
        "positions": maps.positions,
        "absent": {n: {str(i): r for i, r in enumerate(rs) if isinstance(r, str)} for n, rs in maps._results.items()},
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, described


def _unpacked(tensors: dict[str, Tensor], described: dict[str, Any]) -> AttentionMaps:
    count = len(described["calls"])

    def place(name: str, i: int, told: dict[str, Any] | None) -> Positions | None:
        if told is None:
            return None
        grid = told["grid"]
        return Positions(told["source"], tensors[f"{name}/{i}"], None if grid is None else tuple(grid))

    def result(name: str, i: int, absent: dict[str, str]) -> Tensor | str:
        if str(i) in absent:
            return str(absent[str(i)])
        tensor, axes = tensors[f"{name}/{i}"], QUANTITIES[name].axes
        if tensor.ndim != len(axes.split()):
            raise ValueError(f"{name} should be ({axes.replace(' ', ', ')}), got shape {tuple(tensor.shape)}")
        return tensor

    return AttentionMaps(
        calls=tuple(AttentionCall(**call) for call in described["calls"]),
        certificate=tuple(Certificate(**(c | {"covers": tuple(c["covers"])})) for c in described["certificate"]),
        keys=tuple(place("keys", i, told) for i, told in enumerate(described["keys"])),
        queries=tuple(place("queries", i, told) for i, told in enumerate(described["queries"])),
        key_masks=tuple(tensors.get(f"key_masks/{i}") for i in range(count)),
        query_masks=tuple(tensors.get(f"query_masks/{i}") for i in range(count)),
        input_tokens={name: tuple(map(tuple, tokens)) for name, tokens in described["input_tokens"].items()},
        versions=dict(described["versions"]),
        head_indices=_tuple_or_none(described["head_indices"]),
        positions=_tuple_or_none(described["positions"]),
        _results={n: [result(n, i, absent) for i in range(count)] for n, absent in described["absent"].items()},
    )


def _tuple_or_none(found: list[int] | None) -> tuple[int, ...] | None:
    return None if found is None else tuple(found)


def _unreadable(path: str | os.PathLike[str], found: str) -> ValueError:
    return ValueError(
        f"{os.fspath(path)} cannot be read as attention maps: {found}. "
        "Compute the maps again with attention_maps(...) and write them with .save(path)."
    )


def _known() -> str:
    return ", ".join(QUANTITIES)


def _known_quantities(quantities: Sequence[str]) -> tuple[str, ...]:
    names = (quantities,) if isinstance(quantities, str) else tuple(dict.fromkeys(quantities))
    unknown = [name for name in names if name not in QUANTITIES]
    if unknown or not names:
        found = f"does not know the quantity {unknown[0]!r}" if unknown else "was asked for no quantity"
        raise ValueError(f"attention_maps {found}. There are: {_known()}.")
    return names


def _as_choices(layers: Sequence[int | str] | int | str | None) -> tuple[int | str, ...] | None:
    if layers is None:
        return None
    choices = (layers,) if isinstance(layers, int | str) else tuple(layers)
    if not choices or not all(isinstance(choice, int | str) for choice in choices):
        raise TypeError(f"attention_maps: layers should be indices or names of attention calls, got {layers!r}.")
    return choices


def _as_indices(name: str, indices: Sequence[int] | None) -> tuple[int, ...] | None:
    if indices is None:
        return None
    if isinstance(indices, int):
        return (indices,)
    chosen = tuple(indices)
    if not chosen or not all(isinstance(index, int) for index in chosen):
        raise TypeError(f"attention_maps: {name} should be one or more ints, got {indices!r}.")
    return chosen


def _picked(name: str, chosen: Sequence[int], size: int, what: str, call: AttentionCall) -> list[int]:
    """Non-negative indices, or an error that names the call."""
    outside = [index for index in chosen if not -size <= index < size]
    if outside:
        raise ValueError(
            f"attention_maps: {name} holds {outside[0]}, but {call.name!r} has {size} {what}. "
            "Choose others, or choose the calls they exist in with layers=."
        )
    return [index % size for index in chosen]


def _call_of(error: InexactCaptureError) -> AttentionCall:
    call = getattr(error, "call", None)
    return call if isinstance(call, AttentionCall) else AttentionCall("", "self", 0, 0, "")


def _tokens(inputs: ModelInputs, named: Mapping[str, Any]) -> dict[str, Tokens]:
    """By input name, the tokens of each example: strings where a tokenizer told them, else ids."""
    found: dict[str, Tokens] = {}
    for name, tensor in position_sources(named).items():
        if tensor.ndim == 2 and not tensor.is_floating_point():
            encodings = getattr(inputs, "encodings", None) if name == "input_ids" else None
            found[name] = tuple(tuple(e.tokens) for e in encodings or ()) or tuple(map(tuple, tensor.tolist()))
    return found


def _versions(model: Callable[..., Any]) -> dict[str, str]:
    return {"model": type(model).__name__, **_installed()}


@cache
def _installed() -> dict[str, str]:
    """Reading them takes as long as a short forward pass."""
    versions = {}
    for package in ("captum-norm", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
