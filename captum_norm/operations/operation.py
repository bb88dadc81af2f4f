"""One torch operation, however it was spelled: its name, its operands, what it writes, and how to call it again.

``F.softmax``, ``torch.softmax`` and ``Tensor.softmax`` are one operation to us; so are ``x @ y``, ``torch.matmul`` and
``Tensor.__matmul__``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from captum_norm.operations.storages import storages_of

_SPELLINGS = {
    "__matmul__": "matmul", "__rmatmul__": "rmatmul", "mm": "matmul", "bmm": "matmul",
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_", "multiply": "mul",
    "__add__": "add", "__radd__": "add", "__iadd__": "add_",
    "__sub__": "sub", "__isub__": "sub_", "subtract": "sub", "__rsub__": "rsub",
    "__truediv__": "div", "__itruediv__": "div_", "true_divide": "div", "divide": "div",
    "__rtruediv__": "rdiv", "__rdiv__": "rdiv",
    "__getitem__": "getitem", "__setitem__": "setitem",
    "_softmax": "softmax", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose",
    "T": "t", "moveaxis": "movedim",
    "__eq__": "eq", "__ne__": "ne", "not_equal": "ne", "__lt__": "lt", "less": "lt", "__le__": "le", "less_equal": "le",
    "__and__": "bitwise_and", "__iand__": "bitwise_and_", "__or__": "bitwise_or", "__ior__": "bitwise_or_",
    "__xor__": "bitwise_xor", "__ixor__": "bitwise_xor_", "__invert__": "bitwise_not",
    "__lshift__": "bitwise_left_shift", "__ilshift__": "bitwise_left_shift_",
    "__rshift__": "bitwise_right_shift", "__irshift__": "bitwise_right_shift_",
    "__gt__": "gt", "greater": "gt", "__ge__": "ge", "greater_equal": "ge",
    "linalg_vecdot": "vecdot", "_threshold": "threshold", "arctan": "atan", "absolute": "abs", "negative": "neg",
    "fix": "trunc", "arcsinh": "asinh", "arctan2": "atan2", "row_stack": "vstack", "ger": "outer", "sgn": "sign",
    "special_expit": "sigmoid",
    **{f"special_{name}": name for name in (
        "erf", "erfc", "exp2", "expm1", "log1p", "logit", "round", "softmax", "log_softmax", "logsumexp", "xlogy",
    )},
}  # fmt: skip


@cache
def operation_name(func: Callable[..., Any]) -> str:
    """The one name of an operation, however it is spelled; in-place forms keep their trailing underscore.

    >>> operation_name(torch.Tensor.__rmul__), operation_name(torch.softmax), operation_name(torch.Tensor.mul_)
    ('mul', 'softmax', 'mul_')
    >>> operation_name(torch.Tensor.data.__get__), operation_name(torch.Tensor.data.__set__)
    ('data', 'data_')
    """
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):  # a property such as x.T or x.shape; one that is set, such as x.data
        name = getattr(getattr(func, "__self__", None), "__name__", name) + ("_" if name == "__set__" else "")
    name = name.partition(".")[0]  # an overload, as exported programs call it: softmax.int
    if name.endswith("_") and name[:-1] in _SPELLINGS:  # the form in place of another spelling: x.arctan_()
        return _SPELLINGS[name[:-1]] + "_"
    return _SPELLINGS.get(name, name)


@cache
def base_name(name: str) -> str:
    """The name without the in-place underscore.

    >>> base_name("masked_fill_"), base_name("__contains__")
    ('masked_fill', '__contains__')
    """
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


class Operation:
    """One torch operation as it was called, and what it returned.

    Attributes:
        name: its one name, see :func:`operation_name`.
        func, args, kwargs: the call; operands that the model gave by keyword stand among ``args``.
        out: what it returned; None before it has run, see :meth:`returned`.
        outputs: the tensors it returned.
        tensors: all tensors among the arguments, in order; lists of tensors (``cat``, ``stack``) are opened.
        in_place: whether its name is that of an in-place form.
        writes: whether it overwrites its first operand.
        overwritten: the tensors whose numbers it replaces: its first operand, each of a list of these
            (``_foreach_add_``), or what it was given as ``out``.
        written: the tensors it wrote: those that it overwrote, and those it returned.
    """

    __slots__ = (
        "_storages", "_written_storages", "args", "func", "in_place", "kwargs", "name", "out", "outputs", "overwritten",
        "tensors", "writes", "written",
    )  # fmt: skip

    def __init__(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any = None
    ) -> None:
        if kwargs:
            args, kwargs = _positional(args, kwargs)
        self.name, self.func, self.args, self.kwargs = name, func, args, kwargs
        self.tensors = _tensors((*args, *kwargs.values()) if kwargs else args)
        self.in_place = name.endswith("_") and not name.endswith("__")
        writes = self.in_place or name == "setitem" or bool(kwargs and kwargs.get("inplace"))
        self.writes = writes and bool(args) and isinstance(args[0], Tensor)
        self.overwritten = [args[0]] if self.writes else _tensors(args[:1]) if self.in_place else []
        if kwargs and "out" in kwargs:
            self.overwritten += _tensors((kwargs["out"],))
        self._storages: list[int] | None = None
        self.returned(out)

    def returned(self, out: Any) -> None:
        """Take in what it returned."""
        self.out = out
        self.outputs = [out] if isinstance(out, Tensor) else [] if out is None else _tensors((out,))
        self.written = [*self.overwritten, *self.outputs] if self.overwritten else self.outputs
        self._written_storages: list[int] | None = None

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or by keyword, whichever way the model passed it."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    @property
    def storages(self) -> list[int]:
        """What the storage of each of ``tensors`` is known by, see :func:`storage_of`."""
        if self._storages is None:
            self._storages = storages_of(self.tensors)
        return self._storages

    @property
    def written_storages(self) -> list[int]:
        """Likewise of each of ``written``."""
        if self._written_storages is None:
            self._written_storages = storages_of(self.written)
        return self._written_storages

    @property
    def drops_out(self) -> bool:
        """For a dropout: whether any entry may be dropped, in training and with a probability above zero."""
        return bool(self.argument(2, "training", True)) and self.argument(1, "p", 0.5) > 0

    def again(self, swap: Callable[[Tensor], Any], args: Sequence[Any] | None = None) -> Any:
        """Its result with each tensor swapped; nothing is overwritten, whatever its form.

        Args:
            swap: what stands for a tensor among the arguments.
            args: other positional arguments, swapped likewise; None: its own.
        """
        given = self.args if args is None else args
        kwargs = {name: swapped(value, swap) for name, value in self.kwargs.items() if name != "inplace"}
        return self.new_tensor_form()(*(swapped(value, swap) for value in given), **kwargs)

    def new_tensor_form(self) -> Callable[..., Any]:
        """Its function; for an in-place form, the one that writes a new tensor."""
        if self.name == "setitem":
            return _setitem
        if self.name == "copy_":
            return lambda into, source, *_: source.to(into).expand(into.shape)
        if self.name in _NEW_FORMS:
            return _NEW_FORMS[self.name]
        if self.in_place:
            return getattr(torch.Tensor, self.name[:-1], None) or getattr(torch, self.name[:-1])
        return self.func


# What in-place forms without a sibling make anew.
_NEW_FORMS: dict[str, Callable[..., Any]] = {
    "zero_": lambda x: torch.zeros_like(x),
    "requires_grad_": lambda x, *_: x,
}


def swapped(value: Any, swap: Callable[[Tensor], Any]) -> Any:
    """An argument with each tensor swapped, inside tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        return swap(value)
    if isinstance(value, tuple) and type(value) is not torch.Size:
        items = [swapped(item, swap) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [swapped(item, swap) for item in value]
    if isinstance(value, dict):
        return {key: swapped(item, swap) for key, item in value.items()}
    return value


def _setitem(into: Tensor, index: Any, value: Any) -> Tensor:
    out = into.clone()
    out[index] = value
    return out


def _positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The operands where they usually stand: ``torch.add(input=x, other=y)`` is ``torch.add(x, y)``."""
    for position, name in enumerate(("input", "other")):
        if name not in kwargs:
            continue
        if len(args) != position:  # torch.where(condition, input=x, other=y)
            break
        args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors.extend(item for item in value if isinstance(item, Tensor))
    return tensors
