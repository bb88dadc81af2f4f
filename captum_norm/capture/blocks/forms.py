"""How a tensor stands to a state before it: as a norm of it, a scale of it, or just moved.

    tensor = weight * (state - centre) * factor + bias

with one factor per row: a LayerNorm, an RMSNorm however it is written, a LayerScale, a residual multiplier.  Every
operation that keeps a tensor in this form has a rule in ``FORM_RULES``; what any other operation gives out has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import Parameter

from captum_norm.capture.blocks.lineage import Node
from captum_norm.operations.kinds import OperationKind
from captum_norm.operations.operation import Operation
from captum_norm.operations.precision import at_least_float32
from captum_norm.operations.rules import RuleTable
from captum_norm.operations.steps import NOT_AN_INPUT, Step, step_of


@dataclass(eq=False)
class Kept:
    """A tensor that is wanted later; the model may overwrite it until then."""

    tensor: Tensor
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = _version(self.tensor)

    @property
    def unchanged(self) -> bool:
        return self.version == _version(self.tensor)


@dataclass(eq=False)
class State(Kept):
    """A tensor that others are measured against: what attention gave out, or a state of the residual stream.

    Attributes:
        tensor: its numbers, (..., model).
        node: its place in the lineage.
    """

    node: Node


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True, eq=False)
class Form:
    """weight * (state - centre) * factor + bias, rows moved by ``steps``.

    Attributes:
        state: what it is a form of.
        centred: the mean of each row is taken away.
        eps: not None: the row is divided by its own deviation, with this inside the root.
        factor: what each row is multiplied with besides, (..., 1), in the layout of the state.
        weight: a number or (model,); None: one.
        bias: broadcastable to the tensor, or None.
        steps: moves of rows between state and tensor.
        beside: the tensor as it was before something was added that is neither residual nor attention (a feed-forward
            part in parallel); None where nothing was.
        precision: the coarsest number format on the way; None: the tensor's own.
    """

    state: State
    centred: bool = False
    eps: float | None = None
    factor: Tensor | None = None
    weight: Tensor | float | None = None
    bias: Tensor | None = None
    steps: tuple[Step, ...] = ()
    beside: Tensor | None = None
    precision: torch.dtype | None = None

    @property
    def is_plain(self) -> bool:
        """The state itself, moved at most."""
        return not self.normalises and self.weight is None and self.bias is None

    @property
    def normalises(self) -> bool:
        return self.centred or self.eps is not None or self.factor is not None

    def scaled(self, by: Tensor | float) -> Form | None:
        """After a product with a number or one number per feature."""
        bias = None if self.bias is None else self.bias * by
        return replace(self, weight=by if self.weight is None else self.weight * by, bias=bias)


FormRule = Callable[[Operation, Form], Form | None]
FORM_RULES: RuleTable[FormRule] = RuleTable()
rule = FORM_RULES.rule


@rule(OperationKind.IDENTITY)
def _same(op: Operation, form: Form) -> Form | None:
    """The same numbers, which a cast may round."""
    return replace(form, precision=coarsest(form.precision, op.tensors[0].dtype, op.out.dtype))


def coarsest(*formats: torch.dtype | None) -> torch.dtype | None:
    """The number format that rounds most, of those that are known."""
    known = [dtype for dtype in formats if dtype is not None]
    return max(known, key=lambda dtype: torch.finfo(dtype).eps, default=None)


@rule(OperationKind.MOVE)
def _moved(op: Operation, form: Form) -> Form | None:
    if op.out is op.tensors[0]:
        return form
    if isinstance(op.out, list | tuple):
        return None
    return replace(form, steps=(*form.steps, step_of(op, None)))


@rule(OperationKind.DROPOUT)
def _dropout(op: Operation, form: Form) -> Form | None:
    return None if op.drops_out else form


@rule("mul")
def _mul(op: Operation, form: Form) -> Form | None:
    x, other = _operand(op)
    return _times(form, x, other)


@rule("div")
def _div(op: Operation, form: Form) -> Form | None:
    x, other = _operand(op)
    if op.args[0] is not x or op.kwargs.get("rounding_mode") is not None:
        return None
    return _times(form, x, 1 / other)


def _times(form: Form, x: Tensor, other: Tensor | float) -> Form | None:
    if form.beside is not None:
        return None
    # The deviation of a single row is one number, too.
    is_row = isinstance(other, Tensor) and other.shape == (*x.shape[:-1], 1) and not isinstance(other, Parameter)
    if not isinstance(other, Tensor) or (other.numel() == 1 and not is_row):
        return form if other == 1 else form.scaled(other if not isinstance(other, Tensor) else other.detach().flatten())
    if _per_feature(other, x):
        return form.scaled(other.detach().flatten())
    if other.shape[-1] == 1 and _broadcasts(other, x):
        return _by_row(form, other.detach().expand(*x.shape[:-1], 1))
    return None


def _by_row(form: Form, factor: Tensor) -> Form | None:
    """After a product with one number per row, such as 1/sigma written out or a mask."""
    if bool((factor == 1).all()):
        return form
    if form.steps or form.bias is not None:
        return _without_rows(form, factor == 0) if bool(((factor == 0) | (factor == 1)).all()) else None
    if form.eps is not None:
        factor = factor * _inverse_deviation(form.state.tensor, form.centred, form.eps)
    return replace(form, eps=None, factor=factor if form.factor is None else form.factor * factor)


def _without_rows(form: Form, silenced: Tensor) -> Form:
    """Rows (..., 1) of the tensor are zero instead: the stream does not go on from them."""
    step = Step(("rows left out", object()), lambda numbers: numbers.masked_fill(silenced, NOT_AN_INPUT))
    return replace(form, steps=(*form.steps, step))


def _inverse_deviation(state: Tensor, centred: bool, eps: float) -> Tensor:
    wide = state.detach().to(at_least_float32(state.dtype))
    if centred:
        wide = wide - wide.mean(-1, keepdim=True)
    return (wide.square().mean(-1, keepdim=True) + eps).rsqrt()


@rule("add")
def _add(op: Operation, form: Form) -> Form | None:
    """A bias or a number is added; two states that are added are looked at elsewhere."""
    x, other = _operand(op)
    if op.kwargs.get("alpha", 1) != 1:
        return None
    if not isinstance(other, Tensor):
        return form if other == 0 else None
    return _with_bias(form, other.detach()) if _per_feature(other, x) else form if not bool(other.any()) else None


def _with_bias(form: Form, bias: Tensor) -> Form:
    bias = bias.flatten()
    return replace(form, bias=bias if form.bias is None else form.bias + bias)


@rule("neg")
def _neg(op: Operation, form: Form) -> Form | None:
    return form.scaled(-1.0) if form.beside is None else None


@rule("sub")
def _sub(op: Operation, form: Form) -> Form | None:
    """A row's own mean is taken away, or a bias."""
    x, other = _operand(op)
    if op.args[0] is x and isinstance(other, Tensor) and _per_feature(other, x) and op.kwargs.get("alpha", 1) == 1:
        return _with_bias(form, -other.detach())
    if op.args[0] is x and isinstance(other, Tensor) and other.shape == x.shape and not bool(other.any()):
        return form
    is_row = isinstance(other, Tensor) and op.args[0] is x and other.shape == (*x.shape[:-1], 1)
    if not is_row or form.centred or form.weight is not None or form.bias is not None or form.beside is not None:
        return None
    mean = x.detach().mean(-1, keepdim=True)
    # Rounding of a mean is that of the row's size, not of the mean's.
    near = torch.finfo(x.dtype).eps * 8 * x.detach().abs().amax(-1, keepdim=True)
    return replace(form, centred=True) if bool(((other - mean).abs() <= near).all()) else None


