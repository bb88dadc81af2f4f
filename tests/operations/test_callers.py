"""Which modules are running is read from the stack."""

import torch
from torch import Tensor, nn

from captum_norm.operations.callers import Caller, running_modules


class Inner(nn.Module):
    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> tuple[Caller, ...]:
        return running_modules()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Caller, ...]:
        return self.inner(x, attention_mask=padding)


def test_running_modules_are_outermost_first_with_their_arguments_by_name():
    model, x, padding = Outer(), torch.ones(1, 2), torch.ones(1, 2)
    callers = model(x, padding)
    assert [caller.module for caller in callers] == [model, model.inner]
    assert callers[0].arguments == {"x": x, "padding": padding}
    assert callers[1].arguments == {"x": x, "attention_mask": padding}
    assert running_modules() == ()
