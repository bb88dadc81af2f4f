"""Which modules are running is read from the stack, and which tokens are real from the masks they were given."""

import pytest
import torch
from torch import Tensor, nn

from captum_norm.operations.callers import Caller, received_mask, running_modules


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


MASK = torch.tensor([[1, 1, 0]])
OTHER = torch.tensor([[0, 1, 1, 1]])


@pytest.mark.parametrize(
    ("arguments", "length", "memory", "expected"),
    [
        ({"attention_mask": MASK}, 3, False, [True, True, False]),
        ({"attention_mask": OTHER}, 2, False, [True, True]),  # a cache's mask is longer
        ({"key_padding_mask": MASK.bool()}, 3, False, [False, False, True]),
        ({"key_padding_mask": MASK.float().log()}, 3, False, [True, True, False]),  # -inf at padding
        ({"encoder_attention_mask": OTHER, "encoder_hidden_states": MASK}, 4, True, [False, True, True, True]),
        ({"attention_mask": MASK, "decoder_input_ids": MASK}, 3, True, [True, True, False]),
        ({"attention_mask": MASK[0]}, 3, False, None),
        ({}, 3, False, None),
    ],
)
def test_the_mask_that_a_module_received_says_which_tokens_are_real(arguments, length, memory, expected):
    real = received_mask((Caller(nn.Identity(), arguments),), 1, length, memory)
    assert (None if real is None else real[0].tolist()) == expected
