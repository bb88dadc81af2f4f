"""A row along the whole model is made from the top down, a block of queries at a time, and is the row of whole maps."""

import warnings

import pytest
import torch

from captum_norm import ALTI, AttentionBlockNorm, AttentionNorm, AttentionRollout, AttentionWeights, GlobEnc
from captum_norm.attr import _maps
from captum_norm.capture import record
from captum_norm.token_shares import ShareCounter
from tests.capture.test_rows import WIDTH, Block, Squares, transformers_models

METHODS = {
    "weights": AttentionRollout,
    "norms": lambda model: AttentionNorm(model, aggregate="rollout"),
    "GlobEnc": GlobEnc,
    "ALTI": ALTI,
}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", list(METHODS))
def test_the_row_is_that_of_whole_maps(name, padding, monkeypatch):
    monkeypatch.setattr(_maps, "_BLOCK", 1 << 10)  # several blocks of queries
    torch.manual_seed(0)
    model = transformers_models()["an encoder" if padding == "right" else "a window"]().eval()
    ids, mask = torch.randint(50, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    mask[1, slice(0, 4) if padding == "left" else slice(16, 20)] = 0
    for position in (None, 10, torch.tensor([[5, 12], [6, 13]])):
        found = {}
        for implementation in ("sdpa", "eager"):  # the maps of an eager model are measured as they come
            model.set_attn_implementation(implementation)
            method = METHODS[name](model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # rows that nothing brings nearer
                try:
                    found[implementation] = method.attribute(ids, additional_forward_args=(mask,), position=position)
                except ValueError as error:  # GlobEnc where no norm stands behind
                    found[implementation] = str(error)
        if isinstance(found["eager"], str):
            assert found["sdpa"] == found["eager"]
        else:
            torch.testing.assert_close(found["sdpa"], found["eager"], rtol=1e-5, atol=1e-6)


SUMS = METHODS | {"norm": AttentionNorm, "weight": AttentionWeights, "block norm": AttentionBlockNorm}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", list(SUMS))
@pytest.mark.filterwarnings("ignore:alti")
def test_the_mean_of_rows_is_that_of_whole_maps(name, padding, monkeypatch):
    monkeypatch.setattr(_maps, "_BLOCK", 1 << 10)
    torch.manual_seed(0)
    model = transformers_models()["an encoder" if padding == "right" else "a window"]().eval()
    ids, mask = torch.randint(50, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    mask[1, slice(0, 4) if padding == "left" else slice(16, 20)] = 0
    method = SUMS[name](model)
    if name == "GlobEnc" and padding == "left":
        pytest.skip("no norm stands behind")
    rows = method.attribute(ids, additional_forward_args=(mask,), position="all")
    mean = method.attribute(ids, additional_forward_args=(mask,), position="mean")
    expected = rows.sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)


def test_a_sum_of_rows_makes_no_tensor_of_queries_times_keys(monkeypatch):
    monkeypatch.setattr(_maps, "_BLOCK", 1 << 16)
    monkeypatch.setattr(record, "_BLOCK", 1 << 16)
    model, x = torch.nn.Sequential(Block(), Block()), torch.randn(1, 512, WIDTH)
    for method in (AttentionRollout, AttentionNorm, AttentionWeights):
        with Squares(512) as squares:
            method(model).attribute(x, position="mean")
        assert squares.found == []
    counter = ShareCounter(model)
    with Squares(512) as squares:
        counter.add(x, [["[CLS]", *["other"] * 511]])
    assert squares.found == []


def test_a_row_of_a_rollout_makes_no_tensor_of_queries_times_keys(monkeypatch):
    monkeypatch.setattr(_maps, "_BLOCK", 1 << 16)
    model, x = torch.nn.Sequential(Block(), Block()), torch.randn(1, 512, WIDTH)
    method = AttentionRollout(model)
    with Squares(512) as squares:
        row = method.attribute(x, position=300)
    assert squares.found == []
    torch.testing.assert_close(row.sum(-1), method.attribute(x, position="all")[:, 300])
    checked = AttentionRollout(model)
    checked.attribute(x, position=300)
    first, last = (certificate.rows[0] for _, certificate in checked.report.certificates)
    assert set(range(301)) <= set(first)
    assert len(last) < 20


def test_what_the_model_overwrites_later_is_no_matter():
    class Overwriting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])

        def forward(self, x):
            keys = []
            hook = self.blocks[0].attention.k.register_forward_hook(lambda module, given, out: keys.append(out))
            x = self.blocks[1](self.blocks[0](x))
            hook.remove()
            keys[0].zero_()  # the first call's
            return x

    model, x = Overwriting().eval(), torch.randn(1, 12, WIDTH)
    plain = torch.nn.Sequential(*model.blocks)
    expected = AttentionRollout(plain).attribute(x, position=-1)
    torch.testing.assert_close(AttentionRollout(model).attribute(x, position=-1), expected)
