"""What it means to hold an operation fixed: a linear map of its live operands and of the number one.

At given inputs every operation of a model has a linear form that gives the same result: attention weights, 1/sigma,
act(z)/z, gates and routing are taken as constants.  What is left is affine, y = L(x) + c, and with the constants scaled
by one further number it is linear: y = L(x) + one c, with one = 1.  A part of x goes through with one = 0, the biases
go through as the part that begins with x = 0 and one = 1.

A tensor is *live* if it depends on the inputs that are followed; everything else is constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from captum_norm.operations.operation import Operation
from captum_norm.operations.rules import RuleTable

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
        for name, allowed in (("activation", get_args(ActivationType)), ("product", get_args(ProductType))):
            if getattr(self, name) not in allowed:
                words = ", ".join(map(repr, allowed))
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


# From the run that asks and an operation to its linear form, or to its result where that is a constant.
Rule = Callable[[Any, Operation], "Frozen | Any"]
RULES: RuleTable[Rule] = RuleTable()
rule = RULES.rule
