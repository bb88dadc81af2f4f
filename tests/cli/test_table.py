"""Tables line up by what is seen: wide characters count two, combining ones and colours none."""

import pytest

from captum_norm.cli.table import cut, shown, table, width_of


@pytest.mark.parametrize(
    ("text", "width"), [("film", 4), ("日本", 4), ("nai\u0308ve", 5), ("\033[1mbold\033[0m", 4), ("‖f(x)‖", 6)]
)
def test_a_width_is_in_columns_of_the_screen(text, width):
    assert width_of(text) == width


@pytest.mark.parametrize("text", ["unbelievable", "日本語の映画", "encoder.layer.0"])
@pytest.mark.parametrize("keep_end", [False, True])
def test_what_is_cut_fits_and_says_so(text, keep_end):
    for width in range(2, width_of(text) + 2):
        shown = cut(text, width, keep_end)
        assert width - 2 < width_of(shown) <= width or shown == text
        assert ("…" in shown) == (width < width_of(text))


def test_columns_line_up_under_wide_characters():
    lines = table(["word", "norm"], [["日本", "0.5"], ["warm", "12.0"]]).split("\n")
    assert {width_of(line) for line in lines} == {10}


def test_columns_line_up_whatever_the_script():
    text = table(["word", "share\n%"], [["日本語", "1.0"], ["naïve", "12.5"], [], ["mean", "6.8"]])
    assert len({width_of(line) for line in text.splitlines()[1:]}) == 1


def test_a_group_is_as_wide_as_its_title():
    text = table(["", "a", "b"], [["x", "1", "2"]], groups=[("", 1), ("a long title", 2)])
    title, head, row = text.splitlines()
    assert title.endswith("a long title")
    assert len(head) == len(row) == len(title)


def test_texts_are_cut_to_columns_and_cannot_move_the_cursor():
    assert width_of(cut("日本語の文章", 7)) <= 7
    assert cut("short", 7) == "short"
    assert shown("a\x1b[2Jb\n") == r"a\x1b[2Jb\n"


def test_a_wide_table_is_folded_and_loses_nothing():
    headers = ["layer", *(f"h{i}" for i in range(12))]
    rows = [[str(layer), *(f"{layer}.{i:02}" for i in range(12))] for layer in range(2)]
    groups = [("", 1), ("AWI", 6), ("AWO", 6)]
    whole = table(headers, [*rows, [], rows[0]], groups=groups, width=1000)
    assert whole == table(headers, [*rows, [], rows[0]], groups=groups)
    folded = table(headers, [*rows, [], rows[0]], groups=groups, width=40)
    parts = folded.split("\n\n")
    assert len(parts) == 3
    assert max(map(width_of, folded.split("\n"))) <= 40
    assert [part.splitlines()[1].split()[0] for part in parts] == ["layer"] * 3
    words = {word for part in parts for word in part.split() if not word.startswith("─")}
    assert words == {word for word in whole.split() if not word.startswith("─")}
    assert parts[1].splitlines()[0].split() == ["AWI", "AWO"]


def test_one_column_that_is_too_wide_stands_alone():
    assert table(["", "a", "b"], [["x", "1" * 30, "2"]], width=10).split("\n\n")[1].split() == ["b", "x", "2"]


def test_a_word_of_any_length_is_cut_to_its_room():
    word = "a日" * 100_000
    assert (cut(word, 6), cut(word, 6, keep_end=True)) == ("a日a…", "…日a日")
