"""Attention in one operation: the weights are constants, what goes through is the values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from captum_norm import FrozenModel
from captum_norm.linear import NotFrozenError
from tests.linear.perceptron import contributions

close = torch.testing.assert_close


def test_attention_is_the_sum_of_weighted_values():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.randn(1, 4, 8).double()
    parts, constant = FrozenModel(lambda x: attention(x, x, x)[0], x).decompose()
    _, weights = attention(x, x, x, average_attn_weights=False)
    W_V, b_V = attention.in_proj_weight[16:], attention.in_proj_bias[16:]
    W_O = attention.out_proj.weight.T.unflatten(0, (2, 4))
    values = (x @ W_V.T).unflatten(-1, (2, 4))
    close(parts[:, 0], torch.einsum("hqk,khe,hed->kqd", weights[0], values[0], W_O).detach())
    close(constant[0, 0], (b_V @ attention.out_proj.weight.T + attention.out_proj.bias).detach())


def test_dropped_weights_are_refused(x):
    with pytest.raises(NotFrozenError, match=r"scaled_dot_product_attention.*model\.eval\(\)"):
        contributions(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), x)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.eye(3).bool().logical_not()}])
def test_fused_attention_is_the_same_map_forwards_and_backwards(options, x):
    frozen = FrozenModel(lambda x: F.scaled_dot_product_attention(x, x + 1, 2 * x + 1, **options), x)
    assert max(frozen.check().replay, frozen.check().sum) < 1e-13
    parts, constant = frozen.decompose()
    found = frozen.contributions((1, 2))
    close(found.vectors.sum(-1), parts[..., 1, 2].T)
    close(found.bias, constant[:, 1, 2])
