"""Published forms are read as they are written: made-up samples of each."""

import csv
import json

import pytest

from captum_norm.study import read_examples
from captum_norm.study.evidence import main
from captum_norm.study.published import (
    alignment_examples,
    blimp_examples,
    cose_examples,
    eraser_examples,
    esnli_examples,
    hatexplain_examples,
)


def lines(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def marked(example):
    spans = (example.evidence, example.evidence_pair)
    return [[text[a:b] for a, b in of or ()] for text, of in zip(example.texts, spans, strict=False)]


def test_eraser_has_texts_and_pairs_of_documents_or_a_query(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one").write_text("A warm film .\nSee it .")
    lines(tmp_path / "docs.jsonl", {"docid": "two", "document": "The film is cold ."})
    passage = {"docid": "one", "start_token": 1, "end_token": 3}
    other = {"docid": "two", "start_token": 3, "end_token": 4}
    base = {"classification": "POS", "query": ""}
    path = lines(
        tmp_path / "val.jsonl",
        {**base, "annotation_id": "one", "evidences": [[passage]]},
        {**base, "annotation_id": "pair", "docids": ["one", "two"], "evidences": [[passage], [other]]},
        {**base, "annotation_id": "asked", "docids": ["two"], "evidences": [[other]], "query": "Is it cold ?"},
        {**base, "annotation_id": "none", "docids": ["one"], "evidences": []},
    )
    one, pair, asked = eraser_examples(path)
    assert (one.texts, marked(one)) == (("A warm film . See it .",), [["warm film"]])
    assert marked(pair) == [["warm film"], ["cold"]]
    assert (asked.texts, marked(asked)) == (("The film is cold .", "Is it cold ?"), [["cold"], []])
    lines(path, {**base, "annotation_id": "x", "docids": ["three"], "evidences": []})
    with pytest.raises(ValueError, match=r"val.jsonl, line 1: the document 'three' is not beside it"):
        list(eraser_examples(path))


def test_esnli_has_pairs_with_words_that_most_have_marked(tmp_path):
    path = tmp_path / "esnli_dev.csv"
    row = {"pairID": "7", "gold_label": "contradiction", "Sentence1": "A man sleeps.", "Sentence2": "He runs fast."}
    row |= {"Sentence1_marked_1": "A man *sleeps.*", "Sentence1_marked_2": "*A* man *sleeps.*"}
    row |= {"Sentence1_marked_3": "A man sleeps.", "Sentence2_marked_1": "He *runs* fast.", "Sentence2_marked_2": ""}
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(row))
        writer.writeheader()
        writer.writerow(row)
    [one] = esnli_examples(path)
    assert (one.key, one.label) == ("7", "contradiction")
    assert marked(one) == [["sleeps."], ["runs"]]


def test_hatexplain_is_by_majority(tmp_path):
    post = {
        "post_tokens": ["you", "are", "bad"],
        "annotators": [{"label": "offensive"}, {"label": "offensive"}, {"label": "normal"}],
        "rationales": [[0, 0, 1], [1, 0, 1]],
    }
    undecided = {**post, "annotators": [{"label": name} for name in ("offensive", "normal", "hatespeech")]}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"1": post, "2": undecided, "3": {**post, "rationales": []}}))
    [one] = hatexplain_examples(path)
    assert (one.key, one.label, marked(one)) == ("1", "offensive", [["bad"]])


def test_cose_asks_with_the_right_answer(tmp_path):
    choices = [{"label": "A", "text": "bank"}, {"label": "B", "text": "tree"}]
    question = {"id": "q", "answerKey": "A", "question": {"stem": "Where is money kept?", "choices": choices}}
    path = lines(tmp_path / "cose_dev_processed.jsonl", {"id": "q", "explanation": {"selected": "cash"}})
    with pytest.raises(ValueError, match="should lie beside it"):
        list(cose_examples(path))
    lines(tmp_path / "dev_rand_split.jsonl", question)
    assert list(cose_examples(path)) == []  # not in these words
    lines(path, {"id": "q", "explanation": {"selected": "money"}})
    [one] = cose_examples(path)
    assert (one.texts, one.label, marked(one)) == (("Where is money kept?", "bank"), "A", [["money"], []])


