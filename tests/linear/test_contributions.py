"""Shares of tokens that enter a mixing more than once, and of hidden states that no output depends on."""

import pytest
import torch

from captum_norm.linear import Conventions, token_contributions
from captum_norm.linear.contributions import refuse_mixed_examples


def test_a_token_is_reached_if_any_of_the_tensors_made_of_it_is(x):
    first, last = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.0, 1.0, 1.0]).double()

    def explain():
        mixed = torch.einsum("q,bqd->bd", first, x) + torch.einsum("q,bqd->bd", last, 3 * x)
        return mixed[:, 0]

    found = token_contributions(explain, [x], Conventions())
    torch.testing.assert_close(found.tokens[0], (first + 3 * last) * x[..., 0])
    assert found.reached[0].all()


@pytest.mark.parametrize(
    ("unused", "read"),
    [
        (1, lambda x: torch.take_along_dim(x, torch.tensor([[[2], [0]]]), dim=1).sum((1, 2))),
        (2, lambda x: x.cumsum(1)[:, 1].sum(-1)),  # the state itself goes into what is read
    ],
)
def test_a_hidden_state_that_nothing_depends_on_may_be_anything(x, unused, read):
    x[:, unused] = torch.nan
    found = token_contributions(lambda: read(x), [x], Conventions())
    torch.testing.assert_close(found.tokens[0], x.nan_to_num().sum(2))
    assert found.reached[0].tolist() == [[number != unused for number in range(3)]] * 2


def test_a_tensor_without_entries_says_nothing_of_examples():
    x, empty = torch.randn(2, 3, requires_grad=True), torch.zeros(2, 0, requires_grad=True)
    output, of_example = x.sum(1) + empty.sum(1), torch.arange(2)[:, None]
    gradients = torch.autograd.grad(output.sum(), [x, empty], retain_graph=True)
    refuse_mixed_examples(output, [x, empty], gradients, [of_example.expand(2, 3), of_example.expand(2, 0)])
