"""The table of kinds is the one list of operations: every table of rules says something about each of its names."""

import pytest

from captum_norm.capture.blocks.forms import FORM_RULES
from captum_norm.capture.dataflow import RULES as CAPTURE
from captum_norm.linear.frozen import RULES as LINEAR
from captum_norm.operations.kinds import KINDS, PROPERTIES, OperationKind, kind_of, names_of, names_with

FORM_KINDS = ("IDENTITY", "MOVE", "DROPOUT", "SCALE", "SUM", "NORM")


def test_every_operation_has_one_kind():
    names = [name for words in KINDS.values() for name in words.split()]
    assert len(names) == len(set(names))
    assert set(KINDS) == set(OperationKind)


@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda prop: prop.name)
def test_what_has_a_property_has_a_kind(prop):
    assert names_with(prop)
    assert all(kind_of(name) for name in names_with(prop))


def test_an_in_place_form_has_the_kind_of_its_base():
    assert kind_of("mul_") is kind_of("mul") is OperationKind.SCALE
    assert kind_of("requires_grad_") is OperationKind.IDENTITY  # not the question requires_grad
    assert kind_of("special_i0") is None


@pytest.mark.parametrize("kind", OperationKind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("table", [CAPTURE, LINEAR], ids=["capture", "linear"])
def test_capture_and_linear_say_something_about_every_operation(table, kind):
    assert not [name for name in names_of(kind) if not table.knows(name)]


@pytest.mark.parametrize("kind", FORM_KINDS)
def test_blocks_say_something_about_every_operation_that_may_keep_a_form(kind):
    assert not [name for name in names_of(OperationKind[kind]) if not FORM_RULES.knows(name)]


@pytest.mark.parametrize("kind", ["QUESTION", "SETTING", "FRESH"])
def test_what_computes_nothing_from_a_tensor_runs_unseen(kind):
    for name in names_of(OperationKind[kind]):
        assert CAPTURE.of(name) is None
        assert LINEAR.of(name) is None