@rule("layer_norm")
def _layer_norm(op: Operation, form: Form) -> Form | None:
    if len(op.argument(1, "normalized_shape")) > 1:
        return None
    return _normed(form, True, op.argument(4, "eps", 1e-5), op.argument(2, "weight"), op.argument(3, "bias"))


@rule("rms_norm")
def _rms_norm(op: Operation, form: Form) -> Form | None:
    if len(op.argument(1, "normalized_shape")) > 1:
        return None
    eps = op.argument(3, "eps")
    eps = torch.finfo(op.args[0].dtype).eps if eps is None else eps
    return _normed(form, False, eps, op.argument(2, "weight"), None)


def _normed(form: Form, centred: bool, eps: float, weight: Tensor | None, bias: Tensor | None) -> Form | None:
    if not form.is_plain or form.beside is not None:
        return None
    return replace(
        form,
        centred=centred,
        eps=float(eps),
        weight=None if weight is None else weight.detach(),
        bias=None if bias is None else bias.detach(),
    )


def _operand(op: Operation) -> tuple[Tensor, Tensor | float]:
    """The tensor that has a form (the first, unless only the second has the result's shape) and the other operand."""
    first, second = op.args[:2]
    if isinstance(first, Tensor) and first.shape == op.out.shape:
        return first, second
    return second, first


