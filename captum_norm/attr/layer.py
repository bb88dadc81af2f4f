"""One attention call's whole map, as Captum layer attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._base import AttentionMethod
from captum_norm.attr._captum import LayerAttribution, as_tuple, check_target, extra_arguments, logged
from captum_norm.attr._encoding import takes_encodings
from captum_norm.attr._maps import MeasureFunction, measured
from captum_norm.attr._placing import finished
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._sequences import KindType, check_kind, matches
from captum_norm.attr._split import Splits
from captum_norm.attr._unread import nothing_seen
from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, InexactCaptureError
from captum_norm.forward.keywords import unwrapped
from captum_norm.measures import MEASURES
from captum_norm.operations.precision import at_least_float32


@dataclass
class _LayerMaps:
    """Collects the maps of the calls that run inside given modules."""

    layers: Sequence[Module]
    kind: KindType
    measure: MeasureFunction
    found: dict[int, list[Tensor]] = field(default_factory=dict)
    seen: list[tuple[AttentionCall, Certificate]] = field(default_factory=list)

    def add(self, record: AttentionRecord) -> None:
        owners = self._owners(record.call) if matches(record.call, self.kind) else []
        if owners:
            scores = measured(record, self.measure).to(at_least_float32(record.values.dtype))
            for owner in owners:
                self.found.setdefault(owner, []).append(scores)
        self.seen.append((record.call.without_modules, record.certificate))

    def skip(self, error: InexactCaptureError) -> None:
        """Let a call pass that could not be read and is in no layer asked for (its kind is not known)."""
        if error.call is None or self._owners(error.call):
            raise error

    def _owners(self, call: AttentionCall) -> list[int]:
        return [n for n, layer in enumerate(self.layers) if any(layer is module for module in call.modules)]


class LayerMethod(AttentionMethod, LayerAttribution):  # type: ignore[misc]  # Captum is not typed
    """Base of the layer classes: a subclass gives the map of a record for each choice of ``heads``."""

    heads: ClassVar[tuple[str, ...]]

    def __init__(self, forward_func: Callable[..., Any], layer: Module | list[Module]) -> None:
        LayerAttribution.__init__(self, forward_func, layer)
        self.report = AttributionReport()

    def measure(self, record: AttentionRecord, heads: str) -> Tensor:
        """The map of one attention call, (batch, head, query, key) or (batch, query, key)."""
        raise NotImplementedError

    @logged
    @takes_encodings
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        heads: str = "each",
        kind: KindType = None,
        call: int | None = None,
    ) -> Any:
        """The map of each attention call that runs inside ``layer``.

        Args:
            inputs: what ``forward_func`` takes first: a tensor or a tuple of tensors, batch first.
            target: the class, as in Captum.  It is validated as Captum does; the maps do not depend on it.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            heads: ``"each"`` or, for all heads together, the class's own word (see the class).
            kind: only ``"self"`` (causal included) or only ``"cross"`` attention.
            call: of several attention calls in the layer (of that kind), the one with this number, in call order.

        Returns:
            (batch, head, query, key) or (batch, query, key), non-negative, batch first whatever the model does, zero in
            padding rows and columns.  A layer with several attention calls and no choice among them gives a list in
            call order; a list of layers gives a list.

        Raises:
            TypeError: if ``layer`` is no module, or for float token ids.
            ValueError: if no attention call ran inside ``layer``, or ``heads``, ``kind`` or ``call`` do not exist.
            InexactCaptureError: if an attention call in ``layer`` cannot be read exactly.
            AssertionError: Captum's, if ``target`` does not fit the output.
        """
        title = type(self).__name__
        if heads not in self.heads:
            raise ValueError(f"{title}: heads should be one of {', '.join(map(repr, self.heads))}, got {heads!r}.")
        given = as_tuple(inputs)
        layers = self._layers()
        maps = _LayerMaps(layers, check_kind(kind), lambda record: self.measure(record, heads))
        with torch.no_grad():
            output = self._forward(given, extra_arguments(additional_forward_args), maps.add, maps.skip)
            check_target(output, target)
            results = [
                self._chosen(layer, [finished(m, given[0]) for m in maps.found.get(n, [])], call, maps)
                for n, layer in enumerate(layers)
            ]
        self.report = AttributionReport(tuple(maps.seen))
        return results if isinstance(self.layer, list | tuple) else results[0]

    def _layers(self) -> list[Module]:
        layers = list(self.layer) if isinstance(self.layer, list | tuple) else [self.layer]
        for layer in layers:
            if not isinstance(layer, Module):
                raise TypeError(
                    f"{type(self).__name__}: layer should be a module of the model or a list of modules, got "
                    f"{layer!r}. attention_layers(model, inputs) lists the modules that attend."
                )
        return layers

    def _chosen(self, layer: Module, found: list[Any], call: int | None, maps: _LayerMaps | Splits) -> Any:
        if not found:
            raise ValueError(self._nothing_in(layer, maps))
        if call is None:
            return found[0] if len(found) == 1 else found
        if not -len(found) <= call < len(found):
            raise ValueError(
                f"{type(self).__name__}: call={call}, but {self._title(layer)} made {len(found)} attention calls: give "
                f"0 to {len(found) - 1}."
            )
        return found[call]

    def _nothing_in(self, layer: Module, maps: _LayerMaps | Splits) -> str:
        title = type(self).__name__
        if not maps.seen:
            return nothing_seen(title)
        kind = "attention" if maps.kind is None else f"{maps.kind}-attention"
        names = [f"{call.name!r} ({call.kind})" for call, _ in maps.seen]
        return (
            f"{title}: no {kind} call ran inside {self._title(layer)}. Attention ran in {', '.join(names[:6])}"
            f"{' ...' if len(names) > 6 else ''}. Give one of these modules, or one that holds it."
        )

    def _title(self, layer: Module) -> str:
        forward = unwrapped(self.forward_func)
        model = forward if isinstance(forward, Module) else None
        named = model.named_modules() if model is not None else ()
        name = next((name for name, module in named if module is layer), None)
        kind = type(layer).__name__
        return f"layer {name!r} ({kind})" if name is not None else f"a {kind} that forward_func does not hold"


class LayerAttentionWeights(LayerMethod):
    """The attention weights alpha_ij of one attention call.

    ``heads="each"`` (default) gives (batch, head, query, key), ``heads="mean"`` their mean, (batch, query, key).

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        layer: the attention module, any module around it, or a list of such.

    Source: Vaswani et al. (2017), equation 1, https://arxiv.org/abs/1706.03762.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
        >>> alpha = LayerAttentionWeights(model, model.self_attn).attribute(torch.randn(1, 3, 8))
        >>> alpha.shape, bool(torch.allclose(alpha.sum(-1), torch.ones(1, 2, 3)))
        (torch.Size([1, 2, 3, 3]), True)
    """

    heads = ("each", "mean")

    def measure(self, record: AttentionRecord, heads: str) -> Tensor:
        """alpha, (batch, head, query, key), or its mean over heads."""
        return MEASURES["weights" if heads == "each" else "mean_weights"].compute(record)
