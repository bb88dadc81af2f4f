"""What a running model did last, to be done again from a state on: a run of the whole model for it is saved.

The operations since the last softmax are kept with what they were given and gave.  Behind the last attention call that
is its projection, its feed-forward part, the final norm and the unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_norm.operations.modes import OperationMode, OperationRule
from captum_norm.operations.operation import Operation, operation_name, swapped
from captum_norm.operations.sharded import is_distributed

_BEGIN_ANEW = {"softmax", "scaled_dot_product_attention"}


class Tail(OperationMode):
    """A mode that keeps the last operations of this thread; a ``with`` of its own for each piece of them.

    Example:
        >>> import torch
        >>> tail, x = Tail(), torch.tensor([1.0, 2.0])
        >>> with tail:
        ...     state = x.softmax(0).log()
        ...     y = 3 * state + 1
        >>> tail.again([y], lambda made: made is state, lambda made: torch.zeros(2))
        [tensor([1., 1.])]
    """

    def __init__(self) -> None:
        super().__init__(lambda name: _seen)
        self._operations: list[Operation] = []

    def hand_over(
        self, rule: OperationRule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        operation = Operation(operation_name(func), func, args, kwargs, func(*args, **kwargs))
        if operation.name in _BEGIN_ANEW:
            self.clear()
        elif operation.outputs or operation.writes:
            self._operations.append(operation)
        return operation.out

    def clear(self) -> None:
        """Forget them all."""
        self._operations.clear()

    def again(
        self, outputs: Sequence[Tensor], is_state: Callable[[Tensor], bool], begin: Callable[[Tensor], Tensor]
    ) -> list[Tensor] | None:
        """Outputs made again.

        Args:
            outputs: what the operations made.
            is_state: whether a tensor that they made is the state to begin from; the first that is counts.
            begin: what stands for it.

        Returns:
            The outputs, made from what stands for the state; None where that cannot be: the state was not made since
            the last softmax, an output is not made of it, an operation behind it wrote over a tensor, or tensors are
            those of inference mode or shards.
        """
        first = next((n for n, one in enumerate(self._operations) if any(map(is_state, one.outputs))), None)
        if first is None or is_distributed():
            return None
        made = {id(out): begin(out) for out in self._operations[first].outputs if is_state(out)}
        for one in self._operations[first + 1 :]:
            if one.overwritten or any(tensor.is_inference() for tensor in one.tensors):
                return None
            if any(id(tensor) in made for tensor in one.tensors):
                _do_again(one, made)
        return [made[id(output)] for output in outputs] if all(id(output) in made for output in outputs) else None


def _do_again(one: Operation, made: dict[int, Tensor]) -> None:
    """An operation on what was made again; what it makes joins it."""

    def swap(tensor: Tensor) -> Tensor:
        return made.get(id(tensor), tensor)

    kwargs = {name: swapped(value, swap) for name, value in one.kwargs.items()}
    again = Operation(one.name, one.func, (), {}, one.func(*(swapped(value, swap) for value in one.args), **kwargs))
    made |= {id(out): new for out, new in zip(one.outputs, again.outputs, strict=True)}


def _seen(operation: Operation) -> None:
    """Every operation is kept."""
