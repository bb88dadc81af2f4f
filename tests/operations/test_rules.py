"""A table of rules: names before kinds, in-place forms with their base, and no rule for what has no kind."""

from collections.abc import Callable

import pytest

from captum_norm.operations.kinds import OperationKind
from captum_norm.operations.rules import RuleTable


def moved() -> str:
    return "moved"


def turned() -> str:
    return "turned"


def other() -> str:
    return "other"


@pytest.fixture
def table() -> RuleTable[Callable[[], str]]:
    rules: RuleTable[Callable[[], str]] = RuleTable()
    rules.rule(OperationKind.MOVE)(moved)
    rules.rule("transpose", "mul")(turned)
    rules.pass_over("view")
    return rules


def test_the_rule_of_a_name_goes_before_that_of_its_kind(table):
    assert table.of("permute") is moved
    assert table.of("transpose") is turned
    assert table.of("view") is None


def test_an_in_place_form_follows_its_base(table):
    assert table.of("squeeze_") is moved
    assert table.of("mul_") is turned


def test_all_that_nothing_is_said_about_meets_one_rule(table):
    assert table.of("div") is table.of("special_i0") is None
    table.any_other(other)
    assert table.of("div") is table.of("special_i0") is other
    assert table.of("view") is None  # passed over is said
    assert table.knows("view")
    assert not table.knows("div")


def test_a_name_without_a_kind_and_a_second_rule_are_refused(table):
    with pytest.raises(ValueError, match=r"'special_i0' has no kind: give it one in operations/kinds\.py"):
        table.rule("special_i0")(moved)
    with pytest.raises(ValueError, match="transpose has a rule already"):
        table.rule("transpose")(moved)
    with pytest.raises(ValueError, match=r"OperationKind\.MOVE has a rule already"):
        table.pass_over(OperationKind.MOVE)
