"""Is a record true?  Values of a key are erased in the running model, and what W_O then lacks must be the record's.

One key's value vectors are set to zero, everything before that staying as it was, so alpha is held.  What the output
projection then lacks must be the record's own vector,

    sum_h alpha_h,ij f_h(x_j)   with   f_h(x_j) = (values_h,j * gate_h,i) W_O_h,

at every query i of every example.  It uses neither the capture's certificate nor the way it looks at a model: the
operations changed are those below it (:mod:`captum_norm.proof.watching`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from captum_norm.capture import AttentionRecord
from captum_norm.operations.precision import tolerance
from captum_norm.proof.sources import ValuesWritten, written
from captum_norm.proof.watching import Done, Print, Survey, Watch, memory_of

TOLERANCE = 1e-5  # of the projection's output
SIGNAL = 1e-3  # a key must change the output by this much of it, else it proves nothing

Status = Literal["proved", "wrong", "open"]


@dataclass(frozen=True)
class Finding:
    """What the proof says of one record.

    Attributes:
        name: module and call.
        status: ``"proved"``, ``"wrong"`` or ``"open"`` (not testable, for the reason given).
        error: max |what the output lacks - the record's vector| / max |output|.
        note: why open, or what was held fixed.
    """

    name: str
    status: Status
    error: float | None = None
    note: str = ""


class Prover:
    """Proves records of one model and one forward.

    Args:
        model: in evaluation mode; the records' names are relative to it.
        forward: runs it once, the same way each time (a fixed seed included).
        streams: how many residual streams each position has, in models that mix them.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], Any], streams: int = 0) -> None:
        self._forward, self._streams = forward, streams
        parameters = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._parameters = {name: memory_of(p) for name, p in parameters.items()}
        self._survey: Survey | None = None

    def prove(self, record: AttentionRecord, generator: torch.Generator, keys: int = 2) -> Finding:
        """Zero a few keys, drawn at random among those that matter, one at a time."""
        name = f"{record.call.name} (call {record.call.call})"
        place = self._place(record)
        if isinstance(place, str):
            return Finding(name, "open", note=place)
        event, argument, axis, until, output = place
        where = self._where_written(record, event, until, output)
        if where is None:
            return Finding(name, "open", note=f"no product with {record.call.projection or 'a named W_O'}")
        until, output, order = where
        if order is None and not _lies_in_one_piece(record, output):
            return Finding(name, "open", note="its queries are no rows of the projection side by side (blocks)")
        scale = float(output.abs().max())
        worst, held = 0.0, False
        tried = 0
        for key in torch.randperm(record.weights.shape[-1], generator=generator).tolist():
            expected = contribution(record, key)
            if float(expected.abs().max()) < SIGNAL * scale:
                continue
            source = None if argument >= 0 else written(self._surveyed(), record, key, until)
            if argument < 0 and source is None:
                return Finding(name, "open", note="it is not told where the values of a key are written")
            changed, was_held = self._without(source or (event, argument, axis, key), until)
            held |= was_held
            lacks = output - changed
            if order is not None:
                lacks = lacks.reshape(-1, lacks.shape[-1])[order].view(expected.shape)
            error = _difference(lacks, expected)
            if error is None:
                return Finding(
                    name, "open", note=f"the projection has other rows ({tuple(output.shape)}) than the record"
                )
            worst, tried = max(worst, error / scale), tried + 1
            if tried == keys:
                break
        if not tried:
            return Finding(name, "open", note="no key changes the output visibly")
        allowed = max(TOLERANCE, tolerance("record", output.dtype), record.certificate.tolerance)
        return Finding(name, "proved" if worst <= allowed else "wrong", worst, "1/sigma held" if held else "")

    def softmaxes(self) -> int:
        """How many softmaxes over three axes or more this forward computes, those inside fused calls included."""
        return self._surveyed().softmaxes

    def weighted_means(self) -> int:
        """How many products of this forward are attention by their arithmetic alone."""
        return self._surveyed().means

    def _surveyed(self) -> Survey:
        if self._survey is None:
            self._survey = Survey(streams=self._streams)
            with torch.no_grad(), Watch(frozenset(self._parameters.values()), self._survey):
                self._forward()
        return self._survey

    def _place(self, record: AttentionRecord) -> tuple[int, int, int, int, Tensor | None] | str:
        """Event, argument and axis of the value product, event and output of the projection; or why not.

        A W_O that is no parameter, but computed from some, has no output yet: what it wrote is sought.  Where no
        product has all of the call's queries, the values are erased where they are written: the argument is -1.
        """
        survey = self._surveyed()
        uses = survey.uses.get(self._parameters.get(record.call.projection, 0), [])
        values, keys = Print.of(record.values), record.weights.shape[-1]
        found = [p for p in survey.products if p[3] == keys and p[4].shares(values)]
        if not uses and len(found) == 1:
            return found[0][0], found[0][1], found[0][2], -1, None
        if not uses:
            return f"no product with {record.call.projection or 'a named W_O'}"
        pairs = [(p, use) for p in found for use in uses[:] if use[0] > p[0]]
        batch, head, query, _ = record.shape
        if not any(survey.rows.get(p[0]) == batch * head * query for p, _ in pairs):
            total = _written_by(record)
            for until, output in uses:
                if _is_near(output, total) and written(survey, record, 0, until) is not None:
                    return -1, -1, -1, until, output
        if not pairs:
            return "no product holds exactly the recorded values"
        product, (until, output) = min(pairs, key=lambda pair: pair[1][0] - pair[0][0])
        return product[0], product[1], product[2], until, output

    def _where_written(
        self, record: AttentionRecord, event: int, until: int, output: Tensor | None
    ) -> tuple[int, Tensor, Tensor | None] | None:
        """Where all of what the record accounts for is written: behind W_O, or behind adapters that are added to it.

        With it, for rows in another order than the record's (windows), which row of the output is which of the record.
        """
        total = _written_by(record)
        if output is not None and _is_near(output, total):
            return until, output, None
        order = None if output is None else _order_of(output, total)
        if output is not None and order is not None:
            return until, output, order
        watch = Watch()
        watch.sought, watch.cut = lambda tensor: _is_near(tensor, total), None
        watch.since = event
        try:
            with torch.no_grad(), watch:
                self._forward()
        except Done:
            pass
        if watch.output is not None:
            return watch.event, watch.output, None
        return None if output is None else (until, output, None)

    def _without(self, cut: ValuesWritten | tuple[int, int, int, int], until: int) -> tuple[Tensor, bool]:
        watch = Watch()
        if isinstance(cut, ValuesWritten):
            watch.erased = cut.event, cut.erased
        else:
            watch.cut = cut
        watch.until = until
        watch.base = self._surveyed()
        try:
            with torch.no_grad(), watch:
                self._forward()
        except Done:
            pass
        if watch.output is None:
            raise RuntimeError("the forward did not repeat itself: the projection was not reached")
        return watch.output, watch.held


