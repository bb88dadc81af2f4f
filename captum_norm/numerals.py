"""Is what was given a whole number?  What stands for a class, a token or a position may be its name or its number."""

from __future__ import annotations

import operator
import re
from typing import Any


def whole_number(text: str) -> int | None:
    """The whole number that a text is in plain digits, with a minus in front or none; None where it is no number.

    Example:
        >>> whole_number("-12"), whole_number("--12"), whole_number("²"), whole_number("film")
        (-12, None, None, None)
    """
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def number_of(given: Any, what: str) -> int:
    """A whole number that was given as one, of Python, NumPy or torch.

    Args:
        given: anything but a text.
        what: what it is the number of, for the error.

    Raises:
        TypeError: for anything that is no whole number; a bool is none.
    """
    try:
        if not isinstance(given, bool):
            return operator.index(given)
    except TypeError:
        pass
    raise TypeError(f"{what} should be a whole number or a str, got {given!r}.")


def at_least(least: int, given: Any, what: str) -> int:
    """A whole number that is not below another, of Python, NumPy or torch: a count, or the seed of a generator.

    Args:
        least: the smallest that is taken.
        given: anything.
        what: what it is, for the error.

    Raises:
        TypeError: for anything that is no whole number; a bool is none.
        ValueError: for a smaller one.

    Example:
        >>> at_least(1, 20, "resamples")
        20
    """
    try:
        number = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{what} should be a whole number, got {given!r}.")
    if number < least:
        raise ValueError(f"{what} should be at least {least}, got {number}.")
    return number
