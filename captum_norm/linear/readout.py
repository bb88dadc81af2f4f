"""How is an output read off the last state of the residual stream?  With all behind it held fixed, it is linear:

    output = sum over rows <g_i, x_i> + bias,

through the final norm with its divisor, the unembedding, and what bends logits (a soft cap: act(z)/z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm.linear.backward import BackwardRun
from captum_norm.linear.frozen import Conventions, NotFrozenError, Rule
from captum_norm.linear.tail import Tail
from captum_norm.operations.operation import Operation
from captum_norm.operations.precision import tolerance


@dataclass(frozen=True, eq=False)
class Readout:
    """How one output depends on a state.

    Attributes:
        output: what is explained, (batch,).
        gradient: g, (batch, position, model).
        bias: what the state does not account for, (batch,).
    """

    output: Tensor
    gradient: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """What an earlier run of the model gave, and did last.

    Attributes:
        outputs: what is explained, each (batch,).
        tail: the mode that the model ran in.
    """

    outputs: Sequence[Tensor]
    tail: Tail


def read_out(
    explain: Callable[[], Sequence[Tensor]], state: Tensor, rows: Tensor, length: int, seen: Seen | None = None
) -> list[Readout]:
    """How outputs are read off a state: what followed it is done again, or the whole model is run.

    Args:
        explain: runs the model and returns what is explained of its output, each (batch,).
        state: some rows of a hidden state (batch, position, model) that an earlier run of the same model had, by which
            it is known again, (batch, row, model).
        rows: which, (batch, row).
        length: how many positions it has.
        seen: the outputs of the earlier run, each (batch,), and what it did last.

    Raises:
        NotFrozenError: if the state is not seen again, if the outputs do not depend on it, if an operation behind it
            has no linear form, or if state and biases do not add up to the outputs.
    """
    if seen is not None:
        with suppress(NotFrozenError):  # whose words are those of the run of the whole model
            again = _FromState(state, rows, length)
            with again.running():
                made = seen.tail.again(seen.outputs, again.is_state, again.begin)
                outputs = [again.result(output) for output in made or ()]
            if outputs:
                return [_backwards(again, output, keep=output is not outputs[-1]) for output in outputs]
    run = _FromState(state, rows, length)
    with run.running():
        outputs = [run.result(output) for output in explain()]
    if not run.leaves:
        raise NotFrozenError(_why_unseen(explain, state, rows, length))
    return [_backwards(run, output, keep=output is not outputs[-1]) for output in outputs]


def _why_unseen(explain: Callable[[], Sequence[Tensor]], state: Tensor, rows: Tensor, length: int) -> str:
    """Why a state was not seen again, for an error: it stands at other rows, or nowhere."""
    look = _Elsewhere(state, rows, length)
    with look.running():
        explain()
    said = (
        f"the residual stream behind the last block was not seen again as {(len(state), length, state.shape[2])}"
    )
    if look.found is None:
        return f"{said}: the model keeps it in another form, or computes something else each time it runs."
    return (
        f"{said} in the order of its last attention call: what is row {rows[0].tolist()} there is row "
        f"{look.found} of the stream, so that attention takes its rows in another order than the model keeps them in. "
        "DecompX answers."
    )


class _FromState(BackwardRun):
    """A run in which a state, once it is made, is what is followed."""

    def __init__(self, state: Tensor, rows: Tensor, length: int) -> None:
        super().__init__(Conventions())
        self._state, self._shape = state, (len(state), length, state.shape[2])
        self._where = torch.arange(len(rows), device=state.device)[:, None], rows.to(state.device)
        self._near = tolerance("record", state.dtype) * float(state.abs().max())

    def is_state(self, out: Tensor) -> bool:
        """Whether this is the state; nothing is once it was found."""
        if self.leaves or out.shape != self._shape or out.dtype != self._state.dtype:
            return False
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return bool((out[self._where] - self._state).abs().max() <= self._near)

    def _perform(self, rule: Rule, op: Operation) -> Any:
        out = super()._perform(rule, op)
        return self.begin(out) if isinstance(out, Tensor) and self.is_state(out) else out


class _Elsewhere(_FromState):
    """Looks for the rows of the first example's state at others of a tensor of its shape; follows nothing.

    Attributes:
        found: where they stood; None where they were not all seen.
    """

    found: list[int] | None = None

    def is_state(self, out: Tensor) -> bool:
        if self.found is None and out.shape == self._shape and out.dtype == self._state.dtype:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                near = (out[0] - self._state[0, :, None]).abs().amax(-1) <= self._near  # (row, position)
                if bool(near.any(1).all()):
                    self.found = near.int().argmax(1).tolist()
        return False


def _backwards(run: _FromState, output: Tensor, keep: bool) -> Readout:
    if not output.requires_grad:
        raise NotFrozenError(
            "the output does not depend on the residual stream behind the last block in linear form: it is computed "
            "without it, or is a softmax, which is held fixed: explain the logits."
        )
    state = run.leaves[0]
    gradient, one = torch.autograd.grad(output.sum(), [state, run.one], retain_graph=keep, allow_unused=True)
    with torch.no_grad():
        gradient = torch.zeros_like(state) if gradient is None else gradient
        shares = torch.where(gradient == 0, 0, gradient * state)
        bias = output.detach() - shares.flatten(1).sum(1)
        counted = 0.0 if one is None else float(one)
        size = float(shares.abs().sum() + output.abs().sum()) + abs(counted)
        error = abs(float(bias.sum()) - counted) / max(size, torch.finfo(state.dtype).tiny)
    allowed = tolerance("contributions", output.dtype)
    if not error <= allowed:
        raise NotFrozenError(
            f"the stream behind the last block and the biases behind it do not add up to the output: off by "
            f"{error:.1e} of their size (tolerance {allowed:.0e}); some operation was not seen."
        )
    return Readout(output.detach(), gradient, bias)
