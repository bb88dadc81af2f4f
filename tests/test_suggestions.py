"""The nearest name is suggested, as it is written; a name that is near to none gets no suggestion."""

import pytest

from captum_norm.suggestions import did_you_mean


@pytest.mark.parametrize(
    ("name", "said"),
    [("attentionorm", " Did you mean AttentionNorm?"), ("SALIENCE", " Did you mean Saliency?"), ("zzz", ""), ("", "")],
)
def test_the_nearest_name_is_suggested_in_any_case(name, said):
    assert did_you_mean(name, ["AttentionNorm", "Saliency", "Lime"]) == said
