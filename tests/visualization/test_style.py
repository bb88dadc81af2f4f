"""Colours read without hue, and letters on them are read too."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from captum_norm.measures import MEASURES
from captum_norm.visualization.style import (
    INK,
    NORM_COLOURS,
    PAPER,
    ROLE_COLOURS,
    SHARE_COLOURS,
    SIGNED_COLOURS,
    UNSIGNED_COLOURS,
    WEIGHT_COLOURS,
    Look,
    ink_on,
    look_of,
)


@pytest.mark.parametrize("colours", [WEIGHT_COLOURS, NORM_COLOURS, SHARE_COLOURS, UNSIGNED_COLOURS])
def test_colours_darken_steadily_so_that_they_read_without_hue(colours):
    light = [float(np.dot(to_rgb(colours(step)), [0.2126, 0.7152, 0.0722])) for step in np.linspace(0, 1, 33)]
    assert all(a > b for a, b in pairwise(light))


def luminance(colour):
    return float(np.dot([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]], SCREEN))


SCREEN = [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("colours", [WEIGHT_COLOURS, NORM_COLOURS, SHARE_COLOURS, SIGNED_COLOURS, UNSIGNED_COLOURS])
def test_letters_stand_out_from_the_colour_they_are_printed_on(colours):
    for step in np.linspace(0, 1, 65):
        light, letters = luminance(colours(step)), luminance(to_rgb(ink_on(colours(step))))
        assert (max(light, letters) + 0.05) / (min(light, letters) + 0.05) > 3.2


def test_letters_turn_from_white_to_dark_at_one_grey():
    greys = [to_rgb(f"#{level:02x}{level:02x}{level:02x}") for level in range(256)]
    assert [ink_on(grey) for grey in greys] == [PAPER] * 0x8E + [INK] * (256 - 0x8E)


def test_letters_look_at_each_part_of_a_colour_by_its_own_light():
    assert [ink_on(colour) for colour in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0.8, 0.4, 0.2)]] == [
        PAPER, INK, PAPER, INK, PAPER
    ]  # fmt: skip


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_its_words_and_the_colours_of_its_role(name):
    look, measure = look_of(name, "m"), MEASURES[name]
    assert (look.title, look.unit, look.colours) == (measure.title, measure.unit, ROLE_COLOURS[measure.role])


def test_any_other_name_is_its_own_title_in_the_units_it_is_given():
    assert look_of("gradient", "logit") == Look("gradient", "logit", NORM_COLOURS)
