"""Which input position is each key?  Known exactly, or not claimed."""

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartModel

from captum_norm.attr import AttentionNorm
from captum_norm.capture import recording
from tests.capture.hand_written import BATCH, HEAD_DIM, HEADS, LENGTH, MODEL, Attention, join, weights


def keys_of(write, x=None):
    attention = Attention(write).eval()
    x = torch.randn(BATCH, LENGTH, MODEL) if x is None else x
    with recording(sources=(x,)) as records:
        attention(x)
    return records[0].keys, records[0].unknown_keys


PERMUTATION = torch.tensor([2, 0, 1, 4, 3])


def reordered(move):
    """Attention whose keys and values went through ``move`` (batch, position, model) before they were used."""

    def write(m, x):
        moved = move(x)
        q = m.q(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        k, v = (f(moved).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for f in (m.k, m.v))
        return m.o(join(weights(q, k) @ v))

    return write


@pytest.mark.parametrize(
    ("move", "index"),
    [
        (lambda x: x.flip(1), [4, 3, 2, 1, 0]),
        (lambda x: x[:, PERMUTATION], PERMUTATION.tolist()),
        (lambda x: x.index_select(1, PERMUTATION), PERMUTATION.tolist()),
        (lambda x: x.roll(1, 1), [4, 0, 1, 2, 3]),
        (lambda x: torch.relu(nn.functional.layer_norm(x, (MODEL,)).flip(1) * 2 + 1), [4, 3, 2, 1, 0]),
        (lambda x: x[:, 1:4], [1, 2, 3]),
        (lambda x: x.repeat_interleave(2, 1), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (lambda x: torch.cat([x.new_zeros(BATCH, 2, MODEL), x], 1), [-1, -1, 0, 1, 2, 3, 4]),
        (lambda x: nn.functional.pad(x, (0, 0, 1, 0)), [-1, 0, 1, 2, 3, 4]),
        (lambda x: nn.functional.pad(x.mT, (1, 0)).mT, [-1, 0, 1, 2, 3, 4]),
        (lambda x: nn.functional.pad(x.flip(1), (0, 1), value=1.0) @ torch.ones(MODEL + 1, MODEL), [4, 3, 2, 1, 0]),
        (lambda x: torch.stack(list(x.unbind(1)[::-1]), 1), [4, 3, 2, 1, 0]),
        (lambda x: x.gather(1, PERMUTATION[None, :, None].expand_as(x)), PERMUTATION.tolist()),
        (lambda x: x.sort(1).values, None),
        (lambda x: x.reshape(BATCH * LENGTH, MODEL).flip(0).view(BATCH, LENGTH, MODEL), None),
        (lambda x: x.mT.contiguous().view(BATCH, LENGTH, MODEL), None),
        (lambda x: torch.cat([x[..., :6], x[..., 6:].roll(1, 1)], -1), None),
        (lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2).flip(1), [4, 3, 2, 1, 0]),
        (lambda x: torch.cat([x.flip(1), x[..., :0]], -1), [4, 3, 2, 1, 0]),
        (lambda x: torch.stack((x, torch.zeros_like(x)), 2).flatten(1, 2)[:, :5], [0, -1, 1, -1, 2]),
    ],
    ids=[
        "flipped", "indexed", "selected", "rolled", "flipped among elementwise operations", "cut", "repeated",
        "memory keys", "padded", "padded as columns", "a feature more",
        "stacked", "gathered", "sorted", "flipped across examples", "scrambled",
        "shifted features", "features in turns", "beside no features", "in turns with others",
    ],
)  # fmt: skip
def test_keys_that_were_moved_are_where_they_went_or_unknown(move, index):
    keys, reason = keys_of(reordered(move))
    if index is None:
        assert keys is None
        assert reason
    else:
        assert keys.index.tolist() == index


def _layer():
    return nn.TransformerEncoderLayer(MODEL, HEADS, 16, batch_first=True)


def test_examples_that_keep_other_positions_are_given_one_at_a_time():
    """As where patches are left out at random."""
    kept = torch.tensor([[3, 0, 1], [2, 4, 0]])

    def write(m, x):
        some = x.gather(1, kept[: len(x), :, None].expand(-1, -1, MODEL))
        q, k, v = (f(some).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for f in (m.q, m.k, m.v))
        return m.o(join(weights(q, k) @ v))

    attention, x = Attention(write).eval(), torch.randn(BATCH, LENGTH, MODEL)
    with pytest.raises(ValueError, match="examples order their keys differently: give it one example at a time"):
        AttentionNorm(attention).attribute(x)
    scores = AttentionNorm(attention).attribute(x[:1], position=0)
    assert (scores[0].sum(-1) > 0).tolist() == [True, True, False, True, False]


def test_examples_one_behind_the_other_are_given_one_at_a_time():
    """As pictures in one row of patches: the way out that is named is taken."""
    layer, cut, patches = _layer().eval(), nn.Conv3d(3, MODEL, 2, stride=2), torch.randn(8, 3, 2, 2, 2)

    def packed(x):
        return layer(cut(x).flatten(1).unflatten(0, (-1, 4))).flatten(0, 1)

    with pytest.raises(ValueError, match=r"one behind the other, .*lambda x: model\(x\[0\]\)\[None\], on inputs"):
        AttentionNorm(packed).attribute(patches)
    row = AttentionNorm(lambda x: packed(x[0])[None]).attribute(patches[None, 4:], position=1)
    vectors = cut(patches[4:]).flatten(1)[None]
    assert torch.allclose(row.sum((2, 3, 4, 5)), AttentionNorm(layer).attribute(vectors, position=1).sum(2), atol=1e-6)


def test_examples_that_a_model_puts_into_one_row_are_given_one_at_a_time():
    layer, x = _layer().eval(), torch.randn(2, 3, MODEL)

    def in_one_row(x):
        mask = torch.block_diag(*torch.ones(len(x), 3, 3)) == 0
        return layer(x.flatten(0, 1)[None], src_mask=mask)

    with pytest.raises(ValueError, match="one behind the other in one row: give it one example at a time"):
        AttentionNorm(in_one_row).attribute(x)
    row = AttentionNorm(in_one_row).attribute(x[:1], position=1)
    assert torch.allclose(row, AttentionNorm(layer).attribute(x[:1], position=1), atol=1e-6)


def test_windows_are_no_input_positions():
    def windowed(m, x):
        windows = x.reshape(BATCH * 2, 3, MODEL)
        q, k, v = (f(windows).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for f in (m.q, m.k, m.v))
        return m.o(join(weights(q, k) @ v)).reshape(BATCH, 6, MODEL)

    keys, reason = keys_of(windowed, torch.randn(BATCH, 6, MODEL))
    assert keys is None
    assert "4 groups of 3" in reason
    assert "2 examples of 6" in reason


def test_the_residual_stream_remembers_positions_through_layers():
    encoder = nn.TransformerEncoder(_layer(), 4, enable_nested_tensor=False).eval()
    x = torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(x,)) as records:
        encoder(x)
    assert [record.keys.index.tolist() for record in records] == [list(range(LENGTH))] * 4
    assert [record.queries.index.tolist() for record in records] == [list(range(LENGTH))] * 4


