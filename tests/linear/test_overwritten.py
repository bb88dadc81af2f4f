"""What a model overwrites is followed or refused: memory that several tensors read, before attention and after it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from captum_norm import DecompX
from captum_norm.linear import NotFrozenError
from captum_norm.linear.backward import BackwardRun

close = torch.testing.assert_close
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])


class Model(nn.Module):
    """Attention reads the tokens h and gives a; something is done to both; attention reads what comes of it."""

    def __init__(self, between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between, self.embed = between, nn.Embedding(9, 8)
        self.values, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) * 1.0
        a = (h @ h.mT).softmax(-1) @ h
        x = self.between(h, a)
        return self.head(((x @ x.mT).softmax(-1) @ self.values(x) + x)[:, 0])


def model(between) -> nn.Module:
    return Model(between).eval().requires_grad_(False)


def _written(write, give=lambda h, a, view: h):
    """Of a part that takes a view and a detached tensor of h, writes, and gives out one of them."""

    def between(h: Tensor, a: Tensor) -> Tensor:
        view = h.view(h.shape)
        write(h, a)
        return give(h, a, view)

    return between


def _of_the_view(h: Tensor, a: Tensor, view: Tensor) -> Tensor:
    return view


def _of_attention(h: Tensor, a: Tensor, view: Tensor) -> Tensor:
    return a


def _after_a_sum(h: Tensor, a: Tensor) -> Tensor:
    added = h + a
    h.mul_(2)
    return added + h


def _filled(h: Tensor, a: Tensor) -> Tensor:
    h.fill_(1)
    return h.mT.mT + a


def _buffer(h: Tensor, a: Tensor) -> Tensor:
    buffer = torch.empty_like(a)
    buffer[:, :3] = a[:, 2:]
    buffer[:, 3:] = h[:, :2]
    return buffer


def _squashed_alone(h: Tensor, a: Tensor) -> Tensor:
    gate = a * 1
    gate.sigmoid_()
    return gate * h


def _tokens_squashed(h: Tensor, a: Tensor) -> Tensor:
    gate = h * 1
    gate.view(-1).sigmoid_()
    return gate * a


FOLLOWED = {
    "tokens in place": (_written(lambda h, a: h.mul_(2)), lambda h, a: h * 2),
    "tokens through a view": (_written(lambda h, a: h.view(-1).mul_(2)), lambda h, a: h * 2),
    "tokens in detached memory": (_written(lambda h, a: h.detach().mul_(2)), lambda h, a: h * 2),
    "tokens by their data": (_written(lambda h, a: setattr(h, "data", h * 2)), lambda h, a: h * 2),
    "tokens by out=": (_written(lambda h, a: torch.mul(h, 2, out=h)), lambda h, a: h * 2),
    "tokens after a sum": (_after_a_sum, lambda h, a: h + a + h * 2),
    "tokens filled": (_filled, lambda h, a: 1 + a),
    "tokens read by a view": (_written(lambda h, a: h.mul_(2), _of_the_view), lambda h, a: h * 2),
    "a residual in place": (_written(lambda h, a: h.add_(a)), lambda h, a: h + a),
    "mixed, through a view": (_written(lambda h, a: a.view(-1).mul_(2), _of_attention), lambda h, a: a * 2),
    "mixed, in detached memory": (_written(lambda h, a: a.detach().mul_(2), _of_attention), lambda h, a: a * 2),
    "rows of a buffer": (_buffer, lambda h, a: torch.cat([a[:, 2:], h[:, :2]], 1)),
    "what is held fixed": (_squashed_alone, lambda h, a: a.sigmoid() * h),
    "tokens that are held fixed": (_tokens_squashed, lambda h, a: h.sigmoid() * a),
}


@pytest.mark.parametrize("bias", ["token", "absdot"])
@pytest.mark.parametrize("way", FOLLOWED)
def test_what_is_overwritten_has_the_shares_of_a_new_tensor(way, bias):
    written, plain = map(model, FOLLOWED[way])
    if bias == "absdot" and way in ("mixed, through a view", "mixed, in detached memory", "tokens filled"):
        # Parts of a view's base are not followed, and products are put off until it is overwritten.
        with pytest.raises(NotFrozenError, match=r"through a view|a view of|overwritten afterwards"):
            DecompX(written, bias=bias).attribute(IDS, target=1)
        return
    scores, delta = DecompX(written, bias=bias).attribute(IDS, target=1, return_convergence_delta=True)
    close(scores, DecompX(plain, bias=bias).attribute(IDS, target=1))
    close(scores.sum(1) + delta, written(IDS)[:, 1])


def _added_to_what_is_detached(h: Tensor, a: Tensor) -> Tensor:
    detached = h.detach()
    h.add_(a)
    return detached


def _buffer_that_is_detached(h: Tensor, a: Tensor) -> Tensor:
    buffer = torch.empty_like(a)
    detached = buffer.detach()
    buffer.copy_(a)
    return detached


def _tokens_in_a_buffer_that_is_detached(h: Tensor, a: Tensor) -> Tensor:
    buffer = torch.zeros_like(h)
    detached = buffer.detach()
    buffer.add_(h)
    return detached


def _rows_of_a_buffer(h: Tensor, a: Tensor) -> Tensor:
    buffer = torch.empty_like(h)
    buffer[:, :2].copy_(h[:, :2])
    buffer[:, 2:].copy_(h[:, 2:])
    return buffer


def _read_before(write):
    def between(h: Tensor, a: Tensor) -> Tensor:
        product = a @ h.mT
        write(h, a)
        return product @ a

    return between


def _kept_by_its_product(h: Tensor, a: Tensor) -> Tensor:
    h.mul_(a)
    return h


def _gate_through_a_view(h: Tensor, a: Tensor) -> Tensor:
    gate = a * 1
    gate.view(-1).sigmoid_()
    return gate * h


def _root(h: Tensor, a: Tensor) -> Tensor:
    bent = torch.tanh(a * 3) * a
    a.mul_(2)
    return bent * a


REFUSED = {
    "mixed into tokens that are read detached": _added_to_what_is_detached,
    "mixed into a view": _written(lambda h, a: h.view(h.shape).add_(a)),
    "mixed into a buffer that is read detached": _buffer_that_is_detached,
    "tokens in a buffer that is read detached": _tokens_in_a_buffer_that_is_detached,
    "rows of a buffer one by one": _rows_of_a_buffer,
    "a row of zeros": _written(lambda h, a: h[:, 0].zero_()),
    "tokens that a product read before": _read_before(lambda h, a: h.mul_(2)),
    "what a product read before": _read_before(lambda h, a: a.mul_(2)),
    "a factor of a product": _kept_by_its_product,
    "a gate through a view": _gate_through_a_view,
    "what something bent was made of": _root,
    "tokens filled and read by a view": _written(lambda h, a: h.fill_(1), lambda h, a, view: view + a),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_is_overwritten_in_a_way_that_is_not_followed_is_refused(way):
    with pytest.raises(NotFrozenError, match=r"[Ww]rite into a new|write what"):
        DecompX(model(REFUSED[way])).attribute(IDS, target=1)


def test_shares_of_another_output_than_the_models_own_are_refused(monkeypatch):
    """A frozen run that does otherwise than the model adds up to its own output all the same."""

    def nothing_is_written(self, into: Tensor, out: Tensor) -> None:
        with torch.enable_grad():
            into.mul_(0.5)
        self._in_graph[into] = True

    between = model(_written(lambda h, a: a.mul_(2), _of_attention))
    close(DecompX(between).attribute(IDS, target=1), DecompX(model(lambda h, a: a * 2)).attribute(IDS, target=1))
    monkeypatch.setattr(BackwardRun, "overwrite", nothing_is_written)
    with pytest.raises(NotFrozenError, match=r"DecompX: the output is -?[\d.]+, and -?[\d.]+ while the model runs"):
        DecompX(between).attribute(IDS, target=1)


def test_a_model_that_overwrites_nothing_runs_once():
    runs = []
    plain = model(lambda h, a: h + a)
    plain.register_forward_hook(lambda *_: runs.append(1))
    DecompX(plain).attribute(IDS, target=1)
    assert len(runs) == 1
    twice = copy.copy(plain)
    twice.between = _written(lambda h, a: h.add_(a))
    DecompX(twice).attribute(IDS, target=1)
    assert len(runs) == 3
