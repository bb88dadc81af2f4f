"""Who is calling: the modules that are running right now, and what they were given.

Read from Python's own stack, so that no hook is ever put on a model.
"""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from typing import Any

from torch.nn import Module


class Caller:
    """One running module and what its forward was given.

    Args:
        module: the module.
        args, kwargs: as the module was called; None where only its forward was.
    """

    __slots__ = ("_arguments", "args", "kwargs", "module")

    def __init__(
        self, module: Module, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
    ) -> None:  # fmt: skip
        self.module, self.args, self.kwargs = module, args, kwargs
        self._arguments: dict[str, Any] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What its forward was given, by name."""
        if self._arguments is None:
            names = _positional(type(self.module).forward) if self.args else ()
            self._arguments = {**dict(zip(names, self.args or (), strict=False)), **(self.kwargs or {})}
        return self._arguments

    def is_same_run(self, other: Caller) -> bool:
        """Whether both were read in one run of the module; of those that were not called as a whole nobody knows."""
        if self.module is not other.module:
            return False
        return self.args is None or other.args is None or (self.args is other.args and self.kwargs is other.kwargs)

    def is_one_with(self, other: Caller) -> bool:
        """Whether both are one run of one module: it was given the same objects."""
        if self.module is not other.module:
            return False
        ours, theirs = self.arguments, other.arguments
        return ours.keys() == theirs.keys() and all(value is theirs[name] for name, value in ours.items())


def running_modules() -> tuple[Caller, ...]:
    """The modules whose forward is on the stack of this thread, outermost first."""
    callers: list[Caller] = []

    def add(module: Any) -> None:
        if isinstance(module, Module) and not (callers and callers[-1].module is module):
            callers.append(Caller(module))

    frame, forward = sys._getframe(1), None
    while frame is not None:
        name = frame.f_code.co_name
        if name in _FRAMES and frame.f_code.co_varnames[:1] == ("self",):
            before = frame.f_back
            if name == "forward" and before is not None and before.f_code is _CALL:
                forward = frame  # of the module of the frame before, unless somebody put another one's in its place
            elif name == "forward":
                add(frame.f_locals.get("self"))
            else:
                variables = frame.f_locals
                module = variables.get("self")
                if isinstance(module, Module):
                    if forward is not None and "forward" in module.__dict__:
                        add(forward.f_locals.get("self"))
                    if callers and callers[-1].module is module and callers[-1].args is None:
                        callers.pop()  # the frame of its forward, seen a moment ago
                    callers.append(Caller(module, variables.get("args", ()), variables.get("kwargs", {})))
                forward = None
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(reversed(callers))


def innermost_module() -> Module | None:
    """The last of :func:`running_modules`, a few frames away."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in _FRAMES and frame.f_code.co_varnames[:1] == ("self",):
            module = frame.f_locals.get("self")
            if isinstance(module, Module):
                return module
        frame = frame.f_back  # type: ignore[assignment]
    return None


# Whose first argument is a module that runs.  All of a frame's variables are copied where one is asked for, so that
# no more frames are asked than have to be.
_FRAMES = frozenset(("_call_impl", "forward"))
_CALL = Module._call_impl.__code__


def how_many_run(callers: tuple[Caller, ...], running: tuple[Caller, ...]) -> int:
    """How many of these are running still: what ends first was called last, so those that both begin with."""
    count = 0
    for caller, still in zip(callers, running, strict=False):
        if not caller.is_same_run(still):
            break
        count += 1
    return count


@lru_cache(maxsize=4096)
def _positional(forward: Any) -> tuple[str, ...]:
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):  # pragma: no cover - a forward written in C
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)
