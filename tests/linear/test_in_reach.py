"""What models write in mid-forward is held fixed, too: zeros in place, gradients asked for, tokens cut anew."""

import pytest
import torch
from torch import Tensor, nn

from captum_norm import DecompX
from captum_norm.linear import NotFrozenError


class Classifier(nn.Module):
    """Vectors of a picture or text, something done to them, a layer, and one class for the first row."""

    def __init__(self, embed, function=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.function, self.head = embed, function, nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.layer(self.embed(x)))[:, 0])


def halved_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[..., 4:].zero_()
    return y


def asked_for_gradients(x: Tensor) -> Tensor:
    return (x * 1).requires_grad_()


def two_to_each_side(x: Tensor) -> Tensor:
    """What stands in overlapping windows of three rows: as long-document models cut it."""
    padded = nn.functional.pad(x, (0, 0, 1, 1)).transpose(0, 1)  # memory in another order than the axes
    size, stride = (padded.shape[1], padded.shape[0] - 2, 3, padded.shape[2]), padded.stride()
    return padded.as_strided(size, (stride[1], stride[0], stride[0], stride[2])).sum(2)


def axes_in_place(x: Tensor) -> Tensor:
    y = (x * 2).unsqueeze_(0)
    return y.squeeze_(0).transpose_(0, 1).transpose(0, 1)


def scores_of_a_view(x: Tensor) -> Tensor:
    scores = (x @ x.mT).transpose(1, 2)
    scores[:, torch.tensor([1]), torch.tensor([0])] = -9.0
    return scores.softmax(-1) @ x


def scores_of_their_own(x: Tensor) -> Tensor:
    masked = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    masked[1, 0] = True
    return (x @ x.mT).mT.masked_fill(masked, -9.0).softmax(-1) @ x


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (two_to_each_side, lambda x: nn.functional.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).sum(-1)),
        (axes_in_place, lambda x: x * 2),
        (scores_of_a_view, scores_of_their_own),
    ],
    ids=["as_strided", "axes in place", "a view of values"],
)
@pytest.mark.parametrize("ahead", [False, True], ids=["behind attention", "before it"])
def test_what_long_document_models_do_to_memory_is_what_it_stands_for(written, plain, ahead):
    embed, ids = nn.Embedding(9, 8), torch.randint(0, 9, (2, 5))

    def model(function):
        found = Classifier(embed, function).eval()
        if ahead:
            found.embed, found.function = nn.Sequential(embed, Of(function)), lambda x: x
        return found

    scores, delta = DecompX(model(written)).attribute(ids, target=1, return_convergence_delta=True)
    assert torch.allclose(scores, DecompX(model(plain)).attribute(ids, target=1), atol=1e-6)
    assert torch.allclose(scores.sum(1) + delta, model(plain)(ids)[:, 1], atol=1e-5)


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("written", "plain"),
    [(halved_in_place, lambda x: x * torch.tensor([1.0] * 4 + [0.0] * 4)), (asked_for_gradients, lambda x: x)],
)
def test_zeros_in_place_and_gradients_asked_for_are_what_they_stand_for(written, plain):
    embed, ids = nn.Embedding(9, 8), torch.randint(0, 9, (2, 5))
    scores = DecompX(Classifier(embed, written).eval()).attribute(ids, target=1)
    assert torch.allclose(scores, DecompX(Classifier(embed, plain).eval()).attribute(ids, target=1), atol=1e-6)


def test_patches_of_patches_belong_to_the_first_ones_where_both_are_read():
    torch.manual_seed(1)
    fine, coarse = nn.Conv2d(1, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)
    model = Classifier(lambda x: fine(x).flatten(2).mT).eval()

    def both(x):
        return model(x) + model.head(model.layer(coarse(fine(x)).flatten(2).mT)[:, 0])

    picture = torch.randn(1, 1, 8, 8)
    scores, biases = DecompX(both).attribute(picture, target=1, return_convergence_delta=True)
    assert torch.allclose(scores.sum() + biases, both(picture)[:, 1], atol=1e-5)
    assert len(scores.unique()) == 16


def test_a_picture_that_is_cut_in_two_ways_is_refused_by_name():
    small, large = (nn.Sequential(nn.Conv2d(1, 8, k, k), nn.Flatten(2)) for k in (2, 4))
    model = Classifier(lambda x: small(x).mT).eval()

    def both(x):
        return model(x) + model.head(model.layer(large(x).mT)[:, 0])

    with pytest.raises(NotFrozenError, match=r"inputs\[0\] is read in \d+ parts at one place and in \d+ at another"):
        DecompX(both).attribute(torch.randn(1, 1, 8, 8), target=1)


def test_what_is_mixed_in_place_before_any_attention_begins_as_it_was():
    def embed(ids):
        x = table(ids)
        return x.add_(x.flip(1))

    torch.manual_seed(0)
    table, ids = nn.Embedding(9, 8), torch.randint(0, 9, (1, 5))
    written = Classifier(embed).eval()
    plain = Classifier(lambda ids: table(ids) + table(ids).flip(1)).eval()
    assert torch.allclose(DecompX(written).attribute(ids, target=1), DecompX(plain).attribute(ids, target=1), atol=1e-6)
