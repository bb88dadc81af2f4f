"""W_O of the calls under way: one linear map, several side by side (heads, adapters), or several in a row.

What may be W_O is noted with what it wrote, before the model overwrites that, and noted again with each map that joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.capture.blocks.stream import ResidualStream
from captum_norm.capture.certificate import Probe
from captum_norm.capture.traces import Mixed, Projection, Term, Trace
from captum_norm.operations.callers import Caller, how_many_run

_PROBE = Probe()


class Projections:
    """Linear maps of mixed values, and which of them are W_O.

    Args:
        stream: is told what was projected, where blocks are read.
        running: gives the modules that are running.

    Attributes:
        roots: how many linear maps of mixed values were seen.
    """

    def __init__(self, stream: ResidualStream | None, running: Callable[[], tuple[Caller, ...]]) -> None:
        self._stream, self._running = stream, running
        self.roots = 0

    def of(
        self, trace: Trace, x: Tensor, W: Tensor, bias: Tensor | None, out: Tensor, parameter: Tensor,
        number_format: str = "",
    ) -> Projection | None:  # fmt: skip
        """What x (..., column) @ W (column, model) + bias = out is of W_O; None where it is nothing of it.

        Args:
            trace: what is known of x: mixed values, or a branch of W_O.
            parameter: the weight as the module holds it.
            number_format: of the weight, where it has one of its own: ``out`` may differ by what this rounds.
        """
        projection = self.branch(trace.mixed, x, W, bias, parameter)
        if projection is None:
            return trace.projection and self._one_more_factor(trace.projection, W, bias, out)
        fresh = tuple(mixture for mixture in projection.mixtures if mixture.projection is None)
        return self.propose(projection.of(fresh), out, number_format) if fresh else projection

    def _one_more_factor(
        self, before: Projection, W: Tensor, bias: Tensor | None, out: Tensor
    ) -> Projection | None:
        """W_O, or a branch of it, after one more linear map, which is a factor of W_O if it is the only reader."""
        if before.width != W.shape[0]:
            return None  # a part of the features, or more than these
        after = before.times(lambda matrix: matrix @ W.to(matrix.dtype), W.shape[1])
        if bias is not None:
            after = after.plus(Projection(after.mixtures, (), bias, frozenset(), W.shape[1]))
        known = {mixture.projection for mixture in before.mixtures}
        if len(known) == 1 and before in {one and one.base for one in known}:  # several maps read what W_O wrote
            for mixture in before.mixtures:
                mixture.projection = replace(before, is_final=True)
        elif known == {before} and self._is_factor(before, out):
            return self.propose(replace(after, base=before), out)
        elif before.is_moved and all(one is not None and self._may_be_factor(one, before, W) for one in known):
            for mixture in before.mixtures:
                mixture.problem = mixture.problem or (
                    "its output projection W_O is two linear maps in a row, and rows of what the first one wrote are "
                    "moved before the second: transpose in front of both, or multiply them into one"
                )
        return after

    def _is_factor(self, before: Projection, out: Tensor) -> bool:
        """Whether the map is made where W_O was, in the same module, and of all that it wrote."""
        if before.is_final or before.is_moved or before.actual is None or out.numel() % out.shape[-1]:
            return False
        if len(before.actual) != out.numel() // out.shape[-1]:
            return False
        return self._how_many_run(before) >= before.depth

    def _may_be_factor(self, whole: Projection, moved: Projection, W: Tensor) -> bool:
        """Whether what seems to be W_O, whose rows have moved since, may be the first of two factors.

        So it is where it was made, and narrower than what it reads and what is made of it.
        """
        if whole.is_final or whole.roots != moved.roots:
            return False
        if not whole.terms or whole.width >= min(W.shape[1], whole.terms[0].W.shape[0]):
            return False
        return self._how_many_run(whole) >= whole.depth

    def is_where_made(self, branch: Projection) -> bool:
        """Whether the module in which W_O was applied is still running."""
        made = branch.mixtures[0].projection
        return made is not None and not made.is_final and self._how_many_run(branch) >= made.depth

    def is_in_module(self, written: Projection) -> bool:
        """Whether something was made of what W_O wrote, and the module in which that was applied is still running."""
        made = written.mixtures[0].projection
        return made is not None and bool(written.roots & made.roots) and self._how_many_run(made) >= made.depth

    def _how_many_run(self, projection: Projection) -> int:
        """How many of the modules that ran at its first value product are still running."""
        return how_many_run(projection.mixtures[0].callers, self._running())

    def branch(
        self, mixed: tuple[Mixed, ...], x: Tensor, W: Tensor, bias: Tensor | None, parameter: Tensor
    ) -> Projection | None:
        """x (..., column) @ W (column, model), where x is the sum of these parts; None where it has none."""
        if len(mixed) > 1:  # a slice of several heads side by side may hold one of them alone
            mixed = tuple(part for part in mixed if part.is_here())
        if not mixed:
            return None
        self.roots += 1
        x, W = x.detach(), W.detach()
        terms = tuple(Term(part.mixture, part.steps, x, W, parameter, self.roots) for part in mixed)
        mixtures = tuple(dict.fromkeys(part.mixture for part in mixed))
        return Projection(mixtures, terms, bias, frozenset((self.roots,)), W.shape[1])

    def propose(self, projection: Projection, out: Tensor, number_format: str = "") -> Projection:
        """Take this as the call's output projection, and note now what it wrote (the model may overwrite it).

        A call that was handed over already stays what it was.
        """
        if any(mixture.is_read for mixture in projection.mixtures):
            return projection
        y = out.detach().reshape(-1, out.shape[-1])
        r = _PROBE.direction(y.shape[-1], y)
        y = y.to(r.dtype)
        if projection.bias is not None:
            y = y - projection.bias.detach().to(r.dtype)
        depth = self._how_many_run(projection)
        projection = replace(projection, parts_axis=None, r=r, actual=y @ r, size=vector_norm(y, dim=-1), depth=depth)
        if number_format:
            projection = replace(projection, number_format=number_format, rounding=projection.rounded())
        for mixture in projection.mixtures:
            mixture.projection = projection
            if self._stream is not None:
                self._stream.projected(mixture, out)
        return projection
