"""``captum-norm compare`` understands what a model predicts, says which it took, and takes pairs and files."""

import io
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from captum_norm.comparison import compare, question
from captum_norm.comparison.tasks import find_position
from tests.cli.models import TEXT, bert_config, bert_tokenizer, counting_model
from tests.cli.running import answer

CONTEXT = "the plot is thin"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A tiny model of each task, saved."""
    root = tmp_path_factory.mktemp("tasks")
    config = bert_config()
    config.id2label = {0: "O", 1: "PER"}
    heads = (BertForTokenClassification, BertForQuestionAnswering, BertForMaskedLM, BertForMultipleChoice)
    for kind in (*heads, BertModel):
        torch.manual_seed(1)
        kind(config).save_pretrained(root / kind.__name__)
        bert_tokenizer().save_pretrained(root / kind.__name__)
    return root


def saved_by(capsys, *arguments):
    capsys.readouterr()
    code, out, err = answer(capsys, "compare", *arguments, "--json", "-")
    assert (code, err) == (0, "")
    return json.loads(out)


def model_of(tasks, kind):
    return kind.from_pretrained(tasks / kind.__name__).eval().requires_grad_(False)


METHODS = ("--methods", "AttentionNorm", "DecompX", "FeatureAblation")


def test_a_token_classifier_is_explained_at_the_token_it_is_surest_of(capsys, tasks):
    folder = tasks / "BertForTokenClassification"
    saved = saved_by(capsys, TEXT, "--model", folder, *METHODS)
    chances = model_of(tasks, BertForTokenClassification)(**bert_tokenizer()(TEXT, return_tensors="pt"))
    chances = chances.logits[0, 1:-1].softmax(-1)[:, 1]
    assert saved["task"] == "token classification"
    assert saved["position"] == 1 + int(chances.argmax())
    at = saved_by(capsys, TEXT, "--model", folder, "--position", "film", *METHODS)
    assert at["position"] == 3
    assert "'film'" in at["note"]
    total = sum(at["methods"]["DecompX"]["token_scores"])
    assert total == pytest.approx(at["prediction"]["value"], abs=0.2)  # but for the biases' share


def test_an_answer_is_explained_by_where_it_begins_in_the_context(capsys, tasks):
    folder = tasks / "BertForQuestionAnswering"
    saved = saved_by(capsys, TEXT, "--pair", CONTEXT, "--model", folder, *METHODS)
    encoding = bert_tokenizer()(TEXT, CONTEXT, return_tensors="pt")
    starts = model_of(tasks, BertForQuestionAnswering)(**encoding).start_logits[0]
    inside = [i for i, sequence in enumerate(encoding.sequence_ids(0)) if sequence == 1]
    assert saved["prediction"]["index"] == saved["position"] == max(inside, key=lambda i: float(starts[i]))
    assert saved["task"] == "question answering"
    code, _, err = answer(capsys, "compare", TEXT, "--model", folder)
    assert code == 2
    assert "reads two texts: give the context" in err


def test_a_masked_word_is_explained_where_the_mask_stands(capsys, tasks):
    folder = tasks / "BertForMaskedLM"
    saved = saved_by(capsys, "a warm [MASK] .", "--model", folder, "--target", "film", *METHODS)
    assert (saved["position"], saved["prediction"]["target"]) == (3, "'film'")
    code, _, err = answer(capsys, "compare", TEXT, "--model", folder)
    assert code == 2
    assert "write [MASK] in the text" in err


def test_a_language_model_is_explained_by_the_next_token_it_writes_or_another(capsys, folders):
    folder = folders / "decoder"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].detach()
    saved = saved_by(capsys, TEXT, "--model", folder, *METHODS)
    assert saved["task"] == "causal language model"
    assert (saved["position"], saved["prediction"]["index"]) == (None, int(logits[-1].argmax()))
    total = sum(saved["methods"]["DecompX"]["token_scores"])
    assert total == pytest.approx(float(logits[-1].max()), abs=0.2)  # but for the biases' share
    asked = saved_by(capsys, TEXT, "--model", folder, "--target", "warm", "--position", "2", *METHODS)
    assert asked["prediction"]["index"] == int(logits[2].argmax())
    assert tokenizer.decode(asked["prediction"]["target_index"]).strip() == "warm"
    assert not any(asked["methods"]["DecompX"]["token_scores"][3:])  # what comes later is not seen
    _, out, _ = answer(capsys, "compare", TEXT, "--model", folder, *METHODS[:2])
    assert "taken as causal language model" in out


def test_a_choice_is_explained_by_its_logit(capsys, tasks):
    saved = saved_by(capsys, TEXT, "--pair", CONTEXT, "--model", tasks / "BertForMultipleChoice", *METHODS)
    encoding = bert_tokenizer()(TEXT, CONTEXT, return_tensors="pt")
    logits = model_of(tasks, BertForMultipleChoice)(**{name: one[:, None] for name, one in encoding.items()}).logits
    assert saved["prediction"]["value"] == pytest.approx(float(logits.detach()), rel=1e-5)


def test_an_encoder_compares_two_texts_by_their_cosine(capsys, tasks):
    methods = ("--methods", "AttentionNorm", "InputXGradient", "FeatureAblation")
    saved = saved_by(capsys, TEXT, "--pair", CONTEXT, "--model", tasks / "BertModel", *methods)
    model = model_of(tasks, BertModel)
    encodings = [bert_tokenizer()(text, return_tensors="pt") for text in (TEXT, CONTEXT)]
    a, b = (model(**encoding).last_hidden_state[0].mean(0) for encoding in encodings)
    assert saved["task"] == "similarity"
    assert saved["prediction"]["value"] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), rel=1e-5)


def test_a_head_that_gives_no_states_compares_no_texts():
    model = BertForNextSentencePrediction(bert_config()).eval()
    with pytest.raises(ValueError, match=r"BertForNextSentencePrediction gives none: load the encoder alone"):
        compare(model, bert_tokenizer(), TEXT, CONTEXT, methods=["AttentionNorm"])


def test_what_was_taken_is_said(capsys, tasks):
    _, out, _ = answer(capsys, "compare", "a warm [MASK] .", "--model", tasks / "BertForMaskedLM", *METHODS[:2])
    assert "taken as masked language model" in out


def test_a_pair_of_sentences_has_the_words_of_both(capsys, folders):
    saved = saved_by(capsys, "a warm film", "--pair", "thin plot", "--model", folders / "classifier", *METHODS[:2])
    assert saved["words"] == ["[CLS]", "a", "warm", "film", "[SEP]", "thin", "plot", "[SEP]"]


def test_several_texts_come_as_arguments_from_a_file_or_a_pipe(capsys, folders, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("a warm film\n\nthe plot is thin\tnever warm\n", "utf-8")
    given = ("--model", folders / "classifier", *METHODS[:2])
    from_file = saved_by(capsys, "--file", tmp_path / "texts.txt", *given)["texts"]
    assert [one["text"] for one in from_file] == ["a warm film", "the plot is thin"]
    assert from_file[1]["pair"] == "never warm"
    assert saved_by(capsys, "a warm film", *given) == from_file[0] | {
        "methods": {"AttentionNorm": from_file[0]["methods"]["AttentionNorm"] | {"seconds": pytest.approx(0, abs=9)}}
    }
    (tmp_path / "texts.txt").write_text("\ufeffa warm\u2028film\nthe\x0cplot is thin\n", "utf-8")
    from_file = saved_by(capsys, "--file", tmp_path / "texts.txt", *given)["texts"]
    assert [one["text"] for one in from_file] == ["a warm\u2028film", "the\x0cplot is thin"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a warm film\nthe plot is thin\n"))
    assert len(saved_by(capsys, "--file", "-", *given)["texts"]) == 2
    _, out, _ = answer(capsys, "compare", "a warm film", "the plot is thin", *given)
    assert out.count("taken as sequence classification") == 2


def test_special_tokens_are_dropped_where_asked_and_the_largest_words_stay(capsys, folders):
    given = ("--model", folders / "classifier", *METHODS[:2])
    _, out, _ = answer(capsys, "compare", TEXT, *given, "--specials", "drop", "--top", "2")
    assert "[CLS]" not in out.split("score of each word")[1]
    assert "the 2 largest of 4" in out


def test_shares_add_up_with_and_without_special_tokens(folders):
    model = BertForSequenceClassification.from_pretrained(folders / "classifier").eval()
    for specials in ("keep", "drop"):
        found = compare(model, bert_tokenizer(), TEXT, methods=["AttentionNorm"], specials=specials)
        assert float(found.shares("AttentionNorm")[found.kept()].sum()) == pytest.approx(1)
        assert len(found.as_table().rows) == (6 if specials == "keep" else 4)
    assert "AttentionNorm" in found.agreement_table().to_markdown()


def test_a_target_that_is_not_there_is_refused(tasks):
    asked = question(model_of(tasks, BertForTokenClassification), bert_tokenizer(), TEXT)
    with pytest.raises(ValueError, match=r"no such class\. There are: O, PER"):
        asked.index_of("loc")
    with pytest.raises(ValueError, match="the model has 2 outputs"):
        asked.index_of("7")


def test_a_numeral_is_the_token_that_is_written_so_before_it_is_a_tokens_number():
    asked = question(*counting_model(), "two plus five is")
    assert (asked.index_of("7"), asked.index_of("8"), asked.index_of("cat")) == (5, 6, 7)
    assert (asked.index_of("3"), asked.index_of("42")) == (3, 42)  # no token is written so
    with pytest.raises(ValueError, match=r"target 99: the model has 50 outputs"):
        asked.index_of("99")
    with pytest.raises(ValueError, match=r"target 'zebra' should be one token of the vocabulary.*\['\[UNK\]'\]"):
        asked.index_of("zebra")
    assert asked.index_of("[UNK]") == 0
    found = compare(*counting_model(), "two plus five is", methods=["DecompX"], target="7")
    assert (found.prediction.target, found.prediction.target_index) == ("'7'", 5)


def test_a_numeral_that_is_written_with_a_mark_of_spaces_is_that_token():
    model, _ = counting_model()
    pieces = Tokenizer(models.BPE({"▁": 0, "7": 1, "a": 2, "▁a": 3}, [("▁", "a")]))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    asked = question(model, PreTrainedTokenizerFast(tokenizer_object=pieces), "a 7 a")
    assert (asked.index_of("7"), asked.index_of("a")) == (1, 3)


def test_half_a_character_is_refused_by_the_place_where_it_stands(tasks):
    classifier, half = model_of(tasks, BertForTokenClassification), "a \ud800"
    with pytest.raises(ValueError, match="the text: character 2 is"):
        question(classifier, bert_tokenizer(), half)
    with pytest.raises(ValueError, match="the pair: character 2 is"):
        question(model_of(tasks, BertForQuestionAnswering), bert_tokenizer(), TEXT, half)
    with pytest.raises(ValueError, match="the target: character 2 is"):
        question(*counting_model(), "two plus five is").index_of(half)


def test_digits_that_are_a_word_of_the_text_and_anothers_number_are_refused_as_a_position():
    _, tokenizer = counting_model()
    encoding = tokenizer("2 plus 7 is 42", return_tensors="pt")
    places = [find_position(encoding, "2 plus 7 is 42", asked) for asked in ("7", "1", "-2", 2, "plus")]
    assert places == [2, 1, 4, 2, 1]
    message = r"position '2' is a word of the text, token 0, and the number of another.* -6 is the word, -4 the other"
    with pytest.raises(ValueError, match=message):
        find_position(encoding, "2 plus 7 is 42", "2")
    assert [find_position(encoding, "2 plus 7 is 42", asked) for asked in ("-6", "-4")] == [0, 2]


@pytest.mark.parametrize("written", ["²", "--1", "1.0", "٣"])
def test_what_only_looks_like_a_number_is_refused_by_name(tasks, written):
    asked = question(model_of(tasks, BertForTokenClassification), bert_tokenizer(), TEXT)
    with pytest.raises(ValueError, match="no such class"):
        asked.index_of(written)
    with pytest.raises(ValueError, match="the text has no such word"):
        find_position(asked.encoding, TEXT, written)


@pytest.mark.parametrize("given", [True, 1.0, None])
def test_a_position_that_is_no_number_and_no_word_is_refused(given):
    encoding = bert_tokenizer()(TEXT, return_tensors="pt")
    with pytest.raises(TypeError, match=r"a position should be a whole number or a str, got"):
        find_position(encoding, TEXT, given)


def test_a_class_is_asked_for_by_its_number_as_an_int_and_by_its_name_as_a_str():
    config = bert_config()
    config.id2label, config.label2id = {0: "1", 1: "0"}, {"1": 0, "0": 1}
    model = BertForSequenceClassification(config).eval()
    given = (0, 1, np.int64(1), torch.tensor(0), "0", "1")
    found = [compare(model, bert_tokenizer(), TEXT, methods=["AttentionNorm"], target=target) for target in given]
    assert [one.prediction.target_index for one in found] == [0, 1, 1, 0, 1, 0]
    assert [one.prediction.target for one in found] == ["1", "0", "0", "1", "0", "1"]
    with pytest.raises(ValueError, match="target -1: the model has 2 outputs, 0 to 1"):
        compare(model, bert_tokenizer(), TEXT, methods=["AttentionNorm"], target=-1)
    with pytest.raises(TypeError, match="a target should be a whole number or a str, got True"):
        compare(model, bert_tokenizer(), TEXT, methods=["AttentionNorm"], target=True)


def test_a_token_and_a_place_are_asked_for_by_their_numbers_as_ints(tasks):
    assert question(*counting_model(), "two plus five is").index_of(7) == 7
    asked = question(model_of(tasks, BertForQuestionAnswering), bert_tokenizer(), TEXT, CONTEXT)
    assert (asked.index_of(3), asked.index_of("plot")) == (3, asked.encoding["input_ids"][0].tolist().index(18))


def test_unknown_words_and_masks_of_the_text_are_words_and_no_special_tokens(tasks):
    model = model_of(tasks, BertForTokenClassification)
    methods = ["AttentionNorm", "DecompX"]
    found = compare(model, bert_tokenizer(), "A warm🙂 [MASK] film", methods=methods, specials="drop")
    assert found.words.strings == ("[CLS]", "A", "warm🙂", "[MASK]", "film", "[SEP]")
    assert found.special == (True, False, False, False, False, True)
    assert [row[0] for row in found.as_table().rows] == ["A", "warm🙂", "[MASK]", "film"]
    assert all(found.shares(name)[2] != 0 for name in found.results)


def test_the_token_that_a_classifier_is_surest_of_may_be_an_unknown_word(tasks):
    asked = question(model_of(tasks, BertForTokenClassification), bert_tokenizer(), "zebra")
    assert asked.position == 1
    assert asked.note == "the token '[UNK]', at position 1"
