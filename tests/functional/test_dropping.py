"""The drop norm is how far a call moves when a key really goes: by definition from scores, and by running models."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.linalg import vector_norm

from captum_norm import attention_maps
from captum_norm.functional import drop_norms, nothing_left
from captum_norm.measures import MEASURES

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def slow_drop_norms(scores, values, W_O, gate=1.0, sink=None):
    """One key after another gets the score -inf, and the softmax is taken again; a head without any gives out 0."""

    def output(scores):
        columns = scores if sink is None else torch.cat([scores, sink.expand(*scores.shape[:3], 1)], -1)
        weights = columns.softmax(-1)[..., : scores.shape[-1]].nan_to_num(0)
        return torch.einsum("bhqe,hed->bqd", (weights @ values) * gate, W_O)

    whole, gone = output(scores), []
    for key in range(scores.shape[-1]):
        without = scores.clone()
        without[..., key] = -torch.inf
        gone.append(output(without) - whole)
    return vector_norm(torch.stack(gone, dim=2), dim=-1)


def attention(sharpness=1.0):
    scores = sharpness * torch.randn(2, 3, 5, 5, dtype=torch.float64)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    values, W_O = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
    return scores, values, W_O


@pytest.mark.parametrize("sharpness", [1.0, 20.0])
@pytest.mark.parametrize("gate", [None, 1, 4])
def test_drop_norms_are_their_definition(sharpness, gate):
    scores, values, W_O = attention(sharpness)
    gate = None if gate is None else torch.randn(2, 3, 5, gate, dtype=torch.float64)
    found = drop_norms(scores.softmax(-1), values, W_O, gate)
    torch.testing.assert_close(found, slow_drop_norms(scores, values, W_O, 1.0 if gate is None else gate), **EXACT)
    assert (found.triu(1) == 0).all()  # a key that is not seen changes nothing
    single = drop_norms(scores.softmax(-1).float(), values.float(), W_O.float(), gate)
    torch.testing.assert_close(single, found.to(single.dtype), rtol=1e-4, atol=1e-5)


def test_a_weight_that_rounds_to_one_keeps_the_digits_of_the_others():
    scores, values, W_O = attention()
    scores[:, :, 3, 1] = 60.0  # the others are 1e-26 of it
    weights = scores.softmax(-1)
    assert (weights[:, :, 3, 1] == 1).all()
    torch.testing.assert_close(drop_norms(weights, values, W_O), slow_drop_norms(scores, values, W_O), **EXACT)


def test_a_sink_stays_in_the_denominator():
    scores, values, W_O = attention()
    sink = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    columns = torch.cat([scores, sink.expand(2, 3, 5, 1)], -1)
    weights = columns.softmax(-1)[..., :5]
    found = drop_norms(weights, values, W_O)
    torch.testing.assert_close(found, slow_drop_norms(scores, values, W_O, sink=sink), **EXACT)
    assert not nothing_left(weights).any()


def test_where_nothing_is_left_the_head_gives_out_zero_and_is_flagged():
    scores, values, W_O = attention()
    weights = scores.softmax(-1)
    flagged = nothing_left(weights)
    assert flagged[:, :, 0, 0].all()
    assert flagged.sum() == 2 * 3
    lost = torch.einsum("bhe,hed->bd", values[:, :, 0], W_O)
    torch.testing.assert_close(drop_norms(weights, values, W_O)[:, 0, 0], vector_norm(lost, dim=-1), **EXACT)


def test_what_is_no_softmax_is_refused():
    weights, values, W_O = torch.full((1, 1, 2, 2), 0.6), torch.ones(1, 1, 2, 3), torch.ones(1, 3, 4)
    with pytest.raises(ValueError, match=r"drop_norms: the weights at .* are not those of a softmax: their sum is 1.2"):
        drop_norms(weights, values, W_O)
    with pytest.raises(ValueError, match=r"the smallest -0.2"):
        drop_norms(weights - 0.8, values, W_O)


def test_nothing_to_drop_gives_nothing():
    assert drop_norms(torch.ones(1, 2, 0, 3), torch.ones(1, 2, 3, 4), torch.ones(2, 4, 5)).shape == (1, 0, 3)
    assert drop_norms(torch.ones(1, 2, 3, 0), torch.ones(1, 2, 0, 4), torch.ones(2, 4, 5)).shape == (1, 3, 0)


@pytest.mark.parametrize("causal", [False, True])
def test_maps_hold_what_a_model_run_without_the_key_gives_out(causal):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    mask = torch.ones(4, 4).triu(1).bool() if causal else torch.zeros(4, 4).bool()

    def model(x, mask=mask):
        return layer(x, x, x, attn_mask=mask, need_weights=False)[0]

    maps = attention_maps(model, x, ("drop_norms", "nothing_left"))
    with torch.no_grad():
        for key in range(4):
            without = mask.clone()
            without[:, key] = True
            kept = ~without.all(-1)  # torch makes NaN of a row that sees nothing
            change = vector_norm(model(x, without) - model(x), dim=-1)
            torch.testing.assert_close(maps.drop_norms[0][:, kept, key], change[:, kept], **EXACT)
    assert (maps.nothing_left[0] == 1).nonzero().tolist() == ([[0, 0, 0], [1, 0, 0]] if causal else [])


def test_weights_changed_behind_their_softmax_have_no_drop_norms():
    x = torch.randn(1, 3, 4)
    W_O = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"no chosen call has drop_norms: .* do not add up to 1 \(sums 0.5"):
        attention_maps(lambda x: W_O(0.5 * (x @ x.mT).softmax(-1) @ x), x, "drop_norms")
    assert {MEASURES[name].axes for name in ("drop_norms", "nothing_left")} == {"batch query key"}


def test_drop_norms_are_those_of_a_softmax_taken_anew(oracles):
    """Key really removed; one head's other keys have underflowed, which weights cannot tell from no keys."""
    known = {name: torch.from_numpy(array) for name, array in np.load(oracles / "dropnorm.npz").items()}
    weights, values, W_O = known["weights"], known["values"], known["W_O"]
    found, expected = drop_norms(weights, values, W_O), known["drop_norm"]
    told = ~known["underflown"].any(1)
    torch.testing.assert_close(found[told], expected[told], **EXACT)
    assert torch.equal(nothing_left(weights), known["nothing_left"] | known["underflown"])
