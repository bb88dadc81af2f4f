"""What a tensor was made of: kept for storages, so that views and writes need no rule."""

import pytest
import torch

from captum_norm import AttentionNorm
from captum_norm.capture.reach import INPUT, Reach
from captum_norm.operations.operation import Operation
from tests.capture.test_aliases import model


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


def test_a_float_computed_of_integers_alone_is_made_of_what_they_were_made_of():
    reach, x, table = Reach(), torch.ones(3), torch.ones(3)
    bits = INPUT | reach.new_bit()
    reach.add(x, bits)
    rounded = seen(reach, "to", x.to(torch.int32), x)
    summed = seen(reach, "sum", rounded.sum(), rounded)
    assert reach.of(rounded) == reach.of(summed) == INPUT
    assert reach.of(seen(reach, "div", summed / 10, summed, 10)) == bits
    chosen = seen(reach, "argmax", x.argmax(), x)
    picked = table.index_select(0, chosen)
    assert reach.of(seen(reach, "index_select", picked, table, 0, chosen)) == INPUT


@pytest.mark.parametrize(
    "function", [lambda x: (x * 1000).long() / 1000, lambda x: (x * 1000).round().to(torch.int16).float() / 1000]
)
def test_a_state_that_was_rounded_is_made_of_the_calls_before_it(function):
    method, x = AttentionNorm(model(function), aggregate="mean"), torch.randn(2, 5, 8)
    method.attribute(x, target=(0, 0))
    assert method.report.unused == ()
