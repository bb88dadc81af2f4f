"""What is known of a tensor is known of that tensor alone, and no longer than it lives."""

import gc

import torch

from captum_norm.operations.facts import Facts


def test_a_fact_is_of_one_tensor_and_not_of_its_equal():
    facts: Facts[str] = Facts()
    x = torch.ones(2)
    facts[x] = "known"
    assert facts[x] == "known"
    assert facts[x.clone()] is facts[x.view(2)] is facts["x"] is None


def test_a_tensor_that_dies_takes_its_fact_along():
    facts: Facts[object] = Facts()
    held = [torch.ones(2) for _ in range(50)]
    for number, tensor in enumerate(held):
        facts[tensor] = ("fact", number)
    held.clear()
    del tensor
    gc.collect()
    assert not facts._of
    assert all(facts[torch.ones(2)] is None for _ in range(50))  # in the same memory, perhaps


def test_nothing_is_no_fact():
    facts: Facts[tuple[int, ...]] = Facts()
    x = torch.ones(2)
    facts[x] = (1,)
    facts[x] = ()
    assert x not in facts
    facts[x] = None
    assert facts.take(x) is None


def test_a_fact_that_is_taken_or_cleared_is_forgotten():
    facts: Facts[str] = Facts()
    x, y = torch.ones(2), torch.ones(3)
    facts[x], facts[y] = "x", "y"
    assert facts.take(x) == "x"
    assert x not in facts
    facts.clear()
    assert y not in facts


def test_tensors_of_one_memory_are_found():
    facts: Facts[str] = Facts()
    x, other = torch.ones(4), torch.ones(4)
    view = x[1:]
    facts[x], facts[view], facts[other] = "x", "view", "other"
    assert [facts[one] for one in facts.beside(view)] == ["x"]
    assert facts.beside(other) == []


def test_of_tensors_in_memory_that_was_overwritten_those_of_the_same_entries_stay_known():
    facts: Facts[str] = Facts()
    x, other = torch.zeros(2, 3), torch.zeros(2, 3)
    same, flat = x.view(2, 3), x.view(-1)
    for tensor, fact in ((x, "new"), (same, "old"), (flat, "old"), (other, "its own")):
        facts[tensor] = fact
    facts.follow(x)
    assert [facts[tensor] for tensor in (x, same, flat, other)] == ["new", "new", None, "its own"]