def contribution(record: AttentionRecord, key: int | slice) -> Tensor:
    """sum_h alpha_h,ij f_h(x_j) for one key j, or summed over several, and every query i: (batch, query, model)."""
    weights, values, W_O = (tensor.detach().double() for tensor in (record.weights, record.values, record.W_O))
    values = values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1)
    gate = torch.ones(1, dtype=torch.float64) if record.gate is None else record.gate.double()
    keys = slice(key, key + 1) if isinstance(key, int) else key
    mixed = weights[..., keys] @ values[:, :, keys] * gate  # (batch, head, query, head_dim)
    return torch.einsum("bhqe,hed->bqd", mixed, W_O)


def _written_by(record: AttentionRecord) -> Tensor:
    """All that W_O writes, by the record: (batch, query, model)."""
    total = contribution(record, slice(None))
    return total if record.b_O is None else total + record.b_O.detach().double()


def _is_near(tensor: Tensor, total: Tensor) -> bool:
    error = _difference(tensor, total) if tensor.numel() == total.numel() else None
    return error is not None and error <= 1e-4 * float(total.abs().max())


def _difference(actual: Tensor, expected: Tensor) -> float | None:
    """max |actual - expected|, with zeros expected in rows that are not the record's; None where it does not fit.

    A model may keep (batch, query) or (query, batch) rows, and may project several attention calls at once, one after
    the other (the pictures of a batch).
    """
    if not actual.ndim or not actual.is_floating_point():
        return None
    if actual.ndim > 2 and actual.shape[-1] != expected.shape[-1] and actual.shape[1] == expected.shape[-1]:
        actual = actual.movedim(1, -1)  # a convolution's channels
    if actual.shape[-1] != expected.shape[-1]:
        return None
    rows = actual.double().reshape(-1, expected.shape[-1])
    batch, queries, model = expected.shape
    if len(rows) % batch or len(rows) < batch * queries:
        return None
    spare = len(rows) // batch - queries
    best = float("inf")
    for start in range(spare + 1):
        placed = pad(expected, (0, 0, start, spare - start))
        for either in (placed, placed.transpose(0, 1)):
            best = min(best, float((rows - either.reshape(-1, model)).abs().max()))
    return best


def _lies_in_one_piece(record: AttentionRecord, output: Tensor) -> bool:
    """Whether a record of fewer queries than the projection has rows accounts for some of these, one after the other.

    True where it has as many, or the rows do not fit, which the comparison tells.
    """
    batch, _, queries, _ = record.shape
    total = _written_by(record)
    rows = output.movedim(1, -1) if output.ndim > 2 and output.shape[-1] != total.shape[-1] else output
    if rows.shape[-1] != total.shape[-1] or rows.numel() <= total.numel():
        return True
    spread = rows.double().reshape(-1, total.shape[-1])
    each, rest = divmod(len(spread), batch)
    if rest:
        return True
    near = 1e-4 * float(total.abs().max())
    by_example, by_position = spread.view(batch, each, -1), spread.view(each, batch, -1).transpose(0, 1)
    return any(
        float((some[:, start : start + queries] - total).abs().max()) <= near
        for some in (by_example, by_position)
        for start in range(each - queries + 1)
    )


def _order_of(output: Tensor, total: Tensor) -> Tensor | None:
    """Which row of an output is which row of the record, (batch * query,), told by what they hold; None if they differ.

    Looked at for many groups of rows alone, as windows are.
    """
    rows, flat = output.double().reshape(-1, output.shape[-1]), total.reshape(-1, total.shape[-1])
    if rows.shape != flat.shape or len(total) < 4:
        return None
    starts = range(0, len(flat), _ROWS_AT_ONCE)
    nearest = [torch.cdist(flat[start : start + _ROWS_AT_ONCE], rows).min(-1) for start in starts]
    order = torch.cat([found.indices for found in nearest])
    off = max(float(found.values.max()) for found in nearest)
    return order if off <= 1e-4 * float(flat.norm(dim=-1).max()) and len(set(order.tolist())) == len(order) else None


_ROWS_AT_ONCE = 1024
