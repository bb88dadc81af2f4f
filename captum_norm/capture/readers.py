"""What reads the mixed values of an attention call: its W_O, and whatever else does.

What W_O writes is all that a call adds to the stream as long as nothing else reads what the call has mixed: a second
projection, a gate or a layer made of the mixed values themselves, their sum with something.  Each such reader has a
bit of its own (:mod:`captum_norm.capture.reach`), so that it is known of an output whether it was made of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import Module

from captum_norm.capture.projections import Projections
from captum_norm.capture.reach import Reach
from captum_norm.capture.traces import Mixed, Mixture, Traces
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation
from captum_norm.operations.storages import storage_of

# What else they are given says where entries go, or in which shape or format.
_OF_THE_FIRST = names_of(OperationKind.MOVE, OperationKind.IDENTITY)


@dataclass(eq=False)
class Reader:
    """An operation that made something of mixed values that holds them no more.

    Attributes:
        calls: the bits of the calls whose values they are.
        operation, module: its name, and the module it ran in.
        bit: its own.
        root: the number of the linear map that it is; None where it is none.
        is_gate: what was made of it has multiplied the mixed values.
    """

    calls: int
    operation: str
    module: str
    bit: int
    root: int | None = None
    is_gate: bool = False

    def __str__(self) -> str:
        return f"operation {self.operation!r} in {self.module!r}" if self.module else f"operation {self.operation!r}"


class _Read(NamedTuple):
    """A call that was read: the linear maps of its W_O, and the modules it ran in."""

    roots: frozenset[int]
    modules: tuple[Module, ...]


class Readers:
    """The readers of all mixed values of a running model.

    Args:
        traces, projections, reach: what is known of the running model.
        module: gives the name of the module that is running.
    """

    def __init__(
        self, traces: Traces, projections: Projections, reach: Reach, module: Callable[[], str]
    ) -> None:  # fmt: skip
        self._traces, self._projections, self._reach, self._module = traces, projections, reach, module
        self._holding: set[int] = set()
        self._all: list[Reader] = []
        self._read: dict[int, _Read] = {}

    def hold(self, tensor: Tensor) -> None:
        """A tensor holds mixed values."""
        self._holding.add(storage_of(tensor))

    def read_by(self, op: Operation) -> list[Mixed]:
        """The mixed values that an operation reads, before anything is said of its result."""
        if self._holding.isdisjoint(op.storages):
            return []
        operands = op.tensors[:1] if op.name in _OF_THE_FIRST else op.tensors
        traces = [self._traces[tensor] for tensor in (op.tensors[-1:] if op.name == "setitem" else operands)]
        return [part for trace in traces if trace is not None for part in trace.mixed]

    def see(self, op: Operation, read: Sequence[Mixed], roots_before: int) -> tuple[int, int]:
        """Take in an operation that read these, after what is known of its result.

        Args:
            roots_before: how many linear maps of mixed values there were before it.

        Returns:
            The bit that is born with it, or 0; and those that do not go on in it, of the mixed values' own gate, which
            was made of themselves and multiplies them.
        """
        still = set[int]()
        for out in op.written:
            trace = self._traces[out]
            if trace is not None and trace.mixed:
                self.hold(out)
                still.update(part.mixture.bit for part in trace.mixed)
        gates = self._own_gates(op, [part.mixture for part in read if part.mixture.bit in still])
        left = [part for part in read if part.mixture.bit not in still]
        if not left or not any(out.is_floating_point() or out.is_complex() for out in op.written):
            return 0, gates
        calls = 0
        for part in left:
            if len(left) == 1 or part.is_here():  # a slice of several heads side by side may hold one of them alone
                calls |= part.mixture.bit
        root = self._projections.roots if self._projections.roots > roots_before else None
        self._all.append(Reader(calls, op.name, self._module(), self._reach.new_bit(), root))
        return self._all[-1].bit, gates

    def _own_gates(self, op: Operation, mixtures: Sequence[Mixture]) -> int:
        """The bits of what was made of mixed values and multiplies them here: a norm or a gate of their own.

        A linear map of the mixed values that makes one is not their W_O.
        """
        bits = self._reach.of_all(op.tensors) if self._all and mixtures else 0
        found = 0
        for reader in reversed(self._all if bits else ()):
            for mixture in mixtures:
                if bits & reader.bit and reader.calls & mixture.bit:
                    found, reader.is_gate = found | reader.bit, True
                    if mixture.projection is not None and reader.root in mixture.projection.roots:
                        mixture.projection = None
        return found

    @property
    def are_gates(self) -> bool:
        """Whether any makes a gate of the mixed values, so that what reads them first need not be their W_O."""
        return any(reader.is_gate for reader in self._all)

    def settle(self, mixtures: Sequence[Mixture], bits: int | None) -> str:
        """The W_O of these calls is known; why they cannot be read all the same, or ``""``.

        Args:
            bits: of what goes on from here, the next call or the output; None where that is not known: what was no gate
                then counts.
        """
        projection = mixtures[0].projection
        if projection is None:  # refused, or no attention
            return ""
        calls = 0
        for mixture in mixtures:
            calls |= mixture.bit
        problem = self._problem(calls, projection.roots, bits)
        if not problem:
            self._read[calls] = _Read(projection.roots, tuple(caller.module for caller in mixtures[0].callers))
        return problem

    def problem_behind(self, bits: int) -> tuple[str, int, tuple[Module, ...]] | None:
        """Why an output made of these bits does not rest on the W_O of a call that was read alone, the call's bits, and
        where it ran; None where all is well."""
        for calls, read in self._read.items():
            problem = self._problem(calls, read.roots, bits)
            if problem:
                return problem, calls, read.modules
        return None

    def _problem(self, calls: int, roots: frozenset[int], bits: int | None) -> str:
        for reader in self._all:
            goes_on = not reader.is_gate if bits is None else reader.bit & bits
            if reader.calls & calls and reader.root not in roots and goes_on:
                return (
                    f"its mixed values are read by {reader} as well, which is no part of its output projection W_O and "
                    "has a part in what comes after: W_O is then not all that attention adds. DecompX follows what is "
                    "linear, whichever way it goes"
                )
        return ""

    def clear(self) -> None:
        """Forget everything."""
        self._holding.clear()
        self._all.clear()
        self._read.clear()