def _per_feature(other: Tensor, x: Tensor) -> bool:
    return other.ndim > 0 and other.shape[-1] == x.shape[-1] and math.prod(other.shape[:-1]) == 1


def _broadcasts(small: Tensor, large: Tensor) -> bool:
    return small.ndim == large.ndim and all(a in (1, b) for a, b in zip(small.shape, large.shape, strict=True))


@rule("normalize")
def _normalize(op: Operation, form: Form) -> Form | None:
    """Each row over its own length, or what that is at least."""
    x = op.args[0]
    if op.argument(1, "p", 2.0) != 2 or op.argument(2, "dim", 1) not in (-1, x.ndim - 1) or form.beside is not None:
        return None
    length = x.detach().norm(dim=-1, keepdim=True)
    return _by_row(form, 1 / length.clamp_min(op.argument(3, "eps", 1e-12)))


@rule("batch_norm")
def _batch_norm(op: Operation, form: Form) -> Form | None:
    """A scale and a bias for each feature, which stand along the second axis."""
    mean, variance, weight, bias = (op.argument(n, name) for n, name in enumerate(_OF_FEATURES, start=1))
    if op.argument(5, "training", False) or mean is None or form.beside is not None:
        return None
    if not _features_lie_along(1, form, op.args[0]):
        return None
    scale = (variance + op.argument(7, "eps", 1e-5)).rsqrt() * (1 if weight is None else weight.detach())
    after = form.scaled(scale)
    return after and _with_bias(after, (0 if bias is None else bias.detach()) - mean * scale)


_OF_FEATURES = ("running_mean", "running_var", "weight", "bias")


def _features_lie_along(axis: int, form: Form, x: Tensor) -> bool:
    """Whether the features of the state, in their order, are this axis of what the steps made of it."""
    width = form.state.tensor.shape[-1]
    numbers = torch.arange(form.state.tensor.numel(), device="cpu").view(form.state.tensor.shape) % width
    for step in form.steps:
        numbers = step.apply(numbers)
    order = torch.arange(width, device="cpu").view(-1, *[1] * (x.ndim - axis - 1))
    return numbers.shape == x.shape and x.shape[axis] == width and torch.equal(numbers, order.expand(x.shape))


# No form comes out of these.
FORM_RULES.pass_over("rsub", "radd", "group_norm")


def is_normalisation(op: Operation, factor_comes_from_it: Callable[[Tensor, Tensor], bool]) -> Tensor | None:
    """The tensor that this operation normalises, or None: a norm's own operation, or 1/sigma written out.

    Args:
        op: the operation.
        factor_comes_from_it: whether the second tensor was made of the first.
    """
    if op.name in ("layer_norm", "rms_norm"):
        return op.args[0]
    if op.name not in ("mul", "div") or not isinstance(op.out, Tensor) or len(op.args) < 2:
        return None
    x, other = _operand(op)
    if not isinstance(x, Tensor) or not isinstance(other, Tensor) or other.shape != (*x.shape[:-1], 1):
        return None
    return x if factor_comes_from_it(x, other) else None
