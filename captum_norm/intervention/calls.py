"""The calls of a model's layers: what each was given and returned, seen while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.random import fork_rng


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer while a model ran.

    Attributes:
        layer: the module.
        args, kwargs: what it was given, copied; caches of keys are left out.
        output: what it returned.
    """

    layer: Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def again(self) -> Any:
        """Call the layer with the same input."""
        return self.layer(*_copied(self.args), **_copied(self.kwargs))


def without_cache(value: Any) -> Any:
    """A copy of a layer's arguments; a cache of keys, which the layer has written to by now, is left out."""
    if isinstance(value, dict):
        return {key: False if key == "use_cache" else without_cache(item) for key, item in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(without_cache, value))
    return None if hasattr(value, "get_seq_length") else _copied(value)


def _copied(value: Any) -> Any:
    """The same with tensors copied, as a layer may write to its input."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return type(value)(*map(_copied, value)) if hasattr(value, "_fields") else tuple(map(_copied, value))
    return [_copied(item) for item in value] if isinstance(value, list) else value


def tensors_of(output: Any) -> list[Tensor]:
    """The floating-point tensors of a layer's output, in order."""
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else (output,)
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1]


def watch_layers(layers: Collection[Module], run: Callable[[], Any], on_call: Callable[[LayerCall], None]) -> None:
    """Run a model, and hand over each call of a layer when it has finished, before the model goes on."""
    given: list[tuple[Module, Any, Any]] = []
    busy = False
    devices = {p.device.index or 0 for layer in layers for p in layer.parameters() if p.device.type == "cuda"}

    def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not busy:
            given.append((module, without_cache(args), without_cache(kwargs)))

    def leave(module: Module, output: Any) -> None:
        nonlocal busy
        if busy:
            return
        layer, args, kwargs = given.pop()
        busy = True
        try:
            with fork_rng(sorted(devices)):
                on_call(LayerCall(layer, args, kwargs, output))
        finally:
            busy = False

    with watched(layers, enter, leave):
        run()


@contextmanager
def watched(
    modules: Iterable[Module],
    enter: Callable[[Module, tuple[Any, ...], dict[str, Any]], None],
    leave: Callable[[Module, Any], None],
) -> Iterator[None]:
    """While this lasts, ``enter`` is told what a module is given, before other hooks, and ``leave`` what it returns.

    Only in the calling thread.
    """
    thread, handles = get_ident(), []

    # Another thread may find a hook that is just being removed, and call it without keywords.
    def before(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if get_ident() == thread:
            enter(module, args, kwargs or {})

    def after(module: Module, args: tuple[Any, ...], output: Any) -> None:
        if get_ident() == thread:
            leave(module, output)

    try:
        for module in modules:
            handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
