"""What all methods share: one recorded pass of the model, a measure per attention call, an aggregate.

A method is a *measure* (a matrix per attention call) times an *aggregate* (how the calls become one answer) times a
*position* (whose row is asked for).  The named classes are presets of a few lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel

from captum_norm.attr._aggregate import Aggregate, AggregateType, make_aggregate
from captum_norm.attr._captum import Attribution, as_tuple, check_target, extra_arguments, is_tuple, logged, run_forward
from captum_norm.attr._placing import spread
from captum_norm.attr._position import PositionType, Rows
from captum_norm.attr._reduction import AttributionReport, KindType, Reduction, check_kind
from captum_norm.capture import AttentionRecord, InexactCaptureError, recording
from captum_norm.forward import HFForward
from captum_norm.forward.inputs import check_inputs


class Method:
    """What input-level and layer-level classes have in common.

    Attributes:
        report: what the last call of ``attribute`` to finish read, with a certificate for each attention call.  It is
            replaced as a whole: with two threads on one object it is one thread's, never a mixture.
    """

    forward_func: Callable[..., Any]
    report: AttributionReport
    reads_block: ClassVar[bool] = False
    """Whether a measure needs the block around each attention call, ``record.block``."""

    @classmethod
    def get_name(cls) -> str:
        """The class name as words: "Attention Norm"."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__)

    def attribute_future(self) -> None:
        """Not offered: attention is read while the model runs.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}; use attribute.")

    def _run(
        self,
        inputs: tuple[Tensor, ...],
        target: Any,
        extras: tuple[Any, ...],
        on_record: Callable[[AttentionRecord], None],
        on_inexact: Callable[[InexactCaptureError], None],
    ) -> None:
        """Run the model once, without gradients; each attention call goes to ``on_record`` as it finishes."""
        with torch.no_grad():
            check_target(self._forward(inputs, extras, on_record, on_inexact), target)

    def _forward(
        self,
        inputs: tuple[Tensor, ...],
        extras: tuple[Any, ...],
        on_record: Callable[[AttentionRecord], None],
        on_inexact: Callable[[InexactCaptureError], None],
        differentiable: bool = False,
    ) -> Any:
        """The model's own output, every attention call being recorded."""
        forward = unwrapped(self.forward_func)
        _refuse_replicas(type(self).__name__, self.forward_func)
        sources = _sources(forward, inputs, extras)
        model = getattr(forward, "model", None)
        try:
            _check_raw_model(forward, inputs, extras)
            with recording(
                on_record,
                sources=sources,
                model=model if isinstance(model, Module) else None,
                on_inexact=on_inexact,
                differentiable=differentiable,
                blocks=self.reads_block,
            ):
                return run_forward(self.forward_func, inputs, extras)
        except (RuntimeError, TypeError) as error:
            _explain_float_ids(type(self).__name__, inputs, error)
            raise


