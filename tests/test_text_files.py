"""A text file is read as it was written: a byte order mark is no character, and lines end at line breaks alone."""

import ast
from pathlib import Path

import pytest

import captum_norm
from captum_norm.text_files import check_characters, lines_of, read_lines, read_text

OTHER_BREAKS = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e".split(" ")


@pytest.mark.parametrize("other", OTHER_BREAKS)
def test_a_line_ends_at_a_line_break_and_at_no_other_character(tmp_path, other):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "film.txt").write_bytes(f"A{other}film.{end}{end}Dull.{end}".encode())
        assert read_lines(tmp_path / "film.txt") == [f"A{other}film.", "", "Dull."]


def test_a_last_line_needs_no_line_break():
    assert lines_of("") == []
    assert lines_of("\n") == [""]
    for end in ("\n", "\r\n", "\r"):
        assert lines_of(f"a{end}b") == lines_of(f"a{end}b{end}") == ["a", "b"]


def test_a_byte_order_mark_is_no_character_in_front_and_one_further_on(tmp_path):
    (tmp_path / "film.txt").write_text("\ufeffA \ufefffilm.", encoding="utf-8")
    assert read_text(tmp_path / "film.txt") == "A \ufefffilm."


def test_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "film.txt").write_bytes("eins\nfünf\n".encode("latin1"))
    with pytest.raises(ValueError, match=r"film.txt, line 2 is not UTF-8 text. Convert the file: iconv"):
        read_lines(tmp_path / "film.txt")


@pytest.mark.parametrize("half", [0xD800, 0xDBFF, 0xDC00, 0xDCE9, 0xDFFF])
def test_half_a_character_is_named_with_its_place(half):
    with pytest.raises(ValueError, match=r"the pair: character 2 is .* half a character.*Write it in UTF-8"):
        check_characters("the pair", "fine", None, f"a {chr(half)}")
    check_characters("the pair", "", "A \ud7ff\ue000\U0001f600 film")


def test_no_other_part_cuts_a_users_text_at_what_unicode_counts_as_line_breaks():
    """What is cut there are error messages and what the package itself has written."""
    cut = set()
    for path in sorted(Path(captum_norm.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "splitlines":
                of = ast.unparse(node.func.value)
                if of != "str(error)" and "training" not in path.parts:
                    cut.add((path.name, of))
    assert cut == {
        ("compiled.py", "known.read_text()"),
        ("links.py", "as_naacl(GoldLinks(one), number, first=counted)"),
        ("page.py", "text"),
    }
