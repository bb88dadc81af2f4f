"""What goes into attribute: a tokenizer's whole encoding, padding that attention was not told of, training mode."""

import warnings

import pytest
import torch
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

from captum_norm import (
    ALTI,
    AttentionBlockNorm,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    AttentionWeights,
    DecompX,
    GlobEnc,
    HFForward,
    LayerAttentionNorm,
    ValueZeroing,
)

METHODS = (
    AttentionNorm, AttentionBlockNorm, AttentionRollout, AttentionRelevance, ALTI, DecompX, GlobEnc, ValueZeroing,
)  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 0, 0], [9, 8, 7, 6, 5, 4]])
MASK = (IDS != 0).long()
TYPES = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
ENCODING = BatchEncoding({"input_ids": IDS, "token_type_ids": TYPES, "attention_mask": MASK, "offset_mapping": [1, 2]})


def _model(attention: str) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=12, attn_implementation=attention, **sizes)).eval()


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    return _model("sdpa")


@pytest.mark.parametrize("method", METHODS)
def test_an_encoding_is_passed_by_name_whatever_its_order(model, method):
    found = method(model).attribute(ENCODING, target=1)
    expected = method(model).attribute(IDS, target=1, additional_forward_args=(MASK, TYPES))
    torch.testing.assert_close(found, expected)
    assert (found[0, 4:] == 0).all()


def test_an_encoding_goes_to_functions_hf_forward_layers_and_several_answers_alike(model):
    expected = AttentionNorm(model).attribute(ENCODING)

    def function(input_ids, attention_mask, token_type_ids):
        return model(input_ids, attention_mask, token_type_ids)

    for method in (AttentionNorm(function), AttentionNorm(HFForward(model))):
        torch.testing.assert_close(method.attribute(ENCODING), expected)
    gate = AttentionNorm(HFForward(model, mode="gate")).attribute(ENCODING, target=1)
    torch.testing.assert_close(gate, expected)
    torch.testing.assert_close(AttentionNorm(model).attribute_each(ENCODING, positions=[0])[0], expected)
    of_layer = LayerAttentionNorm(model, model.bert.encoder.layer[1].attention.self)
    of_ids = of_layer.attribute(IDS, additional_forward_args=(MASK, TYPES))
    torch.testing.assert_close(of_layer.attribute(ENCODING), of_ids)


@pytest.mark.parametrize(
    ("forward", "encoding", "message"),
    [
        (lambda ids, mask: None, ENCODING, r"takes ids, mask.*HFForward"),
        (lambda input_ids: None, {"attention_mask": MASK}, r"the encoding has attention_mask"),
        (lambda input_ids, *, attention_mask: None, ENCODING, r"takes attention_mask by keyword only"),
    ],
)
def test_an_encoding_that_cannot_be_passed_by_name_is_refused(forward, encoding, message):
    with pytest.raises(ValueError, match=message):
        AttentionNorm(forward).attribute(encoding)


def test_an_encoding_comes_alone(model):
    with pytest.raises(ValueError, match="only with tensors as inputs"):
        AttentionNorm(model).attribute(ENCODING, additional_forward_args=(MASK,))


