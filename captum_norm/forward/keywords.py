"""Which keywords does a model take, also where a wrapper hides them?"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

ForwardFunction = TypeVar("ForwardFunction", nn.Module, Callable[..., Any])
"""What a method runs: a model is handed on as a model, any other function as a function."""

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def unwrapped(model: ForwardFunction) -> ForwardFunction:
    """The model inside torch's wrappers, which hide its config and signature; any other function is itself."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def title(model: Callable[..., Any]) -> str:
    """The name of a model's class, or of a function, for messages."""
    if isinstance(model, nn.Module):
        return type(unwrapped(model)).__name__
    return getattr(model, "__name__", repr(model))


def keywords_of(model: nn.Module) -> list[str]:
    """The names ``forward`` takes, in order.

    Where it takes ``*args, **kwargs`` only, those of the first module inside that names any.

    Example:
        >>> keywords_of(nn.DataParallel(nn.Bilinear(1, 1, 1)))
        ['input1', 'input2']
    """
    for module in unwrapped(model).modules():
        names = _named(module)
        if names:
            return names
    return []


def check_keywords(model: nn.Module, names: Sequence[str], fixed: Mapping[str, Any], own: Sequence[str]) -> None:
    """Refuses names that a model would silently ignore.

    Args:
        model: the model.
        names: keywords for positional extras; some module of the model must take each.
        fixed: keywords for every call; a model with ``**kwargs`` may take more than it names.
        own: the caller's own arguments, of which ``fixed`` may hold a misspelling.

    Raises:
        ValueError: if a name is not taken; it lists those that are.
    """
    known, kinds = keywords_of(model), {type(module): module for module in model.modules()}
    anywhere = {name for module in kinds.values() for name in _named(module)}
    for name in names:
        if name not in anywhere:
            raise ValueError(
                f"HFForward: names has {name!r}, but {title(model)} takes {', '.join(known)}.{suggestion(name, known)}"
            )
    takes_any = inspect.Parameter.VAR_KEYWORD in [p.kind for p in _parameters(unwrapped(model))]
    for name in sorted(fixed.keys() - anywhere):
        if not takes_any or suggestion(name, own):
            raise ValueError(
                f"HFForward got the argument {name!r}, which neither it nor {title(model)} takes."
                f"{suggestion(name, (*own, *known))}"
            )


def suggestion(name: str, known: Sequence[str]) -> str:
    """A sentence with the name that the caller probably meant, or nothing.

    Example:
        >>> suggestion("postion", ["position", "names"])
        " Did you mean 'position'?"
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(module.forward).parameters.values())


def _named(module: nn.Module) -> list[str]:
    return [p.name for p in _parameters(module) if p.kind in _NAMED]
