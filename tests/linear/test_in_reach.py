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
