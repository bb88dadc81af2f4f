"""Each text may have a question of its own: whose tag, which answer, which next token."""

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from captum_norm import AttentionNorm, HFForward
from captum_norm.class_names import ClassNames
from captum_norm.study import Example, Study
from captum_norm.study.batches import Padding, class_of, padded, pair_of, tokenize
from captum_norm.study.metrics import Comprehensiveness
from captum_norm.study.metrics.normalised import NormalisedComprehensiveness
from tests.cli.models import counting_model
from tests.study import tiny

METRICS = [Comprehensiveness(removal="mask"), NormalisedComprehensiveness(removal="mask", exact=3, beams=1)]


def model_of(kind, **options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(tiny.PIECES), initializer_range=0.3, **sizes, **options)
        return kind(config).eval()


def study(model, tokenizer=None, methods=("AttentionNorm", "Saliency"), metrics=METRICS, **options):
    return Study(model, tokenizer or tiny.tokenizer(), list(methods), metrics, batch_size=3, **options)


def outputs(model, texts, name="logits"):
    with torch.no_grad():
        return getattr(model(**tiny.tokenizer()(*texts, return_tensors="pt")), name)[0].double()


TAGGED = [
    Example("A warm film.", 1, span=(7, 11)),
    Example("The cast shines and the film is delightful.", 2, span=(32, 42)),
    Example("Dull.", 0, span=(0, 4)),
    Example("The plot is thin.", 2, span=(12, 16)),
]


def test_the_tag_of_each_texts_own_word_is_explained(tmp_path):
    model, tokenizer = model_of(BertForTokenClassification, num_labels=3), tiny.tokenizer()
    results = study(model, tokenizer).run(TAGGED, tmp_path / "s.db", progress=False)
    rows = [3, 9, 1, 4]
    for place, (example, row) in enumerate(zip(TAGGED, rows, strict=True)):
        logits = outputs(model, example.texts)
        said = results.explained[place]
        assert (said.predicted, said.label) == (int(logits[row].argmax()), example.label)
        assert said.probability == pytest.approx(float(logits.softmax(-1)[row].max()), rel=1e-5)
        alone = HFForward(model, position=row)
        scores = AttentionNorm(alone).attribute(**alone.inputs(tokenizer([example.text], return_tensors="pt")))
        assert results.scores("AttentionNorm")[place] == pytest.approx(scores[0].numpy(), rel=1e-4, abs=1e-6)
    assert not results.failures()
    assert all(abs(value) > 0 for value in results.values("comprehensiveness")["Saliency"])


def test_rows_are_counted_in_the_padded_batch():
    texts = tuple(tokenize(TAGGED[:2], tiny.tokenizer(), model_of(BertForTokenClassification)))
    assert padded(0, texts, Padding(0, "right")).rows.tolist() == [3, 9]
    assert padded(0, texts, Padding(0, "left")).rows.tolist() == [10, 9]
    assert padded(0, texts, Padding(0, "left"), torch.tensor([1, 2])).single(0, Padding(0, "left")).rows.tolist() == [3]


def test_where_nobody_says_whose_tag_or_deleting_would_move_it_the_study_is_refused(tmp_path):
    model = model_of(BertForTokenClassification, num_labels=3)
    with pytest.raises(ValueError, match="Say whose is explained: a span"):
        study(model).run(["A warm film."], tmp_path / "s.db")
    with pytest.raises(ValueError, match="comprehensiveness deletes tokens, and a row"):
        study(model, metrics=["comprehensiveness"]).run(TAGGED, tmp_path / "s.db")
    with pytest.raises(ValueError, match="has no span, but others have one"):
        study(model).run([TAGGED[0], Example("Dull.")], tmp_path / "s.db")
    with pytest.raises(ValueError, match="position=1 is for all examples, and each has a span"):
        study(model, position=1).run(TAGGED, tmp_path / "s.db")
    with pytest.raises(ValueError, match=r"no token overlaps the span \[1, 2\]"):
        study(model).run([Example("A warm film.", span=(1, 2))], tmp_path / "s.db")


QUESTIONS = [
    Example("Is it dull?", text_pair="The plot is thin and dull.", span_pair=(21, 25)),
    Example("What shines?", text_pair="The cast shines.", span_pair=(4, 8)),
    Example("A warm film?", text_pair="A film that never feels forced, a delight.", span_pair=(0, 6)),
]


