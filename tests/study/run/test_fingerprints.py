"""A model that cannot be told from another is refused."""


import pytest
import torch

from captum_norm.study.run.fingerprints import model_record
from tests.study import tiny


def test_a_model_without_numbers_is_refused():
    with torch.device("meta"):
        model = type(tiny.classifier())(tiny.classifier().config)
    with pytest.raises(ValueError, match="on the meta device, without numbers"):
        model_record(model)
