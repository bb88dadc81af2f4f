"""A weighted sum of rows is read by its weights, whatever is done to the product on the way."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_norm import AttentionNorm, attention_maps
from tests.capture.test_ledger import READ, Attention

LENGTH = 5
F_ROWS = torch.tensor([0.5, 0.1, 0.2, 0.15, 0.05])
G_ROWS = torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2])
f, g = F_ROWS[None, :, None], G_ROWS[None, :, None]
V = torch.linspace(-1, 1, 8)
OWN = torch.eye(LENGTH, 8).roll(1, 1)  # the row that each feature is read from; of some, none
ONES = torch.ones(LENGTH)


class Pooled(nn.Module):
    """Attention, and a read-out of its rows."""

    def __init__(self, pool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.pool, self.head = Attention(READ["matmul"]), pool, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.attention(x)))


def _through(write):
    """The sum of the rows of a copy, which is written in some way."""

    def pool(h: Tensor) -> Tensor:
        copied = h.clone()
        write(copied)
        return copied.sum(1)

    return pool


def _read_by_a_view(h: Tensor) -> Tensor:
    copied = h.clone()
    view = copied.view(h.shape)
    copied.mul_(f)
    return view.sum(1)


def _overwritten(h: Tensor) -> Tensor:
    weighed = h * f
    weighed[:] = h
    return weighed.sum(1)


WEIGHED = {
    "constants": (lambda h: (h * f).sum(1), F_ROWS),
    "a mean": (lambda h: (h * f).mean(1), F_ROWS),
    "two after another": (lambda h: (h * f * g).sum(1), F_ROWS * G_ROWS),
    "two at once": (lambda h: (h * (f * g)).sum(1), F_ROWS * G_ROWS),
    "two in place": (lambda h: (h * f).mul_(g).sum(1), F_ROWS * G_ROWS),
    "a quotient": (lambda h: (h / (1 / f)).sum(1), F_ROWS),
    "a number": (lambda h: (h * f * 2).sum(1), F_ROWS),
    "another format": (lambda h: (h * f).double().sum(1).float(), F_ROWS),
    "a copy": (lambda h: (h * f).clone().sum(1), F_ROWS),
    "other axes": (lambda h: (h * f).transpose(1, 2).sum(2), F_ROWS),
    "other axes before": (lambda h: (h.transpose(1, 2) * F_ROWS).sum(2), F_ROWS),
    "a bias": (lambda h: (h * f + V).sum(1), F_ROWS),
    "a linear map": (lambda h: F.linear(h * f, torch.eye(8), V).sum(1), F_ROWS),
    "a product that is added": (lambda h: torch.addcmul(V, h, f).sum(1), F_ROWS),
    "a rectifier": (lambda h: torch.relu(h * f).sum(1), F_ROWS),
    "a mask": (lambda h: (h * f * (f > 0.12)).sum(1), F_ROWS * (F_ROWS > 0.12)),
    "a mask for each feature": (lambda h: (h * f * (f > 0.12).expand_as(h).float()).sum(1), F_ROWS * (F_ROWS > 0.12)),
    "some rows, by a mask for each feature": (
        lambda h: (h * f).masked_fill((f < 0.12).expand(h.shape).clone(), 0).sum(1), F_ROWS * (F_ROWS > 0.12),
    ),
    "nothing filled up": (lambda h: (h * f).masked_fill(h.isnan(), 0).sum(1), F_ROWS),
    "features left out of all rows": (lambda h: h.masked_fill(V > 0, 0).sum(1), ONES),
    "one of two": (lambda h: torch.where(f > 0.12, h, h * 0.5).sum(1), torch.where(F_ROWS > 0.12, 1.0, 0.5)),
    "some rows": (lambda h: torch.cat([h[:, :2] * 2, h[:, 2:]], 1).sum(1), torch.tensor([2.0, 2, 1, 1, 1])),
    "row by row": (lambda h: torch.stack([h[:, n] * F_ROWS[n] for n in range(LENGTH)], 1).sum(1), F_ROWS),
    "in detached memory": (_through(lambda h: h.detach().mul_(f)), F_ROWS),
    "read by a view": (_read_by_a_view, F_ROWS),
    "overwritten": (_overwritten, ONES),
    "taken back": (lambda h: (h * f).div_(f).sum(1), ONES),
    "normed afterwards": (lambda h: F.layer_norm(h * f, (8,)).sum(1), ONES),
    "a norm by hand": (lambda h: (h * torch.rsqrt(h.square().mean(-1, keepdim=True))).sum(1), ONES),
    "a norm by hand afterwards": (lambda h: (h * f / (h * f).norm(dim=-1, keepdim=True)).sum(1), ONES),
    "a residual": (lambda h: (h + torch.tanh(h) * f).sum(1), ONES),
    "gates": (lambda h: (h * torch.sigmoid(F.linear(h, V[None]))).sum(1), lambda h: torch.sigmoid(h @ V)),
    "lengths": (lambda h: (h * h.norm(dim=-1, keepdim=True)).sum(1), lambda h: h.norm(dim=-1)),
}


@pytest.mark.parametrize("way", WEIGHED)
def test_rows_are_read_by_their_weights(way):
    pool, weights = WEIGHED[way]
    model, x = Pooled(pool).eval().requires_grad_(False), torch.randn(2, LENGTH, 8)
    norms = attention_maps(model, x).summed_norms[0]
    weights = (weights(model.attention(x)) if callable(weights) else weights).expand(2, LENGTH)
    expected = torch.einsum("bqk,bq->bk", norms, weights / weights.sum(1, keepdim=True))
    torch.testing.assert_close(AttentionNorm(model).attribute(x, target=0).sum(-1), expected)


UNKNOWN = {
    "an activation": lambda h: F.gelu(h * f).sum(1),
    "a product that is added in place": lambda h: torch.zeros_like(h).addcmul_(h, f.expand_as(h)).sum(1),
    "two weights in a sum": lambda h: (h * f + h * g).sum(1),
    "another number in some rows": lambda h: (h * f).masked_fill(f > 0.12, 3.0).sum(1),
    "a difference": lambda h: (h * (f - 0.1)).sum(1),
    "features apart": lambda h: (h * (f * V.exp())).sum(1),
    "a quotient by rows": lambda h: (V / (h * f)).sum(1),
    "a row through a view": _through(lambda h: h[:, 0].mul_(3)),
    "flat": _through(lambda h: h.view(-1).mul_(f.expand_as(h).reshape(-1))),
    "weights of a batch": lambda h: F.batch_norm(h.mT * F_ROWS, V, V.square() + 1).sum(2),
    "a row for each feature": lambda h: (h * OWN).sum(1),
    "a row for each feature, on other axes": lambda h: (h.mT * OWN.T).sum(2),
    "a row for each feature, behind weights": lambda h: (h * f * OWN).sum(1),
    "a row for each feature, of two": lambda h: torch.where(OWN.bool(), h, torch.zeros(())).sum(1),
    "a row for each feature, filled up": lambda h: h.masked_fill(~OWN.bool(), 0).sum(1),
    "a row for each feature, filled up behind weights": lambda h: (h * f).masked_fill(~OWN.bool(), 0).sum(1),
    "a row for each feature, filled up behind a number": lambda h: (h * 2).masked_fill(~OWN.bool(), 0).sum(1),
    "a row for each feature, written over": _through(lambda h: h.__setitem__((slice(None), ~OWN.bool()), 0)),
    "the largest of each feature": lambda h: h.masked_fill(h < h.amax(1, keepdim=True), 0).sum(1),
    "features of two rows": lambda h: (h[:, :2] * torch.stack([V > 0, V <= 0])).sum(1),
}


@pytest.mark.parametrize("way", UNKNOWN)
def test_rows_of_unknown_weights_are_asked_for(way):
    model = Pooled(UNKNOWN[way]).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="which rows the output was read from is not known"):
        AttentionNorm(model).attribute(torch.randn(2, LENGTH, 8), target=0)