def test_without_sources_positions_count_from_the_embedding():
    embedding, attention = nn.Embedding(10, MODEL), nn.MultiheadAttention(MODEL, HEADS, batch_first=True)
    with recording() as records:
        x = embedding(torch.randint(0, 10, (BATCH, LENGTH)))
        attention(x, x, x)
    assert records[0].keys.source == "embedding 0"
    assert records[0].keys.index.tolist() == list(range(LENGTH))


def test_position_first_modules_are_followed_from_batch_first_inputs():
    attention = nn.MultiheadAttention(MODEL, HEADS)
    x = torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(x,)) as records:
        t = x.transpose(0, 1)
        attention(t, t, t)
    assert records[0].weights.shape == (BATCH, HEADS, LENGTH, LENGTH)
    assert records[0].keys.index.tolist() == list(range(LENGTH))


def test_extra_keys_of_torch_attention_are_no_inputs():
    attention = nn.MultiheadAttention(MODEL, HEADS, batch_first=True, add_bias_kv=True, add_zero_attn=True)
    x = torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(x,)) as records:
        attention(x, x, x)
    assert records[0].keys.index.tolist() == [0, 1, 2, 3, 4, -1, -1]


def test_patches_have_a_grid_and_the_class_token_is_no_patch():
    convolution, attention = nn.Conv2d(3, MODEL, 4, 4), nn.MultiheadAttention(MODEL, HEADS, batch_first=True)
    pixels, first = torch.randn(BATCH, 3, 8, 12), nn.Parameter(torch.randn(1, 1, MODEL))
    with recording(sources=(pixels,)) as records:
        patches = convolution(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([first.expand(BATCH, -1, -1), patches], 1)
        attention(x, x, x)
    assert records[0].keys.source == 0
    assert records[0].keys.grid == (2, 3)
    assert records[0].keys.index.tolist() == [-1, 0, 1, 2, 3, 4, 5]


def test_a_pooling_head_with_a_query_of_its_own_is_read():
    query = nn.Parameter(torch.randn(1, HEADS, 1, HEAD_DIM))

    def pool(m, x):
        _, k, v = m.split(x)
        return m.o(join(weights(query.expand(BATCH, -1, -1, -1), k) @ v).mean(1))

    attention, x = Attention(pool), torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(x,)) as records:
        attention(x)
    assert records[0].call.kind == "cross"
    assert records[0].weights.shape == (BATCH, HEADS, 1, LENGTH)
    assert records[0].keys.index.tolist() == list(range(LENGTH))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch speaks of its fused fast path
