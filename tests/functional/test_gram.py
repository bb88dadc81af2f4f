"""What is kept of a projection from call to call is never stale, and goes with the projection."""

import gc
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from captum_norm.functional import gram, head_norms, summed_norms, transformed_norms
from tests.functional.definition import slow_summed_norms, slow_transformed_norms
from tests.functional.test_norms import draw

HEADS = 3


def projection_of(linear: nn.Linear) -> Tensor:
    return linear.weight.detach().T.unflatten(0, (HEADS, -1))


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(12, 20, bias=False)


@pytest.fixture
def attention() -> dict[str, Tensor]:
    return {"weights": torch.rand(2, HEADS, 4, 3), "values": torch.randn(2, HEADS, 3, 4)}


def entry(linear: nn.Linear) -> tuple[Tensor, list[Tensor] | None]:
    (only,) = gram._kept[linear.weight.untyped_storage()].values()
    return only


def test_a_projection_met_twice_is_kept_even_through_fresh_views(linear, attention):
    expected = slow_summed_norms(**attention, W_O=projection_of(linear)).float()
    torch.testing.assert_close(summed_norms(**attention, W_O=projection_of(linear)), expected)
    assert entry(linear)[1] is None
    torch.testing.assert_close(summed_norms(**attention, W_O=projection_of(linear)), expected)
    kept = entry(linear)[1]
    assert kept is not None
    torch.testing.assert_close(summed_norms(**attention, W_O=projection_of(linear)), expected)
    assert entry(linear)[1] is kept


def test_a_projection_met_with_many_keys_is_kept_at_once(linear):
    summed_norms(torch.rand(1, HEADS, 3, 50), torch.randn(1, HEADS, 50, 4), projection_of(linear))
    assert entry(linear)[1] is not None


def swap_heads(weight: Tensor) -> None:
    weight.copy_(weight.roll(4, dims=1))


def flip_one_number(weight: Tensor) -> None:
    weight[5, 7] *= -1


def scale(weight: Tensor) -> None:
    weight.mul_(1.001)


@pytest.mark.parametrize("change", [swap_heads, flip_one_number, scale])
@pytest.mark.parametrize("through_data", [False, True], ids=["in place", "through .data"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_projection_changed_in_any_way_is_read_anew(linear, attention, change, through_data, dtype):
    linear.to(dtype)
    for _ in range(3):
        summed_norms(**attention, W_O=projection_of(linear))
    with torch.no_grad():
        change(linear.weight.data if through_data else linear.weight)
    W_O = projection_of(linear)
    for _ in range(3):
        torch.testing.assert_close(summed_norms(**attention, W_O=W_O), slow_summed_norms(**attention, W_O=W_O).float())
        lengths = transformed_norms(attention["values"], W_O)
        torch.testing.assert_close(lengths, slow_transformed_norms(attention["values"], W_O).float())


def test_a_small_change_is_seen_inside_autocast_as_well(linear, attention):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            summed_norms(**attention, W_O=projection_of(linear))
        linear.weight.data.mul_(1.0001)
        W_O = projection_of(linear)
        found = summed_norms(**attention, W_O=W_O)
    torch.testing.assert_close(found, slow_summed_norms(**attention, W_O=W_O).float())


def test_two_projections_in_one_memory_are_kept_apart(attention):
    both = torch.randn(2, 20, 12)
    for _ in range(3):
        for weight in both:
            W_O = weight.T.unflatten(0, (HEADS, -1))
            expected = slow_summed_norms(**attention, W_O=W_O).float()
            torch.testing.assert_close(summed_norms(**attention, W_O=W_O), expected)


def test_what_was_kept_goes_with_the_projection(attention):
    linear = nn.Linear(12, 20, bias=False)
    for _ in range(3):
        summed_norms(**attention, W_O=projection_of(linear))
    gc.collect()  # what earlier tests left behind
    before = len(gram._kept)
    del linear
    gc.collect()
    assert len(gram._kept) == before - 1


def test_large_projections_are_not_kept(monkeypatch, linear, attention):
    monkeypatch.setattr(gram, "_LARGEST_KEPT", 11)
    W_O = projection_of(linear)
    for _ in range(3):
        torch.testing.assert_close(summed_norms(**attention, W_O=W_O), slow_summed_norms(**attention, W_O=W_O).float())
    assert linear.weight.untyped_storage() not in gram._kept
    many = {"weights": torch.rand(1, HEADS, 2, 50), "values": torch.randn(1, HEADS, 50, 4)}
    torch.testing.assert_close(summed_norms(**many, W_O=W_O), slow_summed_norms(**many, W_O=W_O).float())
    assert linear.weight.untyped_storage() not in gram._kept


def test_nan_that_appears_in_a_kept_projection_is_refused(linear, attention):
    for _ in range(3):
        summed_norms(**attention, W_O=projection_of(linear))
    linear.weight.data[3, 4] = float("nan")
    for norms in (summed_norms, head_norms):
        for _ in range(3):
            with pytest.raises(ValueError, match="W_O is not finite"):
                norms(**attention, W_O=projection_of(linear))


def test_what_keys_need_is_prepared_once_for_all_blocks_of_queries(monkeypatch):
    attention = draw(2, 4, 12, 10, 8, 32, dtype=torch.float32)
    expected, made = summed_norms(**attention), []
    module = import_module("captum_norm.functional.norms")
    factor = module.triangular_factor
    monkeypatch.setattr(module, "triangular_factor", lambda products: made.append(1) or factor(products))
    kept = {}
    for rows in (slice(0, 5), slice(5, 10), slice(10, 12)):
        with gram.key_factors(kept):
            found = summed_norms(attention["weights"][:, :, rows], attention["values"], attention["W_O"])
        torch.testing.assert_close(found, expected[:, rows])
    assert made == [1]
    attention["values"].mul_(2)
    with gram.key_factors(kept):
        torch.testing.assert_close(summed_norms(**attention), 2 * expected)
    assert made == [1, 1]
    summed_norms(**attention)
    assert made == [1, 1, 1]
