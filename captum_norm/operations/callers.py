"""Who is calling: the modules that are running right now, and what they were given.

Read from Python's own stack, so that no hook is ever put on a model.
"""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from typing import Any, NamedTuple

from torch.nn import Module


class Caller(NamedTuple):
    """One running module and the arguments of its forward, by name."""

    module: Module
    arguments: dict[str, Any]

    def is_one_with(self, other: Caller) -> bool:
        """Whether both are one run of one module: it was given the same objects."""
        ours, theirs = self.arguments, other.arguments
        if self.module is not other.module or ours.keys() != theirs.keys():
            return False
        return all(value is theirs[name] for name, value in ours.items())


def running_modules() -> tuple[Caller, ...]:
    """The modules whose forward is on the stack of this thread, outermost first."""
    callers: list[Caller] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_varnames[:1] == ("self",) and code.co_name in ("_call_impl", "forward"):
            variables = frame.f_locals
            module = variables.get("self")
            if isinstance(module, Module):
                if code.co_name == "_call_impl":
                    arguments = _bind(module, variables.get("args", ()), variables.get("kwargs", {}))
                    if callers and callers[-1].module is module and not callers[-1].arguments:
                        callers.pop()  # the frame of its forward, seen a moment ago
                    callers.append(Caller(module, arguments))
                elif not callers or callers[-1].module is not module:
                    callers.append(Caller(module, {}))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(reversed(callers))


def innermost_module() -> Module | None:
    """The last of :func:`running_modules`, a few frames away."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_varnames[:1] == ("self",) and code.co_name in ("_call_impl", "forward"):
            module = frame.f_locals.get("self")
            if isinstance(module, Module):
                return module
        frame = frame.f_back  # type: ignore[assignment]
    return None


def how_many_run(callers: tuple[Caller, ...]) -> int:
    """How many of these modules, outermost first, are still running."""
    running = set()
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_varnames[:1] == ("self",) and code.co_name in ("_call_impl", "forward"):
            running.add(id(frame.f_locals.get("self")))
        frame = frame.f_back  # type: ignore[assignment]
    count = 0
    while count < len(callers) and id(callers[count].module) in running:
        count += 1
    return count


def _bind(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = _positional(type(module).forward)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@lru_cache(maxsize=4096)
def _positional(forward: Any) -> tuple[str, ...]:
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):  # pragma: no cover - a forward written in C
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)