def test_cross_attention_reads_the_memory_of_another_source():
    transformer = nn.Transformer(MODEL, HEADS, 1, 1, 16, batch_first=True).eval()
    source, target = torch.randn(BATCH, LENGTH, MODEL), torch.randn(BATCH, 3, MODEL)
    with torch.no_grad(), recording(sources=(source, target)) as records:
        transformer(source, target, tgt_mask=nn.Transformer.generate_square_subsequent_mask(3))
    assert [record.call.kind for record in records] == ["self", "causal", "cross"]
    assert [record.keys.source for record in records] == [0, 1, 0]
    assert [record.queries.source for record in records] == [0, 1, 1]


def test_padding_masks_of_torch_modules_tell_real_tokens():
    encoder = nn.TransformerEncoder(_layer(), 1, enable_nested_tensor=False).eval()
    x, padded = torch.randn(BATCH, LENGTH, MODEL), torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padded[0, -2:] = True
    with torch.no_grad(), recording(sources=(x,)) as records:
        encoder(x, src_key_padding_mask=padded)
    assert torch.equal(records[0].key_mask, ~padded)
    assert torch.equal(records[0].query_mask, ~padded)


def test_queries_and_keys_of_two_sequences_are_cross_attention_whatever_their_names():
    attention = Attention(lambda m, x: x)
    ours, theirs = torch.randn(BATCH, LENGTH, MODEL), torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(ours, theirs)) as records:
        q, k, v = attention.split(ours)[0], *attention.split(theirs)[1:]
        attention.o(join(weights(q, k) @ v))
    assert records[0].call.kind == "cross"
    assert (records[0].queries.source, records[0].keys.source) == (0, 1)


def test_keys_reduced_from_the_same_picture_are_self_attention():
    """Spatial reduction as in PVT and SegFormer: fewer keys than queries, made of the same patches."""
    patches, reduce = nn.Conv2d(3, MODEL, 2, 2), nn.Conv2d(MODEL, MODEL, 2, 2)
    attention = Attention(lambda m, x: x)
    with recording() as records:
        picture = patches(torch.randn(BATCH, 3, 8, 8))
        q = attention.split(picture.flatten(2).transpose(1, 2))[0]
        _, k, v = attention.split(reduce(picture).flatten(2).transpose(1, 2))
        attention.o(join(weights(q, k) @ v))
    assert records[0].weights.shape[-2:] == (16, 4)
    assert records[0].call.kind == "self"


def test_encoder_and_decoder_have_masks_of_their_own():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartModel(BartConfig(vocab_size=30, pad_token_id=1, **sizes, **heads)).eval()
    source, prefix = torch.randint(5, 30, (2, 6)), torch.randint(5, 30, (2, 6))
    source_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    prefix_mask = torch.tensor([[1] * 3 + [0] * 3, [1] * 6])
    with torch.no_grad(), recording() as records:
        model(source, attention_mask=source_mask, decoder_input_ids=prefix, decoder_attention_mask=prefix_mask)
        model(source, attention_mask=source_mask, decoder_input_ids=prefix)
    encoder, decoder, cross = ((r.query_mask.int().tolist(), r.key_mask.int().tolist()) for r in records[:3])
    assert encoder == (source_mask.tolist(), source_mask.tolist())
    assert decoder == (prefix_mask.tolist(), prefix_mask.tolist())
    assert cross == (prefix_mask.tolist(), source_mask.tolist())
    assert records[4].key_mask is None
    assert records[5].query_mask is None
    assert records[5].key_mask.int().tolist() == source_mask.tolist()


