"""Windows, global tokens, blocks, and two sequences that attend to each other: scores, or a way out that works."""

import pytest
import torch
from torch import nn
from transformers import (
    BigBirdConfig,
    BigBirdForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    LxmertConfig,
    LxmertForQuestionAnswering,
)

from captum_norm import (
    ALTI,
    AttentionBlockNorm,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    DecompX,
    GlobEnc,
    LayerAttentionNorm,
    ValueZeroing,
    attention_maps,
)
from captum_norm.attr.relevance import weight_gradients
from captum_norm.capture import InexactCaptureError, recording
from captum_norm.functional import gradient_weights
from captum_norm.functional.relevance import normalized

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
IDS = torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(0))


def adds_up(model, ids):
    shares, delta = DecompX(model).attribute(ids, target=1, return_convergence_delta=True)
    output = model(ids)
    return torch.allclose(shares.sum(1) + delta, getattr(output, "logits", output)[:, 1], atol=1e-5)


def longformer():
    torch.manual_seed(0)
    config = LongformerConfig(
        **SIZES, num_hidden_layers=2, attention_window=[4, 4], max_position_embeddings=60, pad_token_id=1,
        sep_token_id=3,
    )  # fmt: skip
    model = LongformerForSequenceClassification(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # attention far from uniform, and no smaller than the residual
    return model


GLOBAL = torch.zeros_like(IDS).index_fill(1, torch.tensor([0, 7]), 1)


@torch.no_grad()
def vectors(layer, x):
    """The weights (head, query, key) of a layer with tokens GLOBAL, and its vectors alpha f(x), (query, key, model)."""
    attention, (length, model) = layer.attention.self, x.shape
    apart, chosen = torch.arange(length)[:, None] - torch.arange(length), GLOBAL[0] == 1

    def heads(projection):
        return projection(x).unflatten(-1, (2, -1)).transpose(0, 1)

    near = heads(attention.query) @ heads(attention.key).mT / (model / 2) ** 0.5
    near = near.masked_fill(~((apart.abs() <= 2) | chosen), -torch.inf).softmax(-1)
    far = (heads(attention.query_global) @ heads(attention.key_global).mT / (model / 2) ** 0.5).softmax(-1)
    weights = torch.where(chosen[:, None], far, near)
    values = torch.where(chosen[:, None, None], *(heads(v)[:, None] for v in (attention.value_global, attention.value)))
    W_O = layer.attention.output.dense.weight.T.unflatten(0, (2, -1))
    return weights, torch.einsum("hqk,hqke,hed->qkd", weights, values, W_O)


def test_global_tokens_beside_windows_are_one_map_of_rows_with_projections_of_their_own():
    model = longformer()

    def answer(ids):
        return model(input_ids=ids, global_attention_mask=GLOBAL)

    maps = attention_maps(answer, IDS, quantities=("weights", "summed_norms", "alti"))
    states = model(input_ids=IDS, global_attention_mask=GLOBAL, output_hidden_states=True).hidden_states
    expected = []
    for n, layer in enumerate(model.longformer.encoder.layer):
        weights, parts = vectors(layer, states[n][0])
        of_calls = (maps.weights[n], maps.summed_norms[n], maps.alti[n])
        found = [of_call[0].unflatten(-1, (2, 40)).sum(-2) for of_call in of_calls]
        torch.testing.assert_close(found[0], weights, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[1], parts.norm(dim=-1), rtol=1e-4, atol=1e-6)
        expected.append(parts[0].norm(dim=-1))
        norm, x = layer.attention.output.LayerNorm, states[n][0]
        state = parts.sum(1) + layer.attention.output.dense.bias + x
        parts = parts + torch.diag_embed(x.mT).permute(1, 2, 0)  # x_i at key i
        sigma = (state.var(-1, unbiased=False) + norm.eps).sqrt()[:, None, None]
        parts = (parts - parts.mean(-1, keepdim=True)) / sigma * norm.weight
        shares = norm(state).abs().sum(-1)[:, None] - (norm(state)[:, None] - parts).abs().sum(-1)
        expected_shares = nn.functional.normalize(shares.clamp_min(0), 1, -1)
        torch.testing.assert_close(found[2], expected_shares, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(AttentionNorm(answer).attribute(IDS)[0], sum(expected) / 2, rtol=1e-4, atol=1e-6)
    assert adds_up(model, IDS)
    with pytest.raises(InexactCaptureError, match="of which one alone can be changed; AttentionNorm answers"):
        ValueZeroing(answer).attribute(IDS)


@pytest.mark.parametrize("method", [AttentionNorm, AttentionRollout, ALTI])
def test_a_batch_with_padding_and_other_global_tokens_is_what_each_text_gives_alone(method):
    model = longformer()
    ids, mask, chosen = IDS.repeat(2, 1)[:, :37], torch.ones(2, 37).long(), GLOBAL.repeat(2, 1)[:, :37]
    mask[1, 30:], ids[1, 30:], chosen[1, 7] = 0, 1, 0

    def answer(ids, mask, chosen):
        return model(input_ids=ids, attention_mask=mask, global_attention_mask=chosen)

    both = method(answer).attribute(ids, additional_forward_args=(mask, chosen))
    for row, length in ((0, 37), (1, 30)):
        alone, *given = (tensor[row : row + 1, :length] for tensor in (ids, mask, chosen))
        expected = method(answer).attribute(alone, additional_forward_args=tuple(given))
        torch.testing.assert_close(both[row : row + 1, :length], expected, rtol=1e-4, atol=1e-6)
    assert not both[1, 30:].any()


class InWindows(nn.Module):
    """Layers that attend within windows of three, every second one within shifted ones; as groups or by a mask."""

    def __init__(self, by_mask=False):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.by_mask = nn.Embedding(60, 16), by_mask
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True) for _ in range(2)]
        )

    def forward(self, ids):
        x = self.table(ids)
        for shift, layer in enumerate(self.layers):
            if self.by_mask:
                apart = torch.block_diag(*torch.ones(x.shape[1] // 3, 3, 3)).roll((shift, shift), (0, 1)) == 0
                x = layer(x, src_mask=apart)
            else:
                windows = x.roll(-shift, 1).unflatten(1, (-1, 3)).flatten(0, 1)
                x = layer(windows).unflatten(0, (len(x), -1)).flatten(1, 2).roll(shift, 1)
        return x


@pytest.mark.parametrize(
    "method", [AttentionNorm, AttentionRollout, AttentionBlockNorm, GlobEnc, ALTI, AttentionRelevance]
)
def test_windows_alone_are_scored_as_the_same_attention_under_a_mask(method):
    ids = IDS[:, :24].view(2, 12)
    chosen = {"target": (3, 1)} if method is AttentionRelevance else {"position": 3}
    scores = [method(InWindows(by_mask).eval()).attribute(ids, **chosen) for by_mask in (False, True)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-6)
    assert 1 < (scores[0] > 0).sum(1).min() < 12


def test_maps_of_windows_alone_stay_window_by_window():
    model, nothing = longformer(), torch.zeros_like(IDS)

    def local(ids):
        return model(input_ids=ids, global_attention_mask=nothing)

    maps = attention_maps(local, IDS)
    assert {call.kind for call in maps.calls} == {"self"}
    assert maps.weights[0].shape[0] == 20  # windows of two queries
    assert adds_up(local, IDS)


def test_a_batch_of_windows_with_padding_is_scored_as_each_text_alone():
    model, mask = longformer(), torch.ones(2, 20, dtype=torch.long)
    mask[1, 9:], ids = 0, IDS.view(2, 20)

    def local(ids, mask):
        return model.longformer(ids, attention_mask=mask, global_attention_mask=torch.zeros_like(ids))[0]

    for method in (AttentionNorm, ALTI):
        both = method(local).attribute(ids, additional_forward_args=(mask,))
        for row, length in ((0, 20), (1, 9)):
            alone = method(local).attribute(ids[row : row + 1, :length], additional_forward_args=(mask[:1, :length],))
            torch.testing.assert_close(both[row : row + 1, :length], alone, rtol=1e-4, atol=1e-6)
        assert not both[1, 9:].any()


def test_block_sparse_attention_is_one_map_over_all_positions():
    torch.manual_seed(0)
    config = BigBirdConfig(
        **SIZES, num_hidden_layers=2, block_size=2, num_random_blocks=1, max_position_embeddings=80, sep_token_id=3
    )
    model = BigBirdForSequenceClassification(config).eval()
    maps, returned = attention_maps(model, IDS), model(IDS, output_attentions=True).attentions
    for found, expected in zip(maps.weights, returned, strict=True):
        # What it returns has the first block once, to which its rows attend twice where nothing is drawn at random.
        torch.testing.assert_close(found[..., 2:], expected[..., 2:])
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 2, 40))
    assert adds_up(model, IDS)
    rolled = torch.eye(40)[0]
    for weights in reversed(maps.weights):
        rolled = (rolled + rolled @ weights[0].mean(0)) / 2
    torch.testing.assert_close(AttentionRollout(model).attribute(IDS)[0], rolled)
    with pytest.raises(InexactCaptureError, match=r"mixed by several products.*AttentionNorm answers"):
        ValueZeroing(model).attribute(IDS)


