"""What an output rests on: the rows it was read from, the attention calls that reach it, and what mixed positions last.

Known from the data flow (:mod:`captum_norm.capture.dataflow`) once the model has run, for the tensor that is explained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from captum_norm.capture.call import Mixer
from captum_norm.capture.chain import Starts
from captum_norm.capture.dataflow import Dataflow
from captum_norm.capture.ledger import Softmax
from captum_norm.capture.opaque import Opaque
from captum_norm.capture.reach import INPUT
from captum_norm.capture.readout import is_of_other_examples
from captum_norm.capture.record import AttentionRecord
from captum_norm.capture.traces import RowsRead
from captum_norm.operations.places import Anchor, Source

HowRead = Literal["rows", "every position", "out of order", "other examples", "unseen", "no attention"]


@dataclass(frozen=True)
class Answer:
    """What the explained numbers were made of.

    Attributes:
        reach: the bits of the attention calls that they were made of; 0 where none is known to reach them.
        how: ``"rows"``: they were read from the rows in ``rows``; ``"every position"``: each position has its own;
            ``"out of order"``: likewise, and they lie otherwise than the positions do; ``"other examples"``: those
            of an example were read from another one; ``"unseen"``: they were read from several rows in a way that was
            not followed; ``"no attention"``: no attention call is known to reach them.
        rows: the rows, for ``"rows"``.
        given: for ``"every position"``, the sequence and which positions of it the output's rows are, (batch, row),
            less than 0 for what is no input; None where its rows are not along its second axis.
        mixers: what mixed positions beside attention on the way to them.
        marks: what they were made of (:mod:`captum_norm.capture.chain`), if that is asked for; ``where`` more than one
            thing was put together in them, and the ``starts`` of all sequences.
        lost: the softmaxes over positions on the way to them whose weights were not seen to meet values.
        opaque: the parts on the way to them that could not be looked into, or the constants that look like one.
        softmaxes: all that ran, whether on the way or not.
        of_inputs: the explained numbers were made of the inputs whose positions are followed.
    """

    reach: int = 0
    how: HowRead = "no attention"
    rows: RowsRead | None = None
    given: tuple[Source, Tensor] | None = None
    mixers: tuple[Mixer, ...] = ()
    marks: int | None = None
    where: str = ""
    starts: Starts = field(default_factory=Starts)
    lost: tuple[Softmax, ...] = ()
    opaque: tuple[Opaque, ...] = ()
    softmaxes: tuple[Softmax, ...] = ()
    of_inputs: bool = False

    def rests_on(self, record: AttentionRecord) -> bool:
        """Whether an attention call reaches what is explained; True for all where no call is known to."""
        return not self.reach or not record.bit or bool(self.reach & record.bit)


class Recorded(list[AttentionRecord]):
    """The records of a recording, and what an output rests on while it goes on.

    Attributes:
        flow: what is known of the running model.
    """

    flow: Dataflow

    def numbers(self, output: Tensor) -> Tensor | None:
        """Which position each entry of an output belongs to, ``b * length + position`` as its source is numbered.

        Of its shape, less than 0 for what is no input; None where it is not known.
        """
        with torch._C.DisableTorchFunction():
            return _numbers(self.flow, output)

    def ends_with(self, output: Tensor | None) -> None:
        """This is the model's output: what has no part in it says nothing against a call.  None where there is none."""
        with torch._C.DisableTorchFunction():
            self.flow.output_bits = None if output is None else self.flow.reach.of(output)
            if output is not None:
                self.flow.factors.end_with(output)

    def answer(self, explained: Tensor | None, select: Callable[[Tensor], Tensor]) -> Answer:
        """What an output of the model rests on.

        Args:
            explained: the output; None where there is none.
            select: what is explained of it.
        """
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self.ends_with(explained)
            bits = self.flow.output_bits or 0
            opaque = () if explained is None else self.flow.opaque.on_the_way_to(explained)
            lost, reach = self.flow.ledger.lost_on_the_way_to(bits), bits & self.flow.calls
            softmaxes, chain = tuple(self.flow.ledger.entries), self.flow.chain
            if explained is None or not reach:
                return Answer(lost=lost, opaque=opaque, softmaxes=softmaxes)
            answer = _answer(self.flow, explained, reach, select)
            answer = replace(answer, lost=lost, opaque=opaque, softmaxes=softmaxes, of_inputs=bool(bits & INPUT))
            if chain is None:
                return answer
            marks = chain.of(explained)
            return replace(answer, marks=marks, where=chain.where(marks), starts=chain.starts)


