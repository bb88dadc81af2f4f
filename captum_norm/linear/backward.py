"""A frozen model as autograd sees it: a backward pass gives what each entry of the inputs contributes to an output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from captum_norm.linear.constants import own_graph
from captum_norm.linear.frozen import Conventions, Frozen, NotFrozenError
from captum_norm.linear.run import FrozenRun, Known, Start
from captum_norm.linear.sources import TokenSources
from captum_norm.operations.callers import running_modules
from captum_norm.operations.facts import Facts
from captum_norm.operations.operation import Operation


class BackwardRun(FrozenRun):
    """A frozen model as autograd sees it: nothing but linear maps.

    Attributes:
        one: the number that all constants are scaled with, a leaf: an output's gradient to it is its bias share.
        leaves: what is followed, where it began at given operations or inputs, by number.
    """

    fused = True

    def __init__(
        self, conventions: Conventions, sources: TokenSources | None = None, starts: Sequence[Start] = ()
    ) -> None:
        super().__init__(conventions, sources, starts)
        self._ones: dict[torch.device, Tensor] = {}
        self._in_graph: Facts[bool] = Facts()
        self.one = torch.ones((), dtype=torch.float64, requires_grad=True)
        self.leaves: dict[int, Tensor] = {}

    def begin(self, tensor: Tensor, number: int = 0) -> Tensor:
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            leaf = self.leaves[number] = tensor.detach().clone().requires_grad_()
            begun = leaf.clone()  # some models add to it in place
            self._in_graph[begun] = True
            return begun

    def carry(self, op: Operation, frozen: Frozen) -> Any:
        one = self._one_on(frozen.operands[0].device)

        def make() -> Any:
            with own_graph():
                return frozen.apply(one, *map(self.linear_form, frozen.operands))

        if frozen.lazy:
            return self.note_values(op, frozen, make)
        out = make()
        for tensor in out if isinstance(out, list | tuple) else (out,):
            self._in_graph[tensor] = True
        self._measure(out)
        if frozen.root is not None:
            self.known[out] = Known(None, False, frozen.root, frozen.bent, self.memory.now)
        return out

    def moved_in_place(self, op: Operation) -> Any:
        x = op.args[0]
        known, form = self.known.take(x), self.linear_form(x)
        with own_graph():
            moved = op.again(lambda tensor: form if tensor is x else tensor)
            op.func(*op.args, **op.kwargs)
        if form is not x:
            self.known[x] = Known(lambda: moved, put_off=known is not None and known.put_off)
        return x

    def linear_form(self, tensor: Tensor) -> Tensor:
        """A live tensor as autograd may see it."""
        known = self.known[tensor]
        if known is not None and known.make is not None:
            return known.make()
        self.is_live(tensor)
        if self.sources is not None and self.sources.place(tensor) is not None:
            leaf = self.sources.leaf(tensor)
            form = leaf.view_as(leaf)  # not a leaf itself, so that it counts as live
            self._in_graph[form] = True
            return form
        return tensor

    def is_followed(self, tensor: Tensor) -> bool:
        return tensor in self._in_graph or super().is_followed(tensor)

    def is_live(self, tensor: Any) -> bool:
        if super().is_live(tensor):
            if tensor.requires_grad and tensor not in self._in_graph and tensor not in self.known:
                raise NotFrozenError(_out_of_sight(tensor))
            return True
        if isinstance(tensor, Tensor) and tensor in self._in_graph:
            raise NotFrozenError(
                f"a hidden state of shape {tuple(tensor.shape)} was cut off from what it was computed from, as by a "
                "checkpoint with use_reentrant=True or a custom autograd function. Switch gradient checkpointing off "
                "(model.gradient_checkpointing_disable()), take use_reentrant=False, or explain what is inside a "
                "distributed wrapper (model.module)."
            )
        return False

    def becomes_constant(self, op: Operation, value: Tensor) -> Tensor:
        if self._in_graph.beside(op.args[0]):
            raise self.refusal(op, "it overwrites what has views with what is held fixed; write into a new tensor")
        into = super().becomes_constant(op, value)
        self._in_graph[into] = None
        return into

    def overwrite(self, into: Tensor, out: Tensor) -> Known | None:
        try:
            with own_graph():
                into.copy_(out)
        except RuntimeError:  # a view of values alone, which no graph may enter
            with torch.no_grad():
                into.copy_(out)
            return Known(lambda: out)
        self._in_graph[into] = True
        return None

    def _one_on(self, device: torch.device) -> Tensor:
        if device not in self._ones:
            with torch.enable_grad():
                self._ones[device] = self.one.to(device) if device != self.one.device else self.one.view_as(self.one)
        return self._ones[device]


def _out_of_sight(tensor: Tensor) -> str:
    callers = running_modules()
    names = {id(m): n for n, m in callers[0].module.named_modules()} if callers else {}
    where = f" in {names.get(id(callers[-1].module), type(callers[-1].module).__name__)!r}" if callers else ""
    packed = _packed(callers[-1].module) if callers else ""
    return (
        f"a hidden state of shape {tuple(tensor.shape)}{where}{packed and f' (its weights are {packed})'} was computed "
        "out of sight, by TorchScript, a custom autograd function or a kernel of its own (packed weights have one: "
        "dequantise the model): how it depends on the inputs cannot be held fixed. Write that part in torch "
        "operations, or take the Python function that was scripted."
    )


def _packed(module: Module) -> str:
    """The format of a module's weights by name, where they are no plain tensor."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return "" if type(weight) in (Tensor, Parameter) else type(weight).__name__
    return "" if weight is None else f"those of {type(module).__module__}.{type(module).__name__}"
