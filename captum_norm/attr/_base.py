"""What all methods share: the model runs once and is read, maps are made of what was read, and maps become scores.

A method is a *measure* (a matrix per attention call) times an *aggregate* (how the calls become one answer) times a
*position* (whose row is asked for).  The named classes are presets of a few lines.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._aggregate import Aggregate, AggregateType, make_aggregate
from captum_norm.attr._captum import (
    Attribution,
    as_tuple,
    explained,
    extra_arguments,
    is_tuple,
    run_forward,
)
from captum_norm.attr._encoding import captum_attribute, takes_encodings
from captum_norm.attr._examples_first import examples_first
from captum_norm.attr._forward import distinct, position_given, readable, refuse_fused_path
from captum_norm.attr._kept import KeptCalls, checked_limit
from captum_norm.attr._maps import SequenceName
from captum_norm.attr._placing import finished, spread
from captum_norm.attr._position import PositionType, Rows
from captum_norm.attr._reduction import Reduction
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._sequences import KindType, RealPositions, with_real
from captum_norm.attr._unread import refuse_opaque
from captum_norm.capture import AttentionRecord, InexactCaptureError, Opaque, Recorded, recording
from captum_norm.forward.at_hand import tensors_beside
from captum_norm.forward.inputs import other_input
from captum_norm.forward.keywords import unwrapped
from captum_norm.forward.one_mapping import by_keywords
from captum_norm.forward.outputs import output_tensor


class AttentionMethod:
    """What input-level and layer-level classes have in common.

    Attributes:
        report: what the last call of ``attribute`` to finish read, with a certificate for each attention call.  It is
            replaced as a whole: with two threads on one object it is one thread's, never a mixture.
    """

    report: AttributionReport
    reads_block: ClassVar[bool] = False
    """Whether a measure needs the block around each attention call, ``record.block``."""
    larger_blocks: ClassVar[int] = 1
    """How many times as large as others its blocks of queries are, where rows are measured a block at a time."""

    @property
    def forward_func(self) -> Callable[..., Any]:
        """The function explained; a model that takes one mapping (a sentence encoder) is called by keywords."""
        return self._forward_func

    @forward_func.setter
    def forward_func(self, forward_func: Callable[..., Any]) -> None:
        self._forward_func = by_keywords(forward_func)

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

    def _forward(
        self,
        inputs: tuple[Tensor, ...],
        extras: tuple[Any, ...],
        on_record: Callable[[AttentionRecord], None],
        on_inexact: Callable[[InexactCaptureError], None],
        differentiable: bool = False,
        on_output: Callable[[Recorded, Any], None] | None = None,
        chain: bool = False,
        over_windows: bool = False,
        real: Mapping[SequenceName, RealPositions] | None = None,
    ) -> Any:
        """The model's own output; each attention call goes to ``on_record`` as it finishes.

        Args:
            inputs, extras: what the forward function takes.
            on_record, on_inexact, differentiable, chain, over_windows: as for ``recording``.
            real: tokens that are known to be real, of each sequence: no call's masks take them for padding.
            on_output: told of the recording, while it goes on, and of the output.
        """
        model = getattr(unwrapped(self.forward_func), "model", None)
        take = (lambda record: on_record(with_real(record, real))) if real else on_record
        with (
            readable(type(self).__name__, self.forward_func, inputs, extras) as sources,
            recording(
                take,
                sources=sources,
                model=model if isinstance(model, Module) else None,
                on_inexact=on_inexact,
                differentiable=differentiable,
                blocks=self.reads_block,
                chain=chain,
                refuse_dropout=True,
                over_windows=over_windows,
                together=True,
                beside=tensors_beside(self.forward_func, (*inputs, *extras)),
            ) as recorded,
        ):
            output = run_forward(self.forward_func, inputs, extras)
            if recorded is not None:
                recorded.ends_with(output_tensor(output))
                if on_output is not None:
                    on_output(recorded, output)
            return output

    def _opaque_again(self, inputs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> tuple[Opaque, ...]:
        """What looks like an opaque part where the model runs on other inputs; nothing where it does not run."""
        found: list[Opaque] = []

        def told(recorded: Recorded, output: Any) -> None:
            found.extend(recorded.flow.opaque.parts)

        with torch.no_grad(), contextlib.suppress(ValueError, RuntimeError, IndexError, TypeError):
            self._forward(tuple(map(other_input, inputs)), extras, nothing, nothing, on_output=told)
        return tuple(found)


def nothing(_: object) -> None:
    """What is done with a record that nobody asked for."""


class InputMethod(AttentionMethod, Attribution):  # type: ignore[misc]  # Captum is not typed
    """Scores shaped as the inputs.  Every such method can stand for every other: all are asked in the same two ways.

    Attributes:
        explains: ``"position"``, what one position's representation is made of, whatever the target; or ``"target"``,
            what one output rests on.
        signed: whether scores tell for from against.
        certifies_calls: whether the report names each attention call that was read; else the method reads operations.
    """

    explains: ClassVar[Literal["position", "target"]] = "position"
    signed: ClassVar[bool] = False
    certifies_calls: ClassVar[bool] = True

    def target_at(self, row: int, token: int) -> Any:
        """The target that stands for a token's logit in a row of a language model's output."""
        return row, token

    def attribute_each(
        self,
        inputs: Tensor,
        targets: Sequence[Any] | None = None,
        positions: Sequence[int] | None = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Several answers from one forward pass: one for each position and, in methods that explain it, each target.

        Args:
            inputs: ids (batch, position) or a gate.
            targets: each as ``target`` of ``attribute``; methods that explain a position do not look at them.
            positions: the row of each answer, as many as targets; methods that follow an output back by themselves
                (``DecompX``) do not look at them.
            additional_forward_args: as in ``attribute``.

        Returns:
            (answer, batch, position), equal to the answers one by one.  ``report`` is that of the last, or of all.

        Raises:
            ValueError: without targets, where outputs are explained, or without positions; and as ``attribute``.
            TypeError, InexactCaptureError, AssertionError: as ``attribute``.
        """
        raise NotImplementedError

    def _several(self, answers: Sequence[Any] | None) -> Sequence[Any]:
        """The answers that are asked for, targets or positions.

        Raises:
            ValueError: if there are none.
        """
        if answers is None:
            what, name = ("outputs", "targets") if self.explains == "target" else ("positions", "positions")
            raise ValueError(f"{type(self).__name__}.attribute_each explains {what}: give {name}=, a list.")
        return answers