@pytest.mark.parametrize("sorts", [True, False])
def test_a_maximum_over_rows_is_refused_last_for_a_position_helps_against_it(sorts):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.qkv, self.o = nn.Embedding(60, 16), nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, ids):
            x = self.table(ids).unflatten(1, (-1, 4)).flatten(0, 1)
            q, k, v = self.qkv(x.sort(1).values if sorts else x).chunk(3, -1)
            mixed = (q @ k.mT).softmax(-1) @ v
            return self.o(mixed.unflatten(0, (len(ids), -1)).flatten(1, 2)).amax(1)

    torch.manual_seed(0)
    model = Pooled().eval()
    assert LayerAttentionNorm(model, model).attribute(IDS).shape[-2:] == (4, 4)
    if sorts:
        with pytest.raises(ValueError, match=r"not known to be input positions.*DecompX follows positions"):
            AttentionNorm(model).attribute(IDS)
        return
    with pytest.raises(ValueError, match=r"in a way that was not followed.*position=<row>"):
        AttentionNorm(model).attribute(IDS)
    assert AttentionNorm(model).attribute(IDS, position=6)[0].nonzero()[:, 0].tolist() == [4, 5, 6, 7]


def lxmert():
    torch.manual_seed(0)
    config = LxmertConfig(
        **SIZES, l_layers=1, x_layers=2, r_layers=1, num_qa_labels=3, visual_feat_dim=8, visual_pos_dim=4
    )
    model = LxmertForQuestionAnswering(config).eval()
    boxes, places = torch.randn(1, 6, 8), torch.rand(1, 6, 4)
    words = torch.tensor([[1, 7, 8, 9, 2]])
    return (words, boxes), lambda i, v: model(input_ids=i, visual_feats=v, visual_pos=places).question_answering_score


