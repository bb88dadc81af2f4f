"""Of which projections is a feed-forward part made, and is it what they make?

    part = after(W_2 act(W_1 x + b_1) + b_2),   or gated   after(W_2 [act(W_g x + b_g) * (W_1 x + b_1)] + b_2)

with x a form of the stream (a norm of it, or the stream itself).  What stands between the projections is not read
operation by operation: each activation that we know is tried, and what comes out must be what the part gave out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from captum_norm.capture.blocks.check import BlockCheck, UnreadableBlockError
from captum_norm.capture.blocks.forms import Form, State
from captum_norm.functional.feed_forward_block import ACTIVATIONS, FeedForward
from captum_norm.functional.normalization import FrozenNorm, at_rows
from captum_norm.operations.facts import Facts
from captum_norm.operations.formats import is_plain
from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import Operation
from captum_norm.operations.precision import at_least_float32
from captum_norm.operations.steps import step_of


@dataclass(frozen=True, eq=False)
class Linear:
    """A projection: its matrix (out, in) and bias (out,)."""

    matrix: Tensor
    bias: Tensor | None

    @property
    def is_there(self) -> bool:
        """Whether its numbers are; sharded weights are put away behind their module."""
        return self.matrix.untyped_storage().size() > 0


@dataclass(frozen=True, eq=False)
class Hidden:
    """What was made of the stream by some projections, entry by entry."""

    form: Form
    projections: tuple[Linear, ...]


@dataclass(eq=False)
class PartState(State):
    """What a second projection wrote, and of what."""

    hidden: Hidden
    second: Linear


class FeedForwardParts:
    """Follows projections of the stream up to a second one.

    Args:
        form_of: what is known of a tensor as a form of a state.
    """

    def __init__(self, form_of: Callable[[Tensor], Form | None]) -> None:
        self._form_of = form_of
        self._hidden: Facts[Hidden] = Facts()

    def clear(self) -> None:
        """Drop everything."""
        self._hidden.clear()

    def follow(self, into: Tensor) -> None:
        """A tensor was overwritten, and what shares its memory with it."""
        self._hidden.follow(into)

    def see(self, op: Operation, is_stage: Callable[[State], bool]) -> tuple[Hidden, Linear] | None:
        """Take in an operation; what it made of the stream, if it is a second projection."""
        given = _projected(op)
        if given is not None:
            x, projection = given
            hidden, form = self._hidden[x], self._form_of(x)
            if hidden is not None:
                return hidden, projection
            if form is not None and is_stage(form.state):
                self._hidden[op.out] = Hidden(form, (projection,))
            return None
        found = [hidden for tensor in op.tensors if (hidden := self._hidden[tensor]) is not None]
        if found and all(hidden.form is found[0].form for hidden in found):
            projections = dict.fromkeys(itertools.chain.from_iterable(hidden.projections for hidden in found))
            self._pass_on(op, Hidden(found[0].form, tuple(projections)))
        return None

    def _pass_on(self, op: Operation, hidden: Hidden) -> None:
        width = len(hidden.projections[0].matrix)
        for number, out in enumerate(op.outputs):
            if not out.is_floating_point() or not out.ndim:
                continue
            if out.shape[-1] == width:
                self._hidden[out] = hidden
            elif len(hidden.projections) == 1:
                columns = _columns(op, number if isinstance(op.out, list | tuple) else None, width)
                self._hidden[out] = None if columns is None else _cut(hidden, columns)


def _projected(op: Operation) -> tuple[Tensor, Linear] | None:
    """What a product with a matrix reads, and the matrix."""
    if not isinstance(op.out, Tensor):
        return None
    if op.name == "linear":
        x, matrix, bias = op.argument(0, "input"), op.argument(1, "weight"), op.argument(2, "bias")
    elif op.name == "addmm" and op.kwargs.get("beta", 1) == op.kwargs.get("alpha", 1) == 1:
        bias, x, matrix = op.tensors[:3]
        matrix = matrix.t()
    elif op.name == "matmul" and len(op.tensors) == 2 and op.tensors[1].ndim == 2:
        x, matrix, bias = op.tensors[0], op.tensors[1].t(), None
    else:
        return None
    if not is_plain(matrix) or (bias is not None and bias.ndim != 1):
        return None
    return x, Linear(matrix.detach(), None if bias is None else bias.detach())


def _columns(op: Operation, number: int | None, width: int) -> Tensor | None:
    """Which columns of its operand a split gave out; None for anything but a choice of columns."""
    if kind_of(op.name) is not OperationKind.MOVE:
        return None
    numbers = torch.arange(width, device="cpu").view(*[1] * (op.tensors[0].ndim - 1), width)
    try:
        return step_of(op, number).apply(numbers).flatten() if op.tensors[0].shape[-1] == width else None
    except (IndexError, RuntimeError, TypeError, ValueError):
        return None


def _cut(hidden: Hidden, columns: Tensor) -> Hidden:
    """The hidden entries of these numbers alone."""
    [whole] = hidden.projections
    columns = columns.to(whole.matrix.device)
    cut = Linear(whole.matrix[columns], None if whole.bias is None else whole.bias[columns])
    return replace(hidden, projections=(cut,))


@dataclass(frozen=True, eq=False)
class SeenPart:
    """A feed-forward part as it was seen, proved when it is asked for.

    Attributes:
        projections, second: those of the stream, and the one behind the activation.
        before: what the first ones read, as a form of the block's sum; None: the sum.
        after: what stands between the second and the stream; None: nothing.
        state: the block's sum, attention and residual with all biases, (batch, query, model).
        added: what the stream was given, likewise.
        rows: where (batch, query) lie; -1 where the model has no such row.
        precision: the coarsest number format on the way, or None.
    """

    projections: tuple[Linear, ...]
    second: Linear
    before: FrozenNorm | None
    after: FrozenNorm | None
    state: Tensor
    added: Tensor
    rows: Tensor
    precision: torch.dtype | None

    def at(self, rows: slice | Tensor) -> SeenPart:
        """The part at some queries alone; rows a slice, or (batch, row) long."""
        return replace(
            self, before=self.before and self.before.at(rows), after=self.after and self.after.at(rows),
            state=at_rows(self.state, rows), added=at_rows(self.added, rows),
            rows=at_rows(self.rows.to(self.state.device), rows),
        )  # fmt: skip

    @cached_property
    def proved(self) -> FeedForward:
        """The part as the maths wants it.

        Raises:
            UnreadableBlockError: if no activation that is known makes what the part gave out.
        """
        if not 1 <= len(self.projections) <= 2:
            raise UnreadableBlockError(f"its {len(self.projections)} projections are not one, or one and a gate")
        if not all(linear.is_there for linear in (*self.projections, self.second)):
            raise UnreadableBlockError("its weights are put away as soon as it has run")
        best = min(self._candidates(), key=lambda part: self._error(part, _some(self.rows)))
        check = BlockCheck(self.added.dtype)
        try:
            check.equal("the feed-forward part", best.output(), self.added, self.rows, self.precision)
        except UnreadableBlockError as error:
            known = ", ".join(dict.fromkeys(name for name, _ in ACTIVATIONS))
            raise UnreadableBlockError(f"{known} do not make what it gave out; the nearest: {error}") from error
        return best

    def _candidates(self) -> Iterator[FeedForward]:
        first, *others = self.projections
        pairs = [(first, None)] if not others else [(first, others[0]), (others[0], first)]
        for (name, scale), (up, gate) in itertools.product(ACTIVATIONS, pairs):
            if gate is not None and gate.matrix.shape != up.matrix.shape:
                continue
            yield FeedForward(
                W_1=up.matrix, b_1=up.bias, W_2=self.second.matrix, b_2=self.second.bias, activation=name, scale=scale,
                W_gate=None if gate is None else gate.matrix, b_gate=None if gate is None else gate.bias,
                before=self.before, after=self.after, state=self.state,
            )  # fmt: skip

    def _error(self, part: FeedForward, rows: Tensor) -> float:
        some = part.at(rows)
        wide = rows[..., None].expand(-1, -1, self.added.shape[-1])
        found = some.output().to(at_least_float32(self.added.dtype))
        kept = (self.rows.to(rows.device).gather(1, rows) >= 0)[..., None]
        return float(((found - self.added.gather(1, wide)) * kept).abs().max())


def _some(rows: Tensor) -> Tensor:
    """A few queries of each example, (batch, row)."""
    query = rows.shape[1]
    chosen = torch.linspace(0, query - 1, min(query, 4)).round().long()
    return chosen.expand(len(rows), -1)
