"""Further linear maps of what W_O wrote: factors of W_O that are read, or calls that are refused.

W_O may be several linear maps in a row.  One that is applied to all rows in their order is read as a factor
(:mod:`captum_norm.capture.projections`).  Any other that is made of what W_O wrote alone, in the module where W_O was
applied, is a factor as well, whichever operation it is written by: of some of the features, beside others, row by row.
What was added to the residual stream, or went through a norm or an activation, is no longer linear in mixed values.
"""

from __future__ import annotations

from collections.abc import Callable

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
        self._last: tuple[Projection | None, str] | None = None
        self._unread: Facts[str] = Facts()  # made by a further map, this one, that is no factor of W_O as it is read

    def concern(self, op: Operation) -> bool:
        """Whether an operation reads something that W_O wrote."""
        return not self._written.numbers.isdisjoint(map(id, op.tensors))

    def see(self, op: Operation) -> None:
        """Take in one operation that reads mixed values or what W_O wrote, after what is known of its result."""
        read = [one for one in op.tensors if one in self._written]
        is_map = bool(read) and self._is_map(op, read) and self._is_in_module(read[0])
        keeps = is_map or (bool(read) and self._keeps(op, read))
        unread = [one for one in read if one in self._unread]
        name = op.name if is_map else next((self._unread[one] for one in unread), None)
        if is_map and self._projection(op.out) is None:
            self._refuse(self._written[read[0]], op.name)
        elif unread and not is_map and (self._goes_on(op, keeps) or not self._is_in_module(unread[0])):
            self._refuse_whole(unread)
        for out in op.written:
            projection = self._projection(out)
            is_W_O = projection is not None and all(one.projection is projection for one in projection.mixtures)
            self._written[out] = projection or (self._written[read[0]] if keeps else None)
            self._unread[out] = None if is_W_O or self._written[out] is None else name
            if self._unread[out] is not None and self._has_all_rows(out):
                self._last = self._written[out], name or ""
        for into in op.overwritten:
            self._written.follow(into)
            self._unread.follow(into)

    def end_with(self, output: Tensor | None) -> None:
        """This is what the model gives out; None where nobody says: what one further map made may then be it, and of
        several, as of queries and keys, each is taken for a reader of its own."""
        if output is not None:
            self._refuse_whole([output] if output in self._unread else [])
        elif self._last is not None:
            projection, name = self._last
            whole = None if projection is None else projection.mixtures[0].projection
            self._refuse(projection if whole is not None and not whole.is_final else None, name)

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
                self._refuse(self._written[one], self._unread[one] or "")

    def _refuse(self, projection: Projection | None, name: str) -> None:
        """What W_O wrote goes through a map that is no factor of it as it is read: its calls are refused."""
        where = self._module()
        for mixture in () if projection is None else projection.mixtures:
            if mixture.is_read:
                continue
            mixture.problem = mixture.problem or (
                f"its output projection W_O is followed by another linear map of what it wrote, operation {name!r}"
                f"{f' in {where!r}' if where else ''}, which is not read as a factor of W_O: apply it to all rows "
                "in their order (torch.nn.functional.linear, x @ W), or multiply both into one matrix"
            )


def _has_rows(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and tensor.numel() > tensor.shape[-1]
