"""What it means to hold an operation fixed: a linear map of its live operands and of the number one.

At given inputs every operation of a model has a linear form that gives the same result: attention weights, 1/sigma,
act(z)/z, gates and routing are taken as constants.  What is left is affine, y = L(x) + c, and with the constants scaled
by one further number it is linear: y = L(x) + one c, with one = 1.  A part of x goes through with one = 0, the biases
go through as the part that begins with x = 0 and one = 1.

A tensor is *live* if it depends on the inputs that are followed; everything else is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from captum_norm.capture.operations import Operation

ActivationType = Literal["ZO", "LA", "ReLU"]
ProductType = Literal["half", "gate"]


class NotFrozenError(ValueError):
    """An operation on a live tensor has no linear form here; the message names the operation and its module."""


class NothingMixedError(NotFrozenError):
    """No operation was seen that mixes positions."""


@dataclass(frozen=True)
class Conventions:
    """How what is not linear is held fixed, where there is a choice.

    Attributes:
        activation: the line that stands for an activation act at z: ``"ZO"`` through the origin, act(z)/z; ``"LA"`` the
            tangent, act'(z), whose intercept act(z) - z act'(z) is a bias; ``"ReLU"`` z where z > 0, what act(z) is
            beyond that being a bias.
        product: of two live factors (a gated activation, act(g) u), ``"half"`` of the product goes to each, or
            ``"gate"``: the activated factor is held fixed and all of it goes to the other.

    Raises:
        ValueError: for an unknown word.
    """

    activation: ActivationType = "ZO"
    product: ProductType = "half"

    def __post_init__(self) -> None:
        for name, known in (("activation", get_args(ActivationType)), ("product", get_args(ProductType))):
            if getattr(self, name) not in known:
                words = ", ".join(map(repr, known))
                raise ValueError(f"{name} should be one of {words}, got {getattr(self, name)!r}.")


@dataclass(frozen=True, eq=False)
class Frozen:
    """The linear form of one operation.

    Attributes:
        apply: (one, *operands) -> the result; linear in all of them together.
        operands: the live tensors whose linear form goes in.
        has_constant: whether ``one`` matters.
        lazy: the value is enough for now; the linear form is made only if something linear needs it (the scores of
            attention never do).
        value: the result, where it is known already.
        root: the live tensor of which the result is a function entry by entry, if it is.
        bent: that function is not linear.
        mixes: positions are mixed here, as attention mixes values with its weights.
        moves: entries are moved, or kept, and nothing else.
    """

    apply: Callable[..., Any]
    operands: tuple[Tensor, ...]
    has_constant: bool = False
    lazy: bool = False
    value: Tensor | None = None
    root: Tensor | None = None
    bent: bool = False
    mixes: bool = False
    moves: bool = False


class Run(Protocol):
    """What a rule may ask of the run that it works for (:class:`~captum_norm.linear.run.FrozenRun`)."""

    conventions: Conventions
    fused: bool
    lazy_maps: bool

    def is_live(self, tensor: Any) -> bool:
        """Whether a tensor depends on what is followed."""

    def only_value(self, tensor: Tensor) -> bool:
        """Whether the linear form of a live tensor has been put off."""

    def root_of(self, tensor: Tensor) -> tuple[Tensor | None, bool]:
        """The live tensor of which this is a function entry by entry, and whether that is not linear."""

    def refusal(self, op: Operation, reason: str) -> NotFrozenError:
        """The error for an operation that has no linear form."""

    def tangent_of(self, op: Operation, root: Tensor, value: Tensor) -> Callable[[], Tensor]:
        """The slope of ``value``, a function of ``root`` entry by entry, once it is asked for."""


Rule = Callable[[Any, Operation], Any]
RULES: dict[str, Rule | None] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of these operations; an in-place form has the rule of its name without the underscore."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def replaced(value: Any, swap: Callable[[Tensor], Any]) -> Any:
    """The arguments of an operation with each tensor swapped, inside lists and tuples too."""
    if isinstance(value, Tensor):
        return swap(value)
    if isinstance(value, tuple) and type(value) is not torch.Size:
        return tuple(replaced(item, swap) for item in value)
    if isinstance(value, list):
        return [replaced(item, swap) for item in value]
    return value


def call(op: Operation, swap: Callable[[Tensor], Any], args: Sequence[Any] | None = None) -> Any:
    """Run the operation with each tensor swapped."""
    given = op.args if args is None else args
    kwargs = {name: replaced(value, swap) for name, value in op.kwargs.items() if name != "inplace"}
    return functional(op)(*(replaced(value, swap) for value in given), **kwargs)


def writes(op: Operation) -> bool:
    """Whether the operation overwrites its first operand."""
    if not op.args or not isinstance(op.args[0], Tensor):
        return False
    return bool(op.in_place and not op.name.endswith("__")) or op.name == "setitem" or bool(op.kwargs.get("inplace"))


def functional(op: Operation) -> Callable[..., Any]:
    """The operation's function, its form that writes a new tensor where it works in place."""
    if op.name == "setitem":
        return _setitem
    if op.name == "copy_":
        return lambda into, source, *_: source.to(into).expand(into.shape)
    if op.in_place and not op.name.endswith("__"):
        return getattr(torch.Tensor, op.name[:-1], None) or getattr(torch, op.name[:-1])
    return op.func


def _setitem(into: Tensor, index: Any, value: Any) -> Tensor:
    out = into.clone()
    out[index] = value
    return out
