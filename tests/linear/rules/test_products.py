"""Products: with a constant they are linear; of two live tensors, half goes to each or all to one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from captum_norm import FrozenModel
from tests.linear.perceptron import contributions

close = torch.testing.assert_close


class Gated(nn.Module):
    """act(g x) * (u x), as in a gated feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.g, self.u = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.g(x)) * self.u(x)


def test_a_gated_activation_goes_half_to_each_factor_or_all_past_the_gate(x):
    model = Gated()
    g, u = model.g(x)[:, -1, -1].detach(), model.u(x)[:, -1, -1].detach()
    last = x[:, -1]
    through_u = F.silu(g)[:, None] * model.u.weight[-1].detach() * last
    through_g = (F.silu(g) / g * u)[:, None] * model.g.weight[-1].detach() * last
    close(contributions(model, x, product="gate").vectors[:, -1], through_u)
    close(contributions(model, x, product="half").vectors[:, -1], 0.5 * (through_u + through_g))
    assert FrozenModel(model, x, product="gate").check().worst < 1e-14


W = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).double()
PRODUCTS = {
    "addmm": lambda x: torch.addmm(torch.ones(4).double(), x.flatten(0, 1), W, beta=0.5, alpha=2).view(x.shape),
    "addmm of two live factors": lambda x: torch.addmm(x[0], x[0] @ x[0].mT, x[0] + 1)[None].expand(x.shape),
    "baddbmm": lambda x: torch.baddbmm(torch.ones(2, 3, 4).double(), x, W.expand(2, 4, 4)),
    "weight on the left": lambda x: torch.ones(3, 3).double() @ x,
    "mv": lambda x: torch.mv(x[0], W[0])[None, :, None].expand(x.shape),
    "outer": lambda x: torch.outer(x[0, 0], W[0])[None, :3].expand(x.shape),
    "a square of itself": lambda x: torch.einsum("bpd,bpe->bpe", x, x),
    "linear with a live weight": lambda x: F.linear(x[0], x[1])[None, :, :1].expand(x.shape),
    "transposed convolution": nn.ConvTranspose1d(3, 3, 3, padding=1).double(),
    "a quotient": lambda x: x / (x.detach().abs() + 1) + 3 * x / 2,
}


@pytest.mark.parametrize("function", PRODUCTS.values(), ids=PRODUCTS)
def test_every_product_is_a_linear_map_and_a_constant(function, x):
    frozen = FrozenModel(function, x)
    found = frozen.check()
    assert max(found.replay, found.sum, found.affinity) < 1e-13
    assert frozen.contributions((0, 1)).error < 1e-14
