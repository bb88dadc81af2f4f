"""Layers that no module is: a stretch of the forward of the module that owns them.

    for attention, feed_forward in self.layers:
        x = attention(x) + x
        x = feed_forward(x) + x

The residual is added by the owner, between the modules that an entry of its list holds.  A layer then begins where the
first module of an entry with attention is called, and what it hands on is what the first module of the next such entry
is given, or what follows the list.  That is known where nothing but the list's modules runs in between and all layers
run modules of the same kinds, which one forward pass shows.  Where the owner itself normalises what it hands to that
module, the residual leads past it: then what the module is given is not what the layer hands on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module

from captum_norm.capture import AttentionCall
from captum_norm.intervention.calls import LayerCall, tensors_of, watched
from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.modes import WatchingMode
from captum_norm.operations.operation import Operation
from captum_norm.operations.storages import storage_of


@dataclass(frozen=True)
class Stretch:
    """A layer in the forward of its owner.

    Attributes:
        owner: the module that runs it.
        modules: what runs in it.
        until: the module that is called when the layer is over, and ``times``, for which time; None: none, the owner
            returns.
    """

    owner: Module
    modules: frozenset[Module]
    until: Module | None
    times: int


@dataclass(frozen=True)
class StretchCall(LayerCall):
    """A call of the owner up to the end of one of its layers; ``output`` is what that layer hands on."""

    stretch: Stretch

    def holds(self, modules: Sequence[Module]) -> bool:
        """Whether what these modules ran is part of the layer."""
        return not self.stretch.modules.isdisjoint(modules)

    def again(self) -> Any:
        """Call the owner with the same input, and leave it when the layer is over."""
        seen = 0

        def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal seen
            seen += 1
            if seen == self.stretch.times:
                raise _LayerIsOver(_given(args, kwargs))

        until = [self.stretch.until] if self.stretch.until is not None else []
        try:
            with watched(until, enter, _nothing):
                return super().again()
        except _LayerIsOver as over:
            return over.state


class _LayerIsOver(BaseException):
    """Not an error: no model is to catch it."""

    def __init__(self, state: Tensor | None) -> None:
        super().__init__()
        self.state = state


class _ChildCall(NamedTuple):
    """The owner calls a module, for the which time, with what; at the end none.

    Attributes:
        read: what it and the owner's own operations up to the next call read.
        made: what they made.
        norms: how many norms the owner computed itself since.
    """

    module: Module | None
    times: int
    given: Tensor | None
    read: list[Tensor]
    made: list[Tensor]
    norms: list[str]


def stretch_calls(call: LayerCall, stretches: Sequence[Stretch]) -> list[StretchCall]:
    """The layers in a call of their owner, in order."""
    parts = [StretchCall(call.layer, call.args, call.kwargs, call.output, stretch) for stretch in stretches]
    return [StretchCall(p.layer, p.args, p.kwargs, p.again(), p.stretch) if p.stretch.until else p for p in parts]


def stretches_of(calls: Sequence[AttentionCall], run: Callable[[], Any]) -> list[Stretch | None]:
    """The layer of each attention call, or None where none is found.

    Args:
        calls: all calls whose layers no module is, with the modules that were running.
        run: runs the model once more.

    Example:
        >>> import torch
        >>> from captum_norm.capture import recording
        >>> class Owner(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         attention = [nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2)]
        ...         self.layers = nn.ModuleList(nn.ModuleList([part, nn.Linear(8, 8)]) for part in attention)
        ...     def forward(self, x):
        ...         for attention, up in self.layers:
        ...             x = x + attention(x, x, x, need_weights=False)[0]
        ...             x = x + up(x)
        ...         return x
        >>> model, x = Owner().eval(), torch.randn(1, 3, 8)
        >>> with torch.no_grad(), recording() as records:
        ...     _ = model(x)
        >>> first, second = stretches_of([record.call for record in records], lambda: model(x))
        >>> first.until is model.layers[1][0], second.until is None
        (True, True)
    """
    owners = dict.fromkeys(owner for call in calls for owner, _, _ in _lists_around(call))
    forwards = {owner: _forwards(owner, run) for owner in owners}
    return [_stretch(call, calls, forwards) for call in calls]


def _lists_around(call: AttentionCall) -> Iterator[tuple[Module, Module, nn.ModuleList]]:
    """The lists of modules that the call runs in, the innermost first: who owns them, what it called, the list."""
    for owner, child in reversed([*pairwise(call.modules)]):
        lists = [module for module in owner.modules() if isinstance(module, nn.ModuleList)]
        for entries in reversed(lists):
            if child in set(entries.modules()):
                yield owner, child, entries


def _forwards(owner: Module, run: Callable[[], Any]) -> list[list[_ChildCall]]:
    """What an owner calls itself, in each of its own calls."""
    running: list[Module] = []
    counts: Counter[Module] = Counter()
    forwards: list[list[_ChildCall]] = []

    def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is owner:
            forwards.append([])
            counts.clear()
        counts[module] += 1
        if running and running[-1] is owner:
            read = tensors_of([*args, *kwargs.values()])  # lists of states are handed about, read or not
            forwards[-1].append(_ChildCall(module, counts[module], _given(args, kwargs), read, [], []))
        running.append(module)

    def leave(module: Module, output: Any) -> None:
        running.pop()
        if running and running[-1] is owner and forwards[-1]:
            forwards[-1][-1].made.extend(tensors_of(output))

    def see(op: Operation) -> None:
        if running and running[-1] is owner and forwards[-1]:
            last = forwards[-1][-1]
            last.read.extend(op.tensors)
            last.made.extend(op.written)
            if kind_of(op.name) is OperationKind.NORM or op.name == "instance_norm":
                last.norms.append(op.name)

    with watched(owner.modules(), enter, leave), WatchingMode(lambda name: None if kind_of(name) in _NEW else see):
        run()
    return forwards


# What takes the shape of a tensor alone, or asks it something, reads no state.
_NEW = (OperationKind.FRESH, OperationKind.FILLED, OperationKind.QUESTION, OperationKind.SETTING)


def _stretch(
    call: AttentionCall, calls: Sequence[AttentionCall], forwards: dict[Module, list[list[_ChildCall]]]
) -> Stretch | None:
    for owner, child, entries in _lists_around(call):
        numbered = [(number, entry) for number, entry in enumerate(entries) if entry is not None]
        held = [(module, number) for number, entry in numbered for module in entry.modules()]
        entry_of = dict(held)
        if len(entry_of) < len(held):
            continue  # entries share modules
        starts = {
            entry_of[other_child]
            for other in calls
            for other_owner, other_child, other_entries in _lists_around(other)
            if other_entries is entries and other_owner is owner and other.kind != "cross"
        }
        found = [_layers(forward, entry_of, starts) for forward in forwards[owner]]
        ends = [[(until, times) for _, until, times in layers] for layers in found]
        if not found or any(other != ends[0] for other in ends):
            continue
        for numbers, until, times in found[0]:
            if entry_of[child] in numbers:
                within = frozenset(module for module, number in entry_of.items() if number in numbers)
                return Stretch(owner, within, until, times)
    return None


def _layers(
    forward: Sequence[_ChildCall], entry_of: dict[Module, int], starts: set[int]
) -> list[tuple[set[int], Module | None, int]]:
    """The layers of one forward of an owner: the numbers of their entries, the module called behind, for which time.

    Nothing where they are not alike, where something that is no entry's runs in between, where the list is entered
    before them, where one is given what the next is given, or where something else than what the next is given leads on
    into it.
    """
    numbers = [None if child.module is None else entry_of.get(child.module) for child in forward]
    inside = [n for n, number in enumerate(numbers) if number is not None]
    first = [n for n in inside if numbers[n] in starts and (n == 0 or numbers[n] != numbers[n - 1])]
    if len(first) < 2 or inside != [*range(first[0], inside[-1] + 1)]:
        return []
    bounds = [*pairwise([*first, inside[-1] + 1])]
    kinds = {tuple(type(child.module) for child in forward[start:stop]) for start, stop in bounds}
    handed_on = [(forward[a].given, forward[b].given) for a, b in pairwise(first)]
    if len(kinds) > 1 or any(before is after or after is None for before, after in handed_on):
        return []
    if any(_leads_past(forward[a:b], forward[b:c]) for (a, b), (_, c) in pairwise(bounds)):
        return []
    if len({tuple(forward[stop - 1].norms) for _, stop in bounds}) > 1:
        return []
    none = _ChildCall(None, 0, None, [], [], [])
    behind = [forward[stop] if stop < len(forward) else none for _, stop in bounds]
    return [
        ({number for number in numbers[start:stop] if number is not None}, child.module, child.times)
        for (start, stop), child in zip(bounds, behind, strict=True)
    ]


def _leads_past(layer: Sequence[_ChildCall], following: Sequence[_ChildCall]) -> bool:
    """Whether the next layer reads a state that the layer made, beside the one that its first module is given."""
    given = following[0].given
    if given is None:
        return True
    made = {id(tensor) for child in layer for tensor in child.made}
    read = [tensor for child in following for tensor in child.read if id(tensor) in made and tensor is not given]
    return any(
        tensor.shape[-1] == given.shape[-1] and tensor.numel() == given.numel() and not _are_one(tensor, given)
        for tensor in read
    )


def _are_one(tensor: Tensor, other: Tensor) -> bool:
    """Whether they are one state: views of one memory, or a copy."""
    return storage_of(tensor) == storage_of(other) or torch.equal(tensor, other)


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor that a module is given."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _nothing(module: Module, output: Any) -> None:
    """What is done with what the next module would return."""
