"""One table says how far rounding goes: further in coarser formats, and never beyond what the format explains."""

import pytest
import torch

from captum_norm.operations.precision import Compared, at_least_float32, tolerance

FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("compared", Compared.__args__)
def test_a_coarser_format_allows_more(compared):
    allowed = [tolerance(compared, dtype) for dtype in FORMATS]
    assert allowed == sorted(allowed)
    assert all(bound > torch.finfo(dtype).eps for bound, dtype in zip(allowed, FORMATS, strict=True))
    assert allowed[-1] <= 0.05  # a twentieth is no rounding any more


def test_a_format_that_is_not_in_the_table_counts_as_float32():
    assert tolerance("record", torch.float8_e5m2) == tolerance("record", torch.float32)


def test_checks_are_computed_in_float32_at_least():
    computed = [at_least_float32(dtype) for dtype in FORMATS]
    assert computed == [torch.float64, torch.float32, torch.float32, torch.float32]
