"""Any text can be written: what no font has becomes a box, and nothing is read as mathematics."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_norm.visualization import class_shares, map_grid, method_strips, token_map
from captum_norm.visualization.letters import _has_glyph, _tell, font_families, printable
from tests.visualization.drawn import labels, panels, some_map

# Boxes are what is drawn here; that they are told of is one test's matter.
boxes = pytest.mark.filterwarnings("ignore:no installed font")

NASTY = [
    "$x_1^$",
    r"\frac{",
    "a\\b",
    "映画",
    "😀👩\u200d👩",
    "é",
    "\n",
    "\t",
    "\x00",
    "",
    "<b>&amp;",
    "%d{}",
    "_",
    "\udcff",
]


@boxes
def test_no_token_is_read_as_mathematics_or_breaks_the_figure(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    figures = [
        token_map(some_map(len(NASTY)), NASTY, title="$a^$", unit="$u_$"),
        method_strips({"$m_$": torch.rand(len(NASTY))}, NASTY, title="$t^$"),
        class_shares({"$s^$": torch.rand(2, 2)}, ["$c_", "映$"], layers=["$1^$", "2"], title="$"),
        map_grid(torch.rand(2, len(NASTY), len(NASTY)), ["$h^$", "映"], NASTY),
    ]
    for number, figure in enumerate(figures):
        for kind in ("png", "svg", "pdf"):
            figure.savefig(tmp_path / f"{number}.{kind}")  # a warning of a missing letter would be an error here
    assert "$x_1^$" in labels(panels(figures[0])[0].get_xticklabels())
    assert not caplog.records


@boxes
@given(st.text(max_size=20))
def test_what_is_written_has_letters(text):

    assert all(map(_has_glyph, printable(text)))


@boxes
def test_letters_that_no_font_has_become_boxes_and_joiners_vanish():
    assert "DejaVu Sans" in font_families()
    assert printable("a\U0010fffdb") == "a□b"
    assert printable("line\nbreak\tand\x07") == "line⏎break⇥and"
    assert printable("café ‖Σαf(x)‖") == "café ‖Σαf(x)‖"


def test_a_script_that_no_font_has_is_told_once_with_a_font_that_has_it():
    _tell.cache_clear()
    with pytest.warns(UserWarning, match=r"letters of MONGOLIAN: .* Noto Sans Mongolian has them") as told:
        drawn = printable("\u1820\u1821") + printable("\u1822")
    assert drawn == "□□□"
    assert len(told) == 1
    _tell.cache_clear()