def test_padding_without_a_mask_is_warned_of(model):
    with pytest.warns(UserWarning, match=r"1 of 2 texts in inputs\[0\] .* pad id, 0, .* attention_mask"):
        AttentionNorm(model).attribute(IDS)
    with pytest.warns(UserWarning, match="pad id, 0"):
        AttentionNorm(lambda ids: model(ids).logits).attribute(IDS.flip(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AttentionNorm(model).attribute(IDS, additional_forward_args=(MASK,))
        AttentionNorm(model).attribute(IDS[1:])


def test_an_embedding_says_what_padding_is_where_no_configuration_does():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = torch.nn.Sequential(torch.nn.Embedding(30, 8, padding_idx=0), layer).eval()
    with pytest.warns(UserWarning, match="pad id, 0"):
        AttentionNorm(model).attribute(IDS)


def test_padding_under_another_name_is_no_part_of_a_mean(model):
    mean = AttentionNorm(lambda ids, real: model.bert(ids, attention_mask=real).last_hidden_state)
    found = mean.attribute(IDS, additional_forward_args=(MASK,), position="mean")
    alone = mean.attribute(IDS[:1, :4], additional_forward_args=(MASK[:1, :4],), position="mean")
    torch.testing.assert_close(found[:1, :4], alone)
    assert (found[0, 4:] == 0).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [AttentionWeights, AttentionRollout, GlobEnc, ALTI, ValueZeroing])
def test_training_mode_is_refused_by_its_name(method, attention):
    with pytest.raises(RuntimeError, match=r"training mode: its dropout \(p = 0\.1\).*model\.eval\(\)"):
        method(_model(attention).train()).attribute(IDS[1:], target=1)


class Pooled(torch.nn.Module):
    """A mean over all rows, those of padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1)
        self.classifier = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.encoder(x, src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("method", [AttentionNorm, AttentionRelevance, DecompX])
def test_an_output_that_torchs_fused_path_makes_another_one_is_refused(method):
    torch.manual_seed(0)
    model, x, padding = Pooled().eval(), torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    method(lambda x: model(x, padding)).attribute(x, target=1)
    padding[0, 3:] = True
    with pytest.raises(ValueError, match=r"zeros at padding.*enable_nested_tensor=False"):
        method(model).attribute(x, target=1, additional_forward_args=(padding,))
    model.encoder.use_nested_tensor = False
    method(model).attribute(x, target=1, additional_forward_args=(padding,))


class Prompted(torch.nn.Module):
    """Puts three virtual tokens in front of the text, as prompt tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.virtual = torch.nn.Embedding(12, 8), torch.nn.Parameter(torch.randn(1, 3, 8))
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.config = None

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.virtual.expand(len(input_ids), -1, -1), self.tokens(input_ids)], 1)
        return self.layer(x, src_mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1))


def test_positions_count_the_tokens_of_the_input_also_behind_virtual_ones():
    torch.manual_seed(0)
    model, ids = Prompted().eval(), torch.tensor([[5, 6, 7, 8]])
    method = AttentionWeights(model)
    whole = torch.stack([method.attribute(ids, position=row)[0] for row in range(4)])
    assert (whole.triu(1) == 0).all()
    assert (whole.diagonal() > 0).all()
    torch.testing.assert_close(method.attribute(ids, position="all")[0], whole)
    torch.testing.assert_close(method.attribute(ids, position="mean")[0], whole.mean(0))
    torch.testing.assert_close(method.attribute(ids)[0], whole[-1])
    torch.testing.assert_close(method.attribute(ids, target=(4, 0))[0], whole[1])
    torch.testing.assert_close(method.attribute(ids, position=-2)[0], whole[2])
    with pytest.raises(ValueError, match="there are 4 positions"):
        method.attribute(ids, position=4)
    with pytest.raises(ValueError, match=r"7 rows for 4 tokens.*-1 for the last row"):
        HFForward(model)(ids)


class PromptedAndPadded(Prompted):
    """Its virtual tokens are attended to, whatever the mask says of the text."""

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.virtual.expand(len(input_ids), -1, -1), self.tokens(input_ids)], 1)
        return self.layer(x, src_key_padding_mask=torch.nn.functional.pad(mask, (3, 0), value=1) == 0)


@pytest.mark.parametrize("position", [None, 0, -1, [0, 0], "mean", "all"])
@pytest.mark.parametrize("method", [AttentionNorm, AttentionWeights, AttentionRollout, GlobEnc, ALTI])
def test_a_text_without_a_real_token_is_refused_also_behind_virtual_ones(method, position):
    """Virtual tokens are real, but they are nobody's to ask for."""
    model, ids = PromptedAndPadded().eval(), torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="example 1 marks no token as real: nothing to explain"):
        method(model).attribute(ids, additional_forward_args=(mask,), position=position)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("position", [None, 0, "mean"])
def test_a_text_without_a_real_token_is_refused_also_where_its_row_is_read(kernel, position):
    """In eager attention a mask of nothing leaves even weights over padding, which are nobody's."""
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config).eval()
    model.set_attn_implementation(kernel)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="example 1 marks no token as real: nothing to explain"):
        AttentionWeights(model).attribute(IDS, additional_forward_args=(mask,), position=position)
