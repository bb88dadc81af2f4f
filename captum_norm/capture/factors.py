"""Further linear maps of what W_O wrote: factors of W_O that are read, or calls that are refused.

W_O may be several linear maps in a row.  One that is applied to all rows in their order is read as a factor
(:mod:`captum_norm.capture.projections`).  Any other that is made of what W_O wrote alone, in the module where W_O was
applied, is a factor as well, whichever operation it is written by: of some of the features, beside others, row by row.
What was added to the residual stream, or went through a norm or an activation, is no longer linear in mixed values.

W_O may also write more features than one vector of the stream, which part ways behind it.  The norm of all of them
together is that of no vector which is added anywhere, so that such a call is refused as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from captum_norm.capture.projections import Projections
from captum_norm.capture.reach import INPUT, Reach
from captum_norm.capture.traces import Projection, Traces
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.places import Places

_SUMS = {"add", "sub", "rsub", "radd", "where"}
_KEEP = (OperationKind.MOVE, OperationKind.IDENTITY, OperationKind.DROPOUT, OperationKind.SCALE)
_KEEP_TOO = {"neg", "gather", "take_along_dim", "masked_select", "masked_fill"}
_END = (OperationKind.NORM, OperationKind.ACTIVATION)
_MAPS = (OperationKind.MAP, OperationKind.PRODUCT, None)


class _Way(NamedTuple):
    """In which way what W_O wrote goes on unread: by a further map, or in parts; and that in words."""

    by_map: bool
    told: str


class Factors:
    """Follows what W_O wrote for as long as it is linear in mixed values, and finds the maps that are made of it.

    Args:
        traces, projections, reach, places: what is known of the running model.
        module: gives the name of the module that is running.
    """

    def __init__(
        self, traces: Traces, projections: Projections, reach: Reach, places: Places, module: Callable[[], str]
    ) -> None:  # fmt: skip
        self._traces, self._projections, self._reach, self._places = traces, projections, reach, places
        self._module = module
        self._written: Facts[Projection] = Facts()
        self._last: tuple[Projection | None, _Way] | None = None
        self._unread: Facts[_Way] = Facts()  # made of what W_O wrote in a way that is not read, and in which

    def concern(self, op: Operation) -> bool:
        """Whether an operation reads something that W_O wrote."""
        return not self._written.numbers.isdisjoint(map(id, op.tensors))

    def see(self, op: Operation) -> None:
        """Take in one operation that reads mixed values or what W_O wrote, after what is known of its result."""
        read = [one for one in op.tensors if one in self._written]
        is_map = bool(read) and self._is_map(op, read) and self._is_in_module(read[0])
        parts = bool(read) and self._takes_apart(op, read[0])
        keeps = is_map or parts or (bool(read) and self._keeps(op, read))
        unread = [one for one in read if one in self._unread]
        known = next((self._unread[one] for one in unread), None)
        way = self._further_map(op) if is_map else known or (self._parting(op) if parts else None)
        if is_map and self._projection(op.out) is None:
            self._refuse(self._written[read[0]], way)
        elif unread and not is_map and (self._goes_on(op, keeps) or not self._is_in_module(unread[0])):
            self._refuse_whole(unread)
        for out in op.written:
            projection = self._projection(out)
            is_W_O = projection is not None and all(one.projection is projection for one in projection.mixtures)
            self._written[out] = projection or (self._written[read[0]] if keeps else None)
            self._unread[out] = None if (is_W_O and not parts) or self._written[out] is None else way
            if self._unread[out] is not None and way is not None and way.by_map and self._has_all_rows(out):
                self._last = self._written[out], way
        for into in op.overwritten:
            self._written.follow(into)
            self._unread.follow(into)

    def end_with(self, output: Tensor | None) -> None:
        """This is what the model gives out; None where nobody says: what one further map made may then be it, and of
        several, as of queries and keys, each is taken for a reader of its own."""
        if output is not None:
            self._refuse_whole([output] if output in self._unread else [])
        elif self._last is not None:
            projection, way = self._last
            whole = None if projection is None else projection.mixtures[0].projection
            self._refuse(projection if whole is not None and not whole.is_final else None, way)

    def clear(self) -> None:
        """Forget everything."""
        self._written.clear()
        self._unread.clear()
        self._last = None

    def _projection(self, out: object) -> Projection | None:
        trace = self._traces[out]
        return None if trace is None else trace.projection

    def _is_in_module(self, tensor: Tensor) -> bool:
        projection = self._written[tensor]
        return projection is not None and self._projections.is_in_module(projection)

    def _is_map(self, op: Operation, read: list[Tensor]) -> bool:
        """Whether it is linear in what W_O wrote, and reads several features at once."""
        if base_name(op.name) in ("sum", "mean"):
            trace, axes, x = self._traces[op.tensors[0]], op.argument(1, "dim"), op.tensors[0]
            axes = (axes,) if isinstance(axes, int) else axes
            place = None if trace is None else trace.place
            if place is None or not axes or not any(x.shape[axis] > 1 for axis in axes):
                return False
            return self._places.holds_one(place, tuple(axis % x.ndim for axis in axes))
        return kind_of(op.name) in _MAPS and len(read) == 1 and not self._beside(op)

    def _takes_apart(self, op: Operation, x: Tensor) -> bool:
        """Whether some of the features of what W_O wrote go one way, and others another."""
        written, trace = self._written[x], self._traces[x]
        whole = None if written is None else written.mixtures[0].projection
        if whole is None or whole.actual is None or kind_of(op.name) is not OperationKind.MOVE:
            return base_name(op.name) == "glu"
        for out in op.outputs:
            if not out.ndim or out.shape[-1] >= whole.width or out.numel() >= x.numel():
                continue
            if out.numel() == len(whole.actual) * out.shape[-1]:
                return True
            place = None if trace is None or out.shape[-1] == x.shape[-1] else trace.place
            if place is not None and self._places.holds_one(place, (x.ndim - 1,)):
                return True
        return False

    def _further_map(self, op: Operation) -> _Way:
        return _Way(True,
            f"is followed by another linear map of what it wrote, operation {op.name!r}{self._where()}, which is not "
            "read as a factor of W_O: apply it to all rows in their order (torch.nn.functional.linear, x @ W), or "
            "multiply both into one matrix",
        )  # fmt: skip

    def _parting(self, op: Operation) -> _Way:
        return _Way(False,
            f"writes features of which some part ways in operation {op.name!r}{self._where()}, so that no vector of "
            "all of them is added to anything: give each part a linear map of its own",
        )  # fmt: skip

    def _where(self) -> str:
        module = self._module()
        return f" in {module!r}" if module else ""

    def _beside(self, op: Operation) -> list[Tensor]:
        """What else an operation reads that is made of an input."""
        return [one for one in op.tensors if one not in self._written and self._reach.of(one) > INPUT]

    def _keeps(self, op: Operation, read: list[Tensor]) -> bool:
        """Whether its result is what W_O wrote: moved, scaled, with a bias, or with other features beside."""
        kind, name = kind_of(op.name), base_name(op.name)
        if kind is OperationKind.JOIN:
            of_features = name == "cat" and op.argument(1, "dim", 0) in (-1, read[0].ndim - 1)
            return of_features or not self._beside(op)
        if name == "setitem":
            return op.args[-1] is read[-1] and self._reach.of(op.tensors[0]) <= INPUT
        if name in _SUMS:  # a bias has no rows
            return not any(_has_rows(one) for one in op.tensors if one.is_floating_point() and one not in self._written)
        return kind in _KEEP or name in _KEEP_TOO

    def _goes_on(self, op: Operation, keeps: bool) -> bool:
        """Whether what it reads goes on: beside something of an input that has rows, a norm, or an activation."""
        return not keeps and (kind_of(op.name) in _END or any(map(_has_rows, self._beside(op))))

    def _has_all_rows(self, tensor: Tensor) -> bool:
        """Whether it has as many rows as W_O wrote: one row that is read is no stream."""
        projection = self._written[tensor]
        whole = None if projection is None else projection.mixtures[0].projection
        if whole is None or whole.actual is None or not tensor.ndim:
            return False
        return tensor.numel() == len(whole.actual) * tensor.shape[-1]

    def _refuse_whole(self, unread: list[Tensor]) -> None:
        for one in unread:
            if self._has_all_rows(one):
                self._refuse(self._written[one], self._unread[one])

    def _refuse(self, projection: Projection | None, way: _Way | None) -> None:
        """What W_O wrote goes on in a way in which it is not read: its calls are refused."""
        for mixture in () if projection is None else projection.mixtures:
            if not mixture.is_read and way is not None:
                mixture.problem = mixture.problem or f"its output projection W_O {way.told}"


def _has_rows(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and tensor.numel() > tensor.shape[-1]
