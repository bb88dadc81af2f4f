"""One number for each example, by one method or by two: what is left of them where some are missing.

Values are (example,); NaN says that a method failed there or the metric is undefined.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values: TypeAlias = NDArray[np.float64]


def paired(caller: str, a: ArrayLike, b: ArrayLike) -> tuple[Values, Values]:
    """The values of the examples that both have."""
    first, second = values_of(caller, a), values_of(caller, b)
    if first.shape != second.shape:
        raise ValueError(
            f"{caller}: a has {len(first)} examples but b has {len(second)}; give one value for each example, NaN "
            "where there is none, so that the same example is at the same place."
        )
    both = ~(np.isnan(first) | np.isnan(second))
    return first[both], second[both]


def values_of(caller: str, values: ArrayLike) -> Values:
    """One value for each example, NaN where there is none; infinite ones are refused."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{caller}: values should be (example,), got shape {array.shape}.")
    if np.isinf(array).any():
        raise ValueError(f"{caller}: value {int(np.flatnonzero(np.isinf(array))[0])} is infinite and has no mean.")
    return array


def check_share(what: str, given: float) -> None:
    """Refuse what is no part of a whole: 0, 1, and all outside of them; NaN is."""
    if not 0 < given < 1:
        raise ValueError(f"{what} should be between 0 and 1, got {given}.")


def check_margin(what: str, given: float) -> None:
    """Refuse a margin within which no difference lies, or all do; NaN is one of neither."""
    if not 0 < given < math.inf:
        raise ValueError(f"{what} should be above 0 and finite, got {given}.")


def defined(caller: str, values: ArrayLike) -> Values:
    """The values of the examples that have one."""
    array = values_of(caller, values)
    return array[~np.isnan(array)]


def paired_differences(caller: str, a: ArrayLike, b: ArrayLike) -> Values:
    """a - b of the examples that both have; 0 where the two are equal within rounding."""
    first, second = paired(caller, a, b)
    return differences_of(first, second)


def differences_of(a: Values, b: Values) -> Values:
    """a - b; 0 where the two are equal within rounding, which differences must not be taken for."""
    differences = a - b
    noise = 1e-12 * np.maximum(np.abs(a), np.abs(b))
    return np.where(np.abs(differences) <= noise, 0.0, differences)
