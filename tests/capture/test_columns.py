"""Which axis of attention weights holds the keys, whatever was done to them."""

import pytest

from captum_norm.capture.columns import Columns
from captum_norm.operations.steps import Step

SWAP = Step("swap", lambda t: t.transpose(1, 3))


@pytest.mark.parametrize(("keys", "axis"), [(7, 1), (1, None), (0, None)])
def test_the_axis_of_the_keys_is_followed_where_there_are_several(keys, axis):
    """A layer of sparse attention may have no compressed keys yet (GLM-5)."""
    assert Columns((2, 3, 5, keys), 3).then(SWAP).axis == axis


@pytest.mark.parametrize(
    ("before", "who", "after"),
    [
        ("nothing", "the model", "the model"), ("the model", "nothing", "the model"), ("the model", "inputs", "inputs"),
        ("inputs", "the model", "inputs"),
    ],
)  # fmt: skip
def test_what_inputs_tell_stays_told_by_them(before, who, after):
    assert Columns((2, 3, 5, 7), 3, told_by=before).after_telling(who).told_by == after
