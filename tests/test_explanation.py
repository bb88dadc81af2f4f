"""An explanation says what its scores mean, shows itself safely, and never changes the numbers of ``attribute``."""

import pytest
import torch
from captum.attr import InputXGradient, NoiseTunnel
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from captum_norm import ALTI, AttentionNorm, DecompX, HFForward, explain
from tests.cli.models import bert_config, bert_tokenizer

TEXTS = ["A warm film, delightful!", "the plot is thin"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config()).eval()


@pytest.fixture(scope="module")
def encoding():
    return bert_tokenizer()(TEXTS, return_tensors="pt", padding=True)


def test_scores_are_those_of_attribute_with_its_mask(model, encoding):
    found = explain(AttentionNorm(model), encoding, text=TEXTS)
    arguments = HFForward(model).inputs(encoding)
    assert torch.equal(found.scores, AttentionNorm(HFForward(model)).attribute(**arguments))
    assert found.tokens[1][-3:] == ("[PAD]", "[PAD]", "[PAD]")
    assert not found.real[1, -3:].any()
    assert found.words[0].strings == ("[CLS]", "A", "warm", "film,", "delightful!", "[SEP]")
    assert torch.allclose(found.word_scores(0).sum(), found.scores[0].sum().double())
    assert (found.calls, found.row) == (2, "the one that the output was read from")
    assert 0 <= found.error < found.tolerance


def test_the_method_itself_has_the_report_of_what_was_explained(model, encoding):
    method = AttentionNorm(model)
    found = explain(method, encoding)
    assert len(method.report.certificates) == found.calls == 2
    assert method.forward_func is model


def test_what_explains_an_output_names_it_and_has_signs(model, encoding):
    found = explain(DecompX(model), encoding, target=1)
    assert (found.target, found.signed, found.row) == ("good", True, "")
    assert "explained: good" in repr(found)


def test_a_target_that_is_a_token_goes_by_its_id():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    ids = {"input_ids": torch.tensor([[3, 4, 5]])}
    for target in (0, 1, 7):
        found = explain(DecompX(GPT2LMHeadModel(config).eval()), ids, target=target)
        assert found.target == str(target)


@pytest.mark.parametrize("make", [InputXGradient, lambda forward: NoiseTunnel(InputXGradient(forward))])
def test_captums_own_methods_are_explained_through_a_gate(model, encoding, make):
    found = explain(make(HFForward(model, mode="gate")), encoding, text=TEXTS, target=0)
    assert found.scores.shape == encoding["input_ids"].shape
    assert found.error is None


def test_a_method_on_something_that_takes_no_encoding_is_refused(model, encoding):
    with pytest.raises(TypeError, match=r"explain: AttentionNorm is built on function.*HFForward"):
        explain(AttentionNorm(lambda ids: model(ids)), encoding)


def test_several_rows_are_refused(model, encoding):
    with pytest.raises(ValueError, match=r"one score for each token"):
        explain(ALTI(model), encoding, position="all")


def test_words_need_the_text_of_the_encoding(model, encoding):
    with pytest.raises(ValueError, match="words need the text"):
        explain(AttentionNorm(model), encoding).word_scores()
    with pytest.raises(ValueError, match="3 texts for an encoding of 2"):
        explain(AttentionNorm(model), encoding, text=["a", "b", "c"])


def test_the_tidy_table_has_a_row_for_each_real_token(model, encoding):
    pytest.importorskip("pandas")
    found = explain(AttentionNorm(model), encoding, text=TEXTS)
    table = found.to_pandas()
    assert len(table) == int(encoding["attention_mask"].sum())
    assert table.groupby("example")["share"].sum().tolist() == pytest.approx([1, 1])
    assert table["special"].sum() == 4
    assert set(table["word_text"]) > {"film,", "[CLS]"}


def test_every_spelling_holds_every_word(model, encoding):
    found = explain(AttentionNorm(model), encoding, text=TEXTS)
    for spelled in (found.to_text(), found.to_markdown(), found.to_latex(), found.to_csv(), found._repr_html_()):
        assert all(word in spelled for word in ("delightful!", "thin"))


