"""A tokenizer's whole encoding as ``inputs``: ids are scored, all else reaches the forward function under its name.

And for type checkers: a tensor or an encoding is answered with a tensor, a tuple with a tuple.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._captum import logged
from captum_norm.forward import HFForward
from captum_norm.forward.keywords import keywords_of, title, unwrapped

Method = TypeVar("Method", bound=Callable[..., Any])
P = ParamSpec("P")

One = Tensor | Mapping[str, Any]
Several = tuple[Tensor, ...]

_IDS = "input_ids"
_KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def takes_encodings(method: Method) -> Method:
    """An ``attribute`` that takes an encoding where it takes tensors, and gives the scores of its ids."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def attribute(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(inputs, Mapping):
            return method(self, inputs, *args, **kwargs)
        bound = signature.bind(self, inputs, *args, **kwargs)
        if bound.arguments.get("additional_forward_args") is not None:
            raise ValueError(
                f"{type(self).__name__}: an encoding holds all that the model takes beside the ids; give "
                "additional_forward_args only with tensors as inputs."
            )
        ids, extras = positional(self.forward_func, inputs)
        bound.arguments |= {"inputs": ids, "additional_forward_args": extras}
        return method(*bound.args, **bound.kwargs)

    return cast("Method", attribute)


class Asked(Protocol[P]):
    """``attribute`` as it is called: scores as its inputs are."""

    @overload
    def __call__(self, inputs: One, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    @overload
    def __call__(self, inputs: Several, *args: P.args, **kwargs: P.kwargs) -> Several: ...


class AskedForDelta(Protocol):
    """The same where ``return_convergence_delta=True`` gives a pair."""

    @overload
    def __call__(
        self, inputs: One, target: Any = None, additional_forward_args: Any = None, *,
        return_convergence_delta: Literal[False] = False, **others: Any,
    ) -> Tensor: ...
    @overload
    def __call__(
        self, inputs: Several, target: Any = None, additional_forward_args: Any = None, *,
        return_convergence_delta: Literal[False] = False, **others: Any,
    ) -> Several: ...
    @overload
    def __call__(
        self, inputs: One, target: Any = None, additional_forward_args: Any = None, *,
        return_convergence_delta: Literal[True], **others: Any,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(
        self, inputs: Several, target: Any = None, additional_forward_args: Any = None, *,
        return_convergence_delta: Literal[True], **others: Any,
    ) -> tuple[Several, Tensor]: ...  # fmt: skip


class Attribute(Protocol[P]):
    """``attribute`` as it stands in a class."""

    def __get__(self, instance: object, owner: Any = None) -> Asked[P]: ...


class AttributeWithDelta(Protocol):
    """The same with a convergence delta."""

    def __get__(self, instance: object, owner: Any = None) -> AskedForDelta: ...


def captum_attribute(method: Callable[Concatenate[Any, Any, P], Any]) -> Attribute[P]:
    """An ``attribute`` in Captum's log that takes encodings where it takes tensors, typed by what it is given."""
    return cast("Attribute[P]", logged(takes_encodings(method)))


def captum_attribute_with_delta(method: Callable[..., Any]) -> AttributeWithDelta:
    """The same for a method with ``return_convergence_delta``."""
    return cast("AttributeWithDelta", logged(takes_encodings(method)))


def positional(forward_func: Callable[..., Any], encoding: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...] | None]:
    """The ids of an encoding, and what the forward function takes after them, in its order.

    Args:
        forward_func: a model or function that names its arguments as the encoding does, ids first, or ``HFForward``.
        encoding: with ``input_ids``; what the forward function does not take (offsets, word ids) is left out.

    Raises:
        ValueError: if there are no ids, or the forward function cannot be given what the encoding holds.

    Example:
        >>> def forward(input_ids, token_type_ids=None, attention_mask=None): ...
        >>> positional(forward, {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]])})
        (tensor([[5, 6]]), (None, tensor([[1, 1]])))
    """
    forward = unwrapped(forward_func)
    if isinstance(forward, HFForward):
        given = forward.inputs(encoding)
        return given["inputs"], given["additional_forward_args"]
    present = {name: value for name, value in encoding.items() if value is not None}
    defaults, named = _arguments(forward)
    names = list(defaults)
    if _IDS not in present or names[:1] != [_IDS]:
        raise ValueError(
            f"an encoding goes to {title(forward)} by name, {_IDS} first: the encoding has {', '.join(present)}, the "
            f"forward function takes {', '.join(named) or 'unnamed arguments'}. Name its arguments alike, or use "
            "HFForward(model)."
        )
    lost = [name for name in present if name in named and name not in names]
    if lost:
        raise ValueError(f"{title(forward)} takes {lost[0]} by keyword only: HFForward(model, names={(lost[0],)}).")
    device = next((p.device for p in forward.parameters()), None) if isinstance(forward, Module) else None
    last = max(index for index, name in enumerate(names) if name in present)
    first, *others = [
        torch.as_tensor(present[name], device=device) if name in present else defaults[name]
        for name in names[: last + 1]
    ]
    return first, tuple(others) or None


def _arguments(forward: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """What can be given by position, with the default of each, and all names."""
    functions = [m.forward for m in forward.modules()] if isinstance(forward, Module) else [forward]
    known = keywords_of(forward) if isinstance(forward, Module) else []
    for function in functions:  # a wrapper of (*args, **kwargs) hands them on to what it wraps
        parameters = inspect.signature(function).parameters.values()
        given = {p.name: None if p.default is p.empty else p.default for p in parameters if p.kind in _KINDS}
        if given:
            return given, known or [p.name for p in parameters]
    return {}, known
