"""Where a model's linear map begins: the residual stream as the first layer reads it, or what a layer is given.

Both are found by running the model once: no module is named and no hook is set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.linear.backward import BackwardRun
from captum_norm.linear.frozen import Conventions, Rule
from captum_norm.linear.run import Start
from captum_norm.linear.sources import Leaf, TokenSources
from captum_norm.operations.callers import running_modules
from captum_norm.operations.facts import Facts
from captum_norm.operations.modes import WatchingMode
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import Source

# A layer that is called again must not lengthen the cache of the first call.
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache", "cache_params")


class _FoundError(Exception):
    """Ends a run that has shown what was sought."""


@dataclass(frozen=True)
class Stream:
    """Vectors that all else is computed from.

    Attributes:
        source: which sequence they belong to: the index of an input, or a name.
        start: the operation that makes them; None where they are the input itself.
        whole: the input's own axis 1 counts their positions: it has not been cut into patches or frames.
    """

    source: Source
    start: Start | None
    whole: bool


@dataclass(frozen=True, eq=False)
class _Node:
    """A hidden state of single tokens; ``above`` is the last one that everything it is computed from goes through."""

    start: Start | None
    leaf: Leaf
    above: _Node | None
    depth: int

    @classmethod
    def after(cls, start: Start | None, leaf: Leaf, parents: Sequence[_Node]) -> _Node:
        above = _common(parents) if parents else None
        return cls(start, leaf, above, 0 if above is None else above.depth + 1)

    @property
    def source(self) -> Source:
        return self.leaf.source

    @property
    def whole(self) -> bool:
        """Whether nothing has been cut: the anchor is a floating input itself."""
        return self.leaf.anchor.parent is None and self.leaf.anchor.source == self.source and self.top.start is None

    @property
    def top(self) -> _Node:
        return self if self.above is None else self.above.top


def _common(nodes: Sequence[_Node]) -> _Node | None:
    """The last hidden state that all of these are computed from by way of."""
    first: _Node | None = nodes[0]
    for node in nodes[1:]:
        other: _Node | None = node
        while first is not other:
            if first is None or other is None:
                return None
            if first.depth >= other.depth:
                first = first.above
            else:
                other = other.above
    return first


class _EnteringSources(TokenSources):
    """Remembers what enters the first mixing."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__(inputs)
        self.entered: list[Tensor] = []

    def leaf(self, tensor: Tensor) -> Tensor:
        self.entered.append(tensor)
        return super().leaf(tensor)


class _StreamFinder(BackwardRun):
    """Notes which hidden states of single tokens are computed from which, until they mix."""

    def __init__(self, sources: _EnteringSources) -> None:
        super().__init__(Conventions(), sources)
        self._sources = sources
        self._nodes: Facts[_Node] = Facts()
        self.entering: list[_Node] = []

    def _perform(self, rule: Rule, op: Operation) -> Any:
        out = super()._perform(rule, op)
        op.returned(out)
        for number, tensor in enumerate(op.outputs):
            place = self._sources.place(tensor)
            if place is not None and tensor not in self._nodes:
                leaf = Leaf(tensor[:0], place)
                parents = [n for t in op.tensors if (n := self._node(t)) is not None and n.source == leaf.source]
                self._nodes[tensor] = _Node.after((self.count, number), leaf, parents)
        while self._sources.entered:
            node = self._node(self._sources.entered.pop())
            if node is not None:
                self.entering.append(node)
        return out

    def _node(self, tensor: Tensor) -> _Node | None:
        place = self._sources.place(tensor)
        if place is None:
            return None
        node = self._nodes[tensor]
        if node is None:  # an input itself
            node = self._nodes[tensor] = _Node.after(None, Leaf(tensor[:0], place), ())
        return node


def find_streams(run: Callable[[], Any], inputs: Sequence[Tensor]) -> list[Stream]:
    """For each sequence, the last vectors that everything attention reads of it is computed from.

    In a transformer that is the residual stream as the first layer reads it.

    Args:
        run: runs the model.
        inputs: the tensors whose positions are the tokens.
    """
    finder = _StreamFinder(_EnteringSources(inputs))
    with torch.no_grad(), finder.running():
        run()
    streams = []
    for source in dict.fromkeys(node.source for node in finder.entering):
        node = _common([entry for entry in finder.entering if entry.source == source])
        if node is not None:
            streams.append(Stream(source, node.start, node.whole))
    return sorted(streams, key=lambda stream: (isinstance(stream.source, str), str(stream.source)))


def find_call(run: Callable[[], Any], layer: nn.Module) -> dict[str, Any]:
    """The arguments of a layer's first call, by name; caches are left out.

    Args:
        run: runs the model that holds the layer.
        layer: the module.

    Raises:
        ValueError: if the layer does not run.
    """
    found: dict[str, Any] = {}

    def look(op: Operation) -> None:
        for caller in running_modules():
            if caller.module is layer and caller.arguments:
                found.update({k: None if k in _CACHES else v for k, v in caller.arguments.items()})
                raise _FoundError

    try:
        with WatchingMode(lambda name: look), torch.no_grad():
            run()
    except _FoundError:
        return found
    raise ValueError(f"layer {type(layer).__name__} does not run in this model, or was given no arguments.")
