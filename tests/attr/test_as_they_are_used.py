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

from captum_norm import AttentionNorm, AttentionRelevance, DecompX, LayerAttentionNorm, attention_maps
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
    return LongformerForSequenceClassification(config).eval()


def test_a_global_token_beside_windows_is_refused_with_ways_out_that_work():
    model = longformer()
    with pytest.raises(InexactCaptureError, match=r"DecompX reads such.*global_attention_mask of zeros") as refused:
        AttentionNorm(model).attribute(IDS)
    assert "attention_maps and Layer classes read it" in str(refused.value)
    assert adds_up(model, IDS)
    nothing = {"input_ids": IDS, "global_attention_mask": torch.zeros_like(IDS)}
    assert len(attention_maps(model, nothing).calls) == 2
    maps = LayerAttentionNorm(model, model.longformer.encoder.layer[0].attention.self)
    assert maps.attribute(IDS, additional_forward_args=(None, nothing["global_attention_mask"])).shape[-2:] == (2, 6)


def test_windows_are_self_attention_whose_keys_are_no_single_order():
    model, nothing = longformer(), torch.zeros_like(IDS)

    def local(ids):
        return model(input_ids=ids, global_attention_mask=nothing)

    assert {call.kind for call in attention_maps(local, IDS).calls} == {"self"}
    with pytest.raises(ValueError, match=r"use a Layer class or attention_maps.*DecompX follows positions"):
        AttentionNorm(local).attribute(IDS)
    assert adds_up(local, IDS)


def test_block_sparse_attention_is_read_in_pieces_and_explained_whole():
    torch.manual_seed(0)
    config = BigBirdConfig(
        **SIZES, num_hidden_layers=1, block_size=2, num_random_blocks=1, max_position_embeddings=80, sep_token_id=3
    )
    model = BigBirdForSequenceClassification(config).eval()
    first = attention_maps(model, IDS).calls[0]
    assert first.name.endswith("attention.self")
    with pytest.raises(ValueError, match=r"not known to be input positions.*use a Layer class.*DecompX"):
        AttentionNorm(model).attribute(IDS)
    assert AttentionNorm(model).attribute(IDS, call=0).shape == IDS.shape
    assert LayerAttentionNorm(model, model.bert.encoder.layer[0].attention.self).attribute(IDS, call=0).shape[-1] == 40
    assert adds_up(model, IDS)


def test_pooled_windows_are_refused_for_what_no_position_helps_against():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.qkv, self.o = nn.Embedding(60, 16), nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, ids):
            q, k, v = self.qkv(self.table(ids).unflatten(1, (-1, 4)).flatten(0, 1)).chunk(3, -1)
            mixed = (q @ k.mT).softmax(-1) @ v
            return self.o(mixed.unflatten(0, (len(ids), -1)).flatten(1, 2)).amax(1)

    torch.manual_seed(0)
    model = Windows().eval()
    with pytest.raises(ValueError, match=r"not known to be input positions.*DecompX follows positions"):
        AttentionNorm(model).attribute(IDS)
    assert LayerAttentionNorm(model, model).attribute(IDS).shape[-2:] == (4, 4)


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