class InputAttribution(Method, Attribution):  # type: ignore[misc]  # Captum is not typed
    """Scores shaped as the inputs: a row of the aggregated maps of a measure.

    A subclass defines :meth:`measure`, and fixes in its constructor what its paper fixes.

    Attributes:
        reads_target: whether the scores depend on the target.
    """

    reads_target: ClassVar[bool] = False

    def __init__(
        self, forward_func: Callable[..., Any], *, aggregate: AggregateType = "mean", residual: bool = False
    ) -> None:
        Attribution.__init__(self, forward_func)
        make_aggregate(aggregate, residual)
        self.aggregate = aggregate
        self.residual = residual
        self.report = AttributionReport()

    def measure(self, record: AttentionRecord) -> Tensor:
        """The matrix of one attention call, (batch, query, key)."""
        raise NotImplementedError

    def _new_aggregate(self) -> Aggregate:
        """How the calls of one pass become one answer."""
        return make_aggregate(self.aggregate, self.residual)

    def _fill(self, reduction: Reduction, inputs: tuple[Tensor, ...], target: Any, extras: tuple[Any, ...]) -> None:
        """Give the reduction what it counts."""
        self._run(inputs, target, extras, reduction.add, reduction.skip)

    def _reduction(self, rows: Rows, kind: KindType, call: int | None, device: torch.device) -> Reduction:
        """What takes in the records of one pass."""
        aggregate = self._new_aggregate()
        return Reduction(type(self).__name__, self.measure, aggregate, rows, check_kind(kind), call, device)

    @logged
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        position: PositionType = None,
        kind: KindType = None,
        call: int | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """How much each input position contributes to the representation at ``position``.

        Args:
            inputs: what ``forward_func`` takes first, batch first: ids (batch, position), vectors (batch, position,
                model), a gate (batch, position) or pixels (batch, channel, height, width); or a tuple of such.  For an
                encoder-decoder, ``(input_ids, decoder_input_ids)``, or input_ids alone.
            target: the class, as in Captum.  It is validated as Captum does; the scores do not depend on it.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            position: whose representation is explained, as a position of the query axis: None for the last real token
                if every self-attention call of these queries is causal, else the first real token, unless
                ``HFForward(position=...)`` says otherwise; an integer (negative from the end); one per example
                (repeated in place when Captum repeats the batch); several per example, a tensor (batch, row);
                ``"mean"`` over the real tokens; ``"all"``.
            kind: ``"self"`` (causal included) or ``"cross"``.  None: inputs that are read by cross-attention are
                scored by it, all others by self-attention.
            call: which call of each attention module; None for all.

        Returns:
            Non-negative scores, one tensor for a tensor and a tuple for a tuple, shaped as ``inputs``; for ``"all"``
            (batch, query, position), for several rows (batch, row, position).  Where an input holds several numbers per
            position (vectors, pixels), a position's score is shared evenly by them.  float64 for models in float64,
            else float32; detached, contiguous, on the input's device; 0 at padding.

        Raises:
            TypeError: for float token ids.
            ValueError: if ``position`` is out of range or padding, if the model has no attention, or if the keys of an
                attention call are not known to be input positions (the message says why, and what works instead).
            InexactCaptureError: if an attention call cannot be read exactly.
            AssertionError: Captum's, if ``target`` does not fit the output.
        """
        given = _distinct(as_tuple(inputs))
        extras = extra_arguments(additional_forward_args)
        if position is None:
            position = position_given(unwrapped(self.forward_func), extras)
        rows = Rows(position)
        reduction = self._reduction(rows, kind, call, given[0].device)
        self._fill(reduction, given, target, extras)
        with torch.no_grad():
            answers = [reduction.scores(number, tensor) for number, tensor in enumerate(given)]
            scores = tuple(
                finished(found if rows.several else spread(found, like, grid), like)
                for (found, _, grid), like in zip(answers, given, strict=True)
            )
        self.report = AttributionReport(tuple(reduction.certificates), tuple(left_out for _, left_out, _ in answers))
        return scores if is_tuple(inputs) else scores[0]


def _distinct(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One tensor given twice (the same text to encoder and decoder) is two inputs, each with scores of its own."""
    return tuple(
        tensor.clone() if any(tensor is other for other in inputs[:number]) else tensor
        for number, tensor in enumerate(inputs)
    )


def finished(scores: Tensor, like: Tensor) -> Tensor:
    """Detached, contiguous, on the input's device."""
    return scores.detach().to(like.device).contiguous()


def unwrapped(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """The module inside DataParallel and its kind."""
    while isinstance(forward_func, DataParallel | DistributedDataParallel):
        forward_func = forward_func.module
    return forward_func


def _refuse_replicas(title: str, forward_func: Callable[..., Any]) -> None:
    modules = forward_func.modules() if isinstance(forward_func, Module) else ()
    for module in modules:
        if isinstance(module, DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"{title}: DataParallel runs replicas on devices {module.device_ids} in threads that cannot be read. "
                "Pass its .module, or DataParallel(module, device_ids=[0])."
            )


def _sources(forward: Callable[..., Any], inputs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The tensors whose positions are the inputs' positions: in gate mode, the ids that the gate belongs to."""
    gated = getattr(forward, "mode", None) == "gate" and extras and isinstance(extras[0], Tensor)
    return (extras[0], *inputs[1:]) if gated else inputs


def _check_raw_model(forward: Callable[..., Any], inputs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> None:
    """Refuse what a Hugging Face model cannot take (empty or too long texts, ids it does not know) before it runs."""
    if isinstance(forward, Module) and not isinstance(forward, HFForward):  # which checks for itself
        check_inputs(forward, (*inputs, *extras))


def position_given(forward: Callable[..., Any], extras: tuple[Any, ...]) -> PositionType:
    """HFForward's position: the last of the extras if it was passed along, else the object's own."""
    names = getattr(forward, "names", None)
    if not isinstance(names, tuple):
        return None
    passed = extras[len(names) + (getattr(forward, "mode", None) == "gate") :]
    return passed[0] if passed and passed[0] is not None else getattr(forward, "position", None)


def _explain_float_ids(title: str, inputs: tuple[Tensor, ...], error: Exception) -> None:
    """Raise what to do instead if the model refused float numbers where it looks up ids."""
    floats = [number for number, tensor in enumerate(inputs) if tensor.is_floating_point()]
    if floats and any(
        words in str(error) for words in ("'indices' to have one of the following", "looks up token ids")
    ):
        raise TypeError(
            f"{title}: inputs[{floats[0]}] holds float numbers, but the model looks up token ids (long). Methods that "
            "add noise to the inputs or scale them (NoiseTunnel, sensitivity_max) need HFForward(model, mode='gate') "
            "or mode='embeds'."
        ) from error
