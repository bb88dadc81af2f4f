"""Tables line up by what is seen: wide characters count two, combining ones and colours none."""

import pytest

from captum_norm.cli.table import cut, table, width_of


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
