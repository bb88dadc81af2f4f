"""Where the map begins: the residual stream as the first layer reads it, or what a layer is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_norm import FrozenModel
from tests.architectures import ARCHITECTURES

close = torch.testing.assert_close


def test_the_first_layers_input_holds_position_and_type_embeddings():
    make = ARCHITECTURES["BERT"]
    model = make.build()
    with torch.no_grad():
        hidden = model(**make.batch(), output_hidden_states=True).hidden_states
    close(FrozenModel(model, make.batch()).x, hidden[0])
    picture = ARCHITECTURES["ViT"]
    model = picture.build()
    with torch.no_grad():
        hidden = model(**picture.batch(), output_hidden_states=True).hidden_states
    close(FrozenModel(model, picture.batch()).x, hidden[0])  # the class token is one of its vectors


def test_an_encoder_decoder_has_two_sequences_unless_one_is_named():
    make = ARCHITECTURES["BART"]
    model = make.build()
    both = FrozenModel(model, make.batch())
    assert [tuple(x.shape) for x in both.x] == [(2, 6, 16), (2, 4, 16)]
    source = FrozenModel(model, make.batch(), of="input_ids")
    close(source.x, both.x[0])
    explained = (-1, 3)
    close(source.contributions(explained).vectors, both.contributions(explained).vectors[0])
    with pytest.raises(ValueError, match="no input 'hidden'; there are input_ids, decoder_input_ids"):
        FrozenModel(model, make.batch(), of="hidden")


def test_a_layer_that_does_not_run_is_named():
    make = ARCHITECTURES["BERT"]
    with pytest.raises(ValueError, match="layer Linear does not run in this model"):
        FrozenModel(make.build(), make.batch(), layer=nn.Linear(2, 2))
