"""A block that does not reproduce what the model computed is refused, by as little as its dtype allows."""

import contextlib

import pytest
import torch

from captum_norm.capture.blocks.check import BlockCheck, UnreadableBlockError
from captum_norm.capture.certificate import Probe
from captum_norm.functional import FrozenNorm

ROWS = torch.arange(6).view(2, 3)


@pytest.fixture
def state():
    return torch.randn(2, 3, 8)


def frozen(state):
    return FrozenNorm(state, torch.rand(8) + 0.5, torch.randn(8), eps=0.1)


def test_what_reproduces_the_model_has_a_certificate(state):
    check, norm = BlockCheck(torch.float32), frozen(state)
    check.equal("the sum", state, state.clone(), ROWS)
    check.norm("the norm", norm, state, norm.output().float(), ROWS, None)
    assert float(check.certificate()) < check.certificate().tolerance


@pytest.mark.parametrize("off", [1e-3, 1.0])
def test_another_state_or_norm_is_refused_by_name(state, off):
    norm, changed = frozen(state), state + off * torch.randn(2, 3, 8)
    with pytest.raises(UnreadableBlockError, match="the sum, read from the model, does not reproduce its output"):
        BlockCheck(torch.float32).equal("the sum", changed, state, ROWS)
    with pytest.raises(UnreadableBlockError, match="the norm, read from the model, does not reproduce its output"):
        BlockCheck(torch.float32).norm("the norm", norm, changed, norm.output().float(), ROWS, None)


def test_rows_that_the_model_does_not_keep_are_not_compared(state):
    changed = state.clone()
    changed[0, 1] += 1
    BlockCheck(torch.float32).equal("the sum", changed, state, torch.where(ROWS == 1, -1, ROWS))


def test_what_was_added_to_something_large_is_known_to_the_digits_of_the_sum(state):
    rounded, large = state + 1e-3, torch.full_like(state, 1e3)
    BlockCheck(torch.float32).equal("the part", rounded, state, ROWS, beside=large)
    with pytest.raises(UnreadableBlockError):
        BlockCheck(torch.float32).equal("the part", rounded, state, ROWS)


@pytest.mark.parametrize(("off", "is_one"), [(1e-6, True), (1e-3, False)])
def test_a_row_at_right_angles_to_the_random_direction_is_as_large_as_it_is_long(off, is_one):
    x = torch.randn(1, 1, 16)
    r = Probe().direction(16, x)
    row = x - (x @ r)[..., None] / (r @ r) * r
    check, moved = BlockCheck(torch.float32), row + off * row.norm() * r / r.norm()
    with contextlib.nullcontext() if is_one else pytest.raises(UnreadableBlockError, match="relative error"):
        check.equal("the row", moved, row, torch.zeros(1, 1))
