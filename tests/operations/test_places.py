"""A place says which input position each entry is, as long as nothing reads several positions at once."""

import torch

from captum_norm.operations.places import Anchor, Place, patches
from captum_norm.operations.steps import Step


def test_of_two_sequences_the_named_one_stays_and_else_the_one_that_was_first():
    named, first, later = (
        Anchor(source, (1, 2), (1,), order) for source, order in ((0, 2), ("embedding 0", 0), ("embedding 1", 1))
    )
    assert sorted((later, first, named), key=lambda anchor: anchor.preference) == [named, first, later]


def test_entries_are_numbered_by_example_and_position_wherever_they_are_moved():
    place = Place(Anchor(0, (2, 3, 4), (1,))).of_features(5).then(Step("t", lambda t: t.transpose(0, 1)))
    assert torch.equal(place.numbers(), torch.arange(6).view(2, 3, 1).expand(2, 3, 5).transpose(0, 1))


def test_what_reads_several_positions_at_once_has_no_place():
    flattened = Place(Anchor(0, (2, 3, 4), (1,))).then(Step("flatten", lambda t: t.flatten(1)))
    assert flattened.numbers() is not None
    assert flattened.of_features(5).numbers() is None


def test_a_patch_holds_every_cell_between_its_corners():
    halves = Place(Anchor(0, (1, 4, 2), (1, 2))).then(Step("halves", lambda t: t.reshape(1, 2, 4)))
    assert patches(halves, (2,), 1).numbers().flatten(1)[0, ::4].tolist() == [0, 1]
    corners = halves.then(Step("corners", lambda t: t[..., [0, 3, 0, 3]]))
    assert patches(corners, (2,), 1) is None
