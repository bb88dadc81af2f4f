"""Numbers come back as near as the page says."""

import numpy as np
import pytest
import torch

from captum_norm.viewer.packing import Packed
from tests.viewer.made import arrays_of


def stored(values, bits):
    packed = Packed(bits)
    packed.add("values", values)
    return {"arrays": packed.arrays, "data": packed.as_text()}


@pytest.mark.parametrize(("bits", "part"), [(8, 0.004), (16, 0.00002)])
@pytest.mark.parametrize("signed", [False, True])
def test_numbers_are_right_to_the_part_of_the_largest_that_the_page_tells(bits, part, signed):
    values = np.random.default_rng(0).standard_normal((3, 20, 30)).astype(np.float32) ** 3
    values = values if signed else abs(values)
    read = arrays_of(stored(values, bits), "values").numpy()
    largest = abs(values).max(axis=(1, 2), keepdims=True)
    levels = (2**bits - 1) / (2 if signed else 1)
    allowed = np.sqrt(abs(values) * largest) / levels * 1.02 + largest / (4 * levels**2) + 1e-6 * largest
    assert (abs(read - values) <= allowed).all()
    assert (abs(read - values) <= (2 if signed else 1) * part * largest).all()


def test_each_map_has_a_scale_of_its_own():
    values = np.stack([np.eye(4), 1000 * np.eye(4)]).astype(np.float32)
    packed = stored(values, 8)
    assert packed["arrays"][0]["scales"] == [1.0, 1000.0]
    torch.testing.assert_close(arrays_of(packed, "values"), torch.from_numpy(values))


@pytest.mark.parametrize("values", [np.zeros((1, 2, 3), np.float32), np.zeros((1, 0, 3), np.float32)])
def test_a_map_of_zeros_and_one_without_rows_come_back(values):
    assert (arrays_of(stored(values, 8), "values").numpy() == values).all()


def test_arrays_stand_back_to_back_with_their_own_bits():
    packed = Packed(8)
    packed.add("first", np.full((1, 3), 0.25, np.float32))
    packed.add("second", np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), bits=16)
    packed.add("third", np.ones((1, 2, 2), np.float32))
    told = {"arrays": packed.arrays, "data": packed.as_text()}
    torch.testing.assert_close(arrays_of(told, "second"), torch.linspace(0, 1, 6).reshape(2, 3), atol=2e-5, rtol=0)
    assert arrays_of(told, "third").tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    assert [array["bits"] for array in packed.arrays] == [8, 16, 8]
