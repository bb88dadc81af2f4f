"""What a tensor was made of: kept for storages, so that views and writes need no rule."""

import torch

from captum_norm.capture.reach import INPUT, Reach
from captum_norm.operations.operation import Operation


def seen(reach, name, out, *args):
    reach.see(Operation(name, getattr(torch, name, None) or getattr(torch.Tensor, name), args, {}, out))
    return out


def test_what_was_made_of_an_input_has_its_bits_and_views_share_them():
    reach, x = Reach(), torch.ones(2, 3)
    bit = reach.new_bit()
    reach.add(x, bit)
    y = seen(reach, "mul", x * 2, x, 2)
    assert reach.of(y) == reach.of(y[0]) == reach.of(y.t()) == bit
    assert reach.of(torch.ones(2, 3)) == 0


def test_what_is_written_into_a_buffer_adds_to_what_it_was_made_of():
    reach, buffer, row = Reach(), torch.zeros(2, 3), torch.ones(3)
    first, second = reach.new_bit(), reach.new_bit()
    reach.add(buffer, first)
    reach.add(row, second)
    buffer[0] = row
    reach.see(Operation("setitem", torch.Tensor.__setitem__, (buffer, 0, row), {}, None))
    assert reach.of(buffer[1]) == first | second


def test_ids_and_masks_pass_on_that_they_depend_on_an_input_and_no_more():
    reach, x = Reach(), torch.ones(3)
    reach.add(x, INPUT | reach.new_bit())
    assert reach.of(seen(reach, "argmax", x.argmax(), x)) == INPUT
    assert reach.of(seen(reach, "isnan", x.isnan(), x)) == INPUT
