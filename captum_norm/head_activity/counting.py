"""Which heads are sinks, and which are idle?  What the first and the special tokens receive of each head, and how much
each head gives out, counted over a corpus.

For every head, means over the queries of a sequence, then over sequences, with an interval for the mean:

    share of the first token       alpha_i0, and ||alpha_i0 f(x_0)|| / sum_j ||alpha_ij f(x_j)||
    share of special tokens        likewise, summed over them
    length of the first token's f  ||f(x_0)|| / mean_{j > 0} ||f(x_j)||
    activity                       ||sum_j alpha_ij f(x_j)|| / mean of the layer's heads

A head with most of its weight on the first token and next to nothing of its norm there has a sink; one far below 1 in
activity is idle.  A causal model's first query, which sees nothing else, is left out.  A length is not defined in a
sequence in which no query gives weight to the first token (a masked one), or none to any other: its mean is over the
sequences in which it is, and their number is told.

Source: Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102, for weight beside norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture import AttentionCall, AttentionRecord, in_float32, run_recorded
from captum_norm.functional import head_norms
from captum_norm.tables import LINE, Table, Tabular

QUANTITIES = ("first_weight", "first_norm", "special_weight", "special_norm", "first_length", "activity")


@dataclass(frozen=True)
class HeadActivity(Tabular):
    """What each head did over a corpus: a table with a row for each head.

    Attributes:
        calls: which attention calls, in order.
        means: by quantity, (head,) for each call; dimensionless.
        margins: likewise, half of the 95 % interval of the mean over sequences; NaN for fewer than two.
        counted: likewise, in how many of the sequences the quantity is defined; the mean of none is NaN.
        worst_error, tolerance: of the calls' certificates.
        sequences, tokens: how many.
    """

    calls: tuple[AttentionCall, ...]
    means: dict[str, tuple[Tensor, ...]]
    margins: dict[str, tuple[Tensor, ...]]
    counted: dict[str, tuple[Tensor, ...]]
    worst_error: float
    tolerance: float
    sequences: int
    tokens: int

    def as_table(self) -> Table:
        """A row for each head: its means and their margins."""
        columns = ("call", "name", "head", *(f"{name}{end}" for name in QUANTITIES for end in ("", "_margin")))
        rows: list[tuple[str | int | float | None, ...]] = []
        for number, call in enumerate(self.calls):
            for head in range(call.heads):
                each = [table[name][number][head] for name in QUANTITIES for table in (self.means, self.margins)]
                rows.append((number, call.name, head, *map(float, each)))
        return Table(columns, tuple(rows), f"{self.sequences} sequences, {self.tokens} tokens", keys=3)

    def to_latex(self, width: float = LINE) -> str:
        """For a paper: calls by number, with their names in comments above; folded as any table."""
        return self.as_table().told("name", of="call").to_latex(width)

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers and lists, for JSON; NaN becomes None."""

        def listed(table: Mapping[str, Sequence[Tensor]]) -> dict[str, list[list[float | None]]]:
            return {name: [[_number(x) for x in row.tolist()] for row in rows] for name, rows in table.items()}

        return {
            "layers": [call.name for call in self.calls],
            "means": listed(self.means),
            "margins": listed(self.margins),
            "counted": {name: [row.long().tolist() for row in rows] for name, rows in self.counted.items()},
            "certificate": {"error": self.worst_error, "tolerance": self.tolerance},
            "sequences": self.sequences,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class HeadCounts:
    """What was added up over some sequences; the counts of two parts of a corpus add up to those of both.

    Attributes:
        calls: which attention calls, in order.
        sums, squares: of the quantities where they are defined, (quantity, head) float64 for each call.
        counted: in how many sequences they are, likewise.
        worst_error, tolerance: of the calls' certificates.
        sequences, tokens: how many.
    """

    calls: tuple[AttentionCall, ...] = ()
    sums: tuple[Tensor, ...] = ()
    squares: tuple[Tensor, ...] = ()
    counted: tuple[Tensor, ...] = ()
    worst_error: float = 0.0
    tolerance: float = 0.0
    sequences: int = 0
    tokens: int = 0

    def __add__(self, other: HeadCounts) -> HeadCounts:
        if not self.sequences or not other.sequences:
            return self if self.sequences else other
        if self.calls != other.calls:
            raise ValueError("HeadCounter: this sequence was read by other attention calls than those before it.")

        def added(of: Sequence[Tensor], more: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(one + another for one, another in zip(of, more, strict=True))

        return HeadCounts(
            self.calls,
            added(self.sums, other.sums),
            added(self.squares, other.squares),
            added(self.counted, other.counted),
            max(self.worst_error, other.worst_error),
            max(self.tolerance, other.tolerance),
            self.sequences + other.sequences,
            self.tokens + other.tokens,
        )

    def result(self) -> HeadActivity:
        """The means over all sequences.

        Raises:
            ValueError: if there was none.
        """
        if not self.sequences:
            raise ValueError("HeadCounter: no sequence was added.")
        means = [total / n for total, n in zip(self.sums, self.counted, strict=True)]
        each = zip(self.squares, means, self.counted, strict=True)
        spread = [((squares / n - mean.square()).clamp_min(0), n) for squares, mean, n in each]
        margins = [1.96 * torch.where(n > 1, s / (n - 1), math.nan).sqrt() for s, n in spread]

        def by_quantity(of_calls: Sequence[Tensor]) -> dict[str, tuple[Tensor, ...]]:
            return {name: tuple(of[row] for of in of_calls) for row, name in enumerate(QUANTITIES)}

        return HeadActivity(
            calls=self.calls,
            means=by_quantity(means),
            margins=by_quantity(margins),
            counted=by_quantity(self.counted),
            worst_error=self.worst_error,
            tolerance=self.tolerance,
            sequences=self.sequences,
            tokens=self.tokens,
        )


class HeadCounter:
    """Adds up what heads do, sequence by sequence; ``counts`` so far, and ``result()``, their means.

    Args:
        model: runs once per sequence, without gradient, in the mode it is in.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> counter = HeadCounter(encoder)
        >>> for _ in range(2):
        ...     counter.add(torch.randn(1, 4, 8), [True, False, False, False])
        >>> found = counter.result()
        >>> found.sequences, tuple(found.means["activity"][0].shape)
        (2, (2,))
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.counts = HeadCounts()

    def add(self, inputs: Mapping[str, Any] | Tensor, special: Sequence[bool]) -> None:
        """Run the model on one sequence and add what its heads did.

        Args:
            inputs: of a batch of one.
            special: which of its tokens are special.

        Raises:
            ValueError: for several sequences, one of fewer than two tokens, or one that other calls read than before.
        """
        records: list[tuple[AttentionCall, Tensor]] = []
        certificates: list[tuple[float, float]] = [(0.0, 0.0)]

        def take(record: AttentionRecord) -> None:
            if record.call.kind == "cross":
                return
            certificates.append((record.certificate.error, record.certificate.tolerance))
            records.append((record.call.without_modules, _of_record(record, special)))

        with torch.no_grad():
            run_recorded(self.model, inputs, take)
        self.counts += HeadCounts(
            tuple(call for call, _ in records),
            tuple(found.masked_fill(~_defined(found), 0) for _, found in records),
            tuple(found.square().masked_fill(~_defined(found), 0) for _, found in records),
            tuple(_defined(found).double() for _, found in records),
            max(error for error, _ in certificates),
            max(tolerance for _, tolerance in certificates),
            1,
            len(special),
        )

    def result(self) -> HeadActivity:
        """The means over all sequences so far.

        Raises:
            ValueError: if there was none.
        """
        return self.counts.result()


def _of_record(record: AttentionRecord, special: Sequence[bool]) -> Tensor:
    """The quantities of one call on one sequence, (quantity, head) in float64."""
    batch, _, query, key = record.weights.shape
    if batch != 1 or key != len(special) or key < 2:
        raise ValueError(
            "HeadCounter takes one sequence of two tokens or more at a time, each marked special or not; attention "
            f"call {record.call.name!r} read {batch} of {key} keys, and {len(special)} tokens were marked."
        )
    record = in_float32(record)
    rows = slice(int(record.call.kind == "causal" and query == key), None)
    weights = record.weights[:, :, rows].double()
    gate = None if record.gate is None else record.gate[:, :, rows]
    norms = head_norms(record.weights[:, :, rows], record.values, record.W_O, gate)[0].double()
    shares = norms / norms.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    marked = torch.tensor(special, device=shares.device)
    mixed = weights @ record.values.double()
    mixed = mixed if gate is None else mixed * gate
    given = torch.einsum("hqe,hed->hqd", mixed[0], record.W_O.double()).norm(dim=-1).mean(-1)
    lengths = torch.where(weights[0] > 0, norms / weights[0], torch.nan).nanmean(1)  # ||f||, mean over gates
    by_kind = [weights[0].mean(1), shares.mean(1)]
    return torch.stack(
        [
            *(of[:, 0] for of in by_kind),
            *(of[:, marked].sum(1) for of in by_kind),
            lengths[:, 0] / lengths[:, 1:].nanmean(1),
            given / given.mean().clamp_min(torch.finfo(torch.float64).tiny),
        ]
    ).cpu()


def _defined(found: Tensor) -> Tensor:
    """Which quantities of one sequence are, (quantity, head): all but lengths that are a ratio to or of nothing."""
    defined, length = torch.ones_like(found, dtype=torch.bool), QUANTITIES.index("first_length")
    defined[length] = found[length].isfinite()
    return defined


def _number(x: float) -> float | None:
    return None if math.isnan(x) else x
