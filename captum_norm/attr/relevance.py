"""Which inputs one output of the model rests on: attention weights and their gradients, along the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_norm.attr._aggregate import Aggregate
from captum_norm.attr._base import MapMethod
from captum_norm.attr._captum import extra_arguments, selected
from captum_norm.attr._encoding import captum_attribute, takes_encodings
from captum_norm.attr._forward import outside_inference_mode
from captum_norm.attr._maps import call_map, without_padding
from captum_norm.attr._paths import Relevance
from captum_norm.attr._placing import finished
from captum_norm.attr._position import PositionType
from captum_norm.attr._reduction import Reduction, skipping
from captum_norm.attr._sequences import KindType
from captum_norm.capture import AttentionRecord, Recorded
from captum_norm.functional import gradient_weights
from captum_norm.functional.precision import full_precision


class AttentionRelevance(MapMethod):
    """A row of R, to which each attention call adds what it passes on of R: R <- R + Abar R, R = I to begin with.

    Abar = mean_h max(0, (dL/dalpha_h) * alpha_h), with L the output ``target``: weights count where more of them would
    have raised L.  Where a sequence s attends to another one q, R_sq <- R_sq + Rbar_ss^T Abar Rbar_qq with
    Rbar = I + (R - I) / row sum, so that ``(input_ids, decoder_input_ids)`` both have scores.

    One forward and one backward pass.  The gradient with respect to alpha is taken from the gradient of the mixed
    values, (dL/d(alpha V)) V^T, so no eager attention is needed; memory is that of the graph, and the weights of all
    calls.  Scores are non-negative and not normalised; a position's own score includes the 1 that it begins with.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.

    Source: Chefer et al. (2021), "Generic Attention-model Explainability", equations 5 to 10,
    https://arxiv.org/abs/2103.15679.  The authors set the first token's own score to zero before they show a row; here
    it is kept.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> method = AttentionRelevance(lambda x: encoder(x)[:, 0])  # eight classes, read off the first position
        >>> scores = method.attribute(torch.randn(1, 3, 8), target=5).sum(-1)
        >>> scores.shape, bool((scores >= 0).all()), bool(scores[0, 0] >= 1)
        (torch.Size([1, 3]), True, True)
    """

    explains = "target"

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        super().__init__(forward_func, aggregate="rollout")

    def _new_aggregate(self) -> Aggregate:
        return Relevance()

    @captum_attribute
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        position: PositionType = None,
        kind: KindType = None,
        call: int | None = None,
        mixers_as_identity: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """The relevance of each input position to the output ``target``, by way of the representation at ``position``.

        Args:
            inputs: what ``forward_func`` takes first, batch first: ids (batch, position), vectors (batch, position,
                model), a gate (batch, position) or pixels (batch, channel, height, width); or a tuple of such.  For an
                encoder-decoder, ``(input_ids, decoder_input_ids)``, or input_ids alone.
            target: which output is explained, as in Captum: a class, one for each example, or a tuple of indices where
                the output has more axes.  It may be left out only where there is one number per example.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            position: whose row of R is given, as a position of the query axis, which should be where ``target`` is read
                off: None for that, as seen in the data flow, unless ``HFForward(position=...)`` says otherwise; an
                integer (negative from the end); one per example (repeated in place when Captum repeats the batch);
                ``"mean"`` over the real tokens; ``"all"``.
            kind: ``"self"`` (causal included) or ``"cross"``: only these calls add to R.  None: all.
            call: which call of each attention module; None for all.
            mixers_as_identity: go on as if nothing but attention mixed positions; ``report.mixers`` says what did.

        Returns:
            Non-negative scores, one tensor for a tensor and a tuple for a tuple, shaped as ``inputs``; for ``"all"``
            (batch, query, position).  Where an input holds several numbers per position (vectors, pixels), a
            position's score is shared evenly by them.  float64 for models in float64, else float32; detached,
            contiguous, on the input's device; 0 at padding.

        Raises:
            TypeError: for float token ids.
            ValueError: if ``target`` is missing where the output has several numbers per example, if the output or an
                attention call runs without a gradient, if ``position`` is out of range or padding, if the model has no
                attention, or if the keys of an attention call are not known to be input positions.
            InexactCaptureError: if an attention call cannot be read exactly.
            AssertionError: Captum's, if ``target`` does not fit the output.
        """
        return super().attribute(
            inputs, target, additional_forward_args, position=position, kind=kind, call=call,
            mixers_as_identity=mixers_as_identity,
        )  # fmt: skip

    @takes_encodings
    def attribute_each(
        self,
        inputs: Tensor,
        targets: Sequence[Any] | None = None,
        positions: Sequence[int] | None = None,
        additional_forward_args: Any = None,
        *,
        kind: KindType = None,
        call: int | None = None,
        mixers_as_identity: bool = False,
    ) -> Tensor:
        """Several outputs, (target, batch, position), of one forward pass, with a backward pass for each.

        Without positions each has its default row.
        """
        targets = self._several(targets)
        rows = [None] * len(targets) if positions is None else positions
        reductions = [self._reduction(row, kind, call, inputs.device, mixers_as_identity) for row in rows]
        for reduction in reductions:
            reduction.asked.texts = {0: inputs.shape[1]} if inputs.ndim == 2 else {}
        self._explain(reductions, (inputs,), targets, extra_arguments(additional_forward_args))
        for reduction in reductions:
            reduction.conclude()
        answers = [reduction.answer(0, inputs) for reduction in reductions]
        left_out = torch.stack([answer.left_out for answer in answers], dim=1)
        self.report = reductions[0].report((left_out,))
        return torch.stack([finished(answer.scores, inputs) for answer in answers])

    def _read(self, reduction: Reduction, inputs: tuple[Tensor, ...], target: Any, extras: tuple[Any, ...]) -> None:
        self._explain([reduction], inputs, [target], extras)

    def _explain(
        self, reductions: Sequence[Reduction], inputs: tuple[Tensor, ...], targets: Sequence[Any],
        extras: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """One forward pass, and for each target a backward pass, whose maps go to a reduction of its own."""
        title, records = type(self).__name__, list[AttentionRecord]()
        with outside_inference_mode((inputs, extras)) as (inputs, extras), torch.enable_grad():

            def told(recorded: Recorded, output: Any) -> None:
                for reduction, target in zip(reductions, targets, strict=True):
                    reduction.explains(target)(recorded, output)

            try:
                output = self._forward(
                    inputs, extras, records.append, skipping(reductions), differentiable=True, on_output=told,
                    chain=True, over_windows=True, real=reductions[0].real,
                )  # fmt: skip
            except RuntimeError as error:
                if type(error) is RuntimeError and any(words in str(error) for words in _WITHOUT_GRADIENTS):
                    raise _not_with_gradients(title, error) from error
                raise
            for reduction, target in zip(reductions, targets, strict=True):
                counted = reduction.resting(records)
                explained = selected(output, target, title).sum() if counted else None
                keep = reduction is not reductions[-1]
                gradients = iter(() if explained is None else weight_gradients(counted, explained, title, keep))
                resting = {id(record) for record in counted}
                for record in records:
                    gradient = next(gradients) if id(record) in resting else None
                    if reduction.note(record) is not None and gradient is not None:
                        reduction.add(call_map(record, _relevant(record, gradient)))


# What torch says of an operation that runs without gradients alone.
_WITHOUT_GRADIENTS = ("requires grad", "being modified inplace")


def _not_with_gradients(caller: str, error: RuntimeError) -> ValueError:
    return ValueError(
        f"{caller}: the model does not run with gradients ({str(error).splitlines()[0].rstrip('.')}). What is written "
        "into memory that is there, by out= or in place, has to be a new tensor (y = torch.matmul(a, v) for out=y), "
        "and what leaves torch has to be detached; methods without gradients need neither."
    )


def _relevant(record: AttentionRecord, gradient: Tensor) -> Tensor:
    """Abar = mean_h max(0, (dL/dalpha_h) * alpha_h), (batch, query, key)."""
    weights = without_padding(record).weights
    return gradient_weights(weights, gradient.masked_fill(weights == 0, 0))  # some models give NaN at padding


def weight_gradients(
    records: Sequence[AttentionRecord], explained: Tensor, caller: str, keep: bool = False
) -> list[Tensor]:
    """dL/dalpha of each attention call, from the gradient of its mixed values.

    Args:
        records: recorded with ``differentiable=True``.
        explained: L, a number.
        caller: who asks, for errors.
        keep: whether the graph is needed again, for another L.

    Returns:
        (batch, head, query, key) for each record, float32 at least.

    Raises:
        ValueError: if the graph does not lead from L to a call, or the model has no gradient of its own.
    """
    edges = [edge for record in records for edge in _edges(record)]
    if not explained.requires_grad:
        raise ValueError(
            f"{caller}: the output has no gradient, which says what it rests on: forward_func runs under "
            "torch.no_grad(), or detaches its output."
        )
    try:
        each = iter(torch.autograd.grad(explained, edges, retain_graph=keep, allow_unused=True))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"{caller}: the model's own gradient cannot be computed ({str(error).split('. ')[0]}). What is overwritten "
            "in place has to be a new tensor where its gradient is needed (x = x + y for x += y), and a custom "
            "autograd Function needs its backward; methods without gradients need neither."
        ) from error
    found = [[next(each) for _ in _edges(record)] for record in records]
    without = [any(gradient is None for gradient in gradients) for gradients in found]
    missing = [record.call for record, lacks in zip(records, without, strict=True) if lacks]
    if missing:
        raise ValueError(
            f"{caller}: the output explained has no gradient with respect to attention call {missing[0].name!r} "
            f"({missing[0].kind}, call {missing[0].call}) and {len(missing) - 1} more: that part of the model runs "
            "without gradients (under torch.no_grad(), or in integers: dequantise a quantised model), or is not used "
            "for this output. kind= leaves calls out."
        )
    return [_of_weights(record, gradients) for record, gradients in zip(records, found, strict=True)]


def _edges(record: AttentionRecord) -> list[GradientEdge]:
    assert record.mixed is not None
    return record.mixed.edges


def _of_weights(record: AttentionRecord, gradients: Sequence[Tensor]) -> Tensor:
    """(dL/d(alpha V)) V^T."""
    assert record.mixed is not None
    dtype = torch.promote_types(record.values.dtype, torch.float32)
    values = record.values.to(dtype)
    mixed = record.mixed.arranged(gradients, values.shape[-1]).to(dtype)
    with full_precision(values.device):
        return mixed @ values.mT
