"""The calls that are kept until the model has run: all of them or, under a limit, as many of the last as fit.

A row of a product is read from the last call down.  Where a limit does not hold what all calls keep, the last are kept,
and when a row has gone through these the model runs again for those before them, as often as it takes.  That costs time
and changes no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_norm.capture import AttentionRecord, Certificate, InexactCaptureError


@dataclass(eq=False)
class KeptCalls:
    """What one pass keeps of its calls.

    Attributes:
        title: the method, for errors.
        limit: bytes that may be kept at once; None for all that there are.
        run: runs the model again, each record given to a function.
    """

    title: str
    limit: int | None
    run: Callable[[Callable[[AttentionRecord], None]], object]
    _records: dict[int, AttentionRecord] = field(default_factory=dict)
    _written: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, number: int, record: AttentionRecord) -> KeptCall | None:
        """The call with this number of the pass; None where it cannot be kept.

        Raises:
            ValueError: if the limit does not hold even this one.
        """
        if not self._put(number, record):
            return None
        self._written[number] = record.written
        real = record.query_mask
        return KeptCall(self, number, record.shape, record.device, real, record.certificate)

    def _put(self, number: int, record: AttentionRecord) -> bool:
        needed = record.kept_bytes
        if needed is None:
            return False
        if self.limit is not None:
            if needed > self.limit:
                raise ValueError(
                    f"{self.title}: attention call {record.call.name!r} keeps {needed:,} bytes (queries, keys, values "
                    f"and the block's states), more than max_memory = {self.limit:,}. Give at least that, shorten the "
                    'input, or explain with aggregate="mean", which keeps nothing.'
                )
            while self._records and needed + sum(one.kept_bytes or 0 for one in self._records.values()) > self.limit:
                del self._records[min(self._records)]
        kept = record.kept()
        assert kept is not None
        self._records[number] = kept.but(call=kept.call.without_modules)
        return True

    def record(self, number: int) -> AttentionRecord:
        """A call that was kept, or that the model runs again for.

        Raises:
            InexactCaptureError: if the model does something else when it runs again.
        """
        if number not in self._records:
            self._run_again(number)
        return self._records[number]

    def _run_again(self, last: int) -> None:
        """Keep the call ``last`` and those before it that fit beside it."""
        self._records.clear()
        numbers = itertools.count()

        def take(record: AttentionRecord) -> None:
            number = next(numbers)
            if number in self._written and number <= last:
                if not _the_same(self._written[number], record):
                    raise _changed(record)
                self._put(number, record)

        with torch.no_grad():
            self.run(take)


@dataclass(eq=False)
class KeptCall:
    """One of them, asked for rows as its record would be.

    Attributes:
        calls: all of them.
        number: which one it is.
        shape, device, query_mask: as in its record.
        certificate: of the rows that were asked for so far.
    """

    calls: KeptCalls = field(repr=False)
    number: int
    shape: torch.Size
    device: torch.device
    query_mask: Tensor | None
    certificate: Certificate

    def at(self, rows: slice | Tensor) -> AttentionRecord:
        """The record of some queries alone."""
        record = self.calls.record(self.number)
        found = record.at(rows)
        self.certificate = record.certificate
        return found


def _the_same(written: Tensor, record: AttentionRecord) -> bool:
    """Whether the call wrote what it did before, as far as it is checked."""
    now, allowed = record.written, record.certificate.tolerance
    return now.shape == written.shape and torch.allclose(now, written, allowed, allowed * float(written.abs().max()))


def _changed(record: AttentionRecord) -> InexactCaptureError:
    error = InexactCaptureError(
        f"{record.call.name or 'attention'}: the model ran again, as max_memory does not hold what all of its calls "
        "keep, and this call did something else than before: it draws random numbers, or goes on from a cache. Use "
        "model.eval(), pass no past_key_values, or raise max_memory."
    )
    error.call = record.call
    return error


def checked_limit(title: str, max_memory: int | None) -> int | None:
    """``max_memory`` as it was given.

    Raises:
        ValueError: if it is no number of bytes.
    """
    whole = isinstance(max_memory, int) and not isinstance(max_memory, bool)
    if max_memory is not None and not (whole and max_memory > 0):
        raise ValueError(f"{title}: max_memory should be a number of bytes from 1 on, or None, got {max_memory!r}.")
    return max_memory
