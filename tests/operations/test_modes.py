"""Watching leaves a model as it is; substituting gives it what the rule returns; another thread is not seen."""

import contextlib
import threading

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from captum_norm.operations.modes import SubstitutingMode, WatchingMode


def test_watching_hands_over_what_ran_and_the_model_keeps_its_result():
    x, results = torch.ones(2, requires_grad=True), []

    def rule(operation):
        results.append(operation.out)
        assert not torch.is_grad_enabled()
        return operation.out + 1  # seen by nobody, and not what the model gets

    with WatchingMode(lambda name: rule if name == "mul" else None):
        y = x * 3
        z = y - 1
    assert results[0] is y
    assert y.requires_grad
    assert torch.equal(z.detach(), torch.full((2,), 2.0))


def test_an_operation_that_sums_products_is_watched_as_these_and_its_result_is_a_copy_of_theirs():
    a, b, c = torch.randn(3, 4, requires_grad=True)
    seen = []
    with WatchingMode(lambda name: lambda operation: seen.append(operation)):
        out = torch.addcmul(a, b, c, value=2)
        a.detach().addcmul_(b.detach(), c.detach())
    assert [one.name for one in seen] == ["mul", "mul", "add", "clone", "detach", "detach", "detach", "addcmul_"]
    assert seen[3].out is out
    assert seen[3].tensors[0] is seen[2].out
    assert not seen[2].out.requires_grad
    assert out.grad_fn is not None


def test_what_sums_products_runs_alone_where_nothing_of_it_is_known():
    seen = []
    with WatchingMode(lambda name: None):
        seen.append(torch.addcmul(torch.ones(2), torch.ones(2), torch.ones(2)))
    assert torch.equal(seen[0], torch.full((2,), 2.0))


def test_substituting_asks_instead_of_running():
    def rule(operation):
        assert operation.out is None
        assert torch.is_grad_enabled() == grad
        return operation.args[0] * 10

    for grad in (True, False):
        with torch.set_grad_enabled(grad), SubstitutingMode(lambda name: rule if name == "relu" else None):
            assert torch.equal(torch.relu(torch.tensor([-1.0])) - 1, torch.tensor([-11.0]))


@pytest.mark.parametrize("mode", [WatchingMode, SubstitutingMode])
def test_the_attention_function_of_torch_is_opened(mode):
    names = []

    def rule(operation):
        names.append(operation.name)
        return operation.func(*operation.args, **operation.kwargs)

    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(1, 3, 4)
    expected = attention(x, x, x)[0]
    with mode(lambda name: rule):
        found = attention(x, x, x)[0]
    assert torch.equal(found, expected)
    assert {"linear", "softmax"} <= set(names)
    assert "multi_head_attention_forward" not in names


@pytest.mark.parametrize("mode", [WatchingMode, SubstitutingMode])
def test_another_thread_is_not_seen(mode):
    names = []
    watching = mode(lambda name: lambda operation: names.append(name))

    def work():
        with watching:
            results.append(F.relu(torch.tensor([-2.0])))

    results = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(results[0], torch.zeros(1))
    assert not names


def test_a_rule_is_looked_up_once_for_each_function():
    x, asked = torch.ones(2), []
    with WatchingMode(asked.append):
        for _ in range(3):
            x.relu()
            x.mul(2)
    assert asked == ["relu", "mul"]


@pytest.mark.parametrize("mode", [WatchingMode, SubstitutingMode])
@pytest.mark.parametrize("operator", [lambda x: x @ x, lambda x: x * x, lambda x: torch.matmul(x, x)], ids="@*f")
def test_a_type_error_of_a_rule_is_told_where_torch_would_speak_of_operands(mode, operator):
    def rule(op):
        raise TypeError("what the rule has to say")

    x = torch.ones(2, 2)
    with pytest.raises(TypeError, match="what the rule has to say"), mode(lambda name: rule):
        operator(x)


def test_a_type_error_of_the_model_stays_its_own():
    x = torch.ones(2)
    with pytest.raises(TypeError, match="unsupported operand"), WatchingMode(lambda name: lambda op: None):
        x @ "text"


def test_a_type_error_that_a_model_has_seen_to_is_not_told_in_the_place_of_another():
    def rule(op):
        raise TypeError("what the rule has to say")

    def model(x):
        with contextlib.suppress(TypeError):
            x @ x
        raise TypeError("another")

    x = torch.ones(2)
    with pytest.raises(TypeError, match="another"), WatchingMode(lambda name: rule):
        model(x)
