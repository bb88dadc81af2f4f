"""Published data sets become texts with evidence, in their own words."""

import json
import tarfile

import pytest

from captum_norm.study import read_examples
from captum_norm.study.data import Example
from captum_norm.study.evidence import (
    cad_examples,
    carriers,
    changed_words,
    drawn,
    main,
    movie_examples,
    read_tree,
    sst_examples,
    write,
)


def test_a_tree_is_read_with_its_words_and_ratings():
    words, tree = read_tree("(1 (2 It) (1 (1 (2 is) (1 n't)) (2 -LRB-)))")
    assert words == ["It", "is", "n't", "("]
    assert (tree.rating, tree.start, tree.end) == (1, 0, 4)
    assert [(p.rating, p.start, p.end) for p in tree.parts] == [(2, 0, 1), (1, 1, 4)]


@pytest.mark.parametrize("line", ["", "It works", "(3 It", "(3 It))", "(3 )", "(3 a) (2 b)"])
def test_what_is_no_tree_is_refused(line):
    with pytest.raises(ValueError, match="x, line 1 is no tree"):
        read_tree(line, "x, line 1")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("(4 (4 (3 Good) (2 and)) (4 (4 great) (2 .)))", ["Good and", "great ."]),  # the largest, not the words
        ("(3 (4 (3 Good) (2 one)) (2 (2 or) (2 two)))", ["Good one"]),  # stronger counts
        ("(4 (2 (3 Good) (2 one)) (2 (2 or) (2 two)))", []),  # weaker does not
        ("(0 (4 great) (0 (0 bad) (2 it)))", ["bad"]),  # nor the other side; half of the words at most
    ],
)
def test_evidence_is_the_largest_phrases_with_the_polarity_at_its_strength(line, found):
    words, tree = read_tree(line)
    assert [" ".join(words[p.start : p.end]) for p in carriers(tree)] == found


def test_sentences_are_spelt_as_they_are_written_and_evidence_follows(tmp_path):
    path = tmp_path / "dev.txt"
    path.write_text(
        "(1 (2 It) (1 (2 (2 does) (2 n't)) (1 (2 quite) (1 (1 fail) (2 .)))))\n\n(2 (2 Fine) (2 .))\n"
        "(4 (4 (4 Great) (2 film)) (4 (4 great) (2 cast)))\n"
    )
    [one] = sst_examples(path)  # the neutral one and the one that is evidence as a whole are left out
    assert (one.text, one.label, one.key) == ("It doesn't quite fail .", "negative", "dev-1")
    assert [one.text[a:b] for a, b in one.evidence] == ["quite fail ."]


def test_changed_words_are_those_the_other_version_lacks():
    text, other = "This film is a true delight , see it", "This film is a true bore , see it not"
    assert [text[a:b] for a, b in changed_words(text, other)] == ["delight"]
    assert [other[a:b] for a, b in changed_words(other, text)] == ["bore", "not"]
    assert changed_words(text, text) == ()


def test_as_many_of_each_label_are_drawn_whatever_their_order():
    examples = [Example(f"Film {i}.", label="positive" if i % 3 else "negative") for i in range(30)]
    chosen = drawn(examples, 12)
    assert [one.label for one in chosen].count("negative") == 6
    assert chosen == drawn(examples[::-1], 12)
    with pytest.raises(ValueError, match="only 30 have evidence"):
        drawn(examples, 31)