def test_blimp_is_a_beginning_and_its_good_continuation(tmp_path):
    pair = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps.", "UID": "agreement", "pairID": "3"}
    path = lines(tmp_path / "agreement.jsonl", pair, {**pair, "sentence_bad": "A cats sleep."})
    [one] = blimp_examples(path)
    assert (one.text, one.label, one.foil, one.key, one.evidence) == (
        "The cats", "sleep", "sleeps", "agreement-3", None,
    )  # fmt: skip


def test_an_alignment_asks_for_a_word_behind_what_was_translated(tmp_path, monkeypatch):
    (tmp_path / "test.de").write_text("das stimmt nicht !\nja\n")
    (tmp_path / "test.en").write_text("but this is not so .\nyes\n")
    path = tmp_path / "alignment.talp"
    path.write_text("3-4 1p4 2-3 4-6 2-4\n1-1\n")  # from 1; nothing is before "yes"
    monkeypatch.setattr("sys.argv", ["evidence", "alignment", str(path), "--output", str(tmp_path / "x.jsonl")])
    main()
    for [one] in (list(alignment_examples(path)), read_examples(tmp_path / "x.jsonl")):
        assert (one.label, one.written, marked(one)) == ("not", "but this is", [["stimmt", "nicht"]])


def test_files_with_byte_order_marks_and_characters_that_break_no_line_are_read(tmp_path):
    (tmp_path / "test.de").write_text("\ufeffdas stimmt\u2028nicht !\n", "utf-8")
    (tmp_path / "test.en").write_text("\ufeffbut this is not so .\n", "utf-8")
    path = tmp_path / "alignment.talp"
    path.write_text("3-4 1p4 2-3 4-6 2-4\n")
    [one] = alignment_examples(path)
    assert one.text == "das stimmt nicht !"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one").write_text("\ufeffA warm film .", "utf-8")
    passage = {"docid": "one", "start_token": 1, "end_token": 2}
    record = {"annotation_id": "one", "classification": "POS", "query": "Is it\u2028warm ?", "evidences": [[passage]]}
    path = tmp_path / "val.jsonl"
    path.write_text(f"\ufeff{json.dumps(record, ensure_ascii=False)}\n", "utf-8")
    [one] = eraser_examples(path)
    assert (one.texts, marked(one)) == (("A warm film .", "Is it\u2028warm ?"), [["warm"], []])


def test_pairs_are_written_and_read_again(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one").write_text("A warm film .")
    passage = {"docid": "one", "start_token": 1, "end_token": 2}
    record = {"annotation_id": "one", "classification": "POS", "query": "Is it warm ?", "evidences": [[passage]]}
    path = lines(tmp_path / "val.jsonl", record)
    monkeypatch.setattr("sys.argv", ["evidence", "eraser", str(path), "--output", str(tmp_path / "x.jsonl")])
    main()
    [one] = read_examples(tmp_path / "x.jsonl")
    assert (one.texts, marked(one)) == (("A warm film .", "Is it warm ?"), [["warm"], []])


def test_marked_words_are_found_where_they_stand_whatever_their_letters_become_in_another_case(tmp_path):
    stem = "In \u0130stanbul, where is a COLD river (or so) found?"  # a letter that is two in lower case
    choices = [{"label": "A", "text": "valley"}]
    question = {"id": "q", "answerKey": "A", "question": {"stem": stem, "choices": choices}}
    lines(tmp_path / "dev_rand_split.jsonl", question)
    for selected in ("cold river", "River (or so)"):
        path = lines(tmp_path / "cose.jsonl", {"id": "q", "explanation": {"selected": selected}})
        [one] = cose_examples(path)
        [found] = marked(one)[0]
        assert found.lower() == selected.lower()


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("Diane watched.", "Diane watched Alan."),  # a mark differs, no word
        ("Diane watched .", "Diane watched Alan ."),
        ("Diane watched Alan .", "Diane watched ."),
        ("Diane watched", "Diane watched Alan"),
    ],
)
def test_sentences_of_which_one_ends_where_the_other_goes_on_have_no_two_words_to_set_against_each_other(
    tmp_path, good, bad
):
    pair = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}
    path = lines(tmp_path / "drop.jsonl", {"sentence_good": good, "sentence_bad": bad}, pair)
    [one] = blimp_examples(path)
    assert (one.label, one.foil, one.key) == ("sleep", "sleeps", "drop-1")


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ("1-1 0-2", "alignment.talp, line 1 holds the link 0-2, but its sentences have 4 and 6 words, counted from 1"),
        ("1-0", "line 1 holds the link 1-0"),
        ("5-2", "line 1 holds the link 5-2"),
        ("1p7", "line 1 holds the link 1p7"),
        ("1:1", "line 1 holds '1:1', which is no link"),
        ("1-1\n2-2", "a line should belong to .* test.de has 1, test.en has 1, alignment.talp has 2 lines"),
    ],
)
def test_links_of_words_that_the_sentences_do_not_have_are_refused(tmp_path, links, says):
    (tmp_path / "test.de").write_text("das stimmt nicht !\n")
    (tmp_path / "test.en").write_text("but this is not so .\n")
    path = tmp_path / "alignment.talp"
    path.write_text(f"{links}\n")
    with pytest.raises(ValueError, match=says):
        list(alignment_examples(path))


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (0, 0), (3, 9)])
def test_a_passage_that_its_document_does_not_have_is_refused(tmp_path, start, end):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one").write_text("A warm film .")
    passage = {"docid": "one", "start_token": start, "end_token": end}
    record = {"annotation_id": "one", "classification": "POS", "evidences": [[passage]]}
    with pytest.raises(ValueError, match=f"line 1: a passage of tokens {start} to {end}, but its document has 4"):
        list(eraser_examples(lines(tmp_path / "val.jsonl", record)))


