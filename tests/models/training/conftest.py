"""The pieces and rows of the small sentences."""

import pytest

from captum_norm.models.training.translation_batches import encode
from captum_norm.models.training.translation_pieces import learn_pieces

from .small import SENTENCES, SMALL


@pytest.fixture(scope="module")
def pieces():
    return learn_pieces([side for pair in SENTENCES for side in pair], SMALL.vocabulary)


@pytest.fixture(scope="module")
def rows(pieces):
    data = encode(pieces, SENTENCES)
    return [data, data[:3], data[3:5]]
