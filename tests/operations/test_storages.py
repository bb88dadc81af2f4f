"""A storage has a number for as long as someone holds on to it, and one memory may have two of them."""

import torch

from captum_norm.operations.storages import Storages, storage_of


def test_a_number_stands_for_one_storage_even_when_that_is_given_back():
    storages = Storages()
    first = torch.ones(3)
    number = storages.hold(first)
    del first
    assert all(storages.hold(torch.ones(3)) != number for _ in range(20))


def test_one_memory_under_two_numbers_is_found():
    storages, x, other = Storages(), torch.ones(3), torch.ones(3)
    for tensor in (x, other):
        storages.hold(tensor)
    same = torch.from_numpy(x.numpy()[1:])
    assert storage_of(same) != storage_of(x)
    assert storages.overlapping(same) == [storage_of(x)]
    assert storages.overlapping(x) == []
    assert storages.overlapping(torch.empty(3, device="meta")) == []


def test_a_sparse_tensor_has_a_number_of_its_own_for_as_long_as_it_is_held():
    storages, x = Storages(), torch.eye(3)
    sparse = x.to_sparse()
    number = storages.hold(sparse)
    assert number not in (0, storages.hold(x))
    del sparse
    assert all(storages.hold(x.to_sparse()) != number for _ in range(20))
    assert storages.overlapping(x.view(9)[1:]) == []