def test_words_and_boxes_that_attend_to_each_other_at_once_have_the_relevance_of_the_paper():
    given, answer = lxmert()
    words, boxes = AttentionRelevance(answer).attribute(given, target=2)
    with recording(sources=given, differentiable=True) as records:
        explained = answer(*given)[0, 2]
    # words, boxes; words to boxes and back, words, boxes; words to boxes, (back), words, (boxes)
    read = [records[i] for i in (0, 1, 2, 3, 4, 5, 6, 8)]
    gradients = weight_gradients(read, explained, "the paper's rules")
    text, image, to_boxes, to_words, text2, image2, again, last = (
        gradient_weights(record.weights.detach(), gradient) for record, gradient in zip(read, gradients, strict=True)
    )
    tt, ii = torch.eye(5)[None], torch.eye(6)[None]
    tt, ii = tt + text @ tt, ii + image @ ii
    ti, it = normalized(tt).mT @ to_boxes @ normalized(ii), normalized(ii).mT @ to_words @ normalized(tt)
    tt, ti, ii, it = tt + text2 @ tt, ti + text2 @ ti, ii + image2 @ ii, it + image2 @ it
    ti, tt = ti + normalized(tt).mT @ again @ normalized(ii), tt + again @ it
    tt, ti = tt + last @ tt, ti + last @ ti
    torch.testing.assert_close(words, tt[:, 0])
    torch.testing.assert_close(boxes.sum(-1), ti[:, 0])