@pytest.mark.parametrize(
    "prepare", [lambda p: p.double(), lambda p: (p - 0.5) / 0.25, lambda p: p * torch.ones(3, 1, 1)],
    ids=["another dtype", "normalised", "scaled by channel"],
)  # fmt: skip
@pytest.mark.parametrize("padding", [0, "valid"])
def test_pictures_are_recognised_after_elementwise_preparation(prepare, padding):
    convolution, attention = nn.Conv2d(3, MODEL, 4, 4, padding=padding), Attention(lambda m, x: m.o(join(m.mixed(x))))
    pixels = torch.randn(BATCH, 3, 8, 12)
    dtype = prepare(pixels).dtype
    convolution, attention = convolution.to(dtype), attention.to(dtype)
    with recording(sources=(pixels,)) as records:
        attention(convolution(prepare(pixels)).flatten(2).transpose(1, 2))
    assert (records[0].keys.source, records[0].keys.grid) == (0, (2, 3))
    assert records[0].keys.index.tolist() == list(range(6))


def test_the_patches_of_a_turned_picture_are_its_own_cells_in_another_order():
    convolution, attention = nn.Conv2d(3, MODEL, 4, 4), Attention(lambda m, x: m.o(join(m.mixed(x))))
    pixels = torch.randn(BATCH, 3, 8, 8)
    with recording(sources=(pixels,)) as records:
        attention(convolution(pixels.flip(3)).flatten(2).transpose(1, 2))
    assert (records[0].keys.source, records[0].keys.grid) == (0, (1, 2, 2))
    assert records[0].keys.index.tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("anew", [lambda x, y: torch.cat([x, y], 1), lambda x, y: written_anew(x, y)],
                         ids=["joined", "written"])  # fmt: skip
def test_a_sequence_that_is_split_and_joined_in_each_of_forty_layers_is_followed(anew):
    attention = Attention(reordered(lambda x: x)).eval()
    x = torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(x,)) as records:
        state = x
        for _ in range(40):  # two positions go to the end each time
            state = anew(state[:, 2:], state[:, :2] + attention(state)[:, :2])
        attention(state)
    keys = [record.keys.index.tolist() for record in records]
    assert keys[:4] == [[0, 1, 2, 3, 4], [2, 3, 4, 0, 1], [4, 0, 1, 2, 3], [1, 2, 3, 4, 0]]
    assert keys[-1] == [0, 1, 2, 3, 4]


def written_anew(x, y):
    out = x.new_empty(x.shape[0], x.shape[1] + y.shape[1], x.shape[2])
    out[:, : x.shape[1]], out[:, x.shape[1] :] = x, y
    return out


def set_by_index(mixed, order):
    batch, head = torch.arange(BATCH)[:, None, None], torch.arange(HEADS)[:, None]
    back = torch.zeros_like(mixed)
    back[batch, head, order] = mixed
    return back


def taken_by_index(mixed, order):
    return mixed[torch.arange(BATCH)[:, None, None], torch.arange(HEADS)[:, None], order.argsort(-1)]


@pytest.mark.parametrize("put_back", [set_by_index, taken_by_index])
def test_rows_are_those_of_the_output_in_whatever_order_the_model_takes_its_queries(put_back):
    """As in Informer, whose heads take the queries with the largest scores first."""

    def write(m, x):
        q, k, v = (f(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for f in (m.q, m.k, m.v))
        order = q.norm(dim=-1).argsort(-1)
        m.expected = weights(q, k)
        return m.o(join(put_back(weights(in_order(q, order), k) @ v, order)))

    attention, x = Attention(write).eval(), torch.randn(BATCH, LENGTH, MODEL)
    with torch.no_grad(), recording(sources=(x,), blocks=True) as records:
        attention(x)
    torch.testing.assert_close(records[0].weights, attention.expected)
    assert records[0].queries.index.tolist() == list(range(LENGTH))


def in_order(q, order):
    return q[torch.arange(BATCH)[:, None, None], torch.arange(HEADS)[:, None], order]
