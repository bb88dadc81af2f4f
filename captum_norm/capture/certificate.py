"""Was the attention call read exactly?  One random direction tells.

For a random r in model space, the weighted values must reproduce what the projection wrote (Freivalds' check),

    sum_h weights_h (values_h (W_O_h r))  =  (y - b_O - rest) . r ,

which costs O(key) per head and query and covers weights, values, layout and W_O at once, for those queries whose
weights are looked at.  It does not see a permutation of the keys in weights and values together;
:mod:`captum_norm.capture.positions` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.capture.call import Certificate, InexactCaptureError
from captum_norm.capture.held import HeadValues
from captum_norm.capture.weights import Rows
from captum_norm.operations.facts import Facts
from captum_norm.operations.precision import at_least_float32, tolerance


def tolerance_for(dtype: torch.dtype, keys: int, beside: float = 0.0) -> float:
    """Largest relative error that rounding explains.

    Args:
        dtype: what the model computes in.
        keys: how many values were summed; rounding errors of a sum grow with the root of its length, and the table is
            met with room to spare up to 4096.
        beside: how large what was added to the attention part (b_O) is, as a multiple of the attention part.  Their
            sum is rounded as a whole, to ``beside`` times the dtype's resolution.  A part that is lost in that
            rounding cannot be certified: the tolerance never exceeds a tenth.

    Returns:
        The tolerance, as a part of the attention part's size.

    Example:
        >>> tolerance_for(torch.float32, keys=512)
        1e-05
        >>> f"{tolerance_for(torch.float32, keys=512, beside=100):.1e}"
        '5.8e-05'
    """
    of_the_sum = tolerance("record", dtype) * max(1.0, (keys / 4096) ** 0.5)
    return min(0.1, of_the_sum + 4 * torch.finfo(dtype).eps * beside)


class Probe:
    """One random direction for each size of model space, as long as ones would be: y . r is about ||y||'s size.

    Drawn from a generator of its own: the user's random state is never touched.  W_O r is remembered for parameters,
    so that later recordings of the same model need not read W_O again.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._directions: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def direction(self, size: int, like: Tensor) -> Tensor:
        """(model,) of length sqrt(model) in at least float32, on the device of ``like``."""
        key = (size, at_least_float32(like.dtype), like.device)
        if key not in self._directions:
            generator = torch.Generator(device="cpu").manual_seed(self._seed + size)
            drawn = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
            drawn *= size**0.5 / vector_norm(drawn)
            self._directions[key] = drawn.to(device=like.device, dtype=key[1])
        return self._directions[key]


def predicted(weights: Tensor, values: HeadValues, read: Tensor, gate: Tensor | None) -> Tensor:
    """sum_h (weights_h values_h [* gate_h]) W_O_h r, (batch, query), without ever forming the output.

    Args:
        weights: (batch, head, query, key).
        values: of the heads, (batch, head, key, head_dim).
        read: W_O r, (head, head_dim), from :func:`read_along`.
        gate: (batch, head, query, head_dim or 1), or None.
    """
    if gate is not None and gate.shape[-1] > 1:
        mixed = weights.to(read.dtype) @ values.whole.to(read.dtype)
        return torch.einsum("bhqe,bhqe,he->bq", mixed, gate.to(read.dtype), read)
    return _summed(weights, values.along(read), gate)


def _summed(weights: Tensor, along_r: Tensor, gate: Tensor | None) -> Tensor:
    """sum_h weights_h along_r_h [* gate_h], (batch, query)."""
    # With one row in front: torch's product with one column behind takes up to fifteen times as long on a CPU.
    part = (along_r[:, :, None] @ weights.to(along_r.dtype).mT)[:, :, 0]
    return (part if gate is None else part * gate[..., 0].to(along_r.dtype)).sum(1)


