"""Links are read and written in three formats, and what cannot be read is named with its line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.alignment import GoldLinks, read_links, read_sentences, write_links
from captum_norm.alignment.links import as_naacl, as_pharaoh, as_talp, check_links

LINKS = st.sets(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=8)


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "links"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_a_sure_link_is_always_possible():
    assert GoldLinks({(0, 1)}, {(2, 3)}).possible == {(0, 1), (2, 3)}


def test_talp_marks_possible_links_with_a_p(file):
    [one, two] = read_links(file("9-8 25p22 1-1\n\n"), "talp", first=1)
    assert one == GoldLinks({(8, 7), (0, 0)}, {(24, 21)})
    assert two == GoldLinks(())


def test_pharaoh_links_are_all_sure(file):
    assert read_links(file("0-0 3-1"), "pharaoh", first=0) == [GoldLinks({(0, 0), (3, 1)})]


def test_the_first_word_is_told_and_not_guessed(file):
    path = file("1-1\n")
    assert read_links(path, "pharaoh", first=0)[0].sure == {(1, 1)}
    assert read_links(path, "pharaoh", first=1)[0].sure == {(0, 0)}


def test_the_order_of_the_languages_is_told_and_not_guessed(file):
    assert read_links(file("1-3\n"), "pharaoh", first=0, order="target-source")[0].sure == {(3, 1)}


def test_naacl_has_a_link_on_each_line_sentences_in_any_order(file):
    text = "0002 1 1\n0001 2 3 S\n0001 1 1 P\n\n0002 2 1 P 0.5\n0002 3 3 0.25\n"
    one, two = read_links(file(text), "naacl", first=1)
    assert one == GoldLinks({(1, 2)}, {(0, 0)})
    assert two == GoldLinks({(0, 0), (2, 2)}, {(1, 0)})


def test_naacl_sentences_without_links_are_counted_where_their_number_is_told(file):
    found = read_links(file("0002 1 1 S\n"), "naacl", first=1, sentences=4)
    assert [len(links.sure) for links in found] == [0, 1, 0, 0]


@given(sure=st.lists(LINKS, min_size=1, max_size=4), first=st.sampled_from((0, 1)))
@pytest.mark.parametrize("format", ["talp", "pharaoh", "naacl"])
def test_what_is_written_is_read_again(tmp_path_factory, format, sure, first):
    path = tmp_path_factory.mktemp("links") / "file"
    write_links(path, sure, format, first=first)
    assert read_links(path, format, first=first, sentences=len(sure)) == [GoldLinks(one) for one in sure]


@given(sure=LINKS, possible=LINKS)
def test_gold_links_keep_what_is_sure_and_what_is_possible(tmp_path_factory, sure, possible):
    gold = GoldLinks(sure, possible)
    folder = tmp_path_factory.mktemp("gold")
    (folder / "talp").write_text(as_talp(gold) + "\n")
    (folder / "naacl").write_text(as_naacl(gold, 1) + "\n")
    for format in ("talp", "naacl"):
        assert read_links(folder / format, format, first=1, sentences=1) == [gold]


def test_pharaoh_is_counted_from_zero_and_talp_from_one(tmp_path):
    write_links(tmp_path / "pharaoh", [[(0, 1)]])
    write_links(tmp_path / "talp", [[(0, 1)]], "talp")
    assert [(tmp_path / name).read_text() for name in ("pharaoh", "talp")] == ["0-1\n", "1-2\n"]
    assert as_pharaoh([(0, 1)], first=1) == "1-2"


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("1-1\n1:2\n", "talp", r"links, line 2 holds '1:2', which is no link: talp links are like 4-7"),
        ("1-1\n2p3\n", "pharaoh", r"line 2 holds '2p3', which is no link: Pharaoh"),
        ("1-1\n0-1\n", "talp", r"line 2 holds a 0 in 0-1, but words are counted from 1: is first=0 meant"),
        ("0001 1 1 S\n0001 1\n", "naacl", r"line 2 is no link: '0001 1' should be"),
        ("0001 1 1 X\n", "naacl", r"line 1 marks its link 'X', which is neither S \(sure\) nor P"),
        ("0000 1 1 S\n", "naacl", r"line 1 is of sentence 0"),
        ("-1-1\n", "pharaoh", r"line 1 holds '-1-1', which is no link"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(file, text, format, message):
    with pytest.raises(ValueError, match=message):
        read_links(file(text), format, first=1)


def test_a_file_of_other_sentences_is_refused(file):
    with pytest.raises(ValueError, match="links of 2 sentences, but there are 3"):
        read_links(file("1-1\n1-1\n"), "talp", first=1, sentences=3)


def test_unknown_choices_are_refused(file):
    with pytest.raises(ValueError, match="format should be one of talp, pharaoh, naacl"):
        read_links(file(""), "moses", first=1)
    with pytest.raises(ValueError, match="first is the number of the first word, 0 or 1"):
        read_links(file(""), "talp", first=2)
    with pytest.raises(ValueError, match="order should be"):
        read_links(file(""), "talp", first=1, order="en-de")


def test_sentences_are_cut_at_white_space_and_at_no_other_line_break(file):
    source, target = file("ein\u2028haus .\n", "de"), file("a  house .\n", "en")
    assert read_sentences(source, target) == [(["ein", "haus", "."], ["a", "house", "."])]


def test_a_byte_order_mark_is_no_character(file):
    assert read_sentences(file("\ufeffein\n", "de"), file("a\n", "en")) == [(["ein"], ["a"])]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("eins\nzwei\n", "one\n", "de has 2 lines, .*en has 1"),
        ("eins\n\n", "one\ntwo\n", "de, line 2 is empty: every sentence needs a word"),
        ("eins\nzwei\n", "one\n   \n", "en, line 2 is empty"),
        ("", "", "de is empty: there is nothing to align"),
    ],
)
def test_sentences_that_are_no_pairs_are_refused(file, source, target, message):
    with pytest.raises(ValueError, match=message):
        read_sentences(file(source, "de"), file(target, "en"))


def test_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "de").write_bytes("eins\nfünf\n".encode("latin1"))
    (tmp_path / "en").write_text("one\nfive\n")
    with pytest.raises(ValueError, match="de, line 2 is not UTF-8"):
        read_sentences(tmp_path / "de", tmp_path / "en")


def test_links_beyond_their_sentence_are_refused_with_its_number():
    pairs = [(["a"], ["b"]), (["untokenised."], ["c", "."])]
    with pytest.raises(
        ValueError, match=r"pair 2 \(line 2\) has 1 source and 2 target words.*word 2 and target word 2"
    ):
        check_links(pairs, [GoldLinks({(0, 0)}), GoldLinks({(1, 1)})])
    with pytest.raises(ValueError, match="2 pairs of sentences, but gold links of 1"):
        check_links(pairs, [GoldLinks({(0, 0)})])
