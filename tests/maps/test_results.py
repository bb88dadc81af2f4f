"""``AttentionMaps`` holds what was asked for, says why something is absent, and moves as a whole."""


import pytest

from captum_norm.maps import attention_maps
from tests.maps.records import IDS, record


def test_a_quantity_that_was_not_asked_for_is_no_attribute(emitting):
    maps = attention_maps(emitting(record()), IDS)
    with pytest.raises(AttributeError, match=r"head_norms was not computed, only weights, summed_norms"):
        _ = maps.head_norms
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = maps.colour


def test_maps_move_to_a_device_as_a_whole(saved):
    moved = saved[0].to("meta")
    assert {moved.weights[0].device.type, moved.keys[0].index.device.type} == {"meta"}
    assert moved.calls == saved[0].calls
