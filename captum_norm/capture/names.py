"""The dotted names of modules and parameters in the model that is running."""

from __future__ import annotations

from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import Module


class Names:
    """Dotted names of modules and parameters, from the root that the caller chose or the outermost module."""

    # Names are remembered per model and checked before use, as a model may be rebuilt between recordings.
    _modules: ClassVar[WeakKeyDictionary[Module, dict[int, str]]] = WeakKeyDictionary()
    _parameters: ClassVar[WeakKeyDictionary[Module, dict[int, str]]] = WeakKeyDictionary()

    def __init__(self, model: Module | None) -> None:
        self._model = model
        self._seen: WeakKeyDictionary[Module, str] = WeakKeyDictionary()  # by the innermost module that was running

    def _root(self, modules: tuple[Module, ...]) -> Module | None:
        return self._model if self._model is not None else (modules[0] if modules else None)

    def known(self, innermost: Module | None) -> str | None:
        """The name that was found before while this module was the innermost; None if none was."""
        return None if innermost is None else self._seen.get(innermost)

    def module(self, modules: tuple[Module, ...]) -> str:
        """Name of the innermost module that the root knows."""
        root = self._root(modules)
        if root is None or not modules:
            return ""
        known = self._seen.get(modules[-1])
        if known is None:
            named = ((self._name_of(module, root), module) for module in reversed(modules))
            name, module = next((one for one in named if one[0] is not None), ("", modules[-1]))
            known = self._seen[modules[-1]] = name or type(module).__name__
        return known

    def _name_of(self, module: Module, root: Module) -> str | None:
        names = self._modules.get(root, {})
        name = names.get(id(module))
        if name is None or not _is_at(root, name, module):
            names = self._modules[root] = {id(m): n for n, m in root.named_modules()}
            name = names.get(id(module))
        return name

    def parameter(self, parameter: Tensor, modules: tuple[Module, ...]) -> str:
        """Name of the parameter, also when the model used a view of it; its shape where it has no name."""
        root = self._root(modules)
        if root is not None:
            names = self._parameters.get(root)
            if names is None or id(parameter) not in names:
                names = self._parameters[root] = {id(p): n for n, p in root.named_parameters()}
            name = names.get(id(parameter))
            if name is not None and _is_at(root, name, parameter):
                return name
            for name, candidate in root.named_parameters():
                if candidate is parameter or (candidate.numel() and candidate.data_ptr() == parameter.data_ptr()):
                    return name
        return f"a tensor of shape {tuple(parameter.shape)}"


def _is_at(root: Module, name: str, what: object) -> bool:
    holder: Module | None = root
    *path, last = name.split(".")
    for part in path:
        holder = None if holder is None else holder._modules.get(part)
    if holder is None:
        return False
    return what is (holder._modules.get(last, holder._parameters.get(last)) if name else holder)
