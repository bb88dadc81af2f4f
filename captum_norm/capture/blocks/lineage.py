"""Which tensor was made of which: enough to tell the residual stream from what is added to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import base_name

StreamStep = Literal["same", "sum", "changed", "other"]


class Node:
    """One result of an operation: when it was made, and of what.

    Attributes:
        number: how many results there were before.
        parents: the results it was made of.
        thin: it holds the numbers of its only parent, moved, scaled or in another format.
        is_sum: it is its parents, added up.
        step: what made it, for whoever follows the residual stream: rows that were moved, joined or left out
            (``"same"``), added up (``"sum"``), anything else row by row, as norms and activations are (``"changed"``),
            or a map, a product or a mean, through which nothing goes on (``"other"``).
        operation: the operation that made it.
        form_of: the state that it is known to be a form of, or None.
    """

    __slots__ = ("form_of", "is_sum", "normalised", "number", "operation", "parents", "step", "thin")

    def __init__(
        self, number: int, parents: tuple[Node, ...], thin: bool = False, is_sum: bool = False,
        step: StreamStep = "changed", operation: str = "",
    ) -> None:  # fmt: skip
        self.number, self.parents, self.thin, self.is_sum = number, parents, thin, is_sum
        self.step, self.operation = step, operation
        self.normalised: Node | None = None
        self.form_of: Node | None = None

    def root(self) -> Node:
        """The result whose numbers these are."""
        node = self
        while node.thin and node.parents:
            node = node.parents[0]
        return node

    def ancestors(self, since: int) -> Iterator[Node]:
        """This result and all it was made of, as far back as number ``since``."""
        seen, todo = set(), [self]
        while todo:
            node = todo.pop()
            if node.number < since or id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            todo.extend(node.parents)

    def lost(self, state: Node) -> str:
        """The operation by which the residual stream came here from a state and left no known form of it; or ``""``.

        A sum with what was not made of the state leaves the form that was added; that it leads past is seen elsewhere.
        """
        seen, todo = set(), [(self, "")]
        while todo:
            node, change = todo.pop()
            if node.number < state.number or (id(node), bool(change)) in seen:
                continue
            seen.add((id(node), bool(change)))
            if node is state or node.form_of is state:
                if change:
                    return change
            elif node.step != "other":
                made_of_it = node.step == "sum" and sum(parent.comes_from(state) for parent in node.parents) > 1
                change = node.operation if made_of_it or node.step == "changed" else change
                todo.extend((parent, change) for parent in node.parents)
        return ""

    def continues(self, state: Node) -> bool:
        """Whether a state's own numbers lead here, moved, scaled or added up: the stream, and nothing made of it."""
        root = state.root()
        seen, todo = set(), [self]
        while todo:
            node = todo.pop()
            if node is state or node is root:
                return True
            if node.number < root.number or id(node) in seen:
                continue
            seen.add(id(node))
            if node.thin or node.step in ("same", "sum") or node.is_scaled():
                todo.extend(node.parents)
        return False

    def is_scaled(self) -> bool:
        """Whether it is one of its parents side by side with others, turned round, or times what was there before."""
        kind = kind_of(self.operation)
        if kind is OperationKind.JOIN or base_name(self.operation) == "neg":
            return True
        return kind is OperationKind.SCALE and sum(bool(parent.parents) for parent in self.parents) < 2

    def comes_from(self, other: Node) -> bool:
        """Whether it was made of ``other``, or of what ``other`` is a copy of."""
        while True:
            if any(node is other for node in self.ancestors(other.number)):
                return True
            if not other.thin or not other.parents:
                return False
            other = other.parents[0]
