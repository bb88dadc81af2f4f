"""Data is read as it is written, and what is wrong with it is said with its line."""

import json

import pytest

from captum_norm.study import Example, Fields, read_examples
from captum_norm.study.data import as_examples, digest_of


def written(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)), encoding="utf-8")
    return path


def test_the_three_formats_hold_the_same_examples(tmp_path):
    records = [
        {"id": "a", "text": 'A "warm", long film.', "label": "1", "evidence": [[3, 7]]},
        {"id": "b", "text": "Dull — and thin.", "label": "0", "evidence": []},
    ]
    rows = [[r["id"], r["text"], r["label"], json.dumps(r["evidence"])] for r in records]
    header = ["id", "text", "label", "evidence"]
    doubled = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in [header, *rows]]
    files = [
        written(tmp_path, "films.jsonl", records),
        written(tmp_path, "films.csv", "\n".join(",".join(row) for row in doubled)),
        written(tmp_path, "films.tsv", "\n".join("\t".join(row) for row in [header, *rows])),
    ]
    first, *others = [[vars(one) | {"where": ""} for one in read_examples(file)] for file in files]
    assert [one["key"] for one in first] == ["a", "b"]
    assert first[0]["evidence"] == ((3, 7),)
    assert first[1]["evidence"] is None
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("films.jsonl", '{"label": "1", "text": "A warm film."}\n'),
        ("films.csv", "label,text\n1,A warm film.\n"),
        ("quoted.csv", '"label","text"\n"1","A warm film."\n'),
        ("films.tsv", "label\ttext\n1\tA warm film.\n"),
    ],
)
def test_the_first_column_keeps_its_name_behind_a_byte_order_mark(tmp_path, name, content):
    [one] = read_examples(written(tmp_path, name, f"\ufeff{content}"))
    assert (one.text, one.label) == ("A warm film.", "1")


def test_flags_are_evidence_per_word():
    [one] = as_examples([{"text": " A  warm film.", "evidence": [0, 1, 1]}])
    assert [one.text[a:b] for a, b in one.evidence] == ["warm", "film."]


def test_fields_may_have_other_names_and_examples_may_be_limited(tmp_path):
    path = written(tmp_path, "x.jsonl", [{"review": f"Film {i}.", "stars": i} for i in range(5)])
    found = read_examples(path, Fields(text="review", label="stars"), limit=2)
    assert [(one.text, one.label) for one in found] == [("Film 0.", 0), ("Film 1.", 1)]


def test_pairs_are_read_from_fields_tuples_and_examples():
    record = {"text": "Warm film.", "text_pair": "Dull.", "evidence": [1, 0], "evidence_pair": [[0, 4]]}
    [of_fields] = as_examples([record])
    assert of_fields.texts == ("Warm film.", "Dull.")
    assert (of_fields.evidence, of_fields.evidence_pair) == (((0, 4),), ((0, 4),))
    [of_tuple], [same] = as_examples([("Warm film.", "Dull.")]), as_examples([of_fields])
    assert (of_tuple.texts, of_tuple.evidence_pair) == (of_fields.texts, None)
    assert same == of_fields
    assert digest_of([of_fields]) != digest_of([of_tuple])
    with pytest.raises(ValueError, match="evidence of a second text, and no second text"):
        Example("Warm.", evidence_pair=((0, 2),))


