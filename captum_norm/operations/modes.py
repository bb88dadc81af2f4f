"""Seeing every torch operation of a running model: watched beside it, or with another result in its place."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode

from captum_norm.operations.compositions import SUMS_OF_PRODUCTS, written_out
from captum_norm.operations.facts import Facts
from captum_norm.operations.formats import with_plain_mask, without_own_formats
from captum_norm.operations.kinds import OperationKind, may_write, names_of
from captum_norm.operations.operation import Operation, operation_name
from captum_norm.operations.sharded import is_distributed, with_weights_held

OperationRule = Callable[[Operation], Any]


@dataclass(frozen=True, eq=False)
class OfKnownTensors:
    """A rule for operations on tensors of which some store knows something, and for no others."""

    rule: OperationRule
    known: tuple[Facts[Any], ...]

    def __call__(self, operation: Operation) -> Any:
        return self.rule(operation)

    def concerns(self, arguments: Iterable[Any]) -> bool:
        """Whether a tensor that is known is among them, or in a list of them."""
        for one in arguments:
            if isinstance(one, Tensor):
                number = id(one)
                for facts in self.known:
                    if number in facts.numbers and one in facts:
                        return True
            elif isinstance(one, list | tuple) and self.concerns(one):
                return True
        return False


class OperationMode(TorchFunctionMode):
    """Hands over each operation of this thread that has a rule; all others run as if nobody looked.

    A subclass says what handing over is, in :meth:`hand_over`.

    Args:
        rule_for: the rule of operations of this name; None costs one dictionary look-up.
    """

    def __init__(self, rule_for: Callable[[str], OperationRule | None]) -> None:
        super().__init__()
        self._rule_for = rule_for
        self._rules: dict[Any, OperationRule | None] = {}
        self._thread = threading.get_ident()
        self._distributed = is_distributed()
        self._raised: TypeError | None = None  # by a rule

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        raised, self._raised = self._raised, None
        # Within an operator such as @ torch takes a TypeError for a question to the other operand.
        if raised is not None and isinstance(error, TypeError) and str(error).startswith("unsupported operand"):
            raise raised from None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # It would run its softmax and projection out of our sight: run its own code with this mode still on.
            with self:
                return _open_multi_head_attention(*args, **kwargs)
        if isinstance(func, HigherOrderOperator) and operation_name(func) == "cond":
            # What is computed is the branch that is chosen, and nothing else; with gradients, torch would trace both,
            # which it cannot while another mode looks on.
            with self:
                return _chosen_branch(*args, **kwargs)
        try:
            rule = self._rules[func]
        except KeyError:
            rule = self._rules[func] = self.rule_of(func)
        if rule is None or threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        return self.hand_over(rule, func, args, kwargs)

    def rule_of(self, func: Callable[..., Any]) -> OperationRule | None:
        """The rule of an operation."""
        return self._rule_for(operation_name(func))

    def hand_over(
        self, rule: OperationRule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the model gets for an operation that has a rule."""
        raise NotImplementedError

    def seen(self, operation: Operation) -> Operation:
        """An operation as its rule sees it."""
        if operation.name == "scaled_dot_product_attention":
            operation = with_plain_mask(operation)
        if not self._distributed:
            return operation
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return with_weights_held(operation)


# Where these hand back the very tensor that they were given, they have done nothing (dropout outside of training).
_MAY_DO_NOTHING = names_of(OperationKind.IDENTITY, OperationKind.MOVE, OperationKind.DROPOUT)


