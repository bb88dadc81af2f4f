"""The calls of a model's layers: what each was given and returned, seen while the model runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module
from torch.random import fork_rng

from captum_norm.operations.operation import swapped


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

    def holds(self, modules: Sequence[Module]) -> bool:
        """Whether what these modules ran while the layer ran is part of it: always."""
        return True

    def again(self) -> Any:
        """Call the layer with the same input; hooks that only look at it, or at what is in it, are not called."""
        with hooks_known([self.layer], silent=True):
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
    return swapped(value, lambda tensor: tensor.detach().clone())


class _KnownHook:
    """A hook in its place, known to change what it is shown or not to; silent threads call it only if it does."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.func = hook
        self.changes = False
        self.users = 0
        self.silent: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if get_ident() in self.silent and not self.changes:
            return None
        result = self.func(*args, **kwargs)
        self.changes = self.changes or not (result is None or result is args[-1])
        return result


_exchanging = Lock()


@contextmanager
def hooks_known(layers: Iterable[Module], silent: bool = False) -> Iterator[None]:
    """While this lasts, it is noted which hooks on layers and their submodules change something, torch's own left out.

    Args:
        layers: the modules.
        silent: this thread does not call the hooks that only look.  A run that is none of the model's would be one more
            state in their lists.
    """
    known: list[tuple[MutableMapping[int, Any], int, _KnownHook]] = []
    thread = [get_ident()] if silent else []
    with _exchanging:
        for hooks, key, hook in hooks_of(layers):
            entry = hooks[key] = hook if isinstance(hook, _KnownHook) else _KnownHook(hook)
            entry.users += 1
            entry.silent += thread
            known.append((hooks, key, entry))
    try:
        yield
    finally:
        with _exchanging:
            for hooks, key, entry in known:
                entry.users -= 1
                for silenced in thread:
                    entry.silent.remove(silenced)
                if not entry.users and hooks.get(key) is entry:
                    hooks[key] = entry.func


def hooks_of(layers: Iterable[Module]) -> list[tuple[MutableMapping[int, Any], int, Callable[..., Any]]]:
    """The forward hooks that calls of layers meet, torch's and ours left out: where each is kept, under which key."""
    modules = dict.fromkeys(module for layer in layers for module in layer.modules())
    kept = [torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks]
    kept += [hooks for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)]
    return [(hooks, key, hook) for hooks in kept for key, hook in list(hooks.items()) if not _is_known(hook)]


def _is_known(hook: Any) -> bool:
    """Whether we put it there, or torch, as for sharded or reparametrised weights: it makes the layer what it is."""
    while isinstance(hook, functools.partial | _KnownHook):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return str(home).partition(".")[0] in ("torch", "captum_norm")


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

    with hooks_known(layers), watched(layers, enter, leave):
        run()


@contextmanager
def watched(
    modules: Iterable[Module], enter: Callable[[Module, tuple[Any, ...], dict[str, Any]], None],
    leave: Callable[[Module, Any], None],
) -> Iterator[None]:  # fmt: skip
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
