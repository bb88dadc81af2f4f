"""The paper's measure as an attribution: the length of the vector that attention really adds, over all attention calls
or of one, and what of a layer's input it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._base import MapMethod
from captum_norm.attr._captum import as_tuple, check_target, extra_arguments, logged
from captum_norm.attr._encoding import takes_encodings
from captum_norm.attr._forward import outside_inference_mode, position_given
from captum_norm.attr._placing import finished
from captum_norm.attr._position import PositionType, Rows
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._sequences import KindType, check_kind
from captum_norm.attr._split import LayerInputs, Splits, Zeros
from captum_norm.attr.layer import LayerMethod
from captum_norm.capture import AttentionRecord
from captum_norm.measures import MEASURES


class AttentionNorm(MapMethod):
    """||sum_h alpha^h_ij f^h(x_j)||: how much j *adds* to i through all heads together, with f(x) = (x W_V + b_V) W_O.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        aggregate: how the attention calls become one: ``"mean"``, ``"rollout"`` (the plain product), ``"flow"``
            (slow: see ``AttentionFlow``), or an integer for one call.
        residual: for ``"rollout"`` and ``"flow"``, mix each map with the identity: (A + I) / row sum.
        max_memory: how many bytes of its calls a row of a product may keep at once, None for all.  Where they take
            more, the model runs again for the calls that were let go: slower, and the same numbers.

    Scores are lengths in the units of the residual stream; they are not normalised.

    Raises:
        ValueError: if there is no such aggregate.

    Source: Kobayashi et al. (2020), "Attention is Not Only a Weight", equation 5, https://arxiv.org/abs/2004.10102.

    Example:
        A key whose value is erased adds nothing, however much weight it gets:

        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.MultiheadAttention(8, 2, batch_first=True, bias=False).eval()
        >>> x = torch.randn(1, 3, 8)
        >>> x[0, 2] = 0
        >>> scores = AttentionNorm(lambda x: model(x, x, x)[0]).attribute(x).sum(-1)
        >>> scores.shape, bool(scores[0, 1] > 0), float(scores[0, 2])
        (torch.Size([1, 3]), True, 0.0)
    """

    def measure(self, record: AttentionRecord) -> Tensor:
        """||sum_h alpha f(x)||, (batch, query, key)."""
        return MEASURES["summed_norms"].compute(record)


class LayerAttentionNorm(LayerMethod):
    """The norms of what one attention call adds: ||alpha f(x)|| per head, or ||sum_h alpha f(x)|| of all together.

    ``heads="each"`` (default) gives (batch, head, query, key), ``heads="sum"`` the norm of the sum, (batch, query,
    key), which is smaller than the sum of the norms where heads cancel.

    ``attribute_to_layer_input=True`` gives instead, for one row of queries, what each feature of the layer's input
    vectors has to do with those norms: the values are x W_V + b_V, so that with the weights held fixed

        ||y_ij|| = sum_c x_jc <dy_ij / dx_jc, u_ij>  +  <sum_h alpha^h_ij b_V^h W_O^h, u_ij>,    u_ij = y_ij / ||y_ij||

    is an exact split; its last part is the convergence delta.  It takes a second forward pass.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        layer: the attention module, any module around it, or a list of such.
        attribute_to_layer_input: give the split over the layer's input instead of the map.

    Source: Kobayashi et al. (2020), "Attention is Not Only a Weight", section 2.3, https://arxiv.org/abs/2004.10102.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
        >>> method = LayerAttentionNorm(model, model.self_attn)
        >>> x = torch.randn(1, 3, 8)
        >>> each, together = method.attribute(x), method.attribute(x, heads="sum")
        >>> each.shape, together.shape, bool((together <= each.sum(1)).all())
        (torch.Size([1, 2, 3, 3]), torch.Size([1, 3, 3]), True)

        The norms of the first row, split over the vectors that went in:

        >>> method = LayerAttentionNorm(model, model.self_attn, attribute_to_layer_input=True)
        >>> split, delta = method.attribute(x, position=0, return_convergence_delta=True)
        >>> split.shape, bool(torch.allclose(split.sum((1, 2)) + delta, together[:, 0].sum(-1)))
        (torch.Size([1, 3, 8]), True)
    """

    heads = ("each", "sum")

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | list[Module],
        *,
        attribute_to_layer_input: bool = False,
    ) -> None:
        super().__init__(forward_func, layer)
        self.attribute_to_layer_input = attribute_to_layer_input

    def has_convergence_delta(self) -> bool:
        """Whether the norms are split over the layer's input: the delta is the share of the bias b_V."""
        return self.attribute_to_layer_input

    @logged
    @takes_encodings
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        heads: str | None = None,
        kind: KindType = None,
        call: int | None = None,
        attribute_to_layer_input: bool | None = None,
        position: PositionType = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """The norms of each attention call that runs inside ``layer``, as a map or split over the layer's input.

        Args:
            inputs: what ``forward_func`` takes first: a tensor or a tuple of tensors, batch first.
            target: the class, as in Captum.  It is validated as Captum does; the norms do not depend on it.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            heads: ``"each"`` (default for maps) or ``"sum"`` (what is split).
            kind: only ``"self"`` (causal included) or only ``"cross"`` attention.
            call: of several attention calls in the layer (of that kind), the one with this number, in call order.
            attribute_to_layer_input: map or split; by default what the object was made for.
            position: for the split, whose row: None for the last real token if attention is causal, else the first,
                unless ``HFForward(position=...)`` says otherwise; an integer, one per example, or ``"mean"``.
            return_convergence_delta: for the split, give the share of the bias b_V as well.

        Returns:
            The map, (batch, head, query, key) or (batch, query, key), as for the other layer classes; or the split,
            shaped as the layer's input from which the values come, (batch, position, model) in most models and for
            cross-attention that of the encoder's output: signed, in the units of the norms, 0 for keys that the row
            does not attend to.  With ``return_convergence_delta`` a tuple of the split and delta (batch,): the split's
            sum plus delta is the sum of the row's norms.  Several calls or layers give lists of these.

        Raises:
            TypeError: if ``layer`` is no module, or for float token ids.
            ValueError: if no attention call ran inside ``layer``, or ``heads``, ``kind``, ``call`` or ``position`` do
                not exist; for the split, if the values do not come from one input of the layer, or are no affine
                function of it (choose the attention module, not a block that normalises first).
            InexactCaptureError: if an attention call in ``layer`` cannot be read exactly.
            AssertionError: Captum's, if ``target`` does not fit the output.
        """
        split = self.attribute_to_layer_input if attribute_to_layer_input is None else attribute_to_layer_input
        if not split:
            if position is not None or return_convergence_delta:
                what = "return_convergence_delta" if return_convergence_delta else "position"
                raise ValueError(
                    f"LayerAttentionNorm: {what} belongs to attribute_to_layer_input=True; a map has all rows."
                )
            return super().attribute(
                inputs, target, additional_forward_args, heads=heads or "each", kind=kind, call=call
            )
        if heads not in (None, "sum"):
            raise ValueError(f"LayerAttentionNorm: what is split is the norm of the sum, heads='sum', got {heads!r}.")
        extras = extra_arguments(additional_forward_args)
        if position is None:
            position = position_given(self.forward_func, extras)
        rows = Rows(position)
        if rows.all:
            raise ValueError('LayerAttentionNorm: one row is split at a time: position="all" has no split.')
        splits, zeros = self._splits(as_tuple(inputs), target, extras, rows, check_kind(kind))
        results = []
        for number, layer in enumerate(splits.layers):
            pairs = zip(splits.found.get(number, []), zeros.bias_shares(number), strict=True)
            found = [(finished(one.split, one.split), finished(share, one.split)) for one, share in pairs]
            chosen = [both if return_convergence_delta else both[0] for both in found]
            results.append(self._chosen(layer, chosen, call, splits))
        self.report = AttributionReport(tuple(splits.seen))
        return results if isinstance(self.layer, list | tuple) else results[0]

    def _splits(
        self, inputs: tuple[Tensor, ...], target: Any, extras: tuple[Any, ...], rows: Rows, kind: KindType
    ) -> tuple[Splits, Zeros]:
        """Run the model as it is, with gradients inside the layers, and once more with zeros for what was split."""
        layers = self._layers()
        with outside_inference_mode((inputs, extras)) as (inputs, extras), torch.no_grad():
            begun = LayerInputs(layers)
            splits = Splits(type(self).__name__, layers, begun, rows, kind)
            with begun.watched():
                check_target(self._forward(inputs, extras, splits.add, splits.skip, differentiable=True), target)
            zeros = Zeros(splits)
            used = {one.given for found in splits.found.values() for one in found}
            if used:
                with LayerInputs(layers, zeroed=used).watched():
                    self._forward(inputs, extras, zeros.add, zeros.skip)
        return splits, zeros

    def measure(self, record: AttentionRecord, heads: str) -> Tensor:
        """||alpha f(x)||, (batch, head, query, key), or ||sum_h alpha f(x)||, (batch, query, key)."""
        return MEASURES["head_norms" if heads == "each" else "summed_norms"].compute(record)
