"""The table of measures is whole: every row computes what it says, and every name in it is a name elsewhere."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import captum_norm
from captum_norm.alignment import METHODS as ALIGNER_METHODS
from captum_norm.capture import recording
from captum_norm.functional import block_quantities
from captum_norm.measures import MEASURES, compute_measures, mean_weights, need_blocks
from captum_norm.token_shares import MEASURES as COUNTED
from captum_norm.visualization.style import ROLE_COLOURS

SIZES = {"batch": 2, "head": 2, "query": 3, "key": 3}


def records_of(model, *inputs, blocks=True):
    with torch.no_grad(), recording(blocks=blocks) as records:
        model(*inputs)
    return records


@pytest.fixture(scope="module")
def record():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True).eval()
    return records_of(layer, torch.randn(2, 3, 8))[0]


@pytest.mark.parametrize("name", MEASURES)
def test_every_result_has_the_axes_of_its_row(record, name):
    measure = MEASURES[name]
    assert not measure.lacks(record)
    assert measure.compute(record).shape == tuple(SIZES[axis] for axis in measure.axes.split())
    assert measure.has_axis("key") == ("key" in measure.axes)


def test_measures_computed_together_are_what_each_is_alone(record):
    together = compute_measures(record, list(MEASURES))
    assert list(together) == list(MEASURES)
    for name, result in together.items():
        torch.testing.assert_close(result, MEASURES[name].compute(record))


def test_measures_of_one_head_have_a_head_and_those_of_all_have_none():
    for measure in MEASURES.values():
        if measure.of_one_head:
            assert not measure.has_axis("head")
            assert MEASURES[measure.of_one_head].has_axis("head")


@pytest.mark.parametrize(
    ("feed_forward", "lacking"),
    [("behind", ""), ("beside", ""), ("later", ""), ("several", "several feed-forward parts"), ("", "no feed-forward")],
)
def test_what_stands_behind_the_feed_forward_part_needs_one_wherever_it_is(record, feed_forward, lacking):
    block = replace(record.block, feed_forward=feed_forward)
    found = MEASURES["globenc_norms"].lacks(replace(record, block=block))
    assert lacking in found
    assert bool(found) == bool(lacking)


def test_a_record_without_its_block_has_what_needs_no_block():
    layer = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
    [record] = records_of(layer, torch.randn(2, 3, 8), blocks=False)
    for name, result in compute_measures(record, list(MEASURES)).items():
        assert isinstance(result, str) == MEASURES[name].of_block
        assert MEASURES[name].of_block == need_blocks([name])
        if MEASURES[name].of_block:
            assert result == "blocks were not recorded"
            with pytest.raises(ValueError, match="self_attn: blocks were not recorded"):
                MEASURES[name].compute(record)


def test_what_a_block_lacks_is_said_of_each_measure_that_needs_it():
    class Residual(nn.Module):
        """Attention with a residual, and neither norm nor feed-forward part."""

        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return x + self.attention(x, x, x)[0]

    [record] = records_of(nn.Sequential(Residual()).eval(), torch.randn(2, 3, 8))
    absent = {name for name, result in compute_measures(record, list(MEASURES)).items() if isinstance(result, str)}
    assert absent == {"res_ln_norms", "mixing_res_ln", "globenc_norms", "ff_norms", "ff_res_norms", "ff_res_ln_norms"}
    assert "no LayerNorm or RMSNorm" in MEASURES["res_ln_norms"].lacks(record)


def test_mean_weights_are_means_over_heads_in_float32_at_least(record):
    torch.testing.assert_close(mean_weights(record), record.weights.mean(1))
    half = replace(record, weights=record.weights.half())
    assert mean_weights(half).dtype == torch.float32


def test_every_quantity_of_a_block_is_a_measure(record):
    with pytest.raises(ValueError, match="no quantity 'none'; there are ") as refused:
        block_quantities(["none"], record.weights, record.values, record.W_O)
    listed = str(refused.value).partition("there are ")[2].rstrip(".").split(", ")
    together = MEASURES["res_norms"].together
    assert set(listed) == {name for name, measure in MEASURES.items() if measure.together is together}


def test_names_in_the_table_are_names_elsewhere():
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert all(hasattr(captum_norm, attribution) for attribution in measure.classes)
        assert not measure.aligner or ALIGNER_METHODS[measure.aligner].title == measure.brief
        assert measure.role in ROLE_COLOURS
        assert (name in COUNTED) == measure.counted
        assert measure.paper.url.startswith("https://")


def test_classes_that_fix_nothing_give_the_measure_of_their_row():
    """What the classes with one measure return for a model of one call is a row of it."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    [record] = records_of(model, x)
    for attribution, name in {
        "AttentionNorm": "summed_norms",
        "AttentionWeights": "mean_weights",
        "AttentionBlockNorm": "res_ln_norms",
        "GlobEnc": "globenc_norms",
        "ALTI": "alti",
    }.items():
        assert attribution in MEASURES[name].classes
        scores = getattr(captum_norm, attribution)(model).attribute(x, position="all")
        torch.testing.assert_close(scores, MEASURES[name].compute(record))
