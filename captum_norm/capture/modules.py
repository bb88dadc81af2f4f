"""Which modules made a call, without keeping them: a record outlives its model, a file of results holds none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload
from weakref import ref

from torch.nn import Module


class Modules(Sequence[Module]):
    """Modules that were running, outermost first, for as long as someone else keeps them.

    They are held by weak references: once the model is gone there are none, nor in a copy that was pickled.

    Args:
        modules: the modules, outermost first.

    Example:
        >>> layer = Module()
        >>> running = Modules([layer])
        >>> running[-1] is layer
        True
        >>> del layer
        >>> len(running)
        0
    """

    __slots__ = ("_references",)

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._references = tuple(ref(module) for module in modules)

    @overload
    def __getitem__(self, i: int) -> Module: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[Module, ...]: ...
    def __getitem__(self, i: int | slice) -> Module | tuple[Module, ...]:
        return self._alive()[i]

    def __len__(self) -> int:
        return len(self._alive())

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Modules | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._references)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return Modules, ()

    def __repr__(self) -> str:
        return f"Modules({', '.join(type(module).__name__ for module in self)})"

    def _alive(self) -> tuple[Module, ...]:
        """From the innermost outwards to the first that is gone, so that the last one is the innermost or none."""
        alive: list[Module] = []
        for reference in reversed(self._references):
            module = reference()
            if module is None:
                break
            alive.append(module)
        return tuple(reversed(alive))