class MapMethod(InputMethod):
    """A row of the aggregated maps of a measure.

    A subclass defines :meth:`measure`, or, where a map takes more than its own record, :meth:`_read`; and it fixes in
    its constructor what its paper fixes.
    """

    def __init__(
        self, forward_func: Callable[..., Any], *, aggregate: AggregateType = "mean", residual: bool = False,
        max_memory: int | None = None,
    ) -> None:  # fmt: skip
        Attribution.__init__(self, forward_func)
        make_aggregate(aggregate, residual)
        self.aggregate = aggregate
        self.residual = residual
        self.max_memory = checked_limit(type(self).__name__, max_memory)
        self.report = AttributionReport()

    def measure(self, record: AttentionRecord) -> Tensor:
        """The matrix of one attention call, (batch, query, key)."""
        raise NotImplementedError(f"{type(self).__name__} has no matrix of one attention call by itself.")

    def _new_aggregate(self) -> Aggregate:
        """How the maps of one pass become one answer."""
        return make_aggregate(self.aggregate, self.residual)

    def _read(self, reduction: Reduction, inputs: tuple[Tensor, ...], target: Any, extras: tuple[Any, ...]) -> None:
        """Run the model, and give the reduction the map of each call."""

        def take(record: AttentionRecord) -> None:
            needed = reduction.note(record)
            if needed is not None:
                reduction.add_measured(needed, record, self.measure, self.larger_blocks)

        forward = partial(
            self._forward, inputs, extras, chain=reduction.composes, over_windows=True, real=reduction.real
        )

        def run(on_record: Callable[[AttentionRecord], None]) -> None:
            forward(on_record, reduction.skip)

        reduction.kept = KeptCalls(type(self).__name__, self.max_memory, run)
        with torch.no_grad():
            told = reduction.explains(target)
            forward(take, reduction.skip, on_output=told)

    def _reduction(
        self, position: PositionType, kind: KindType, call: int | None, device: torch.device, mixers_as_identity: bool
    ) -> Reduction:
        """What takes in the maps of one pass."""
        aggregate = self._new_aggregate()
        return Reduction(type(self).__name__, aggregate, Rows(position), kind, call, device, mixers_as_identity)

    @captum_attribute
    @examples_first
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
        """How much each input position contributes to the representation at ``position``.

        Args:
            inputs: what ``forward_func`` takes first, batch first: ids (batch, position), vectors (batch, position,
                model), a gate (batch, position) or pixels (batch, channel, height, width); or a tuple of such.  For an
                encoder-decoder, ``(input_ids, decoder_input_ids)``, or input_ids alone.  What is seen to take
                (position, batch, ...) is given that; ``target`` and ``position`` are those of an example all the same.
            target: the class, as in Captum.  It is validated as Captum does; the scores depend on it where it selects
                a row.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            position: whose representation is explained, as a position of the query axis: None for what the output
                ``target`` was read from, as seen in the data flow (a row, or a mean of rows; for an output with a row
                for every position, the last real token if every self-attention call of these queries is causal, else
                the first), unless ``HFForward(position=...)`` says otherwise; an integer (negative from the end); one
                per example (repeated in place when Captum repeats the batch); several per example, a tensor (batch,
                row); ``"mean"`` over the real tokens; ``"all"``.
            kind: ``"self"`` (causal included) or ``"cross"``.  None: inputs that are read by cross-attention are
                scored by it, all others by self-attention.
            call: which call of each attention module; None for all.
            mixers_as_identity: where calls are composed along the model, go on as if nothing else mixed positions
                between them; ``report.mixers`` says what did.

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
        given = distinct(as_tuple(inputs))
        extras = extra_arguments(additional_forward_args)
        if position is None:
            position = position_given(self.forward_func, extras)
        reduction = self._reduction(position, kind, call, given[0].device, mixers_as_identity)
        reduction.asked.texts = texts = {i: tensor.shape[1] for i, tensor in enumerate(given) if tensor.ndim == 2}
        self._read(reduction, given, target, extras)
        if reduction.explained is not None:
            chosen = partial(explained, target=target)
            refuse_fused_path(type(self).__name__, self.forward_func, given, extras, chosen, reduction.explained)
        if reduction.opaque:
            refuse_opaque(type(self).__name__, reduction.opaque, self._opaque_again(given, extras))
        real = reduction.taken_for_padding()
        if real:
            reduction = self._reduction(position, kind, call, given[0].device, mixers_as_identity)
            reduction.asked.texts, reduction.real = texts, real
            self._read(reduction, given, target, extras)
        reduction.conclude()
        read = reduction.position_read(given) if position is None else None
        if read is not None:  # another row than the one that was kept
            row, counted_in = reduction.row, reduction.to_count_in
            reduction = self._reduction(read, kind, call, given[0].device, mixers_as_identity)
            reduction.asked.texts, reduction.asked.counted_in, reduction.asked.of_input = texts, counted_in, False
            reduction.real = real
            self._read(reduction, given, target, extras)
            reduction.conclude()
            reduction.row = row
        with torch.no_grad():
            answers = [reduction.answer(index, tensor) for index, tensor in enumerate(given)]
            scores = tuple(
                finished(spread(answer.scores, like, answer.grid), like)
                for answer, like in zip(answers, given, strict=True)
            )
        left_out = tuple(answer.left_out for answer in answers)
        self.report = reduction.report(left_out)
        return scores if is_tuple(inputs) else scores[0]

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
        """The rows of several positions, (row, batch, position), from one forward pass.

        Arguments are those of ``InputMethod.attribute_each``, and of :meth:`attribute`.

        Example:
            >>> from torch import nn
            >>> from captum_norm import AttentionNorm
            >>> model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
            >>> method, gate = AttentionNorm(lambda gate: model(gate[..., None].expand(-1, -1, 8))), torch.ones(1, 5)
            >>> method.attribute_each(gate, positions=[0, 3]).shape
            torch.Size([2, 1, 5])
        """
        rows = torch.tensor([[*self._several(positions)]]).expand(len(inputs), -1)
        each = self.attribute(
            inputs, None, additional_forward_args, position=rows, kind=kind, call=call,
            mixers_as_identity=mixers_as_identity,
        )  # fmt: skip
        return each.transpose(0, 1).contiguous()
