"""``attention_maps``: from each record to the measures asked for, while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from captum_norm.capture import (
    Answer,
    AttentionCall,
    AttentionRecord,
    InexactCaptureError,
    Opaque,
    Positions,
    Recorded,
    Softmax,
    run_recorded,
)
from captum_norm.forward.inputs import ModelInputs, named_inputs, position_sources
from captum_norm.forward.outputs import output_tensor
from captum_norm.maps.calls import attention_layers, call_of
from captum_norm.maps.certified import opaque_parts
from captum_norm.maps.results import AttentionMaps, Tokens
from captum_norm.maps.selection import Selection, chosen_indices, chosen_layers
from captum_norm.measures import MEASURES, compute_measures, need_blocks
from captum_norm.suggestions import did_you_mean


def attention_maps(
    model: Callable[..., Any], inputs: ModelInputs, quantities: Sequence[str] = ("weights", "summed_norms"),
    layers: Sequence[int | str] | int | str | None = None, head_indices: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> AttentionMaps:  # fmt: skip
    """Measures of every attention call, in one forward pass.

    Args:
        model: any module or function; it runs once, without gradient, in the mode it is in, and stays untouched.
        inputs: what it takes: a mapping (passed as keywords), a tensor or a tuple (positionally).
        quantities: the papers' names: ``weights`` α and ``head_norms`` ‖αf(x)‖ (batch, head, query, key),
            ``transformed_norms`` ‖f(x)‖ (batch, head, key), ``summed_norms`` ‖Σ_h αf(x)‖ (batch, query, key), and all
            other rows of the table :data:`captum_norm.measures.MEASURES`, which the documentation's page of methods
            shows with formulas.  Norms are L2, in the units of the residual stream.  In cross-attention those with the
            residual have one more key, the residual.
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
        InexactCaptureError: if a chosen call cannot be read exactly, or is not finite (NaN in the model's weights); if
            all calls are asked for, and one may be missing.

    Source: Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102.

    Example:
        >>> import torch
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> maps = attention_maps(encoder, torch.randn(1, 3, 8))
        >>> maps.calls[0].name, tuple(maps.weights[0].shape), tuple(maps.summed_norms[0].shape)
        ('self_attn', (1, 2, 3, 3), (1, 3, 3))
    """
    names = _known_quantities(quantities)
    heads, rows = chosen_indices("head_indices", head_indices), chosen_indices("positions", positions)
    selection = Selection(chosen_layers(layers), heads, rows)
    if selection.count_from_the_end:
        selection = selection.from_the_front(len(attention_layers(model, inputs)))
    reducer = _Reducer(names, selection, tuple(position_sources(named_inputs(model, inputs))))
    told = reducer.conclude if layers is None else None
    run_recorded(model, inputs, reducer.take, reducer.refuse, blocks=need_blocks(names), on_output=told)
    _refuse_missing(reducer.answer, opaque_parts(model, inputs, reducer.answer))
    return reducer.maps(_tokens(inputs, named_inputs(model, inputs)), _versions(model))


class _Reducer:
    """From records to results, one call at a time; the record is not kept."""

    def __init__(self, names: Sequence[str], selection: Selection, sources: Sequence[str]) -> None:
        self.names, self.selection, self.sources = names, selection, sources
        self.seen: list[AttentionCall] = []
        self.met: set[int | str] = set()
        self.kept: list[AttentionRecord] = []
        self.results: dict[str, list[Tensor | str]] = {name: [] for name in names}
        self.answer = Answer()

    def take(self, record: AttentionRecord) -> None:
        """Measure the next call and keep its record without the large tensors."""
        if not self._chosen(record.call):
            return
        if self.selection.layers is None and record.is_of_one_example:
            raise InexactCaptureError(
                f"attention_maps: each call of {record.call.name!r} is for one example of several, and none has a map "
                "of all. Give the model one example at a time; layers=[0, ...] has the calls one by one."
            )
        all_heads, heads = self.selection.cut(record)
        per_head = [name for name in self.names if MEASURES[name].has_axis("head")]
        summed = [name for name in self.names if name not in per_head]
        results = compute_measures(heads, per_head) | compute_measures(all_heads, summed)
        for name, result in results.items():
            self.results[name].append(result if isinstance(result, str) else result.detach().contiguous())
        nothing = record.W_O.new_empty(0)
        kept = replace(all_heads, weights=nothing, values=nothing, W_O=nothing, b_O=None, gate=None, block=None)
        self.kept.append(kept)

    def refuse(self, error: InexactCaptureError) -> None:
        """Raise the error of a call that could not be read, if it was chosen."""
        if self._chosen(call_of(error)):
            raise error

    def conclude(self, recorded: Recorded, output: Any) -> None:
        """Take in the output."""
        self.answer = recorded.answer(output_tensor(output), lambda tensor: tensor)

    def maps(self, tokens: dict[str, Tokens], versions: dict[str, str]) -> AttentionMaps:
        """All that was measured; an error where a choice met no call, or no call has a measure."""
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
            head_indices=self.selection.heads,
            positions=self.selection.rows,
            results=self.results,
        )

    def _chosen(self, call: AttentionCall) -> bool:
        met = self.selection.matching(len(self.seen), call)
        self.seen.append(call)
        self.met |= met
        return self.selection.layers is None or bool(met)

    def _named(self, where: Positions | None) -> Positions | None:
        """The same positions, their source by name."""
        if where is None or isinstance(where.source, str):
            return where
        return replace(where, source=self.sources[where.source])

    def _check_all_met(self) -> None:
        missing = [choice for choice in self.selection.layers or () if choice not in self.met]
        if missing:
            seen = ", ".join(f"{i} {call.name!r}" for i, call in enumerate(self.seen))
            raise ValueError(
                f"attention_maps: layers holds {missing[0]!r}, which is no attention call of this model. "
                f"The calls seen, by index and name: {seen}."
            )


def _refuse_missing(answer: Answer, opaque: Sequence[Opaque]) -> None:
    """Refuse where an attention call on the way to the output may be missing from all that were read."""
    missing: Sequence[Softmax | Opaque] = (*answer.lost, *opaque)
    if missing:
        what = (
            f"the weights of {answer.lost[0]} {answer.lost[0].looks}, and were not seen to meet values"
            if answer.lost
            else f"the output rests on a part that cannot be looked into: {missing[0]}"
        )
        raise InexactCaptureError(
            f"attention_maps: {what}, so an attention call may be missing. layers=[0], or any choice of calls, gives "
            "those that were read; attention_layers lists them."
        )


def _known_quantities(quantities: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(quantities, Iterable):
        raise TypeError(
            f"attention_maps: quantities should be names of measures, got {quantities!r}. There are: "
            f"{', '.join(MEASURES)}."
        )
    names = (quantities,) if isinstance(quantities, str) else tuple(dict.fromkeys(quantities))
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        problem = f"does not know the quantity {unknown[0]!r}" if unknown else "was asked for no quantity"
        guess = did_you_mean(str(unknown[0]), MEASURES) if unknown else ""
        raise ValueError(f"attention_maps {problem}.{guess} There are: {', '.join(MEASURES)}.")
    return names


def _tokens(inputs: ModelInputs, named: Mapping[str, Any]) -> dict[str, Tokens]:
    """By input name, the tokens of each example: strings where a tokenizer told them, else ids."""
    tokens: dict[str, Tokens] = {}
    for name, tensor in position_sources(named).items():
        if tensor.ndim == 2 and not tensor.is_floating_point():
            encodings = getattr(inputs, "encodings", None) if name == "input_ids" else None
            tokens[name] = tuple(tuple(e.tokens) for e in encodings or ()) or tuple(map(tuple, tensor.tolist()))
    return tokens


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
