"""``attention_maps`` says of every call what its definition says, and refuses what it cannot take."""


import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    BertModel,
    PreTrainedTokenizerFast,
)

from captum_norm import AttentionNorm, functional
from captum_norm.capture import InexactCaptureError
from captum_norm.maps import attention_maps
from tests.maps.records import IDS, MASK, QUANTITIES, record


def test_every_quantity_is_its_function_of_the_record(emitting):
    one, two = record("a"), record("b", query=2, key=3, heads=2)
    maps = attention_maps(emitting(one, two), IDS, QUANTITIES)
    for i, r in enumerate((one, two)):
        torch.testing.assert_close(maps.weights[i], r.weights)
        torch.testing.assert_close(maps.transformed_norms[i], functional.transformed_norms(r.values, r.W_O))
        torch.testing.assert_close(maps.head_norms[i], functional.head_norms(r.weights, r.values, r.W_O))
        torch.testing.assert_close(maps.summed_norms[i], functional.summed_norms(r.weights, r.values, r.W_O))
    assert [call.name for call in maps.calls] == ["a", "b"]
    assert [float(c) for c in maps.certificate] == [1e-15, 1e-15]


def test_weights_of_a_bert_are_those_it_returns_itself(bert):
    maps = attention_maps(bert, {"input_ids": IDS, "attention_mask": MASK})
    returned = bert(IDS, MASK, output_attentions=True).attentions
    real = MASK.bool()
    for mine, theirs in zip(maps.weights, returned, strict=True):
        torch.testing.assert_close(mine.transpose(1, 2)[real], theirs.transpose(1, 2)[real])


def test_a_mapping_a_tuple_and_a_tensor_say_the_same(bert):
    everything = torch.ones_like(MASK)
    keyword = attention_maps(bert, {"input_ids": IDS, "attention_mask": everything})
    for inputs in ((IDS, everything), IDS):
        torch.testing.assert_close(attention_maps(bert, inputs).summed_norms, keyword.summed_norms)


def test_a_module_called_twice_is_two_calls(emitting):
    maps = attention_maps(emitting(record("shared", call=0), record("shared", call=1)), IDS)
    assert [(call.name, call.call) for call in maps.calls] == [("shared", 0), ("shared", 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_models_give_float32(emitting, dtype):
    maps = attention_maps(emitting(record(dtype=dtype)), IDS, QUANTITIES)
    assert {getattr(maps, name)[0].dtype for name in QUANTITIES} == {torch.float32}


def test_results_are_detached_and_the_model_is_as_it_was(bert):
    before = {name: p.clone() for name, p in bert.state_dict().items()}
    random = torch.get_rng_state()
    maps = attention_maps(bert, IDS, QUANTITIES)
    assert not any(getattr(maps, name)[0].requires_grad for name in QUANTITIES)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], p) for name, p in bert.state_dict().items())
    assert not bert.training
    assert all(p.grad is None and p.requires_grad for p in bert.parameters())


def test_where_keys_and_rows_lie_is_told_by_the_inputs_name(bert):
    maps = attention_maps(bert, {"input_ids": IDS, "attention_mask": MASK})
    assert maps.keys[0].source == maps.queries[0].source == "input_ids"
    assert maps.keys[0].index.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(maps.key_masks[0], MASK.bool())
    assert maps.tokens == ((3, 4, 5, 6, 7), (3, 4, 5, 0, 0))
    assert maps.key_tokens(0, example=1) == ["3", "4", "5", "0", "0"]
    assert maps.versions["model"] == "BertModel"
    assert maps.versions["torch"] == torch.__version__


def test_a_tokenizers_encoding_brings_its_tokens_as_strings(bert):
    pieces = Tokenizer(WordLevel({"[PAD]": 0, "a": 1, "warm": 2, "film": 3}, unk_token="a"))
    pieces.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]")
    encoding = tokenizer(["a warm film", "film"], padding=True, return_tensors="pt", return_token_type_ids=False)
    maps = attention_maps(bert, encoding)
    assert maps.tokens == (("a", "warm", "film"), ("film", "[PAD]", "[PAD]"))
    assert maps.query_tokens(1, example=1) == ["film", "[PAD]", "[PAD]"]
    plain = attention_maps(bert, dict(encoding))
    assert plain.tokens == ((1, 2, 3), (3, 0, 0))


