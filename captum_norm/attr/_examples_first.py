"""A model that counts positions first, (position, batch, ...), as torch's own do by default, explained example first.

That it does so is seen in the data flow: the keys of its attention calls run along the first axis of an input, and
examples along the second.  It is then explained as the function of the turned inputs, so that ``target`` and
``position`` are those of an example, and scores are turned back to the shape of the inputs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.nn import Module, ModuleList

from captum_norm.attr._captum import as_tuple, extra_arguments, is_tuple, run_forward
from captum_norm.attr._forward import models_in
from captum_norm.attr._position import Rows
from captum_norm.capture import AttentionRecord, recording
from captum_norm.forward.at_hand import tensors_beside
from captum_norm.forward.outputs import output_tensor

Method = TypeVar("Method", bound=Callable[..., Any])


class ExamplesFirst(Module):
    """A function that counts positions first, as one that counts examples first.

    Args:
        forward_func: the function.
        turned: which of its inputs have positions on axis 0 and examples on axis 1.
        turns_output: whether its output has, too.
    """

    def __init__(self, forward_func: Callable[..., Any], turned: frozenset[int], turns_output: bool) -> None:
        super().__init__()
        self._function, self.turned, self._turns_output = (forward_func,), turned, turns_output
        self.model = ModuleList(models_in(forward_func))
        self.fixed = dict(enumerate(tensors_beside(forward_func, ())))

    def forward(self, *given: Any) -> Any:
        """The function's output for turned inputs."""
        output = self._function[0](*self.turn(given))
        return output_tensor(output).transpose(0, 1) if self._turns_output else output  # type: ignore[union-attr]

    def turn(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Inputs, or their scores, with the first two axes exchanged where they have to be."""
        return tuple(t.transpose(0, 1).contiguous() if index in self.turned else t for index, t in enumerate(given))


def examples_first(method: Method) -> Method:
    """An ``attribute`` that explains a function that counts positions first, too."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def attribute(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, inputs, *args, **kwargs)
        except (AssertionError, IndexError, ValueError):
            asked = signature.bind(self, inputs, *args, **kwargs).arguments
            extras = extra_arguments(asked.get("additional_forward_args"))
            seen = None
            with contextlib.suppress(Exception):  # where the model does not run, the first error says why
                seen = _turned(self.forward_func, inputs, extras)
            if seen is None or isinstance(self.forward_func, ExamplesFirst):
                raise
        again = copy.copy(self)
        again.forward_func = seen
        given = seen.turn(as_tuple(inputs))
        found = method(again, given if is_tuple(inputs) else given[0], *args, **kwargs)
        self.report = again.report
        if Rows(asked.get("position")).several:
            return found
        scores, *delta = found if asked.get("return_convergence_delta") else (found,)
        scores = seen.turn(as_tuple(scores))
        scores = scores if is_tuple(inputs) else scores[0]
        return (scores, *delta) if delta else scores

    return cast("Method", attribute)


def _turned(forward_func: Callable[..., Any], inputs: Any, extras: tuple[Any, ...]) -> ExamplesFirst | None:
    """The function example first; None where it is not seen to count positions first."""
    given = as_tuple(inputs)
    first, others = set[int](), set[int]()

    def note(record: AttentionRecord) -> None:
        if isinstance(record.sequence, int):
            (first if record.positions_first else others).add(record.sequence)

    with torch.no_grad(), recording(note, sources=given, on_inexact=lambda error: None) as recorded:
        output = output_tensor(run_forward(forward_func, given, extras))
        numbers = None if output is None or recorded is None else recorded.numbers(output)
    if not first or first & others or output is None:
        return None
    length, batch = given[min(first)].shape[:2]
    if numbers is None:
        if output.shape[:1] != (batch,) or output.shape[:2] == (length, batch):
            return None
        return ExamplesFirst(forward_func, frozenset(first), turns_output=False)
    of_first = numbers.flatten(1)[:, :1] % batch  # the example that the first entry along axis 0 belongs to
    by_example = torch.equal(numbers.flatten(1) % batch, of_first.expand_as(numbers.flatten(1)))
    return ExamplesFirst(forward_func, frozenset(first), turns_output=not (by_example and len(numbers) == batch))
