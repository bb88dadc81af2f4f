"""From an encoding to a call: extras by name, decoders that start by themselves, bad input refused."""

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.tokenization_utils_base import BatchEncoding

from captum_norm.forward import HFForward

from .models import IDS, TRANSLATOR, VISION, HandMade, bert, call, model_of, pair, text


def test_extras_go_by_their_names():
    model = model_of("bert")
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).expand(3, 7)
    positions = torch.arange(7).flip(0)[None].expand(3, 7)
    ids, mask = text().values()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, token_type_ids=types, position_ids=positions).logits
        named = HFForward(model, names=("position_ids", "attention_mask", "token_type_ids"))
        assert torch.equal(named(ids, positions, mask, types), expected)
        assert torch.equal(HFForward(model, position_ids=positions)(ids, mask, types), expected)
        assert torch.equal(HFForward(model)(ids, None, types), model(ids, token_type_ids=types).logits)


def test_ids_and_decoder_ids_can_both_be_inputs():
    model, (ids, mask, target, target_mask) = model_of("bart"), pair().values()
    forward = HFForward(model)
    expected = forward(ids, mask, target, target_mask)
    assert torch.equal(forward(ids, target, mask, target_mask), expected)
    assert torch.equal(forward(ids, target), forward(ids, None, target))


def test_a_model_that_generates_starts_with_its_start_token():
    ids = text()["input_ids"]
    model = model_of("t5")
    arguments = HFForward(model).inputs({"input_ids": ids})
    assert arguments["additional_forward_args"][1].tolist() == [[0], [0], [0]]
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=torch.zeros(3, 1, dtype=torch.long)).logits[:, 0]
    assert torch.equal(call(HFForward(model), {"input_ids": ids}), expected)


def test_labels_become_the_decoders_input():
    labels = torch.tensor([[7, 8, 2]] * 3)
    arguments = HFForward(model_of("bart")).inputs({**text(), "labels": labels})
    assert arguments["additional_forward_args"][1].tolist() == [[2, 7, 8]] * 3