def test_every_source_becomes_a_file_that_a_study_reads(tmp_path, monkeypatch, capsys):
    (tmp_path / "dev.txt").write_text("(4 (2 (2 A) (2 rather)) (4 (4 lovely) (2 film)))\n")
    (tmp_path / "pairs.tsv").write_text(
        "Sentiment\tText\tbatch_id\nNegative\tA bad<br />film\t1\nPositive\tA good film\t1\n"
        "Negative\tA bad cast\t2\nPositive\tA good cast\t2\n"
    )
    record = {"annotation_id": "a.txt", "classification": "NEG"}
    record["evidences"] = [[{"docid": "a.txt", "start_token": 1, "end_token": 3}]]
    (tmp_path / "val.jsonl").write_text(json.dumps(record))
    (tmp_path / "a.txt").write_text("a\nvery bad film")
    with tarfile.open(tmp_path / "docs.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "docs/a.txt")
    found = []
    for source, name in (("sst", "dev.txt"), ("cad", "pairs.tsv"), ("movies", "val.jsonl")):
        output = tmp_path / f"{source}-out.jsonl"
        monkeypatch.setattr("sys.argv", ["evidence", source, str(tmp_path / name), "--output", str(output)])
        main()
        found += [(one.label, [one.text[a:b] for a, b in one.evidence]) for one in read_examples(output)]
    assert found == [
        ("positive", ["lovely film"]),
        ("negative", ["bad"]),
        ("positive", ["good"]),
        ("negative", ["very bad"]),
    ]
    assert "2 of 2 texts with evidence" in capsys.readouterr().out


def test_files_with_byte_order_marks_and_characters_that_break_no_line_are_read(tmp_path):
    (tmp_path / "dev.txt").write_text("\ufeff(4 (2 (2 A) (2 rather)\x85) (4 (4 lovely) (2 film)))\n", "utf-8")
    assert [one.text for one in sst_examples(tmp_path / "dev.txt")] == ["A rather lovely film"]
    (tmp_path / "pairs.tsv").write_text(
        "\ufeffSentiment\tText\tbatch_id\nNegative\tA bad film\t1\nPositive\tA good film\t1\n", "utf-8"
    )
    assert [one.label for one in cad_examples(tmp_path / "pairs.tsv")] == ["negative"]


def test_writing_is_whole_or_not_at_all(tmp_path):
    with pytest.raises(TypeError):
        write([Example("Fine.", key="0"), Example("Fine.", key=b"1")], tmp_path / "x.jsonl")
    assert not list(tmp_path.iterdir())


def test_changed_words_are_marked_where_they_stand_whatever_is_between_them():
    text = "A  warm\n film,  so "
    assert [text[a:b] for a, b in changed_words(text, "A cold film, not")] == ["warm", "so"]


def called(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["evidence", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "content", "more", "says"),
    [
        ("cad", "Sentiment\tText\nPositive\tgood\n", (), "x.data, line 2 has no 'batch_id', which records of cad have"),
        ("cad", "Sentiment\tText\tbatch_id\nGood\tgood\t1\n", (), "line 2: Sentiment should be Negative or Positive"),
        ("blimp", '{"id": 1\n', (), "x.data, line 1 is no JSON"),
        ("blimp", "", (), "x.data: no text with evidence in the form of blimp, so nothing is written"),
        ("sst", "(4 (2 A) (4 film))", ("--count", 0), "--count should be at least 1, got 0"),
        ("sst", "(4 (2 A) (4 film))", ("--count", -1), "--count should be at least 1, got -1"),
        ("sst", "(4 (2 A) (4 film))", ("--count", 2), "2 examples are asked for, but only 1"),
        ("movies", "{}", (), "docs.tar.gz"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_the_output_alone(
    tmp_path, monkeypatch, capsys, source, content, more, says
):
    (tmp_path / "x.data").write_text(content)
    (tmp_path / "out.jsonl").write_text("kept")
    code, said = called(
        monkeypatch, capsys, source, tmp_path / "x.data", "--output", tmp_path / "out.jsonl", *more
    )
    assert code == 2
    assert says in said
    assert (tmp_path / "out.jsonl").read_text() == "kept"


def test_fewer_than_one_example_cannot_be_drawn():
    with pytest.raises(ValueError, match="count should be at least 1, got -1"):
        drawn([Example("Fine."), Example("Dull.")], -1)


def test_a_review_is_as_long_as_it_is(tmp_path):
    (tmp_path / "pairs.tsv").write_text(
        f"Sentiment\tText\tbatch_id\nNegative\t{'bad ' * 50_000}\t1\nPositive\tgood\t1\n"
    )
    [one] = cad_examples(tmp_path / "pairs.tsv")
    assert len(one.text) == 199_999


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classification": "GOOD"}, "line 1: classification should be NEG or POS, got 'GOOD'"),
        ({"annotation_id": "b.txt"}, "line 1: docs.tar.gz beside it has no document 'b.txt'"),
        ({"evidences": [[{"start_token": -2, "end_token": 0}]]}, "a passage of tokens -2 to 0, but its document has 3"),
        ({"evidences": 3}, "line 1 is not written as records of movies are"),
    ],
)
def test_a_review_that_says_another_thing_than_its_document_is_refused(tmp_path, change, says):
    record = {"annotation_id": "a.txt", "classification": "NEG", "evidences": [[{"start_token": 1, "end_token": 3}]]}
    (tmp_path / "a.txt").write_text("very bad film")
    with tarfile.open(tmp_path / "docs.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "docs/a.txt")
    (tmp_path / "val.jsonl").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=says):
        list(movie_examples(tmp_path / "val.jsonl"))
