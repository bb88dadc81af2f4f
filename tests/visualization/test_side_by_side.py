"""Maps beside each other show the numbers they were given, under the names they were given."""


import numpy as np

from captum_norm.visualization import token_map
from tests.visualization.drawn import TOKENS, bars, labels, panels, shown, some_map


def test_weight_and_norm_stand_side_by_side_in_the_same_order():
    weights, norms = some_map(), some_map(seed=1)
    figure = token_map({"weights": weights, "summed_norms": norms}, TOKENS, title="Layer 3")
    left, right = panels(figure)
    assert [left.get_title(loc="left"), right.get_title(loc="left")] == [
        "Attention weight",
        "Norm of the sum over heads",
    ]
    assert np.allclose(shown(left), weights.double().numpy())
    assert np.allclose(shown(right), norms.double().numpy())
    assert labels(left.get_xticklabels()) == labels(right.get_xticklabels()) == TOKENS
    assert labels(left.get_yticklabels()) == TOKENS
    assert left.yaxis_inverted()  # the first token is on top
    assert right.yaxis_inverted()
    assert [bar.get_title(loc="left") for bar in bars(figure)] == ["α", "‖Σαf(x)‖"]
    assert figure.texts[0].get_text() == "Layer 3"