def test_a_classifier_that_feeds_its_decoder_itself_is_left_to():
    model = BartForSequenceClassification(BartConfig(**TRANSLATOR)).eval()
    encoding = {"input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])}
    with torch.no_grad():
        assert torch.equal(call(HFForward(model, "gate"), encoding), model(**encoding).logits)


@pytest.mark.parametrize("kind", [dict, BatchEncoding, lambda e: {k: v.tolist() for k, v in e.items()}])
def test_encodings_of_any_kind_are_taken(kind):
    encoding = text(offset_mapping=torch.zeros(3, 7, 2), special_tokens_mask=torch.zeros(3, 7))
    arguments = HFForward(model_of("llama")).inputs(kind(encoding))
    assert torch.equal(arguments["inputs"], text()["input_ids"])
    (mask,) = arguments["additional_forward_args"]
    assert torch.equal(mask, text()["attention_mask"])


def test_an_encoding_of_ids_alone_needs_no_extras():
    assert HFForward(model_of("llama")).inputs({"input_ids": text()["input_ids"]})["additional_forward_args"] is None


def test_an_extra_left_out_in_the_middle_keeps_its_place():
    encoding = {"input_ids": text()["input_ids"], "token_type_ids": torch.zeros(3, 7, dtype=torch.long)}
    first, second = HFForward(model_of("bert")).inputs(encoding)["additional_forward_args"]
    assert first is None
    assert second is encoding["token_type_ids"]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda: HFForward(model_of("bert").forward), TypeError, "should be a torch.nn.Module, got method"),
        (lambda: bert("gates"), ValueError, "mode should be one of 'ids', 'embeds', 'gate', got 'gates'"),
        (lambda: bert(position="all"), ValueError, "got 'all'"),
        (lambda: bert(position=True), TypeError, "got True"),
        (lambda: bert(position=[1, False]), TypeError, "got .1, False."),
        (lambda: bert(position=torch.tensor([True])), TypeError, "position should be"),
        (lambda: bert(position=1.5), TypeError, "got 1.5"),
        (lambda: bert(position=[]), TypeError, "position should be"),
        (lambda: bert(position=[[1], [2]]), TypeError, "position should be"),
        (lambda: bert(position=3)(IDS), ValueError, "position 3 is out of range.*3 positions, 0 to 2 .or -1 to -3"),
        (lambda: bert(position=[-4])(IDS), ValueError, "position -4 is out of range"),
        (lambda: HFForward(model_of("llama"), position=5)(IDS), ValueError, "5 is out of range.*0 to 2"),
        (lambda: HFForward(model_of("bart"), position=5)(IDS), ValueError, "5 is out of range.*0 to 2"),
        (lambda: bert(names=("attention_msk",)), ValueError, "'attention_msk'.*Did you mean 'attention_mask'"),
        (lambda: bert(names="attention_mask"), TypeError, "names should be keywords in a sequence"),
        (lambda: bert(names=("position_ids", "position_ids")), ValueError, "an entry twice"),
        (lambda: bert(names=("input_ids",)), ValueError, "input_ids is given twice"),
        (lambda: bert(names=("position_ids",), position_ids=IDS), ValueError, "position_ids is given twice"),
        (lambda: bert(postion=3), ValueError, "'postion'.*Did you mean 'position'"),
        (lambda: HFForward(HandMade(), colour=3), ValueError, "'colour', which neither it nor HandMade takes"),
        (lambda: bert("gate", embedding="bert.embedings"), ValueError, "no module 'bert.embedings'.*Did you mean"),
        (lambda: bert("gate", embedding=nn.Embedding(2, 2)), ValueError, "no part of BertForSequenceClassification"),
        (lambda: bert()(IDS.float()), TypeError, "token ids are integers.*mode='gate' or mode='embeds'"),
        (lambda: bert()(IDS.bool()), TypeError, "token ids are integers"),
        (lambda: bert()(IDS[0]), ValueError, r"should be \(batch, sequence\), got shape \(3,\).*return_tensors"),
        (lambda: bert()(IDS[:, :0]), ValueError, "input_ids is empty"),
        (lambda: bert()(IDS[:0]), ValueError, "input_ids is empty"),
        (lambda: bert()(torch.full((1, 41), 5)), ValueError, "41 tokens.*max_length=40"),
        (lambda: bert()(torch.tensor([[50]])), ValueError, "0 to 49"),
        (lambda: HFForward(model_of("gpt2"))(torch.full((1, 41), 5)), ValueError, "41 tokens.*max_length=40"),
        (lambda: HFForward(model_of("roberta"))(torch.full((1, 39), 5)), ValueError, "39 tokens.*max_length=38"),
        (lambda: bert()(IDS, None, None, None, None), ValueError, "4 extras but knows 2: attention_mask, token_type"),
        (lambda: bert(names=())(IDS, IDS), ValueError, "1 extras but knows 0: none"),
        (lambda: bert("gate")(torch.ones(1, 3)), ValueError, r"input_ids as the first of additional_forward_args"),
        (lambda: bert("gate")(IDS, IDS), TypeError, "a gate is float"),
        (lambda: bert("gate")(torch.ones(1, 2), IDS), ValueError, r"gate is \(1, 2\), but input_ids is \(1, 3\)"),
        (lambda: bert("gate")(torch.ones(1, 3), IDS.float()), TypeError, "token ids are integers"),
        (lambda: bert("embeds")(IDS), ValueError, "takes float embeddings"),
        (lambda: bert("embeds")(torch.ones(1, 41, 32)), ValueError, "max_position_embeddings. ends at 40"),
        (lambda: bert().inputs("a text"), TypeError, "takes a tokenizer's encoding, got str. Tokenize first"),
        (
            lambda: bert().inputs({"attention_mask": IDS}),
            ValueError,
            "needs input_ids, the encoding has attention_mask",
        ),
        (lambda: bert().inputs({"input_ids": [[1], [1, 2]]}), ValueError, "input_ids cannot be a tensor.*padding=True"),
        (
            lambda: bert().inputs({"input_ids": IDS, "position_ids": IDS}),
            ValueError,
            "encoding has position_ids.*names=",
        ),
        (lambda: bert().inputs({"input_ids": IDS[0]}), ValueError, r"got shape \(3,\)"),
    ],
)
def test_bad_input_is_refused_at_the_door(bad, error, message):
    with pytest.raises(error, match=message):
        bad()


def test_padding_is_no_token_to_explain():
    ids, mask = text().values()
    with pytest.raises(ValueError, match=r"position 6 of example 1 is padding: its real tokens are \[0, 1, 2, 3, 4\]"):
        HFForward(model_of("llama"), position=-1)(ids, mask)
    mask[2] = 0
    with pytest.raises(ValueError, match="example 2 marks no token as real"):
        HFForward(model_of("llama"))(ids, mask)


def test_a_mask_that_does_not_fit_the_output_tells_no_position():
    class Prefixed(nn.Module):
        """Two more rows than tokens, as prefix tuning has."""

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, input_ids, attention_mask=None):
            return nn.functional.pad(self.table(input_ids), (0, 0, 2, 0))

    ids, mask = text().values()
    with pytest.raises(ValueError, match=r"has 9 rows for 7 tokens.*-1 for the last row"):
        HFForward(Prefixed())(ids, mask)
    assert HFForward(Prefixed(), position=8)(ids, mask).shape == (3, 4)


def test_a_gate_of_another_number_of_patches_is_refused():
    model = ViTForImageClassification(ViTConfig(**VISION))
    with pytest.raises(ValueError, match=r"gate is \(1, 10\), but the embedding has 1 examples of 9"):
        HFForward(model, "gate")(torch.ones(1, 10), torch.randn(1, 3, 12, 12))


def test_a_model_that_returns_nothing_to_explain_is_refused():
    model = HandMade()
    model.forward = lambda input_ids: {"text": "none"}
    with pytest.raises(ValueError, match="HandMade returned a dict without a tensor"):
        HFForward(model, names=())(IDS)