def test_an_unknown_quantity_is_answered_with_those_there_are(bert):
    with pytest.raises(ValueError, match=r"'alphas'. There are: weights, transformed_norms, head_norms, summed_norms"):
        attention_maps(bert, IDS, ("alphas",))


def test_an_element_wise_gate_leaves_f_without_a_norm(emitting):
    gated = record("gated", gate=torch.rand(2, 3, 4, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="no chosen call has transformed_norms: gated: an element-wise gate"):
        attention_maps(emitting(gated), IDS, ("transformed_norms",))
    maps = attention_maps(emitting(record("plain"), gated), IDS, QUANTITIES)
    assert maps.transformed_norms[0].shape == (2, 3, 5)
    with pytest.raises(ValueError, match="gated has no transformed_norms: an element-wise gate"):
        _ = maps.transformed_norms[1]
    with pytest.raises(ValueError, match="gated has no"):
        list(maps.transformed_norms)
    expected = functional.summed_norms(gated.weights, gated.values, gated.W_O, gate=gated.gate)
    torch.testing.assert_close(maps.summed_norms[1], expected)


def test_a_model_in_which_no_attention_is_seen_is_an_error_with_the_way_out():
    with pytest.raises(ValueError, match=r'Linear ran, but no attention call was seen.*attn_implementation="sdpa"'):
        attention_maps(nn.Linear(3, 3), torch.randn(2, 4, 3))


def test_float_ids_are_refused_with_the_remedy(bert):
    with pytest.raises(TypeError, match=r"input_ids is torch.float32.*inputs_embeds"):
        attention_maps(bert, IDS.float())

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, x):
            return self.table(x)

    with pytest.raises(TypeError, match="Own looks up token ids"):
        attention_maps(Own(), IDS.float())


def test_a_text_longer_than_the_positions_is_refused(bert):
    with pytest.raises(ValueError, match=r"input_ids has 17 tokens, but its table of positions ends at 16"):
        attention_maps(bert, torch.ones(1, 17).long())


def test_ids_beyond_the_vocabulary_are_refused(bert):
    with pytest.raises(ValueError, match=r"ids from 1 to 30, but the model knows 0 to 29"):
        attention_maps(bert, torch.tensor([[1, 30]]))


def test_nothing_to_attend_to_is_refused(bert):
    with pytest.raises(ValueError, match=r"input_ids is empty, shape \(1, 0\)"):
        attention_maps(bert, torch.ones(1, 0).long())


def test_a_list_is_no_input(bert):
    with pytest.raises(TypeError, match="BertModel cannot be called with a list"):
        attention_maps(bert, [1, 2, 3])


def test_weights_that_are_nan_name_the_first_call_they_reach(bert):
    broken = BertModel(bert.config).eval()
    with torch.no_grad():
        broken.encoder.layer[1].attention.self.value.weight[0, 0] = torch.nan
    with pytest.raises(InexactCaptureError, match=r"encoder\.layer\.1\.\S* .*NaN"):
        attention_maps(broken, IDS)


def test_a_model_that_attends_example_by_example_is_refused_with_ways_out_that_work():
    torch.manual_seed(0)
    embedding, layer = nn.Embedding(10, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def model(ids):
        return torch.cat([layer(x[None], x[None], x[None])[0] for x in embedding(ids)])

    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(InexactCaptureError, match=r"each call of .* is for one example of several"):
        attention_maps(model, (ids,))
    assert attention_maps(model, (ids[:1],)).weights[0].shape == (1, 2, 3, 3)
    assert len(attention_maps(model, (ids,), layers=[0, 1]).weights) == 2
    with pytest.raises(ValueError, match="it attends example by example: give it one example at a time"):
        AttentionNorm(model).attribute(ids)
    assert AttentionNorm(model).attribute(ids[:1]).shape == (1, 3)
