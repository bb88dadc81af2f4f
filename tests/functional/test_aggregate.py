"""Rollout is the plain product of the layers' maps, whichever way it is computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_norm.functional import mean, rollout
from tests.functional.definition import slow_rollout


def draw(layers: int, batch: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random attention weights, first layer first."""
    return [torch.randn(batch, length, length, dtype=torch.float64).softmax(-1).to(dtype) for _ in range(layers)]


@given(layers=st.integers(1, 4), batch=st.integers(1, 3), length=st.integers(1, 6), residual=st.booleans())
def test_rollout_and_each_of_its_rows_are_the_definition(layers, batch, length, residual):
    maps = draw(layers, batch, length)
    expected = slow_rollout(maps, residual)
    torch.testing.assert_close(rollout(maps, residual), expected)
    for i in range(length):
        torch.testing.assert_close(rollout(maps, residual, position=i), expected[:, i])
        torch.testing.assert_close(rollout(maps, residual, position=i - length), expected[:, i])
    torch.testing.assert_close(
        rollout(maps, residual, position=torch.full((batch, length), 1 / length)), expected.mean(dim=1)
    )


def test_each_example_may_ask_for_its_own_row():
    maps = draw(3, 3, 5)
    expected = slow_rollout(maps, residual=True)
    rows = torch.stack([expected[0, 4], expected[1, 0], expected[2, 2]])
    for position in ([4, 0, 2], (-1, 0, -3), torch.tensor([4, 0, 2])):
        torch.testing.assert_close(rollout(maps, residual=True, position=position), rows)


def test_the_first_layer_is_applied_first():
    """Output 0 of the second layer looks at 1, which in the first layer looked at 2: so output 0 owes all to 2."""
    first = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
    second = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    assert rollout([first, second])[0].tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_half_of_a_row_stays_with_itself_through_a_residual():
    """By hand: (A + I) / 2 with A = [[0, 1], [0.5, 0.5]], twice."""
    A = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    assert rollout([A, A], residual=True)[0].tolist() == [[0.375, 0.625], [0.3125, 0.6875]]


def test_rows_of_rollout_of_weights_add_up_to_one():
    for residual in (False, True):
        torch.testing.assert_close(rollout(draw(6, 2, 7), residual).sum(-1), torch.ones(2, 7, dtype=torch.float64))


def test_maps_of_norms_are_divided_by_their_row_sums_only_with_a_residual():
    maps = [3 * a for a in draw(2, 1, 4)]
    torch.testing.assert_close(rollout(maps), slow_rollout(maps, residual=False))
    torch.testing.assert_close(rollout(maps, residual=True), slow_rollout_of_norms(maps))
    torch.testing.assert_close(rollout(maps, residual=True, position=2), slow_rollout_of_norms(maps)[:, 2])


def slow_rollout_of_norms(maps: list[Tensor]) -> Tensor:
    with_identity = [a + torch.eye(4) for a in maps]
    first, second = (a / a.sum(-1, keepdim=True) for a in with_identity)
    return second @ first


def test_layers_of_different_lengths_are_chained():
    maps = [torch.rand(2, 5, 7, dtype=torch.float64), torch.rand(2, 3, 5, dtype=torch.float64)]
    torch.testing.assert_close(rollout(maps), maps[1] @ maps[0])
    torch.testing.assert_close(rollout(maps, position=-1), (maps[1] @ maps[0])[:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_goes_in_but_not_on(dtype):
    maps = draw(4, 2, 6, dtype)
    expected = slow_rollout(maps, residual=True).float()
    for position, rows in ((None, expected), (3, expected[:, 3])):
        torch.testing.assert_close(rollout(maps, residual=True, position=position), rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(rollout(maps, residual=True, position=position), rows)


def test_what_is_returned_is_not_what_was_given():
    (only,) = draw(1, 1, 3)
    rollout([only]).zero_()
    mean([only]).zero_()
    assert only.any()


def test_the_mean_of_maps_is_their_mean():
    maps = draw(3, 2, 4)
    torch.testing.assert_close(mean(maps), torch.stack(maps).mean(0))
    assert mean([a.bfloat16() for a in maps]).dtype == torch.float32


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {}, "rollout: maps is empty; pass at least one map"),
        ([torch.ones(4, 4)], {}, r"rollout: maps\[0\] should be \(batch, query, key\), got shape \(4, 4\)"),
        ([torch.ones(1, 4, 4), torch.ones(1, 4, 5)], {}, r"the queries of maps\[0\] should be the keys of maps\[1\]"),
        ([torch.ones(1, 4, 4), torch.ones(2, 4, 4)], {}, r"\(1, 4, 4\) and \(2, 4, 4\)"),
        (
            [torch.ones(1, 4, 5)],
            {"residual": True},
            r"residual=True needs square maps, but maps\[0\] is .* \(1, 4, 5\)",
        ),
        ([torch.ones(1, 4, 4)], {"position": 4}, r"position 4 is out of range for 4 query positions \(-4 to 3\)"),
        ([torch.ones(2, 4, 4)], {"position": [0, -5]}, "position -5 is out of range"),
        (
            [torch.ones(2, 4, 4)],
            {"position": [0, 1, 2]},
            r"2 of them \(one per example\).*got torch.int64 of shape \(3,\)",
        ),
        ([torch.ones(1, 4, 4)], {"position": True}, "position should be an integer"),
        ([torch.ones(1, 4, 4)], {"position": torch.ones(1, 3)}, "query is 4 in maps but 3 in position"),
        ([torch.ones(1, 4, 4) / 0], {}, r"rollout: maps\[0\] is not finite at 16 of 16 places, first inf at"),
    ],
)
def test_bad_maps_and_positions_are_refused_by_name(maps, options, message):
    with pytest.raises(ValueError, match=message):
        rollout(maps, **options)


def test_bad_maps_are_refused_by_the_mean():
    with pytest.raises(ValueError, match="mean: maps is empty"):
        mean([])
    with pytest.raises(ValueError, match=r"mean: key is 4 in maps\[0\] but 3 in maps\[1\]"):
        mean([torch.ones(1, 4, 4), torch.ones(1, 4, 3)])
    with pytest.raises(TypeError, match=r"mean: maps\[0\] should be of floating point, got torch.int64"):
        mean([torch.ones(1, 4, 4).long()])
