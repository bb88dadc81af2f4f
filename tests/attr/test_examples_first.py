"""A model that counts positions first is explained as the same model example first."""

import pytest
import torch
from torch import nn

import captum_norm
from captum_norm import AttentionNorm, AttentionRelevance, DecompX, InexactCaptureError

METHODS = (
    "AttentionNorm AttentionRollout AttentionBlockNorm GlobEnc ALTI ValueZeroing AttentionRelevance DecompX".split()
)
LENGTH, BATCH, MODEL = 5, 2, 8


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(MODEL, 2, 16), 2, enable_nested_tensor=False).eval()


def turned(model):
    return lambda x: model(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("name", METHODS)
def test_all_eight_methods_explain_torchs_default_layout(name):
    model, x, method = encoder(), torch.randn(LENGTH, BATCH, MODEL), getattr(captum_norm, name)
    scores = method(model).attribute(x, target=(LENGTH - 1, 3))  # more rows than there are examples
    expected = method(turned(model)).attribute(x.transpose(0, 1).contiguous(), target=(LENGTH - 1, 3))
    assert torch.allclose(scores, expected.transpose(0, 1), atol=1e-6)


@pytest.mark.parametrize("batch", [1, LENGTH])
def test_which_axis_holds_positions_is_seen_whatever_their_number(batch):
    model, x = encoder(), torch.randn(LENGTH, batch, MODEL)
    expected = AttentionNorm(turned(model)).attribute(x.transpose(0, 1).contiguous(), position=2)
    assert torch.allclose(AttentionNorm(model).attribute(x, position=2), expected.transpose(0, 1))


def test_what_is_pooled_over_positions_is_explained_as_their_mean():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.encoder, self.head = nn.Embedding(9, MODEL), encoder(), nn.Linear(MODEL, 3)

        def forward(self, ids):
            return self.head(self.encoder(self.table(ids)).mean(0))

    model, ids = Classifier().eval(), torch.randint(0, 9, (LENGTH, BATCH))
    for method in (AttentionNorm, AttentionRelevance):
        expected = method(lambda x: model(x.T)).attribute(ids.T.contiguous(), target=1, position="mean")
        assert torch.allclose(method(model).attribute(ids, target=1), expected.T, atol=1e-6)
    scores, delta = DecompX(model).attribute(ids, target=1, return_convergence_delta=True)
    assert torch.allclose(scores.sum(0) + delta, model(ids)[:, 1], atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_both_inputs_of_an_encoder_decoder_are_turned():
    torch.manual_seed(0)
    model = nn.Transformer(MODEL, 2, 1, 1, 16).eval()
    given = torch.randn(6, BATCH, MODEL), torch.randn(4, BATCH, MODEL)
    found = AttentionNorm(model).attribute(given)
    first = tuple(x.transpose(0, 1).contiguous() for x in given)
    expected = AttentionNorm(
        lambda source, prefix: model(source.transpose(0, 1), prefix.transpose(0, 1)).transpose(0, 1)
    ).attribute(first)
    for scores, other in zip(found, expected, strict=True):
        assert torch.allclose(scores, other.transpose(0, 1))


def test_errors_of_other_models_are_their_own():
    model = nn.TransformerEncoderLayer(MODEL, 2, 16, batch_first=True).eval()
    with pytest.raises(ValueError, match="position"):
        AttentionNorm(model).attribute(torch.randn(BATCH, LENGTH, MODEL), position=LENGTH)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_whose_layers_attend_along_both_axes_is_refused(name):
    """Positions, then examples: no axis holds the positions of both."""
    along, across = encoder(), encoder()
    model = nn.Sequential(along, Turned(across))
    with pytest.raises((ValueError, InexactCaptureError), match=r"positions first|takes its positions first"):
        getattr(captum_norm, name)(model).attribute(torch.randn(LENGTH, BATCH, MODEL), target=(0, 3))


class Turned(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(0, 1)).transpose(0, 1)
