"""Which tensor was made of which: enough to tell the residual stream from what is added to it."""

from __future__ import annotations

from collections.abc import Iterator


class Node:
    """One result of an operation: when it was made, and of what.

    Attributes:
        number: how many results there were before.
        parents: the results it was made of.
        thin: it holds the numbers of its only parent, moved, scaled or in another format.
        is_sum: it is its parents, added up.
        normalised: the result that it is the normalisation of, or None.
    """

    __slots__ = ("is_sum", "normalised", "number", "parents", "thin")

    def __init__(self, number: int, parents: tuple[Node, ...], thin: bool = False, is_sum: bool = False) -> None:
        self.number, self.parents, self.thin, self.is_sum = number, parents, thin, is_sum
        self.normalised: Node | None = None

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

    def comes_from(self, other: Node) -> bool:
        """Whether it was made of ``other``, or of what ``other`` is a copy of."""
        while True:
            if any(node is other for node in self.ancestors(other.number)):
                return True
            if not other.thin or not other.parents:
                return False
            other = other.parents[0]
