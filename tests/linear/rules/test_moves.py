"""Operations that move entries, keep them, or combine entries of one tensor linearly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from captum_norm import FrozenModel
from tests.linear.perceptron import contributions

close = torch.testing.assert_close


ORDER = torch.tensor([3, 0, 2, 1])
LINEAR = {
    "cumsum": lambda x: x.cumsum(1),
    "gather": lambda x: x.gather(-1, ORDER.expand(x.shape)),
    "take": lambda x: x.take(torch.arange(12).flip(0).view(1, 3, 4)),
    "neg and tril": lambda x: (-x).tril(),
    "fliplr and rot90": lambda x: x.fliplr().rot90(2, (1, 2)),
    "pooled": lambda x: F.avg_pool1d(x, 2, 1).repeat(1, 1, 2)[..., :4],
    "another format": lambda x: x.to(torch.float32).type_as(x).nan_to_num().contiguous() * 1.0,
    "padded": lambda x: F.pad(x, (1, 0))[..., :4],
}


@pytest.mark.parametrize("function", LINEAR.values(), ids=LINEAR)
def test_a_linear_function_of_one_tensor_has_no_constant(function, x):
    x = x[:1].float().double()  # as a cast to float32 keeps it
    found = FrozenModel(function, x).check()
    assert max(found.replay, found.sum, found.affinity) < 1e-6
    assert contributions(function, x).bias.abs().max() < 1e-12


@pytest.mark.parametrize("dropout", [F.dropout, F.dropout1d, F.alpha_dropout])
def test_a_dropout_that_is_off_keeps_everything(dropout, x):
    frozen = FrozenModel(lambda x: dropout(x, 0.5, training=False) * 2, x)
    close(frozen.contributions((2, 1)).vectors.sum((1, 2)), 2 * x[:, 2, 1])


def test_a_dropout_in_training_holds_fixed_what_it_dropped():
    torch.manual_seed(0)
    x = torch.ones(1, 2, 64).double()
    dropped: list[Tensor] = []
    found = contributions(lambda x: dropped.append(F.dropout(x, 0.5, training=True)) or dropped[-1], x)  # type: ignore[func-returns-value]
    assert set(found.output.tolist()) <= {0.0, 2.0}
    assert found.error < 1e-14


def test_vectors_looked_up_are_constants_and_a_live_table_is_followed(x):
    ids = torch.tensor([[0, 2, 1], [1, 1, 0]])
    frozen = FrozenModel(lambda x: F.embedding(ids, x[0]) + F.embedding(ids, torch.ones(3, 4).double()), x)
    found = frozen.contributions((1, 2))
    close(found.vectors.sum((1, 2)).sum(), x[0, 2, 2] + x[0, 1, 2])
    close(found.bias.sum(), torch.tensor(2.0).double())
