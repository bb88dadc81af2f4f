"""What must one know to read a study's table?  A sentence each: examples, intervals, tests, removal, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from captum_norm.study.report.cells import Statistics
from captum_norm.study.report.resampling import FEW_FOR_MANY_TESTS
from captum_norm.study.report.statistics import FEW_EXAMPLES, smallest_p

ALPHA = 0.05
"""What is marked as different from the reference: a corrected p below this."""

ALTERED = (
    "The store holds bytes that are not as they were written. No result is read from them, and every result is as it "
    "was written; but a disk or a copy turns bits, so look for a copy that is whole."
)
_NOT_CLOSED = (
    "The store has not been closed since it was written to (a study under way, or one that was killed): results are "
    "compared with their checksums, bytes that none is read from with nothing."
)

_SPECIAL_TOKENS = {
    "mask": "Special tokens are neither ranked nor removed.",
    "keep": "Special tokens are ranked and removed like any other.",
    "report": "Special tokens are neither ranked nor removed; their share of |score| is reported.",
}
_CASES = {
    "complete": "Each metric is over the examples for which every method has a value.",
    "available": "Each mean is over all examples that its method has a value for; where n differs, nothing is marked.",
}
_TESTS = {
    "bootstrap": "studentised bootstrap of the paired differences",
    "permutation": "permutation of the signs of the paired differences, which assumes that they are symmetric",
}
_UNITS = {"log_odds": "nats", "log_p_change": "nats", "infidelity": "squared units of the logit"}
_PREDICTIONS = {"right": " that the model predicts right", "wrong": " that the model predicts wrong"}


def of_statistics(how: Statistics, reference: str) -> list[str]:
    """How intervals and marks were made."""
    family = "each metric" if how.correction == "metric" else "the whole table"
    lines = [
        f"Brackets are {how.confidence:.0%} intervals (studentised bootstrap) of each mean by itself; differences have "
        "intervals of their own.",
        _CASES[how.cases],
        f"* differs from {reference}: {_TESTS[how.test]}, Holm's correction over the tests of {family}, p < {ALPHA}.",
    ]
    if how.margin is not None:
        lines.append(
            f"= is level with {reference}, within {how.margin}: two one-sided tests, p < {ALPHA}, not corrected."
        )
    return lines


def of_few(how: Statistics, fewest: int, tests: int) -> list[str]:
    """What few examples mean for the tests; nothing where there are enough.

    Args:
        how: the statistics.
        fewest: the examples of the metric that has the fewest.
        tests: how many are corrected together.
    """
    resamples = how.resamples if how.test == "bootstrap" else how.permutations
    if tests and smallest_p(how.test, fewest, resamples) * tests >= ALPHA:
        return [f"With {fewest} examples and {tests} tests no difference, however large, can be marked."]
    if fewest < FEW_EXAMPLES:
        return [f"Below {FEW_EXAMPLES} examples nobody has tried whether tests and intervals hold their level."]
    if how.correction == "table" and how.test == "bootstrap" and fewest < FEW_FOR_MANY_TESTS:
        return [
            f"Below {FEW_FOR_MANY_TESTS} examples a star stands out from the largest of all resampled differences of "
            "the table, too (Romano & Wolf)."
        ]
    return []


def of_study(examples: int, notes: Mapping[str, Any]) -> list[str]:
    """Which examples, and how the metrics took tokens from them."""
    removals = sorted(set(notes.get("removals", {}).values()))
    units = " and ".join(f"{level}s" for level in notes.get("levels", ["token"])).capitalize()
    classless = notes.get("classless", ())
    lines = [
        f"{examples} examples{_PREDICTIONS.get(notes.get('predictions', ''), '')}.",
        f"{units} are removed by: {', '.join(removals)}." if removals else "",
        _SPECIAL_TOKENS.get(notes.get("special", ""), ""),
        f"No class is looked at by {', '.join(classless)}: they say the same of any." if classless else "",
        *(f"{metric} {caution}." for metric, caution in notes.get("cautions", {}).items()),
        notes.get("locked", ""),
        {False: ALTERED, None: _NOT_CLOSED}.get(notes.get("unchanged", True), ""),
    ]
    return [line for line in lines if line]


def of_draws(how: Statistics, metrics: Iterable[str]) -> str:
    """The numbers that were drawn, and units."""
    flips = f", {how.permutations} permutations" if how.test == "permutation" else ""
    named = ((metric, _UNITS.get(metric.partition("(")[0])) for metric in metrics)
    units = [f"; {metric} is in {unit}" for metric, unit in named if unit]
    return (
        f"{how.resamples} resamples{flips}, seed {how.seed}. "
        f"Differences of probabilities, shares and correlations have no unit{''.join(units)}."
    )
