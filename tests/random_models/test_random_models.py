"""Ordinary random models are answered, and rightly; what is not is listed, and the list may only become shorter.

The whole machine runs by command: ``python -m tests.random_models --models 10000`` (see the package's docstring).
"""

from functools import cache

import pytest

from tests.random_models.check import CHECKS, Case, Finding
from tests.random_models.config import drawn, seeds_of
from tests.random_models.named_cases import NamedCase, known_faults, named_cases, silences
from tests.random_models.positions import Positions
from tests.random_models.twins import Twins

COUNTS = {"encoder": 26, "decoder": 26, "encoder-decoder": 26, "masks": 26, "dtypes": 26, "padding": 36}
SEEDS = [seed for kind, count in COUNTS.items() for seed in seeds_of(kind, 0, count)]
TWINS = [seed for kind, count in {"encoder": 8, "decoder": 8, "projections": 24, "weights": 8}.items()
         for seed in seeds_of(kind, 0, count)]  # fmt: skip
POSITIONS = [seed for kind in ("readouts", "mixers", "projections", "everything", "padding")
             for seed in seeds_of(kind, 0, 8)]  # fmt: skip
KNOWN = known_faults()
TRUTHFUL = ("right", "refused")


@cache
def findings(seed: int) -> dict[str, Finding]:
    return {finding.check: finding for finding in Case(drawn(seed)).findings()}


@pytest.mark.wide(5)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_answer_about_an_ordinary_model_is_wrong_without_a_word(seed):
    wrong = [f for f in findings(seed).values() if f.status not in TRUTHFUL and (seed, f.check) not in KNOWN]
    assert not wrong, f"{drawn(seed)}: {wrong}"


@pytest.mark.parametrize(
    ("seed", "check"),
    [pytest.param(*who, marks=pytest.mark.xfail(reason=why, strict=True, raises=AssertionError))
     for who, why in KNOWN.items()],
)
def test_a_known_fault_of_an_ordinary_model_is_gone(seed, check):
    """When this passes, take the seed off ``known_faults.json``."""
    assert findings(seed)[check].status in TRUTHFUL


def test_ordinary_models_are_answered_in_nine_of_ten():
    found = [finding.status for seed in SEEDS for finding in findings(seed).values()]
    assert found.count("right") >= 0.9 * len(found)
    assert {seed for seed, _ in KNOWN} <= set(SEEDS)
    assert {check for _, check in KNOWN} <= set(CHECKS)


@pytest.mark.wide(3)
@pytest.mark.parametrize("case", named_cases(), ids=lambda case: case.name)
def test_a_named_case_is_wrong_only_where_it_says(case: NamedCase):
    """When a check becomes right or refused, take its name off the file in ``cases/``."""
    assert silences(case.config) == case.silent
    assert case.about


@pytest.mark.wide(8)
@pytest.mark.parametrize("seed", TWINS)
def test_two_forms_of_one_function_have_one_answer(seed):
    assert not [finding for finding in Twins(drawn(seed)).findings() if finding.status not in TRUTHFUL]


@pytest.mark.slow
def test_most_models_have_a_twin_of_which_most_methods_say_something():
    found = [finding.status for seed in TWINS[::8] for finding in Twins(drawn(seed)).findings()]
    assert found.count("right") >= 0.3 * 8 * len(TWINS[::8])


def test_another_answer_than_the_twins_is_seen(monkeypatch):
    twins = Twins(drawn(next(seed for seed in TWINS if Twins(drawn(seed)).twin is not None)))
    asked = Twins._ask
    monkeypatch.setattr(
        Twins, "_ask",
        lambda self, name, model: tuple((1 + (model is self.twin)) * s for s in asked(self, name, model)),
    )  # fmt: skip
    assert "silent" in {finding.status for finding in twins.findings()}


@pytest.mark.wide(8)
@pytest.mark.parametrize("seed", POSITIONS)
def test_rows_asked_for_by_position_are_those_of_the_positions(seed):
    assert not [finding for finding in Positions(drawn(seed)).findings() if finding.status not in TRUTHFUL]


@pytest.mark.parametrize("check", ["a position", "all positions", "each call"])
def test_rows_of_other_positions_are_seen(monkeypatch, check):
    positions, asked = Positions(drawn(seeds_of("decoder", 0, 1)[0])), Positions._ask
    monkeypatch.setattr(Positions, "_ask", lambda self, *how: tuple(s.roll(1, 1) for s in asked(self, *how)))
    assert {finding.check: finding.status for finding in positions.findings()}[check] == "silent"
