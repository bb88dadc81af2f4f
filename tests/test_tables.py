"""One table, every spelling: nothing lost in CSV, nothing that a page or a paper would read as markup."""

import csv
import io

import pytest

from captum_norm.tables import Table

ONE = Table(("word", "score", "n"), (("a|b_<b>", 0.123456789, 3), ('"quoted", &c', None, 4)), "Title", ("A note.",))


def test_csv_keeps_every_digit_and_comma():
    rows = list(csv.reader(io.StringIO(ONE.to_csv())))
    assert rows == [["word", "score", "n"], ["a|b_<b>", "0.123456789", "3"], ['"quoted", &c', "", "4"]]


def test_csv_is_written_to_a_file(tmp_path):
    assert ONE.to_csv(tmp_path / "one.csv") == (tmp_path / "one.csv").read_bytes().decode()


def test_markdown_and_latex_escape_what_they_would_read_as_markup():
    assert "| a\\|b_<b> | 0.123 | 3 |" in ONE.to_markdown()
    assert r"a|b\_<b> & 0.123 & 3 \\" in ONE.to_latex()
    assert r"\&c" in ONE.to_latex()


def test_a_row_of_latex_that_begins_with_a_bracket_is_no_option_of_the_row_before():
    rows = Table(("token", "score"), (("a", 1), ("[CLS]", 2), ("*", 3))).to_latex()
    assert "{[}CLS] & 2" in rows
    assert "{*} & 3" in rows


def test_html_escapes_and_text_folds():
    assert "<b>" not in ONE._repr_html_().replace("<b>Title</b>", "")
    assert all(len(line) <= 24 for line in ONE.to_text(width=24).splitlines())


def test_pandas_has_the_columns():
    pytest.importorskip("pandas")
    assert ONE.to_pandas()["n"].tolist() == [3, 4]


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="row 0 has 1 entries under 2 columns"):
        Table(("a", "b"), (("x",),))
