"""A table of rules: what one analysis does with each operation.

A rule is registered for names or for whole kinds; that of a name goes before that of its kind, and an in-place form
follows its base unless it is named itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from captum_norm.operations.kinds import OperationKind, kind_of
from captum_norm.operations.operation import base_name

Rule = TypeVar("Rule", bound=Callable[..., object])


class RuleTable(Generic[Rule]):
    """Operation -> rule, for one analysis.

    Example:
        >>> table: RuleTable[Callable[[], str]] = RuleTable()
        >>> @table.rule(OperationKind.MOVE)
        ... def moved() -> str:
        ...     return "moved"
        >>> table.pass_over(OperationKind.QUESTION)
        >>> table.of("transpose") is moved, table.of("shape"), table.of("special_i0")
        (True, None, None)
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Rule | None] = {}
        self._by_kind: dict[OperationKind, Rule | None] = {}
        self._any_other: Rule | None = None

    def rule(self, *operations: str | OperationKind) -> Callable[[Rule], Rule]:
        """Register the decorated function for these operations.

        Raises:
            ValueError: for a name that the table of kinds does not have, or that has a rule already.
        """

        def register(function: Rule) -> Rule:
            self._register(operations, function)
            return function

        return register

    def pass_over(self, *operations: str | OperationKind) -> None:
        """Register that nothing is done with these operations: they run unseen."""
        self._register(operations, None)

    def any_other(self, function: Rule) -> Rule:
        """Register the decorated function for operations that the table says nothing about."""
        self._any_other = function
        return function

    def of(self, name: str) -> Rule | None:
        """The rule of an operation; None if it is passed over."""
        for spelled in (name, base_name(name)):
            if spelled in self._by_name:
                return self._by_name[spelled]
        kind = kind_of(name)
        return self._any_other if kind is None else self._by_kind.get(kind, self._any_other)

    def knows(self, name: str) -> bool:
        """Whether the table says anything about an operation."""
        return name in self._by_name or base_name(name) in self._by_name or kind_of(name) in self._by_kind

    def _register(self, operations: tuple[str | OperationKind, ...], function: Rule | None) -> None:
        for operation in operations:
            if isinstance(operation, str) and kind_of(operation) is None:
                raise ValueError(f"operation {operation!r} has no kind: give it one in operations/kinds.py")
            if operation in self._by_name or operation in self._by_kind:
                raise ValueError(f"{operation} has a rule already")
            if isinstance(operation, OperationKind):
                self._by_kind[operation] = function
            else:
                self._by_name[operation] = function
