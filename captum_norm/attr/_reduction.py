"""One pass over a model: takes the map of each attention call in turn and keeps no more than the answer needs.

Axes: b batch, h head, q query, r row asked for, k key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from captum_norm.attr._aggregate import Aggregate, Single
from captum_norm.attr._captum import check_target, select
from captum_norm.attr._chain import at_once, not_a_chain, within_another
from captum_norm.attr._input_routes import refuse_among_others, refuse_read_beside_others, route_for
from captum_norm.attr._kept import KeptCalls
from captum_norm.attr._logit import LogitParts
from captum_norm.attr._maps import (
    CallMap,
    LaterMap,
    MeasureFunction,
    Route,
    SequenceName,
    call_map,
    measured,
    route_of,
    sum_of_rows,
)
from captum_norm.attr._padding import special_ids, warn_of_padding
from captum_norm.attr._paths import Rollout
from captum_norm.attr._placing import count_positions, place, share_left_out
from captum_norm.attr._position import PositionType, Rows, same_position
from captum_norm.attr._read_out import counts_of_unknown, queries_differ
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._rows_asked import RowsAsked
from captum_norm.attr._sequences import KindType, RealPositions, Sequences, check_kind, matches
from captum_norm.attr._unread import (
    different_queries,
    no_such_row,
    not_read,
    nothing_seen,
    real_too_late,
    refuse_lost,
    refuse_mixers,
    refuse_no_chain,
    refuse_unknown_keys,
    refuse_within,
    rows_of_others,
    unseen_rows,
)
from captum_norm.capture import (
    Answer,
    AttentionCall,
    AttentionRecord,
    Certificate,
    InexactCaptureError,
    Mixer,
    Opaque,
    Positions,
    Recorded,
    RowsRead,
)
from captum_norm.forward.outputs import output_tensor
from captum_norm.functional.precision import full_precision


@dataclass(frozen=True)
class Scores:
    """What a pass says of one input.

    Attributes:
        scores: (batch, position) or, for several rows, (batch, row, position).
        left_out: the share of the row that went to keys that are no input, (batch,) or (batch, row).
        grid: the spatial shape of the positions, where they have one.
    """

    scores: Tensor
    left_out: Tensor
    grid: tuple[int, ...] | None


class Reduction:
    """Turns the maps of a pass into the scores of each input, one call at a time.

    Each record is noted first, which says whether its map counts and which rows of it; then the map is added.

    Args:
        title: the method's name, for errors.
        aggregate: how the calls' maps become one.
        rows: which rows are asked for.
        kind: which attention calls count; None for the model's last sequence and whatever it reads.
        call: which call of each module counts; None for all.
        device: where the scores are wanted.
        mixers_as_identity: compose calls as if what mixed positions between them had not.

    Attributes:
        certificates: each call seen with its certificate, in call order.
        mixers: what mixed positions beside attention on the way to the calls that count.
        asked: which rows are needed of each call, and of the answer.
        kept: the calls that are measured when the model has run.
        real: tokens of each sequence that a pass before has shown to be real.
    """

    def __init__(
        self, title: str, aggregate: Aggregate, rows: Rows, kind: KindType, call: int | None, device: torch.device,
        mixers_as_identity: bool = False,
    ) -> None:  # fmt: skip
        self._title, self._aggregate, self._rows = title, aggregate, rows
        self._kind, self._call, self._device = check_kind(kind), call, device
        self._sequences = Sequences()
        self.asked = RowsAsked(title, rows, aggregate, self._sequences)
        self._unknown: list[tuple[AttentionCall, str]] = []
        self._mixers_as_identity = mixers_as_identity
        self.certificates: list[tuple[AttentionCall, Certificate]] = []
        self.mixers: dict[Mixer, None] = {}
        self.unused: list[AttentionCall] = []
        self.row: Literal["read", "convention", ""] = "" if rows.position is not None else "convention"
        self._noted: list[_Noted] = []
        self._refused: list[InexactCaptureError] = []
        self._later: dict[int, LaterMap] = {}
        self._read = Answer()
        self.explained: Tensor | None = None
        self._real: list[Tensor | None] = []
        self._differ = False
        self._used: list[AttentionRecord] = []
        self._last: SequenceName | None = None
        self._no_chain = ""
        self._within: dict[SequenceName, AttentionRecord] = {}
        self._seen: list[AttentionRecord] = []
        self._special: tuple[int | None, frozenset[int]] | None = None
        self.kept = KeptCalls(title, None, lambda take: None)
        self.real: Mapping[SequenceName, RealPositions] = {}

    def note(self, record: AttentionRecord) -> AttentionRecord | None:
        """Take note of the next call: its record with the rows that are needed, or None if its map does not count."""
        route = self._sequences.note(record)
        self._last = None if route is None else route[0]
        if self._special is None:
            self._special = special_ids(record.call.modules)
        counts = self.counts(record.call)
        needed = self.asked.needed(record, route[0]) if counts and route is not None else None
        call = record.call.without_modules
        self.certificates.append((call, record.certificate))
        light = record.but(
            weights=_NOTHING, call=call, values=_NOTHING, W_O=_NOTHING, b_O=None, gate=None, mixed=None, block=None
        )
        if self._call in (None, record.call.call):
            self._seen.append(light)
        if not counts:
            return None
        self._noted.append(_Noted(light, record.shape[2]))
        return needed

    def add_measured(
        self, needed: AttentionRecord, record: AttentionRecord, measure: MeasureFunction, larger: int = 1
    ) -> None:
        """Measure the call that was noted last: the rows that the answer needs, now or when it is known which they are.

        Args:
            needed: what ``note`` gave.
            record: the call, whole.
            measure: its measure.
            larger: how many times as large as others its blocks of queries are.
        """
        later = None
        if not self._rows.all and self._aggregate.needs == "rows from the top":
            number = len(self.certificates) - 1
            later = LaterMap.of(record, measure, lambda record: self.kept.keep(number, record), larger)
        shares = None if self._last is None else self.asked.shares(self._last)
        if later is not None:
            self.add(later)
        else:
            self.add_made(
                lambda: call_map(record, measured(needed, measure)) if shares is None
                else sum_of_rows(record, measure, shares)
            )  # fmt: skip
        self.certificates[-1] = (self.certificates[-1][0], record.certificate)

    def add(self, one: CallMap | LaterMap) -> None:
        """Take in the map of the call that was noted last, with the rows that the answer needs."""
        self._noted[-1].map = one
        if isinstance(one, LaterMap):
            self._later[len(self.certificates) - 1] = one

    def add_made(self, make: Callable[[], CallMap | LaterMap]) -> None:
        """The same for a map that is yet to be made; why it cannot be is said if the answer rests on the call."""
        try:
            self.add(make())
        except ValueError as error:
            self._noted[-1].error = error

    @property
    def composes(self) -> bool:
        """Whether the maps of calls are composed along the model."""
        return self._aggregate.needs != "rows"

    def explains(self, target: Any) -> Callable[[Recorded, Any], None]:
        """What is to be told of an output: it sees what ``target`` selects of it rests on."""

        def told(recorded: Recorded, output: Any) -> None:
            check_target(output, target)
            found = output_tensor(output)
            self._read = recorded.answer(found, lambda tensor: select(tensor, target))
            self.explained = None if found is None else select(found.detach(), target)

        return told

    def conclude(self) -> None:
        """Make the answer of the maps of all calls that what is explained rests on.

        Raises:
            InexactCaptureError: if a call or a softmax over positions is on the way to it that was not read.
        """
        self.refuse()
        if self._call is None:
            refuse_lost(self._title, self._read.lost)
        late = self.taken_for_padding()
        if late:
            raise ValueError(real_too_late(self._title))
        resting = {id(record) for record in self.resting([noted.record for noted in self._noted])}
        used = [noted for noted in self._noted if id(noted.record) in resting]
        self._used = [noted.record for noted in used]
        self.unused = [noted.record.call for noted in self._noted if noted not in used]
        self.asked.rest_on([(noted.record, noted.queries) for noted in used])
        for noted in used:
            self.mixers |= dict.fromkeys(noted.record.mixers)
            if noted.record.keys is None:
                self._unknown.append((noted.record.call, noted.record.unknown_keys))
        if not self.composes and self.asked.counted_in is None:
            self._differ = queries_differ([noted.record for noted in used])
        if self._differ and self._rows.position is not None and not self._counts_in_one_call(used):
            counts = [len(noted.record.queries.index) for noted in used if noted.record.queries is not None]
            raise ValueError(different_queries(self._title, counts))
        counts = [] if self.composes else counts_of_unknown([(noted.record, noted.queries) for noted in used])
        if counts:
            raise ValueError(different_queries(self._title, counts))
        if self.composes:
            rested_on = [one for one in self._seen if self._read.rests_on(one)]
            with_inputs = self._with_inputs(rested_on, self._seen)
            apart = [one for one in rested_on if all(one is not other for other in with_inputs)]
            self._no_chain = not_a_chain(with_inputs, self._read, apart)
            self._within = within_another(with_inputs, self._read)
        last = [route for noted in used if (route := route_of(noted.record)) is not None][-1:]
        self._last = last[0][0] if last else self._last
        beside = at_once([noted.record for noted in used])
        for noted in used:
            if noted.error is not None:
                raise noted.error
            if isinstance(noted.map, CallMap) and noted.record.bit in beside:
                noted.map = replace(noted.map, at_once=True)
            if noted.map is not None:
                self._add_known(noted.map)

    def taken_for_padding(self) -> dict[SequenceName, RealPositions]:
        """The real tokens of each sequence, if a call was measured that takes one for padding, whose row is zero."""
        read = self._read.rows
        for source in () if read is None else read.sources:
            axis = self.asked.axis_of(source)
            weights = None if axis is None or axis.real is None or read is None else axis.weights(read)
            if weights is not None:
                self._sequences.read(source, weights != 0)
        return self._sequences.taken_for_padding([noted.record for noted in self._noted])

    def _counts_in_one_call(self, used: Sequence[_Noted]) -> bool:
        """Whether rows are asked of one call of each route alone, whose own queries they then count."""
        if not isinstance(self._aggregate, Single):
            return False
        chosen = [used[number] for number in self._aggregate.of_each([route_of(one.record) for one in used])]
        records = [one.record for one in chosen]
        self.asked.rest_on([(one.record, one.queries) for one in chosen])
        return not queries_differ(records) and not self.asked.some_ask_for_no_token(records)

    def _add_known(self, one: CallMap | LaterMap) -> None:
        """Add a map; one that does not fit to others may be a piece of a call whose other pieces are not known."""
        try:
            self._add(one)
        except ValueError:
            refuse_unknown_keys(f"{self._title}: what was given", self._unknown)
            raise

    def _add(self, one: CallMap | LaterMap) -> None:
        if isinstance(one, LaterMap):
            if isinstance(self._aggregate, Rollout | LogitParts):
                self._aggregate.add(one)
                return
            one = one.whole()
        residual = None if one.residual is None else one.residual.to(self._device)
        one = replace(one, scores=one.scores.to(self._device), residual=residual)
        # The model may be running under autocast, which would take products of maps to half precision.
        with full_precision(self._device):
            self._aggregate.add(one)

    def position_read(self, given: Sequence[Tensor]) -> PositionType:
        """The position that the output was read from, where other rows were kept; None where they are these.

        Raises:
            ValueError: if the output was read from several rows in a way that was not followed.
        """
        read = self._position_read(given)
        return self.asked.default_row(self._route(0, given[0])[0]) if read is None else read

    def _position_read(self, given: Sequence[Tensor]) -> PositionType:
        """The position that the output was read from, where the default is another one; None where it is that."""
        read = self._read
        behind = [mixer for mixer in read.mixers if mixer not in self.mixers]
        queries, keys = self._route(0, given[0])  # what no position helps against comes first
        axis = self.asked.axis(queries)
        within = queries not in (keys, self._last) and self._kind is None and axis.length > 1
        if read.how in ("unseen", "out of order", "other examples") or behind or within:
            raise ValueError(unseen_rows(self._title, behind, read.how))
        if read.rows is None and axis.leaves_out_the_default([noted.record for noted in self._noted]):
            raise ValueError(different_queries(self._title, [axis.length]))
        missing = None if read.given is None else axis.default_missing(*read.given)
        if missing is not None:
            raise ValueError(no_such_row(self._title, missing))
        sequences = [self._route(index, one)[0] for index, one in enumerate(given)]
        if read.rows is not None and self._kind is None and set(sequences) != {self._last} & read.rows.sources:
            return self._position_in_each(sequences, read.rows)
        if queries != self._last or (read.rows is None and not self._differ):
            return None  # also of an encoder by itself, whose output is not what was returned
        weights = axis.default_weights() if read.rows is None else axis.weights(read.rows)
        if weights is None and read.rows is not None:
            raise ValueError(unseen_rows(self._title, behind))
        if self._differ and (weights is None or not bool((weights == 1).any(1).all())):
            raise ValueError(different_queries(self._title, [axis.length]))
        if weights is None:
            return None
        self.row = "convention" if read.rows is None else "read"
        return weights.argmax(1) if self._differ else axis.position(weights)

    def _position_in_each(self, sequences: Sequence[SequenceName], read: RowsRead) -> PositionType:
        """The position that the output was read from in each of these sequences, one for each input, where they are not
        the last call's alone, or what was read is another one's: two texts through one encoder.

        Raises:
            ValueError: if it was not read from all of them, or from another position of each.
        """
        found: list[PositionType] = []
        for index, sequence in enumerate(sequences):
            axis = self.asked.axis(sequence)
            weights = axis.weights(read) if sequence in read.sources and not self._differ else None
            position = None if weights is None else axis.position(weights)
            if weights is None or (found and not same_position(position, found[0])):
                raise ValueError(rows_of_others(self._title, index))
            found.append(position)
        self.row = "read"
        return found[0]

    @property
    def to_count_in(self) -> Positions | None:
        """The queries of the last call, where those of other calls differ from them; else None."""
        return self.asked.positions(self._last) if self._differ and self._last is not None else None

    @property
    def opaque(self) -> tuple[Opaque, ...]:
        """The parts on the way to what is explained that may be opaque."""
        return self._read.opaque

    def report(self, left_out: tuple[Tensor, ...]) -> AttributionReport:
        """What the answer rests on."""
        for number, later in self._later.items():
            self.certificates[number] = (self.certificates[number][0], later.record.certificate)
        return AttributionReport(
            tuple(self.certificates), left_out, tuple(self.mixers), tuple(self.unused), self._read.softmaxes,
            tuple(self._real), self.row,
        )

    def skip(self, error: InexactCaptureError) -> None:
        """Let a call that could not be read pass if its number is not asked for (its kind is not known).

        Others are kept until it is known whether what is explained rests on them.
        """
        if error.call is None or self._call in (None, error.call.call):
            if not error.bit:
                raise error
            self._refused.append(error)

    def refuse(self) -> None:
        """Refuse if what is explained rests on a call that could not be read.

        Raises:
            InexactCaptureError: that of the first such call.
        """
        for error in self._refused:
            if not self._read.reach or self._read.reach & error.bit:
                raise error

    def counts(self, call: AttentionCall) -> bool:
        """Whether a call is asked for."""
        return matches(call, self._kind) and self._call in (None, call.call)

    def resting(self, records: Sequence[AttentionRecord]) -> list[AttentionRecord]:
        """Of all calls of a pass those that count, and that what is explained rests on."""
        found = [one for one in records if self.counts(one.call) and self._read.rests_on(one)]
        return self._with_inputs(found, records)

    def _with_inputs(self, found: list[AttentionRecord], of: Sequence[AttentionRecord]) -> list[AttentionRecord]:
        """Of the calls found in a pass those that have something of the inputs in them at one end or the other, as a
        picture's beside a text have not."""
        if not self._read.of_inputs:
            return found
        made = [one for one in of if one.of_inputs]
        theirs = {one.sequence for one in made} | {one.queries.source for one in made if one.queries is not None}
        return [one for one in found if one.of_inputs or isinstance(one.sequence, int) or one.sequence in theirs]

    def answer(self, index: int, like: Tensor) -> Scores:
        """The scores of one input, ``like``, which is the one with this index.

        Raises:
            ValueError: if no map, or more than one, says what becomes of the input, if the rows asked for do not exist,
                or if its scores are not finite.
        """
        route = self._route(index, like)
        keys = self._aggregate.keys(route)
        row = self.asked.of(route, self._device)
        real = self._sequences.real(route[1])
        self._real.append(real)
        if real is None and self._special is not None:
            warn_of_padding(self._title, index, like, *self._special)
        elif real is not None and real.shape[1] == row.shape[-1]:
            row = row.masked_fill(~_beside(real, row).to(row.device), 0)
        if len(row) != len(like):
            raise ValueError(
                f"{self._title}: inputs[{index}] is a batch of {len(like)}, but the model attended over a batch of "
                f"{len(row)}: its maps cannot be told apart by example. Use attention_maps or a Layer class."
            )
        placed = place(row, keys, count_positions(like, keys))
        if not torch.isfinite(placed).all():
            raise ValueError(f"{self._title}: inputs[{index}] has scores that are not finite: the model computes NaN.")
        return Scores(placed, share_left_out(row, placed), keys.grid)

    def _route(self, index: int, like: Tensor) -> Route:
        """Which map answers for an input.

        Raises:
            ValueError: if none does, or more than one, or it rests on something that was not read.
        """
        title = f"{self._title}: inputs[{index}]"
        route = route_for(title, index, like, self._aggregate, self._sequences, self._last)
        if route is None:
            raise ValueError(self._nothing_for(index, like))
        crosses = route[0] != route[1]
        matter = [one for one in self._unknown if self.composes or not crosses or one[0].kind == "cross"]
        refuse_unknown_keys(title, matter)
        if not self.composes and route[0] != self._last and (self._kind, self._call) == (None, None):
            refuse_read_beside_others(title, route, self._used)
        if self.composes:
            refuse_mixers(title, () if self._mixers_as_identity else tuple(self.mixers))
            refuse_no_chain(title, self._no_chain)
            refuse_within(title, self._within.get(route[0]))
        refuse_among_others(title, route, self._used)
        return route

    def _nothing_for(self, index: int, like: Tensor) -> str:
        refuse_unknown_keys(f"{self._title}: inputs[{index}]", self._unknown)
        if not self.certificates:
            return nothing_seen(self._title)
        asked = "" if (self._kind, self._call) == (None, None) else f" with kind={self._kind!r}, call={self._call!r}"
        calls = [call for call, _ in self.certificates]
        return not_read(f"{self._title}: inputs[{index}]", like, asked, calls, self._aggregate.routes())


@dataclass(eq=False)
class _Noted:
    """A call that counts: its record without its tensors, its queries, and its map once there is one, or why not."""

    record: AttentionRecord
    queries: int
    map: CallMap | LaterMap | None = None
    error: ValueError | None = None


_NOTHING = torch.empty(0)


def _beside(real: Tensor, row: Tensor) -> Tensor:
    """real (batch, key) as a mask of row, (batch, key) or (batch, row, key)."""
    return real if row.ndim == 2 else real[:, None]


def skipping(reductions: Sequence[Reduction]) -> Callable[[InexactCaptureError], None]:
    """What several answers from one pass do with a call that could not be read; each rests on it or does not."""

    def skip(error: InexactCaptureError) -> None:
        for reduction in reductions:
            reduction.skip(error)

    return skip
