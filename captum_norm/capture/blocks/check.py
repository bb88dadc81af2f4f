"""Was a block read as it is?  One random direction tells, as for the attention call itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.capture.call import Certificate
from captum_norm.capture.certificate import Probe
from captum_norm.functional.normalization import FrozenNorm
from captum_norm.operations.precision import tolerance

_PROBE = Probe()


class UnreadableBlockError(ValueError):
    """The block around an attention call cannot be read; the message says why."""


class BlockCheck:
    """Whether what was read of a block reproduces what the model computed, along one random direction.

    ``rows`` (batch, query) are those of the tensors compared; nothing is compared where a row is -1.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._tolerance = tolerance("record", dtype)
        self._error = 0.0

    def norm(
        self, what: str, norm: FrozenNorm, state: Tensor, actual: Tensor, rows: Tensor, precision: torch.dtype | None
    ) -> None:
        """That a frozen norm makes of its state what the model's made, in the precision it computed in."""
        r = _PROBE.direction(state.shape[-1], state).double()
        along = r if norm.weight is None else r * norm.weight
        if norm.centred:
            along = along - along.mean()
        expected = state.double() @ along
        if norm.deviation is not None:
            expected = expected / norm.deviation
        if norm.bias is not None:
            expected = expected + norm.bias.double() @ r
        self._compare(what, expected, actual, r, rows, precision or actual.dtype)

    def equal(
        self, what: str, expected: Tensor | None, actual: Tensor, rows: Tensor, precision: torch.dtype | None = None,
        beside: Tensor | None = None,
    ) -> None:  # fmt: skip
        """That two states are one.

        Args:
            what: what is compared, for the error.
            expected: (batch, query, model), or (batch, query) along the random direction.
            actual: (batch, query, model).
            rows, precision: as elsewhere.
            beside: what ``actual`` was added to, (batch, query, model): it may be known to the digits of the sum only.
        """
        if expected is None:
            return
        r = _PROBE.direction(actual.shape[-1], actual)
        along = expected.to(r.dtype) if expected.ndim < actual.ndim else expected.to(r.dtype) @ r
        size = 0.0 if beside is None else _largest(beside.to(r.dtype) @ r)
        self._compare(what, along, actual, r, rows, precision or actual.dtype, size)

    def _compare(
        self, what: str, expected: Tensor, actual: Tensor, r: Tensor, rows: Tensor, precision: torch.dtype,
        beside: float = 0.0,
    ) -> None:  # fmt: skip
        self._tolerance = max(self._tolerance, tolerance("record", precision))
        kept, along = (rows >= 0).to(actual.device), actual.to(r.dtype) @ r
        size, off = max(_largest(along[kept]), beside), _largest((expected - along)[kept])
        if off > self._tolerance * size:  # one row may stand at right angles to r: it is as large as it is long
            size = max(size, _largest(vector_norm(actual[kept].to(r.dtype), dim=-1)))
        error = off / size if size else 0.0
        if not error <= self._tolerance:
            raise UnreadableBlockError(
                f"{what}, read from the model, does not reproduce its output: relative error {error:.1e}, allowed "
                f"{self._tolerance:.0e}"
            )
        self._error = max(self._error, error)

    def certificate(self) -> Certificate:
        return Certificate(self._error, self._tolerance, ("residual", "norms", "output"))


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
