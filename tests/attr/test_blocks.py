"""AttentionBlockNorm, GlobEnc and ALTI: their definitions, vector by vector, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest
import torch
from torch import Tensor, nn

from captum_norm import (
    ALTI,
    AttentionBlockNorm,
    AttentionNorm,
    GlobEnc,
    HFForward,
    LayerAttentionBlockNorm,
    LayerAttentionNorm,
    attention_maps,
)
from captum_norm.capture import AttentionRecord
from tests.architectures import ARCHITECTURES, ids
from tests.capture.hand_written import LENGTH, MODEL, WRITTEN, Attention
from tests.capture.test_blocks import block_of, recorded, stack, through, vectors_of
from tests.capture.test_blocks_of_models import randomised
from tests.capture.written_blocks import BLOCKS, Layer
from tests.functional.definition import slow_alti

close = torch.testing.assert_close

ONE_STACK = ("BERT", "ModernBERT", "GPT-NeoX", "Gemma-2", "GPT-2")
ENCODER_DECODERS = ("T5", "BART")
IDS = ids(2, 6)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(ARCHITECTURES[name].build())


def lengths(record: AttentionRecord, residual: bool = True, layer_norm: bool = True) -> Tensor:
    """||.|| of each vector, with or without the residual and the norm behind it, (batch, query, key[ + 1])."""
    block = block_of(record)
    changes = {} if residual else {"residual": torch.zeros_like(block.residual)}
    if not residual and not layer_norm:
        changes["inner"] = None
    if not layer_norm:
        changes["norm"] = None
    vectors = vectors_of(record.but(block=replace(block, **changes)))
    return vectors.norm(dim=-1)


def encoder_lengths(record: AttentionRecord) -> Tensor:
    return through(vectors_of(record), block_of(record).second_norm).norm(dim=-1)


def contributions(record: AttentionRecord, p: int) -> Tensor:
    return slow_alti(vectors_of(record), block_of(record).output, p)


def product(maps: list[Tensor]) -> Tensor:
    return reduce(lambda below, above: above @ below, maps)


# ------------------------------------------------------------------------------------------------ definitions


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", ONE_STACK)
def test_block_norms_are_the_lengths_of_the_vectors(name, residual, layer_norm):
    model = built(name)
    maps = [lengths(record, residual, layer_norm) for record in recorded(model, input_ids=IDS)]
    arguments = {"residual": residual, "layer_norm": layer_norm}
    found = AttentionBlockNorm(model, **arguments).attribute(IDS, position="all")
    close(found, sum(maps) / len(maps), rtol=1e-6, atol=1e-8)
    for aggregate in (0, -1):
        found = AttentionBlockNorm(model, aggregate=aggregate, **arguments).attribute(IDS, position="all")
        close(found, maps[aggregate], rtol=1e-6, atol=1e-8)
    rolled = AttentionBlockNorm(model, aggregate="rollout", **arguments).attribute(IDS, position="all")
    close(rolled, product(maps), rtol=1e-6, atol=1e-8)
    close(LayerAttentionBlockNorm(model, model, **arguments).attribute(IDS), maps, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ONE_STACK)
def test_neither_residual_nor_norm_is_attention_norm(name):
    model = built(name)
    found = AttentionBlockNorm(model, residual=False, layer_norm=False).attribute(IDS)
    close(found, AttentionNorm(model).attribute(IDS))


@pytest.mark.parametrize("name", ONE_STACK)
def test_globenc_is_the_product_of_the_lengths_behind_both_norms(name):
    model = built(name)
    maps = [encoder_lengths(record) for record in recorded(model, input_ids=IDS)]
    close(GlobEnc(model).attribute(IDS, position="all"), product(maps), rtol=1e-6, atol=1e-8)
    close(GlobEnc(model).attribute(IDS, position=2), product(maps)[:, 2], rtol=1e-6, atol=1e-8)
    mean = GlobEnc(model, aggregate="mean").attribute(IDS, position="all")
    close(mean, sum(maps) / len(maps), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("name", ONE_STACK)
def test_alti_is_the_product_of_what_brings_the_output_nearer(name, p):
    model = built(name)
    maps = [contributions(record, p) for record in recorded(model, input_ids=IDS)]
    found = ALTI(model, p=p).attribute(IDS, position="all")
    close(found, product(maps), rtol=1e-6, atol=1e-8)
    close(found.sum(-1), torch.ones(2, 6).double())
    close(ALTI(model, p=p, aggregate=1).attribute(IDS, position=3), maps[1][:, 3], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_cross_attention_is_composed_with_the_encoder_and_its_residual_with_the_prefix(name):
    """Each decoder layer: its own attention, then what it reads from the encoder beside what it keeps of itself."""
    model = built(name)
    given = ARCHITECTURES[name].batch()
    records = recorded(model, **given)
    crossing = [record for record in records if record.call.kind == "cross"]
    own = [record for record in records if record.call.kind != "cross"]
    below, decoder = own[: -len(crossing)], own[-len(crossing) :]
    measures = (
        (AttentionBlockNorm(HFForward(model), aggregate="rollout"), lengths),
        (GlobEnc(HFForward(model)), encoder_lengths),
        (ALTI(HFForward(model)), lambda record: contributions(record, 1)),
    )
    for method, measure in measures:
        encoder = product([measure(record) for record in below])
        source, prefix = torch.zeros(2, 4, 6).double(), torch.eye(4).double().expand(2, 4, 4)
        for own, cross in zip(decoder, crossing, strict=True):
            source, prefix = measure(own) @ source, measure(own) @ prefix
            across, kept = measure(cross)[..., :-1], measure(cross)[..., -1:]
            source, prefix = across @ encoder + kept * source, kept * prefix
        found = method.attribute(tuple(given.values()), position="all")
        close(found, (source, prefix), rtol=1e-5, atol=1e-7)
        row = method.attribute(tuple(given.values()), position=1)
        close(row, (source[:, 1], prefix[:, 1]), rtol=1e-5, atol=1e-7)


def test_the_mean_over_cross_attention_leaves_its_residual_out():
    model, given = built("BART"), ARCHITECTURES["BART"].batch()
    maps = [lengths(record) for record in recorded(model, **given) if record.call.kind == "cross"]
    source, _ = AttentionBlockNorm(HFForward(model)).attribute(tuple(given.values()), position="all")
    close(source, (sum(maps) / len(maps))[..., :-1], rtol=1e-6, atol=1e-8)
    layers = LayerAttentionBlockNorm(HFForward(model), model).attribute(tuple(given.values()), kind="cross")
    close(layers, maps, rtol=1e-6, atol=1e-8)
    found = attention_maps(model, given, ("res_ln_norms", "mixing_res"))
    assert [tuple(one.shape) for one in found.res_ln_norms[-2:]] == [(2, 4, 4), (2, 4, 7)]
    assert found.key_tokens(len(found.calls) - 1)[-1] == "residual"


def test_by_hand():
    """Uniform attention over two positions, values twice the input, W_O one: each adds x_j, the residual x_i again."""
    model = nn.Sequential(Layer(BLOCKS["no_norm"][0])).eval()
    attention = model[0].attention
    with torch.no_grad():
        for part in (attention.q, attention.k, attention.v, attention.o):
            part.weight.zero_(), part.bias.zero_()
        attention.v.weight.copy_(2 * torch.eye(MODEL))
        attention.o.weight.copy_(torch.eye(MODEL))
    x = torch.zeros(1, 2, MODEL)
    x[0, 0, 0], x[0, 1, 1] = 3.0, 2.0
    found = AttentionBlockNorm(model, layer_norm=False).attribute(x, position="all")
    close(found, torch.tensor([[[6.0, 2.0], [3.0, 4.0]]]))
    found = AttentionBlockNorm(model, residual=False, layer_norm=False).attribute(x, position="all")
    close(found, torch.tensor([[[3.0, 2.0], [3.0, 2.0]]]))
    # y_0 = (6, 2): without (6, 0) there is 2 left of 8, without (0, 2) there is 6
    close(ALTI(model).attribute(x, position="all"), torch.tensor([[[0.75, 0.25], [3 / 7, 4 / 7]]]))


# ------------------------------------------------------------------------------------------------ invariances


METHODS = (AttentionBlockNorm, GlobEnc, ALTI)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name", ["post_layer_norm", "pre_rms_norm_written_out", "sandwich_of_rms_norms", "layer_scale"]
)
def test_scores_move_with_the_positions(name, method):
    model, x = stack(name)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = method(model).attribute(x, position="all")
    moved = method(model).attribute(x[:, order], position="all")
    close(moved, found[:, order][:, :, order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Gemma-2"])
def test_a_padded_batch_scores_as_its_examples_do_alone(name, method):
    model = built(name)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    for position in (None, 1, "mean", "all"):
        together = method(HFForward(model)).attribute(IDS, additional_forward_args=mask, position=position)
        alone = method(HFForward(model)).attribute(IDS[1:, :4], position=position)
        rows = (slice(4), slice(4)) if position == "all" else (slice(4),)
        close(together[1][rows], alone[0], rtol=1e-6, atol=1e-8)
        assert (together[1][..., 4:] == 0).all()
        assert position != "all" or (together[1][4:] == 0).all()


def test_alti_does_not_depend_on_the_unit_of_the_stream():
    """Without norms: half of W_Q and W_K on twice the input weigh alike, and all vectors are twice as long."""
    model, x = stack("no_norm", layers=1)
    attention = model[0].attention
    expected = ALTI(model).attribute(x, position="all")
    with torch.no_grad():
        for part in (attention.q, attention.k):
            part.weight /= 2
        for part in (attention.v, attention.o):
            part.bias *= 2
    close(ALTI(model).attribute(2 * x, position="all"), expected, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("method", METHODS)
def test_attention_without_a_residual_is_refused_by_name(method):
    model = nn.Sequential(Attention(WRITTEN["plain"]))
    with pytest.raises(ValueError, match=r"attention call '0' \(self\) cannot be taken in: .*residual stream"):
        method(model).attribute(torch.randn(2, LENGTH, MODEL))
    bare = nn.MultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(ValueError, match=r"attention call .* \(self\) cannot be taken in: .*residual stream"):
        method(lambda x: bare(x, x, x)[0]).attribute(torch.randn(2, 4, 8))


def test_a_block_without_a_norm_is_refused_where_a_norm_is_asked_for():
    model, x = stack("no_norm")
    for method in (AttentionBlockNorm(model), AttentionBlockNorm(model, residual=False), GlobEnc(model)):
        with pytest.raises(
            ValueError, match=r"'0.attention' \(self\).*a residual was found.*but no LayerNorm or RMSNorm"
        ):
            method.attribute(x)
    for method in (AttentionBlockNorm(model, layer_norm=False), ALTI(model)):
        assert method.attribute(x).sum() > 0
    with pytest.raises(ValueError, match=r"no chosen call has res_ln_norms: 0\.attention: a residual was found"):
        attention_maps(model, x, "res_ln_norms")
    assert attention_maps(model, x, "res_norms").res_norms[0].shape == (2, LENGTH, LENGTH)


@pytest.mark.parametrize(
    "name", ["post_layer_norm_and_no_feed_forward_part", "pre_layer_norm_and_no_feed_forward_part"]
)
def test_globenc_refuses_blocks_without_a_feed_forward_part(name):
    model, x = stack(name)
    with pytest.raises(ValueError, match=r"'1.attention' \(self\) cannot be taken in: .*no feed-forward part \(FFN\)"):
        GlobEnc(model).attribute(x)
    assert AttentionBlockNorm(model).attribute(x).sum() > 0


def test_globenc_refuses_several_feed_forward_parts():
    model, x = stack("several_feed_forward_parts_with_norms")
    with pytest.raises(ValueError, match=r"'0.attention' \(self\) cannot be taken in: several feed-forward parts"):
        GlobEnc(model).attribute(x)
    assert AttentionBlockNorm(model).attribute(x).sum() > 0


def test_a_layer_class_has_no_norms_per_head():
    model, x = stack("post_layer_norm")
    with pytest.raises(ValueError, match=r"heads='each'.*heads='sum' is the only form"):
        LayerAttentionBlockNorm(model, model[0]).attribute(x, heads="each")
    assert LayerAttentionNorm(model, model[0]).attribute(x, heads="each").ndim == 4


def test_arguments_are_checked_at_the_door():
    model, _ = stack("post_layer_norm")
    with pytest.raises(ValueError, match="p should be 1 or 2"):
        ALTI(model, p=3)
    for method in METHODS:
        with pytest.raises(ValueError, match="is not known"):
            method(model, aggregate="product")


def test_rows_that_no_input_brings_nearer_are_zero_with_a_warning():
    """All inputs point away from a bias that makes the output."""
    model = nn.Sequential(Layer(BLOCKS["no_norm"][0])).eval()
    attention = model[0].attention
    with torch.no_grad():
        attention.v.weight.copy_(torch.eye(MODEL)), attention.v.bias.zero_()
        attention.o.weight.copy_(torch.eye(MODEL)), attention.o.bias.fill_(100)
    x = -torch.rand(2, LENGTH, MODEL)
    for p in (1, 2):
        with pytest.warns(
            UserWarning, match=r"no input brings the output nearer at 10 of 10 queries, first at .*\(0, 0\)"
        ):
            found = ALTI(model, p=p).attribute(x, position="all")
        assert torch.equal(found, torch.zeros_like(found))
