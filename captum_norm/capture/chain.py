"""Which attention calls feed which: the calls that a state comes from without passing by the residual of a later one.

Every state holds the *marks* of what it was made of: one bit for each place where positions begin to count, and for
each attention call two, for what it gave out and for the sum of that with its residual:

    call c gives out a            {inside c}
    a + x, x what c was made of   {behind c}            the residual: whatever x held is behind c from here on
    a + f(x), f(x) new            as a                  a feed-forward part beside attention, also where the features
                                                        of both lie side by side, for one matrix to take them in
    a + x + f(x), f(x) new        as a + x              the same, added later
    anything else                 the marks of all      a skip, a dense sum, a branch, what several layers say

f(x) is new where it is no sum of what c was made of, scaled or not.

So the calls of a sequence follow one another, and nothing else leads past them, where each is made of nothing but what
lies behind the call before it.

Of rows in which something else stands than what a call left (:mod:`captum_norm.capture.replaced`) a state holds a mark,
too, until attention has taken it in.  A sum or a product holds something else there alone where all its operands do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from captum_norm.capture.blocks.lineage import Node
from captum_norm.capture.reach import INPUT, Reach
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import OperationKind, names_of
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.storages import is_same_view, storage_of

_ADDS = names_of(OperationKind.SUM) | {"lerp"}
_PIECES = names_of(OperationKind.JOIN, OperationKind.CHOICE, OperationKind.WRITE)
_SUMS = _ADDS | {"addcmul", "addmm", "baddbmm"}
_OF_THE_FIRST = names_of(OperationKind.IDENTITY, OperationKind.MOVE)
_THIN = names_of(OperationKind.DROPOUT) | _OF_THE_FIRST


class Replaced(NamedTuple):
    """Rows of a state that something else stands in.

    Attributes:
        rows: which, (example, position); the example is None where all share the row, and the position of a row that
            is no input, such as a class token, its own number below 0.
        length: how many rows an example has in that state.
        where: the operation that put it there, in words.
    """

    rows: frozenset[tuple[int | None, int]]
    length: int
    where: str


class Fed(NamedTuple):
    """The marks of one attention call: its own, and of what its values and its weights were made; where more than one
    thing was put together in these, in words; and the rows of its values that are not what a call before left."""

    inside: int = 0
    behind: int = 0
    values: int = 0
    weights: int = 0
    where: str = ""
    replaced: tuple[Replaced, ...] = ()

    def joined(self, other: Fed) -> Fed:
        """Those of two parts of one call."""
        inside, behind = self.inside | other.inside, self.behind | other.behind
        values, weights = self.values | other.values, self.weights | other.weights
        replaced = tuple(dict.fromkeys((*self.replaced, *other.replaced)))
        return Fed(inside, behind, values, weights, self.where or other.where, replaced)

    @property
    def own(self) -> int:
        """Its own marks."""
        return self.inside | self.behind

    def is_all_of(self, marks: int) -> bool:
        """Whether what has these marks comes from this call alone, and either has its residual or has not."""
        return marks != 0 and (not marks & ~self.inside or not marks & ~self.behind)


class Starts(dict[int, int]):
    """The marks of where positions begin to count, each with the bits of the inputs that it was made of."""

    def of_other_inputs(self, than: int) -> int:
        """The marks where other inputs begin than at the marks ``than``, as far as is known."""
        inputs = 0
        for start, made_of in self.items():
            inputs |= made_of if start & than else 0
        return sum(start for start, made_of in self.items() if made_of and not made_of & inputs)


@dataclass(eq=False)
class _Product:
    """A value product: what it was made of, and its place in the lineage."""

    fed: Fed
    node: Node

    @property
    def made_of(self) -> int:
        return self.fed.values | self.fed.weights


class Chain:
    """The marks of the tensors of a running model; ``see`` is handed every operation after it.

    Args:
        reach: what is known of storages.
        module: the name of the module that is running.
    """

    def __init__(self, reach: Reach, module: Callable[[], str]) -> None:
        self._reach, self._module = reach, module
        self._joins: dict[int, str] = {}
        self._marks: dict[int, int] = {}
        self.starts = Starts()
        self._calls = 0  # the marks of all attention calls
        self._replaced: dict[int, Replaced] = {}
        self._replacements = 0  # the marks of these
        self._products: dict[int, _Product] = {}
        self._nodes: Facts[Node] = Facts()
        self._next, self._count = 1, 0
        self._mixed: Fed | None = None

    def of(self, *tensors: Tensor) -> int:
        """The marks of these tensors together."""
        return self._with_replaced(*tensors) & ~self._replacements

    def _with_replaced(self, *tensors: Tensor) -> int:
        """The same with those of rows that something else stands in."""
        marks = 0
        for tensor in tensors:
            marks |= self._marks.get(storage_of(tensor), 0)
        return marks

    def is_written_by_attention(self, tensor: Tensor) -> bool:
        """Whether an attention call has a part in a state."""
        return bool(self._calls & self._with_replaced(tensor))

    def begin(self, tensor: Tensor) -> None:
        """Positions begin to count in this tensor."""
        self._mark(tensor, self._start(self._reach.of(tensor)))

    def _start(self, made_of: int) -> int:
        mark = self._new_mark()
        self.starts[mark] = made_of & ~INPUT
        return mark

    def mixed(self, of_weights: Sequence[Tensor], values: Tensor) -> Fed:
        """A value product has just run, of these operands."""
        made_of, inside, behind = self.of(values), self._new_mark(), self._new_mark()
        self._calls |= inside | behind
        chosen_by, replaced = self.of(*of_weights), tuple(self._replaced_in(values))
        self._mixed = Fed(inside, behind, made_of, chosen_by, self.where(made_of), replaced)
        return self._mixed

    def where(self, marks: int) -> str:
        """Where states were put together that only together have these marks, in words; "" for those of one."""
        return self._joins.get(marks, "")

    def see(
        self, op: Operation, begins: bool, replaced: Replaced | None = None, joins_features: bool = False
    ) -> None:  # fmt: skip
        """Take in one operation, after ``reach`` has.

        Args:
            op: the operation.
            begins: whether positions begin to count in its result.
            replaced: the rows of its result that hold nothing of its states.
            joins_features: whether it puts features of its states side by side, and no positions.
        """
        mixed, self._mixed = self._mixed, None
        name = base_name(op.name)
        operands = op.tensors[:1] if name in _OF_THE_FIRST else op.tensors
        operands = [tensor for tensor in operands if tensor.is_floating_point() or tensor.is_complex()]
        marks = {tensor: self.of(tensor) for tensor in operands}
        outs = op.tensors[:1] if op.name == "setitem" else list({id(out): out for out in op.written}.values())
        outs = [out for out in outs if out.is_floating_point() or out.is_complex()]
        if not outs or not (begins or mixed or any(marks.values())):
            return
        after = mixed.inside if mixed else self._after(op, name, marks, joins_features)
        after = self._start(self._reach.of_all(op.tensors)) if begins and not after else after
        after |= 0 if mixed else self._still_replaced(name, [tensor for tensor in operands if marks[tensor]])
        after |= 0 if replaced is None else self._replace(replaced)
        parents = tuple(self._node(tensor) for tensor in operands if marks[tensor])
        thin = len(parents) == 1 and (name in _THIN or name in ("mul", "div"))
        for out in outs:
            self._count += 1
            node = self._nodes[out] = Node(self._count, parents, thin, name in _ADDS or name in _PIECES)
            if mixed:
                self._products[mixed.inside] = self._products[mixed.behind] = _Product(mixed, node)
            self._mark(out, after, whole=op.name != "setitem")
        for into in op.overwritten:
            self._follow(into)

    def _follow(self, into: Tensor) -> None:
        """Where the other tensors in the memory of one that was overwritten stand in the lineage."""
        for alias in self._nodes.beside(into):
            if is_same_view(alias, into):
                self._nodes[alias] = self._nodes[into]
            else:
                self._count += 1
                self._nodes[alias] = Node(self._count, (self._node(into), self._node(alias)), is_sum=True)

    def clear(self) -> None:
        """Forget everything."""
        for known in (self._marks, self._products, self._nodes, self._joins, self._replaced):
            known.clear()
        self.starts = Starts()

    def _replace(self, rows: Replaced) -> int:
        mark = self._new_mark()
        self._replaced[mark], self._replacements = rows, self._replacements | mark
        return mark

    def _replaced_in(self, *states: Tensor) -> list[Replaced]:
        """The rows of these states that something else stands in."""
        marks = self._with_replaced(*states) & self._replacements
        return [rows for mark, rows in self._replaced.items() if mark & marks] if marks else []

    def _still_replaced(self, name: str, states: list[Tensor]) -> int:
        """The marks of rows of a result in which something else stands, as it does in its states."""
        marks = self._with_replaced(*states) & self._replacements
        if not marks or len(states) == 1 or (name not in ("mul", "div") and name not in _SUMS):
            return marks
        each = [frozenset().union(*(one.rows for one in self._replaced_in(state))) for state in states]
        in_all = frozenset.intersection(*each)
        first = next(rows for mark, rows in self._replaced.items() if mark & marks)
        return self._replace(first._replace(rows=in_all)) if in_all else 0

    def _new_mark(self) -> int:
        mark, self._next = self._next, self._next << 1
        return mark

    def _node(self, tensor: Tensor) -> Node:
        node = self._nodes[tensor]
        if node is None:
            self._count += 1
            node = self._nodes[tensor] = Node(self._count, ())
        return node

    def _mark(self, out: Tensor, marks: int, whole: bool = True) -> None:
        """Give a result its marks; in a storage that holds something else, beside those that are there."""
        storage = self._reach.storages.hold(out)
        if not storage:
            return
        if not whole or (storage > 0 and out.numel() * out.element_size() < out.untyped_storage().nbytes()):
            marks |= self._marks.get(storage, 0)
        self._marks[storage] = marks

    def _after(self, op: Operation, name: str, marks: dict[Tensor, int], joins_features: bool) -> int:
        """The marks of a result."""
        all_marks = 0
        for mark in marks.values():
            all_marks |= mark
        main = next((tensor for tensor, mark in marks.items() if mark == all_marks), None)
        if main is not None and all(mark in (0, all_marks) for mark in marks.values()):
            return all_marks
        if joins_features or name in ("mul", "div") or name in _SUMS:
            for tensor, mark in marks.items():
                others = [other for other, its in marks.items() if its and its != mark]
                joined = self._joined(tensor, marks, others, is_sum=joins_features or name in _SUMS)
                # Side by side lie what attention gave out and a feed-forward part, and no state with its residual.
                if joined and not (joins_features and (joined != mark or not self._is_inside(mark))):
                    return joined
        if main is None and all_marks not in self._joins:
            module = self._module()
            self._joins[all_marks] = f"{name} in {module!r}" if module else name
        return all_marks

    def _joined(self, tensor: Tensor, marks: dict[Tensor, int], others: list[Tensor], is_sum: bool) -> int:
        """The marks of what attention gave out (``tensor``) with what it was made of; 0 if that is not what these are.
        """
        mark = marks[tensor]
        products = self._of_call(mark)
        made_of = 0
        for product in products:
            made_of |= product.made_of
        if not products or any(marks[other] & ~made_of for other in others):
            return 0
        inside = bool(mark & products[0].fed.inside)
        has_residual = any(self._holds_ancestor(other, products) for other in others)
        if not inside:  # what attention was made of goes in a second time, or what is said of two layers is added
            leads_past = has_residual or (is_sum and not self._holds_ancestor(tensor, products))
            return 0 if leads_past else mark
        if not is_sum or not has_residual:
            return mark
        behind = 0
        for product in products:
            behind |= product.fed.behind
        return behind

    def _is_inside(self, marks: int) -> bool:
        """Whether these are the marks of what a call gave out, without its residual."""
        return all(marks & product.fed.inside for product in self._of_call(marks))

    def _of_call(self, marks: int) -> list[_Product]:
        """The products whose marks these are, all of one sort; none where anything else is among them."""
        found, sorts = list[_Product](), set[bool]()
        while marks:
            mark = marks & -marks
            marks ^= mark
            product = self._products.get(mark)
            if product is None:
                return []
            sorts.add(mark == product.fed.inside)
            found.append(product)
        return found if len(sorts) == 1 else []

    def _holds_ancestor(self, tensor: Tensor, products: list[_Product]) -> bool:
        """Whether a tensor is what the products were made of, or a sum with that in it, scaled or not."""
        seen, todo = set[int](), [self._node(tensor)]
        while todo:
            node = todo.pop()
            if any(product.node.comes_from(node) for product in products):
                return True
            if id(node) not in seen and (node.thin or node.is_sum):
                todo.extend(node.parents)
            seen.add(id(node))
        return False
