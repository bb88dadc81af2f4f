"""Classes by their names."""

import pytest
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from captum_norm.class_names import ClassNames
from captum_norm.comparison.tasks import question
from tests.study import tiny


def test_a_class_is_found_as_it_is_written_before_it_is_in_letters_of_another_case():
    names = ClassNames({0: "B-per", 1: "b-PER", 2: "O"})
    assert [names.number_of(asked) for asked in ("B-per", "b-PER", "o", "x")] == [0, 1, 2, None]
    with pytest.raises(ValueError, match="'b-per' may be any of the classes 0, 1: give the number"):
        names.number_of("b-per")


def test_a_name_that_two_classes_have_is_refused():
    with pytest.raises(ValueError, match="'same' may be any of the classes 0, 1"):
        ClassNames({0: "same", 1: "same"}).number_of("same")


def test_a_model_without_names_has_none():
    assert list(ClassNames.of(object())) == []
    assert not ClassNames.of(object())


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)),
        T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
        BertForMaskedLM(BertConfig(**SMALL)),
        BertForMaskedLM(BertConfig(**SMALL, id2label={0: "bad", 1: "good"})),  # it was fine-tuned as a classifier once
        BertModel(BertConfig(**SMALL)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_tokens_and_features_have_no_names_of_classes(model):
    assert model.config.id2label
    assert not ClassNames.of(model)


def test_a_classifier_has_the_names_of_its_config():
    assert ClassNames.of(BertForSequenceClassification(BertConfig(**SMALL))).names == {0: "LABEL_0", 1: "LABEL_1"}
    told = BertConfig(**SMALL, id2label={0: "bad", 1: "good"})
    assert ClassNames.of(BertForSequenceClassification(told)).names == {0: "bad", 1: "good"}


def test_a_target_of_compare_is_a_class_s_name_whatever_its_case():
    config = BertConfig(
        vocab_size=len(tiny.PIECES), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        id2label={0: "Up", 1: "UP", 2: "down"},
    )  # fmt: skip
    asked = question(BertForSequenceClassification(config).eval(), tiny.tokenizer(), "a warm film")
    assert [asked.index_of(name) for name in ("Up", "UP", "DOWN")] == [0, 1, 2]
    assert asked.label(1) == "UP"
    with pytest.raises(ValueError, match="target 'up' may be any of the classes 0, 1: give the number"):
        asked.index_of("up")
