"""Every check holds on a GPU, where there is one; on the CPU, small, with ``-m slow``."""

import pytest
import torch

from tests.device.checks import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu(check):
    check("cuda")


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script:DeprecationWarning")  # torch's own, as its compiler is loaded
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_a_cpu(check):
    check("cpu")
