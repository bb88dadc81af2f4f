"""Seeing every torch operation of a running model, under one name each.

``F.softmax``, ``torch.softmax`` and ``Tensor.softmax`` are one operation to us; so are ``x @ y``, ``torch.matmul`` and
``Tensor.__matmul__``.  :class:`OperationMode` runs each operation as the model asked for it, then hands it to a rule.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SPELLINGS = {
    "__matmul__": "matmul", "__rmatmul__": "rmatmul", "mm": "matmul", "bmm": "matmul",
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_", "multiply": "mul", "multiply_": "mul_",
    "__add__": "add", "__radd__": "add", "__iadd__": "add_",
    "__sub__": "sub", "__isub__": "sub_", "subtract": "sub", "__rsub__": "rsub",
    "__truediv__": "div", "__itruediv__": "div_", "true_divide": "div", "divide": "div",
    "__rtruediv__": "rdiv", "__rdiv__": "rdiv",
    "__getitem__": "getitem", "__setitem__": "setitem",
    "_softmax": "softmax", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose",
    "T": "t", "moveaxis": "movedim",
}  # fmt: skip


class Operation:
    """One torch operation as it was called, and what it returned.

    Attributes:
        name: its one name, see :func:`operation_name`.
        func, args, kwargs: the call, as the model wrote it.
        out: what it returned.
        tensors: all tensors among the arguments, in order; lists of tensors (``cat``, ``stack``) are opened.
    """

    __slots__ = ("args", "func", "kwargs", "name", "out", "tensors")

    def __init__(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if kwargs:
            args, kwargs = _positional(args, kwargs)
        self.name, self.func, self.args, self.kwargs, self.out = name, func, args, kwargs, out
        self.tensors = _tensors((*args, *kwargs.values()) if kwargs else args)

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or by keyword, whichever way the model passed it."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    @property
    def outputs(self) -> list[Tensor]:
        return [self.out] if isinstance(self.out, Tensor) else _tensors((self.out,))

    @property
    def in_place(self) -> bool:
        return self.name.endswith("_")


def _positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The operands where they usually stand: ``torch.add(input=x, other=y)`` is ``torch.add(x, y)``."""
    for position, name in enumerate(("input", "other")):
        if len(args) == position and name in kwargs:
            args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


@cache
def operation_name(func: Callable[..., Any]) -> str:
    """The one name of an operation, however it is spelled; in-place forms keep their trailing underscore.

    >>> operation_name(torch.Tensor.__rmul__), operation_name(torch.softmax), operation_name(torch.Tensor.mul_)
    ('mul', 'softmax', 'mul_')
    """
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # a property such as x.T or x.shape
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return _SPELLINGS.get(name, name)


class OperationMode(TorchFunctionMode):
    """Hands each operation of this thread to ``rule(operation)`` after running it exactly as the model asked.

    The rule works under ``no_grad`` and with torch functions off, so it is never seen by itself or by autograd.
    ``rule_for(name)`` says which rule an operation has; None costs one dictionary look-up.
    """

    def __init__(self, rule_for: Callable[[str], Callable[[Operation], None] | None]) -> None:
        super().__init__()
        self._rule_for = rule_for
        self._rules: dict[Any, Callable[[Operation], None] | None] = {}
        self._thread = threading.get_ident()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # It would run its softmax and projection out of our sight: run its own code with this mode still on.
            with self:
                return _open_multi_head_attention(*args, **kwargs)
        out = func(*args, **kwargs)
        try:
            rule = self._rules[func]
        except KeyError:
            rule = self._rules[func] = self._rule_for(operation_name(func))
        if rule is not None and threading.get_ident() == self._thread:
            operation = Operation(operation_name(func), func, args, kwargs, out)
            with torch._C.DisableTorchFunction():
                if torch.is_grad_enabled():
                    with torch.no_grad():
                        rule(operation)
                else:
                    rule(operation)
        return out


def _without_dispatch(function: Any) -> Any:
    """The same code, taking the path it takes when nobody overrides torch functions."""
    world = {**function.__globals__, "has_torch_function": lambda *_: False}
    clone = types.FunctionType(function.__code__, world, function.__name__, function.__defaults__, function.__closure__)
    clone.__kwdefaults__ = function.__kwdefaults__
    return clone


_open_multi_head_attention = _without_dispatch(F.multi_head_attention_forward)


class SubstitutionMode(OperationMode):
    """Hands each operation of this thread to ``rule(operation)`` *instead of* running it: what the rule returns is what
    the model gets.

    The rule works with torch functions off, so it is never seen by itself; whether gradients are on is the model's
    affair.  ``operation.out`` is None.
    """

    def __init__(self, rule_for: Callable[[str], Callable[[Operation], Any] | None]) -> None:
        super().__init__(rule_for)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _open_multi_head_attention(*args, **kwargs)
        try:
            rule = self._rules[func]
        except KeyError:
            rule = self._rules[func] = self._rule_for(operation_name(func))
        if rule is None or threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return rule(Operation(operation_name(func), func, args, kwargs, None))