class WatchingMode(OperationMode):
    """Runs each operation exactly as the model asked, then tells its rule.

    A rule of known tensors is not told of operations on others, and none of one that hands back its operand as it is.
    Of an operation that sums products the rules are told as of these, which are made again beside the model: its own
    result is then a copy of theirs.

    The rule works under ``no_grad`` and with torch functions off, so that neither this mode nor autograd sees it.

    Args:
        rule_for: as for :class:`OperationMode`.
        before_writing: what is done, likewise, before an operation that may write into what it is given.
    """

    def __init__(
        self, rule_for: Callable[[str], OperationRule | None], before_writing: Callable[[], None] | None = None
    ) -> None:
        super().__init__(rule_for)
        self._before_writing = before_writing

    def rule_of(self, func: Callable[..., Any]) -> OperationRule | None:
        """The rule of an operation; of one that may write it may be that nothing is known of it."""
        rule = super().rule_of(func)
        return _nothing_known if rule is None and self._before_writing is not None and may_write(func) else rule

    def hand_over(
        self, rule: OperationRule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = operation_name(func)
        if self._before_writing is not None and (may_write(func) or "out" in kwargs or kwargs.get("inplace")):
            with torch._C.DisableTorchFunction(), torch.no_grad():
                self._before_writing()
        try:
            out = func(*args, **kwargs)
        except AssertionError as error:
            if not (isinstance(func, HigherOrderOperator) and torch.is_grad_enabled()):
                raise
            raise ValueError(
                f"operation {name!r} cannot be looked at with gradients: torch traces the function that it is given, "
                f"which fails ({str(error).splitlines()[0].partition('. ')[0]}). Write it out as a loop in Python; "
                "methods without gradients need not."
            ) from error
        if name in SUMS_OF_PRODUCTS and "out" not in kwargs:
            self._tell_of_parts(rule, name, args, kwargs, out)
        elif not args or out is not args[0] or name not in _MAY_DO_NOTHING or kwargs.get("inplace"):
            self._tell(rule, name, func, args, kwargs, out)
        return out

    def _tell_of_parts(
        self, rule: OperationRule, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        by_others, copies = written_out(name), self._rule_for("clone")
        if by_others is None or not _is_numbers(out):
            return
        with torch.no_grad(), self:
            again = by_others(*args, **kwargs)
        if copies is not None:
            self._tell(copies, "clone", torch.clone, (again,), {}, out)

    def _tell(
        self, rule: OperationRule, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
        out: Any,
    ) -> None:  # fmt: skip
        if isinstance(rule, OfKnownTensors) and not rule.concerns((*args, *kwargs.values()) if kwargs else args):
            return
        operation = self.seen(Operation(name, func, args, kwargs, out))
        try:
            with torch._C.DisableTorchFunction():
                if torch.is_grad_enabled():
                    with torch.no_grad():
                        rule(operation)
                else:
                    rule(operation)
        except TypeError as error:
            self._raised = error
            raise


class SubstitutingMode(OperationMode):
    """Asks the rule *instead of* running the operation: what the rule returns is what the model gets.

    The rule works with torch functions off, so that this mode does not see it; whether gradients are on is the model's
    affair.  ``operation.out`` is None.  Operations that are others in one are run as these.
    """

    def __init__(self, rule_for: Callable[[str], OperationRule | None]) -> None:
        super().__init__(rule_for)
        self._written_out: dict[Any, Callable[..., Any] | None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in self._written_out:
            self._written_out[func] = written_out(operation_name(func))
        by_others, kwargs = self._written_out[func], kwargs or {}
        if by_others is None or "out" in kwargs or threading.get_ident() != self._thread:
            return super().__torch_function__(func, types, args, kwargs)
        if not _is_numbers(args[0] if args else kwargs.get("input")):
            return super().__torch_function__(func, types, args, kwargs)
        with self:
            return by_others(*args, **kwargs)

    def hand_over(
        self, rule: OperationRule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            with torch._C.DisableTorchFunction():
                return rule(without_own_formats(self.seen(Operation(operation_name(func), func, args, kwargs))))
        except TypeError as error:
            self._raised = error
            raise


def _chosen_branch(
    pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: tuple[Any, ...] = ()
) -> Any:
    return true_fn(*operands) if pred else false_fn(*operands)


def _nothing_known(operation: Operation) -> None:
    """The rule of operations that have none."""


def _is_numbers(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point()


def _without_dispatch(function: Any) -> Any:
    """The same code, taking the path it takes when nobody overrides torch functions."""
    world = {**function.__globals__, "has_torch_function": lambda *_: False}
    clone = types.FunctionType(function.__code__, world, function.__name__, function.__defaults__, function.__closure__)
    clone.__kwdefaults__ = function.__kwdefaults__
    return clone


_open_multi_head_attention = _without_dispatch(F.multi_head_attention_forward)
