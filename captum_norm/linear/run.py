"""Running a model in its frozen form: the model's own forward, each operation by its rule.

:class:`FrozenRun` decides what is live and asks the rules; how a linear form is carried is its subclasses' affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, peek_interpreter_stack

from captum_norm.linear.constants import on_constants, own_graph
from captum_norm.linear.frozen import RULES, Conventions, Frozen, NotFrozenError, Rule
from captum_norm.linear.overwritten import OverwrittenMemory
from captum_norm.linear.rounded import RoundedStates
from captum_norm.linear.sources import TokenSources
from captum_norm.operations.callers import running_modules
from captum_norm.operations.facts import Facts
from captum_norm.operations.kinds import HIDDEN_ATTENTION, OperationKind, names_of
from captum_norm.operations.modes import SubstitutingMode
from captum_norm.operations.operation import Operation
from captum_norm.operations.sharded import is_distributed
from captum_norm.operations.storages import Storages, storage_of

Start = tuple[int, int]

_PRODUCTS = names_of(OperationKind.SCALE, OperationKind.PRODUCT) | {"mul_", "div_"}


@dataclass
class Known:
    """What is known of a live tensor besides its value.

    Attributes:
        make: its linear form, once it is asked for.
        put_off: the linear form may never be asked for, and neither need be that of what is made of it.
        root, bent: the live tensor of which it is a function entry by entry, and whether that is not linear.
        since: how often operations had written in place by then.
    """

    make: Callable[[], Any] | None = None
    put_off: bool = False
    root: Tensor | None = None
    bent: bool = False
    since: int = 0


class FrozenRun:
    """What all ways of running a frozen model share.

    Args:
        conventions: how what is not linear is held fixed.
        sources: where tokens begin, or None.
        starts: which operations make the tensors that are followed, counted from 0, and which of their outputs.

    Attributes:
        fused: rules give forms made for autograd.
        largest: bytes of the largest live tensor whose linear form was made.
        memory: what the model overwrites.
        lazy_maps: linear layers are put off too, until something needs them.
        overwrote: whether an operation on something live wrote in place.
    """

    fused = False
    lazy_maps = False

    def __init__(
        self, conventions: Conventions, sources: TokenSources | None = None, starts: Sequence[Start] = ()
    ) -> None:
        self.conventions = conventions
        self.sources = sources
        self.starts = tuple(starts)
        self.count = -1
        self.known: Facts[Known] = Facts()
        self.largest = 0
        self.overwrote = False
        self._formats: set[torch.dtype] = set()
        self._entering: tuple[Tensor, ...] = ()
        self._mode = SubstitutingMode(self._rule_for)
        self._rounded = RoundedStates(self.is_live)
        self._twins: Facts[Callable[[Tensor], Tensor]] = Facts()
        self._copied = Storages()  # memory of which another piece is a copy where the model has a view
        self.memory = OverwrittenMemory()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While this lasts, this thread's operations run in frozen form."""
        import torch.compiler

        # Gradients are on, so that a custom autograd function shows in the sum.  But a distributed wrapper would get
        # its parameters ready for a backward pass that never comes.
        gradients = torch.no_grad() if is_distributed() else torch.enable_grad()
        try:
            # A compiled graph shows none of its operations.
            with torch.inference_mode(False), gradients, torch.compiler.set_stance("force_eager"), self._mode:
                yield
        finally:
            self.known.clear()
            self._twins.clear()
            self._rounded.clear()
            self._copied.clear()
            self.memory.clear()
            if self.sources is not None:
                self.sources.clear()

    def result(self, tensor: Tensor) -> Tensor:
        """What a tensor of the running model is in linear form."""
        with torch._C.DisableTorchFunction(), own_graph():
            return self.linear_form(tensor)

    def linear_form(self, tensor: Tensor) -> Any:
        """What stands for a live tensor in the linear forms of operations."""
        raise NotImplementedError

    # ---- what rules ask

    def is_live(self, tensor: Any) -> bool:
        """Whether a tensor depends on what is followed."""
        if not isinstance(tensor, Tensor):
            return False
        if tensor.requires_grad and not tensor.is_leaf:
            return True
        return any(tensor is entering for entering in self._entering) or tensor in self.known

    def only_value(self, tensor: Tensor) -> bool:
        """Whether the linear form of a live tensor has been put off."""
        known = self.known[tensor]
        return known is not None and known.put_off

    def root_of(self, tensor: Tensor) -> tuple[Tensor | None, bool]:
        """The live tensor of which this is a function entry by entry (itself, at least), and whether it is bent."""
        known = self.known[tensor]
        if known is None or known.root is None:
            return tensor, False
        if self.memory.is_overwritten((storage_of(known.root),), known.since):
            return tensor, False
        return known.root, known.bent

    def refusal(self, op: Operation, reason: str) -> NotFrozenError:
        """The error for an operation that has no linear form."""
        callers = running_modules()
        names = {id(m): n for n, m in callers[0].module.named_modules()} if callers else {}
        inner = callers[-1].module if callers else None
        where = "outside any module" if inner is None else f"in {names.get(id(inner), '')!r} ({type(inner).__name__})"
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in op.tensors)
        return NotFrozenError(f"operation {op.name!r} {where} on {shapes} cannot be held fixed: {reason}.")

    def tangent_of(self, op: Operation, root: Tensor, value: Tensor) -> Callable[[], Tensor]:
        """The slope of ``value``, a function of ``root`` entry by entry, once it is asked for."""
        with torch.enable_grad():
            leaf = root.detach().clone().requires_grad_()
            result = op.again(lambda tensor: self._on_leaf(tensor, root, leaf))
        self._twins[value] = lambda leaf: op.again(lambda tensor: self._on_leaf(tensor, root, leaf))
        return lambda: torch.autograd.grad(result, leaf, torch.ones_like(result), retain_graph=True)[0]

    def _on_leaf(self, tensor: Tensor, root: Tensor, leaf: Tensor) -> Tensor:
        """A tensor as a function of the leaf that stands for its root."""
        if tensor is root:
            return leaf
        if not self.is_live(tensor):
            return tensor.detach()
        twin = self._twins[tensor]
        return twin(leaf) if twin is not None else leaf * torch.where(root == 0, 0, tensor.detach() / root).detach()

    # ---- one operation

    def _rule_for(self, name: str) -> Callable[[Operation], Any] | None:
        rule = RULES.of(name)
        if rule is None and self.sources is not None:
            return self._compared if self.sources.compares(name) else None
        return None if rule is None else lambda op: self._perform(rule, op)

    def _compared(self, op: Operation) -> Any:
        """A comparison, which has no linear form: what it was made of tells whether the inputs choose by it."""
        op.returned(op.func(*op.args, **op.kwargs))
        if self.sources is not None:
            self.sources.compared(op)
        return op.out

    def begin(self, tensor: Tensor, number: int = 0) -> Tensor:
        """From here on this tensor is live, as the ``number``-th that is followed; what the model gets for it."""
        raise NotImplementedError

    def _perform(self, rule: Rule, op: Operation) -> Any:
        self.count += 1
        if self.memory:
            self._refuse_stale(op)
        of_integers = self._rounded.are_read_by(op)
        out = self._performed(rule, op)
        if self._rounded.come_back(op, out, of_integers):
            raise self.refusal(op, "it computes with integers that hidden states were rounded to")
        self.memory.note(op.overwritten)
        return out

    def _performed(self, rule: Rule, op: Operation) -> Any:
        if peek_interpreter_stack() is not None:
            self._refuse_batched(op)
        if not self._concerns(op):
            before = self._kept(op)
            out = on_constants(op, known=rule is not _refuse)
            op.returned(out)
            if any(self.count == count for count, _ in self.starts):
                return self._begun(op)
            if self.sources is None or not self.sources.note(op):
                for into in op.overwritten:
                    self._begin_anew(op, into)
                return out
            if before is not None:  # to be done again, in linear form
                op.args[0].copy_(before)
        self._formats.update(t.dtype for t in op.tensors if t.is_floating_point() and self.is_live(t))
        if self.sources is not None:
            self._entering = self._tokens(op, self.sources)
            self.sources.meets(tensor for tensor in op.tensors if not self.is_live(tensor))
        try:
            out = self._follow(rule, op)
        finally:
            self._entering = ()
        if self.sources is not None:
            self.sources.pass_on(out)
        return out

    @property
    def coarsest(self) -> torch.dtype:
        """The format with the fewest digits that anything followed was computed in."""
        return max(self._formats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    def is_followed(self, tensor: Tensor) -> bool:
        """Whether a tensor has a linear form of its own."""
        return tensor in self.known

    def _refuse_stale(self, op: Operation) -> None:
        """Refuse what is neither followed nor a token's own, in memory that such a tensor was written into."""
        for tensor, storage in zip(op.tensors, op.storages, strict=True):
            if not self.memory.holds_inputs(storage) or self.is_followed(tensor):
                continue
            if self.memory.holds_followed(storage) or self.sources is None or self.sources.place(tensor) is None:
                raise self.refusal(op, "it reads what was written through another tensor; write into a new one")

    def _begin_anew(self, op: Operation, into: Tensor) -> None:
        """Nothing live was written in place: tokens that are read there from here on are what it is now."""
        if self.sources is None:
            return
        for tensor in (into, *self.sources.beside(into)):
            self.forget_start(tensor)
        if any(self.sources.place(tensor) is not None for tensor in op.tensors):
            self.memory.take_tokens(into)

    def forget_start(self, tensor: Tensor) -> None:
        """The linear form with which a token's own tensor began is no longer that of its numbers."""
        if self.sources is not None:
            self.sources.forget_leaf(tensor)

    def _refuse_batched(self, op: Operation) -> None:
        """Refuse a live tensor under ``torch.vmap``, whose results are other tensors when it ends."""
        for tensor in op.tensors:
            while is_batchedtensor(tensor):
                tensor = get_unwrapped(tensor)
                is_token = self.sources is not None and self.sources.place(tensor) is not None
                if is_token or self.is_live(tensor):
                    raise self.refusal(op, "it runs under torch.vmap, out of sight; write the axis out")

    def _concerns(self, op: Operation) -> bool:
        try:
            return any(self.is_live(tensor) for tensor in op.tensors)
        except RuntimeError as error:  # autograd's, of a view that is no longer one
            raise self.refusal(op, f"it reads a view that was overwritten ({str(error).splitlines()[0]})") from error

    def _tokens(self, op: Operation, sources: TokenSources) -> tuple[Tensor, ...]:
        """The operands that are tokens' own; gates of mixed states are not, but held fixed as in later layers."""
        own = tuple(tensor for tensor in op.tensors if sources.place(tensor) is not None)
        if op.name not in _PRODUCTS:
            return own
        states = tuple(tensor for tensor in own if not sources.is_gate(tensor))
        return states if states or any(self.is_live(tensor) for tensor in op.tensors) else own

    def _kept(self, op: Operation) -> Tensor | None:
        """What an operation is about to overwrite, if tokens' own vectors are involved."""
        if self.sources is None or not op.writes or all(self.sources.place(tensor) is None for tensor in op.tensors):
            return None
        return op.args[0].detach().clone()

    def _begun(self, op: Operation) -> Any:
        """The result of an operation that makes what is followed."""
        numbers = {start: number for number, start in enumerate(self.starts)}
        if isinstance(op.out, Tensor):
            return self.begin(op.out, numbers[self.count, 0])
        return type(op.out)(
            self.begin(out, numbers[self.count, n]) if (self.count, n) in numbers else out
            for n, out in enumerate(op.out)
        )

    def _follow(self, rule: Rule, op: Operation) -> Any:
        if any(storage_of(into) in self._copied for into in op.overwritten):
            raise self.refusal(op, "it writes to memory that as_strided reads as well; take the entries by an index")
        self.overwrote = self.overwrote or bool(op.overwritten)
        try:
            frozen = rule(self, op)
            if not isinstance(frozen, Frozen):
                return frozen
            out = self.carry(op, frozen)
            if op.name == "as_strided":
                self._copied.hold(op.tensors[0])
                self._copied.hold(out)
            return self._write(op, op.args[0], out) if op.writes else out
        except RuntimeError as error:
            raise self.refusal(op, f"its frozen form does not run ({str(error).splitlines()[0]})") from error

    def _write(self, op: Operation, into: Tensor, out: Tensor) -> Any:
        """The tensor that the model overwrites takes on what is known of the result."""
        known = self.known.take(out)
        if known is not None and known.make is not None and self.is_live(into):
            known.make()  # while the operand is still what it was
        if known is not None and known.root is into:
            known.root, known.bent = None, False
        kept = self.overwrite(into, out)
        self.known[into] = known or kept
        for alias in self.known.beside(into):
            self._lose(op, alias)
        self.memory.take_followed(into)
        if self.sources is not None and self.sources.place(into) is not None:
            self.sources.forget(into)
        return None if op.name == "setitem" else into

    def _lose(self, op: Operation, alias: Tensor) -> None:
        """The numbers of a tensor were overwritten through another one: its linear form, put off, is no longer that."""
        known = self.known[alias]
        if known is None or known.make is None:
            return

        def refuse() -> Any:
            raise self.refusal(op, "it writes through a view into a tensor that is used further; write into a new one")

        self.known[alias] = Known(refuse, known.put_off)

    def moved_in_place(self, op: Operation) -> Any:
        """The tensor that an operation such as ``unsqueeze_`` gives other axes, and with it what stands for it."""
        raise self.refusal(op, "it gives a tensor other axes in place; use the form without the underscore")

    def becomes_constant(self, op: Operation, value: Tensor) -> Tensor:
        """The tensor that an in-place operation makes into something that is held fixed."""
        into: Tensor = op.args[0]
        aliases = [] if self.sources is None else self.sources.beside(into)
        placed = any(self.sources is not None and self.sources.place(alias) is not None for alias in aliases)
        if into._is_view() or placed or self.known.beside(into):
            raise self.refusal(op, "it overwrites a view with what is held fixed; write into a new tensor")
        with torch.no_grad():
            into.detach_().copy_(value)
        self.known[into] = None
        if self.sources is not None:
            self.sources.forget(into)
        return into

    def carry(self, op: Operation, frozen: Frozen) -> Any:
        """What the model gets for an operation with live operands."""
        raise NotImplementedError

    def overwrite(self, into: Tensor, out: Tensor) -> Known | None:
        """Put the result of an in-place operation into the tensor that the model overwrites; what is to be kept of it.
        """
        raise NotImplementedError

    def _measure(self, out: Any) -> None:
        for tensor in out if isinstance(out, list | tuple) else (out,):
            self.largest = max(self.largest, tensor.numel() * tensor.element_size())

    def note_values(self, op: Operation, frozen: Frozen, make: Callable[[], Any]) -> Any:
        """The value alone; its linear form is made when it is asked for, once."""
        value = frozen.value
        if value is None:
            with torch.no_grad():
                value = op.again(lambda tensor: tensor.detach())
        made: list[Any] = []
        before = self.memory.now

        def once() -> Any:
            if not made:
                if self.memory.is_overwritten(op.storages, before):
                    raise self.refusal(op, "what it read was overwritten afterwards; write into a new tensor")
                made.append(make())
            return made[0]

        if isinstance(value, Tensor):
            self.known[value] = Known(once, frozen.lazy, frozen.root, frozen.bent, before)
        else:
            for number, part in enumerate(value):
                self.known[part] = Known(lambda number=number: once()[number], frozen.lazy)  # type: ignore[misc]
        return value


@RULES.any_other
@RULES.rule("index_fill", *HIDDEN_ATTENTION)
def _refuse(run: FrozenRun, op: Operation) -> Any:
    """Nothing is linear by accident: only what gives out no numbers passes."""
    with torch.no_grad():
        op.returned(op.func(*op.args, **op.kwargs))
    if not any(tensor.is_floating_point() or tensor.is_complex() for tensor in op.outputs):
        return op.out
    raise run.refusal(op, "there is no rule for it; compute that part before the model, or report it")
