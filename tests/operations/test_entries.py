"""What holds of all entries is what torch says of them, whatever their layout."""

import pytest
import torch

from captum_norm.operations.entries import all_true, any_true, varies_along, without_repeats

TENSORS = {
    "all": torch.ones(2, 3, 4).bool(),
    "none": torch.zeros(2, 3, 4).bool(),
    "some": torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.5,
    "other axes": (torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1)) > 0.2).transpose(0, 2),
    "repeated": torch.tensor([True, False, True, True]).expand(2, 3, 4),
    "every other": (torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(2)) > 0.2)[..., ::2],
    "empty": torch.ones(2, 0, 4).bool(),
    "one": torch.tensor(True).view(1, 1, 1),
}


@pytest.mark.parametrize("which", TENSORS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_all_and_any_are_those_of_torch(which, axis):
    mask = TENSORS[which]
    expected = (mask.all(), mask.any()) if axis is None else (mask.all(axis), mask.any(axis))
    for found, torchs in zip((all_true(mask, axis), any_true(mask, axis)), expected, strict=True):
        assert found.dtype == torch.bool
        assert torch.equal(found, torchs)


@pytest.mark.parametrize("which", TENSORS)
def test_a_tensor_without_repeats_broadcasts_back_to_itself(which):
    mask = TENSORS[which]
    assert torch.equal(without_repeats(mask).expand(mask.shape), mask)


def test_repeats_are_left_out_and_nothing_else():
    assert without_repeats(torch.arange(6).view(2, 1, 3).expand(2, 5, 3)).shape == (2, 1, 3)
    assert without_repeats(torch.zeros(2, 5, 3)).shape == (2, 5, 3)


def test_entries_vary_along_an_axis_where_two_of_them_differ():
    columns = torch.arange(3).expand(4, 3)
    assert [varies_along(columns, axes) for axes in ((0,), (1,), (0, 1))] == [False, True, True]
    assert not varies_along(torch.zeros(0, 3), (0, 1))