def test_a_text_is_shown_and_never_run():
    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    model = BertForSequenceClassification(bert_config()).eval()
    text = "<script>alert(1)</script> & \"'"
    shown = explain(AttentionNorm(model), tokenizer(text, return_tensors="pt"), text=text)._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_a_long_batch_is_shown_in_a_few_lines(model):
    encoding = bert_tokenizer()(TEXTS * 40, return_tensors="pt", padding=True)
    found = explain(AttentionNorm(model), encoding)
    assert len(repr(found).splitlines()) < 10
    assert "76 more" in repr(found)


def test_the_method_asked_keeps_the_model_it_was_built_on(model, encoding):
    method = AttentionNorm(model)
    explain(method, encoding)
    assert method.forward_func is model


def test_tokens_are_those_that_were_scored_where_the_encoding_was_changed(model):
    tokenizer = bert_tokenizer()
    encoding = tokenizer(TEXTS, return_tensors="pt", padding=True)
    turned = tokenizer(TEXTS[::-1], return_tensors="pt", padding=True)
    for name in encoding:
        encoding[name] = encoding[name].flip(0)
    expected = explain(AttentionNorm(model), turned)
    for given in ({}, {"tokenizer": tokenizer}):
        found = explain(AttentionNorm(model), encoding, **given)
        assert found.tokens == expected.tokens
        assert torch.equal(found.real, expected.real)
        assert torch.equal(found.special, expected.special)
    with pytest.raises(ValueError, match=r"the ids of example 0 in the encoding are not what the tokenizer made"):
        explain(AttentionNorm(model), encoding, text=TEXTS)


def test_a_token_that_was_replaced_is_named_by_its_id_or_by_the_tokenizer_and_has_no_words(model):
    tokenizer = bert_tokenizer()
    encoding = tokenizer("the plot is thin", return_tensors="pt")
    encoding["input_ids"][0, 2] = tokenizer.unk_token_id
    assert explain(AttentionNorm(model), encoding).tokens[0][1:4] == ("the", "1", "is")
    found = explain(AttentionNorm(model), encoding, tokenizer=tokenizer)
    assert found.tokens[0] == ("[CLS]", "the", "[UNK]", "is", "thin", "[SEP]")
    assert found.special[0].tolist() == [True, False, False, False, False, True]
    with pytest.raises(ValueError, match="Leave text= out"):
        explain(AttentionNorm(model), encoding, text="the plot is thin")
    fewer = tokenizer(TEXTS, return_tensors="pt", padding=True)
    for name in fewer:
        fewer[name] = fewer[name][:1]
    assert len(explain(AttentionNorm(model), fewer).tokens) == 1
    with pytest.raises(ValueError, match="example 1 in the encoding"):
        explain(AttentionNorm(model), fewer, text=TEXTS[0])


def test_real_are_the_tokens_that_the_mask_showed(model):
    encoding = bert_tokenizer()(TEXTS, return_tensors="pt", padding=True)
    encoding["attention_mask"][0, 2] = 0
    found = explain(AttentionNorm(model), encoding, text=TEXTS)
    assert torch.equal(found.real, encoding["attention_mask"].bool())
    assert found.words[0].strings[2] == "warm"
    assert float(found.word_scores(0)[2]) == 0
    encoding["attention_mask"][1, -1] = 1
    with pytest.raises(ValueError, match="the marks of the attention mask of example 1 in the encoding"):
        explain(AttentionNorm(model), encoding, text=TEXTS)


def test_an_example_that_is_not_there_is_refused(model, encoding):
    for found in (explain(AttentionNorm(model), encoding), explain(AttentionNorm(model), encoding, text=TEXTS)):
        for ask in (found.pieces, found.shares, *([found.word_scores] if found.words else [])):
            assert torch.equal(ask(-1)[-1], ask(1)[-1])
            for example in (5, -3, 0.0, True):
                with pytest.raises(ValueError, match=f"example {example} is not there: it holds 2, from 0 on"):
                    ask(example)