def _answer(flow: Dataflow, explained: Tensor, reach: int, select: Callable[[Tensor], Tensor]) -> Answer:
    trace, numbers = flow.traces[explained], _numbers(flow, explained)
    place = None if trace is None else trace.place
    if place is None or numbers is None:
        rows = flow.rows.of(explained)
        known = place if rows is None else rows
        mixers: frozenset[object] = frozenset() if known is None else known.mixers
        return Answer(reach, "unseen" if rows is None else "rows", rows, mixers=_listed(mixers))
    chosen = _without_repeats(select(numbers)).reshape(len(numbers), -1)
    if is_of_other_examples(_without_repeats(numbers), place.anchor):
        return Answer(reach, "other examples", mixers=_listed(place.mixers))
    of_each = _one_row_of_each(chosen, place.anchor)
    chosen = torch.where(chosen < 0, chosen, chosen % place.anchor.length)
    if of_each is not None:
        rows = RowsRead(of_each, torch.ones(of_each.shape), frozenset((place.anchor.source,)), place.mixers)
        return Answer(reach, "rows", rows, mixers=_listed(place.mixers))
    if not torch.equal(chosen, chosen[:, :1].expand_as(chosen)):
        rows_given = _rows_given(numbers)
        if rows_given is None:
            return Answer(reach, "every position", mixers=_listed(place.mixers))
        if bool(((rows_given < rows_given.cummax(1).values) & (rows_given >= 0)).any()):
            return Answer(reach, "out of order", mixers=_listed(place.mixers))
        given = torch.where(rows_given < 0, rows_given, rows_given % place.anchor.length)
        return Answer(reach, "every position", given=(place.anchor.source, given), mixers=_listed(place.mixers))
    rows = RowsRead(chosen[:, :1], torch.ones(len(chosen), 1), frozenset((place.anchor.source,)), place.mixers)
    return Answer(reach, "rows", rows, mixers=_listed(place.mixers))


def _one_row_of_each(chosen: Tensor, anchor: Anchor) -> Tensor | None:
    """The position of each example that was read, (batch, 1), whatever examples each row of an output (row, entry) is
    made of, as where each text is compared with each picture; None where of one none or several were read."""
    examples, length = anchor.shape[0], anchor.length
    if examples == 1 or not chosen.numel() or bool((chosen < 0).any()):
        return None
    example, position = (chosen // length).flatten(), (chosen % length).flatten()
    read = torch.full((examples,), -1).scatter(0, example, position)
    return read[:, None] if bool((read >= 0).all() and (read[example] == position).all()) else None


def _rows_given(numbers: Tensor) -> Tensor | None:
    """The number of each row of an output (batch, row, ...), (batch, row); None where a row is of several positions."""
    rows = _without_repeats(numbers).flatten(2) if numbers.ndim > 2 else numbers[..., None]
    if not torch.equal(rows, rows[..., :1].expand_as(rows)):  # an axis of channels, or of windows
        return None
    return rows[..., 0]


def _without_repeats(numbers: Tensor) -> Tensor:
    """One entry of each axis but the first along which all are the same piece of memory, as along a vocabulary."""
    for axis in range(1, numbers.ndim):
        if numbers.stride(axis) == 0 and numbers.shape[axis]:
            numbers = numbers.narrow(axis, 0, 1)
    return numbers


def _numbers(flow: Dataflow, output: Tensor) -> Tensor | None:
    trace = flow.traces[output]
    numbers = None if trace is None or trace.place is None else trace.place.numbers()
    return None if numbers is None or numbers.shape != output.shape else numbers


def _listed(mixers: frozenset[object]) -> tuple[Mixer, ...]:
    return tuple(sorted((mixer for mixer in mixers if isinstance(mixer, Mixer)), key=str))