def test_what_is_asked_about_is_read_as_it_was_written(tmp_path):
    asked = {"text": "A warm film.", "span": [2, 6], "written": "Ein warmer"}
    [one], [same] = as_examples([asked]), read_examples(written(tmp_path, "x.jsonl", [asked]))
    assert (one.span, one.written) == (same.span, same.written) == ((2, 6), "Ein warmer")
    (tmp_path / "x.csv").write_text('text,span\nA warm film.,"[2, 6]"\nDull.,\n')
    assert [of.span for of in read_examples(tmp_path / "x.csv")] == [(2, 6), None]
    assert digest_of([Example("A")]) != digest_of([Example("A", span=(0, 1))])


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([{"text": "Fine."}, {"txt": "Fine."}], "line 2 has no field 'text'; it has 'txt'"),
        ([{"text": "Fine."}, {"text": "  "}], "line 2: the text is empty"),
        ([{"text": "Fine."}, {"text": "a \ud800 film"}], "line 2: character 2 is .* half a character"),
        *[
            ([{"text": "Fine.", name: "\udce9"}], "line 1: character 0 is .* half a character")
            for name in ("text_pair", "written", "label", "foil", "id")
        ],
        ([{"text": 3}], "line 1: the field 'text' should be a text, got int"),
        ([{"text": "Fine.", "evidence": [[2, 9]]}], r"line 1: evidence \[2, 9\] ends beyond its text of 5"),
        ([{"text": "Fine.", "evidence": [[3, 3]]}], "is no span"),
        ([{"text": "Fine.", "evidence": [[3, 4, 5]]}], "should be spans"),
        ([{"text": "Fine film.", "evidence": [1]}], "1 flags, but its text has 2 words"),
        ([{"text": "Fine.", "evidence": "[0, "}], "line 1: evidence is no JSON"),
        ([{"text": "Fine.", "span": [0]}], r"line 1: span should be \[start, end\], got \[0\]"),
        ([{"text": "Fine.", "span": [0, 9]}], r"line 1: span \[0, 9\] ends beyond its text of 5"),
        ([{"text": "Fine.", "span_pair": [0, 9]}], "line 1 has a span of a second text, and no second text"),
        ([{"text": "A", "text_pair": "B", "span": [0, 1], "span_pair": [0, 1]}], "one place is asked about"),
        ([{"text": "Fine.", "written": 3}], "line 1: written should be a text, got int"),
        ([{"text": "Fine.", "label": 0.5}], "the label should be a number or a name"),
        ([{"id": 1, "text": "Fine."}, {"id": 1, "text": "Bad."}], "line 2 has the key '1', as .*line 1"),
        ([{"id": None, "text": "Fine."}], "line 1: the field 'id' is null and names nothing"),
        ([{"text": "A \ud800 film."}], r"line 1: character 2 is '\\ud800', half a character"),
        ([{"text": "Fine.", "written": "\udfff"}], r"line 1: character 0 is '\\udfff', half a character"),
        ([], "holds no example"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, records, says):
    with pytest.raises(ValueError, match=says):
        read_examples(written(tmp_path, "x.jsonl", records))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", '{"text": "Fine."}\n{', "line 2 is no JSON"),
        ("x.jsonl", '["Fine."]', "line 1 should be an object"),
        ("x.jsonl", '{"text": "Fine.", "text": "Bad."}', "line 1 has the field 'text' twice"),
        ("x.csv", "text,label,text\na b,1,c d\n", "x.csv, line 1 has two columns 'text'"),
        ("x.tsv", "text\tlabel\tlabel\na b\t1\t2\n", "x.tsv, line 1 has two columns 'label'"),
        ("x.csv", "text,label\nFine,1\nBad", "line 3 should have 2 columns"),
        ("x.csv", 'text,label\n"Fine', "line 1: unexpected end"),
        ("x.txt", "Fine.", "should be a file that ends in"),
    ],
)
def test_a_file_that_is_none_of_the_formats_is_refused(tmp_path, name, content, says):
    with pytest.raises(ValueError, match=says):
        read_examples(written(tmp_path, name, content))


def test_a_file_that_is_not_there_and_an_id_without_a_split_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_examples(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="say which"):
        read_examples("someone/films")


def test_a_data_set_is_loaded_by_its_id(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def load_dataset(name, subset, split):
            asked.append((name, subset, split))
            return [{"sentence": f"Film {i}.", "label": i % 2} for i in range(9)]

    monkeypatch.setattr("captum_norm.study.records.required", lambda module, caller: Library)
    found = read_examples("films/short", Fields("sentence", "label"), split="test", subset="en", limit=2)
    assert asked == [("films/short", "en", "test")]
    assert [(one.text, one.label, one.where) for one in found] == [
        ("Film 0.", 0, "films/short (test), example 0"),
        ("Film 1.", 1, "films/short (test), example 1"),
    ]


def test_the_fingerprint_follows_texts_labels_and_evidence_but_not_their_origin():
    same = [Example("Fine.", where="here")], [Example("Fine.", where="there")]
    assert digest_of(same[0]) == digest_of(same[1])
    others = [
        Example("Fine"),
        Example("Fine.", label=1),
        Example("Fine.", evidence=((0, 4),)),
        Example("Fine.", key="1"),
    ]
    assert len({digest_of([one]) for one in [same[0][0], *others]}) == 5


@pytest.mark.parametrize("field", ["label", "foil"])
def test_an_empty_label_is_none_at_all(field):
    with pytest.raises(ValueError, match=f"example: the {field} is empty. Leave it out where it is not known"):
        Example("A warm film.", **{field: " "})


def test_columns_without_a_name_may_be_several(tmp_path):
    [one] = read_examples(written(tmp_path, "x.csv", "text,label,,\nA warm film.,1,,\n"))
    assert (one.text, one.label) == ("A warm film.", "1")


@pytest.mark.parametrize(
    ("limit", "error", "says"),
    [
        (-1, ValueError, "read_examples: limit should be at least 1, got -1"),
        (0, ValueError, "read_examples: limit should be at least 1, got 0"),
        (2.0, TypeError, "read_examples: limit should be a whole number, got 2.0"),
    ],
)
def test_a_limit_that_leaves_no_example_is_refused(tmp_path, limit, error, says):
    path = written(tmp_path, "x.jsonl", [{"text": "Fine."}])
    with pytest.raises(error, match=says):
        read_examples(path, limit=limit)