def test_a_name_stands_for_one_document_or_question(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one").write_text("A warm film .")
    passage = {"docid": "one", "start_token": 1, "end_token": 2}
    record = {"annotation_id": "one", "classification": "POS", "evidences": [[passage]]}
    path = lines(tmp_path / "val.jsonl", record)
    lines(tmp_path / "docs.jsonl", {"docid": "one", "document": "A warm\nfilm ."})
    assert len(list(eraser_examples(path))) == 1  # the same words twice
    lines(tmp_path / "docs.jsonl", {"docid": "one", "document": "A cold film ."})
    with pytest.raises(ValueError, match="docs/one: 'one' was read before, and was another"):
        list(eraser_examples(path))
    question = {"id": "q", "answerKey": "A", "question": {"stem": "Where?", "choices": []}}
    lines(tmp_path / "dev_rand_split.jsonl", question, question | {"answerKey": "B"})
    with pytest.raises(ValueError, match="line 2: 'q' was read before, and was another"):
        list(cose_examples(path))


def test_documents_in_a_broken_archive_are_refused(tmp_path):
    (tmp_path / "docs.tar.gz").write_bytes(b"this is no archive")
    with pytest.raises(ValueError, match=r"docs\.tar\.gz is no archive of UTF-8 documents"):
        list(eraser_examples(lines(tmp_path / "val.jsonl")))


@pytest.mark.parametrize(
    ("examples_of", "content", "says"),
    [
        (blimp_examples, '{"id": 1}', "line 1 has no 'sentence_good', which records of blimp have"),
        (blimp_examples, '{"sentence_good": 1, "sentence_bad": 2}', "line 1 is not written as records of blimp are"),
        (blimp_examples, '\n{"id": 1', "line 2 is no JSON"),
        (esnli_examples, "a,b\n1,2\n", "line 2 has no 'Sentence1', which records of esnli have"),
        (esnli_examples, "a,b\n1\n", "line 2 should have 2 columns"),
        (eraser_examples, '{"annotation_id": "a"}', "line 1 has no 'evidences', which records of eraser have"),
        (hatexplain_examples, '{"7": {"annotators": []}}', ", 7 is not written as records of hatexplain are"),
        (hatexplain_examples, '{"7": 1, "7": 2}', "has the field '7' twice"),
        (hatexplain_examples, "[", "is no JSON"),
    ],
)
def test_what_is_not_in_its_form_is_said_with_its_place(tmp_path, examples_of, content, says):
    path = tmp_path / "x.data"
    path.write_text(content)
    with pytest.raises(ValueError, match=says) as refused:
        list(examples_of(path))
    assert str(refused.value).startswith(str(path))