@pytest.mark.parametrize("which", ["predicted", "label"])
def test_an_answer_begins_in_the_passage_and_its_place_is_read_from_its_row(tmp_path, which):
    model = model_of(BertForQuestionAnswering)
    results = study(model, target=which).run(QUESTIONS, tmp_path / "s.db", progress=False)
    for place, example in enumerate(QUESTIONS):
        encoding = tiny.tokenizer()(*example.texts)
        logits = outputs(model, example.texts, "start_logits")
        passage = torch.tensor([of == 1 for of in encoding.sequence_ids(0)])
        p = logits.masked_fill(~passage, -torch.inf).softmax(-1)
        said, label = results.explained[place], encoding.char_to_token(example.span_pair[0], sequence_index=1)
        assert (said.predicted, said.label) == (int(p.argmax()), label)
        assert said.target == (said.predicted if which == "predicted" else label)
        assert said.probability == pytest.approx(float(p[said.target]), rel=1e-5)
        alone = HFForward(model, position=said.target)
        scores = AttentionNorm(alone).attribute(**alone.inputs(tiny.tokenizer()([example.texts], return_tensors="pt")))
        assert results.scores("AttentionNorm")[place] == pytest.approx(scores[0].numpy(), rel=1e-4, abs=1e-6)
    assert not results.failures()
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="let the tokenizer pad on the right"):
        study(model, tokenizer).run(QUESTIONS, tmp_path / "t.db")


def test_the_token_behind_what_has_been_written_is_explained(tmp_path):
    [_, (model, tokenizer)] = tiny.language_models()
    beginnings = ["the plot", "dull", "a warm film that"]
    examples = [Example(t, "dull", written=w) for (t, _), w in zip(tiny.TEXTS, beginnings, strict=False)]
    results = study(model, tokenizer, metrics=["comprehensiveness"]).run(examples, tmp_path / "s.db", progress=False)
    for place, example in enumerate(examples):
        written = tokenizer(example.written, add_special_tokens=False)["input_ids"]
        encoding = tokenizer(example.text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoding, decoder_input_ids=torch.tensor([[0, *written]])).logits[0, -1]
        assert results.explained[place].predicted == int(logits.argmax())
        assert results.explained[place].probability == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)
        assert results.explained[place].label == tiny.PIECES.index("dull")
    assert not results.failures()


def test_the_word_that_continues_a_text_is_a_label_of_a_language_model():
    [(decoder, bare), _] = tiny.language_models()
    texts = [Example("the plot is", "thin"), Example("the plot is", "7"), Example("a warm", "delightful film")]
    labels = [text.label for text in tokenize(texts, bare, decoder)]
    assert labels == [tiny.PIECES.index("thin"), None, tiny.PIECES.index("delight")]
    with pytest.raises(ValueError, match="says what has been written, but GPT2LMHeadModel has no decoder of its own"):
        tokenize([Example("the plot", written="is")], bare, decoder)


def test_a_numeral_that_continues_a_text_is_the_token_that_is_written_so():
    model, counting = counting_model()
    texts = [
        Example("two plus five is", "7", foil="8"), Example("two plus five is", 7, foil=8),
        Example("two plus five is", "3"), Example("two plus five is", " 42"),
    ]  # fmt: skip
    read = tokenize(texts, counting, model)
    assert [class_of(text, ClassNames({}), 50) for text in read] == [5, 7, 3, 8]
    assert [pair_of(text, ClassNames({}), 50) for text in read[:2]] == [(5, 6), (7, 8)]
    with pytest.raises(ValueError, match=r"the label '42' may be a token's number or the text '42'.*\['4', '2'\]"):
        tokenize([Example("two plus five is", "42")], counting, model)


@pytest.mark.parametrize("label", ["ж", " ж film"])
def test_a_label_that_the_vocabulary_does_not_have_is_no_unknown_token(label):
    [(decoder, bare), _] = tiny.language_models()
    with pytest.raises(ValueError, match=rf"the vocabulary has no token that the label '{label}' begins with"):
        tokenize([Example("the plot is", label)], bare, decoder)
    [text] = tokenize([Example("the plot is", bare.unk_token)], bare, decoder)
    assert text.label == bare.unk_token_id


def test_a_label_in_letters_of_another_case_is_refused_where_it_may_be_several_classes():
    [text] = tokenize([Example("A warm film.", "pos")], tiny.tokenizer(), tiny.classifier())
    assert class_of(text, ClassNames({0: "neg", 1: "POS"}), 2) == 1
    assert class_of(text, ClassNames({0: "POS", 1: "pos"}), 2) == 1
    with pytest.raises(ValueError, match="the label 'pos' may be any of the classes 0, 1: give the number"):
        class_of(text, ClassNames({0: "POS", 1: "Pos"}), 2)


@pytest.mark.parametrize("label", ["²", "--1", "٣"])
def test_a_label_that_only_looks_like_a_number_is_no_class(label):
    [text] = tokenize([Example("A warm film.", label)], tiny.tokenizer(), tiny.classifier())
    with pytest.raises(ValueError, match=r"the label '.*' is no class of the model, which has 0 to 3"):
        class_of(text, ClassNames({}), 4)


def test_a_text_may_have_no_sources_beside_texts_that_have_some():
    data = [Example("A warm film.", sources=((0, 6),)), Example("Dull.", sources=())]
    some, none = tokenize(data, tiny.tokenizer(), model_of(BertForTokenClassification))
    assert 0 in some.sources.tolist()
    assert set(none.sources.tolist()) == {-1}