@dataclass(eq=False)
class Check:
    """What the weights of one call's queries must reproduce.

    Attributes:
        values, W_O, gate: as in a record.
        reads: W_O r as it is remembered, and as it is read anew where that fails.
        actual: (y - b_O - rest) . r, (batch, query).
        size: of the attention part, the largest of all queries.
        tolerance: what is allowed of it.
    """

    values: HeadValues
    W_O: Tensor
    gate: Tensor | None
    reads: Sequence[Callable[[], Tensor]]
    actual: Tensor
    size: float
    tolerance: float

    def certificate(self, weights: Tensor, rows: Rows) -> Certificate:
        """What the check says of the weights (batch, head, row, key) of some queries.

        Raises:
            InexactCaptureError: where they fail.
        """
        rows = rows if isinstance(rows, slice) else rows.to(self.actual.device)
        actual = self.actual[:, rows] if isinstance(rows, slice) else self.actual.gather(1, rows)
        gate, error = self._gate_at(rows), float("nan")
        for expected in self._expected(weights, gate):
            error = relative_error(expected, actual, self.size)
            if error <= self.tolerance:
                return Certificate(error, self.tolerance, rows=self._numbers(rows))
        raise InexactCaptureError(what_is_wrong(error, self.tolerance, weights, self.values.given, self.W_O))

    def _expected(self, weights: Tensor, gate: Tensor | None) -> Iterator[Tensor]:
        """What the weights predict, by each way to read W_O."""
        if gate is not None and gate.shape[-1] > 1:
            for read in self.reads:
                yield predicted(weights, self.values, read(), gate)
            return
        yield _summed(weights, self._along_r, gate)
        for read in self.reads[1:]:
            yield _summed(weights, self.values.along(read()), gate)

    @cached_property
    def _along_r(self) -> Tensor:
        return self.values.along(self.reads[0]())

    def _numbers(self, rows: Rows) -> tuple[tuple[int, ...], ...] | None:
        """The rows as a certificate names them."""
        if not isinstance(rows, slice):
            return tuple(map(tuple, rows.tolist()))
        numbers = range(self.actual.shape[1])[rows]
        return None if len(numbers) == self.actual.shape[1] else (tuple(numbers),) * len(self.actual)

    def _gate_at(self, rows: Rows) -> Tensor | None:
        if self.gate is None or isinstance(rows, slice):
            return self.gate if self.gate is None else self.gate[:, :, rows]
        return self.gate.gather(2, rows[:, None, :, None].expand(-1, self.gate.shape[1], -1, self.gate.shape[3]))


def what_is_wrong(error: float, tolerance: float, *tensors: Tensor, products: int = 1) -> str:
    """Why a check failed, in words for an error message; ``products`` of values and W_O were added up."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return (
            "its weights, values or W_O are not finite (NaN or infinity): look at the model's parameters and inputs, "
            "or at rows whose keys are all masked"
        )
    if products > 1:
        return (
            f"it adds up what {products} output projections give, and weights, values and W_O of these do not "
            f"reproduce the sum where all are taken to write to the same rows: relative error {error:.1e}, allowed "
            f"{tolerance:.0e}. Where each has its rows in an order of its own (the rows and the columns of a grid), "
            "run each attention in a module of its own, or add each to the residual by itself"
        )
    return (
        f"its weights, values and W_O do not reproduce the projection's output: relative error {error:.1e}, "
        f"allowed {tolerance:.0e}. Something else entered between the value product and W_O; "
        "attn_implementation='eager' and model.eval() are worth trying"
    )


# Of a parameter: what else W_O r depends on, W_O r, and r itself, so that its id stays its own.
_read: Facts[tuple[tuple[object, ...], Tensor, Tensor]] = Facts()


def read_along(W_O: Tensor, r: Tensor, parameter: Tensor | None = None) -> Tensor:
    """W_O r, (head, head_dim).

    Args:
        W_O: (head, head_dim, model).
        r: (model,).
        parameter: the parameter that W_O is a view of, for which the result is remembered until it is written to.
            A write that torch does not count (through ``.data``) makes the check fail, which then reads again.
    """
    if parameter is None or parameter.is_inference():
        return _read_along(W_O, r)
    depends_on = (parameter._version, W_O.shape, W_O.stride(), W_O.storage_offset(), id(r))
    remembered = _read[parameter]
    if remembered is None or remembered[0] != depends_on:
        remembered = _read[parameter] = (depends_on, _read_along(W_O, r), r)
    return remembered[1]


def _read_along(W_O: Tensor, r: Tensor) -> Tensor:
    # One matrix-vector product: as a batch over heads it would copy W_O, which is a view of the model's parameter.
    return (W_O.to(r.dtype).flatten(0, 1) @ r).view(W_O.shape[:2])


def relative_error(expected: Tensor, actual: Tensor, size: float) -> float:
    """max |expected - actual| / size: how far off, as a part of the attention part's own size."""
    return float(vector_norm(expected - actual, torch.inf)) / max(size, torch.finfo(expected.dtype).tiny)
