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
