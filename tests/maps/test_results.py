"""``AttentionMaps`` holds what was asked for, says why something is absent, and moves as a whole."""

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch

from captum_norm.maps import attention_maps
from tests.maps.records import IDS, QUANTITIES, record


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


def test_maps_describe_themselves_in_a_few_lines(bert):
    maps = attention_maps(bert, IDS, positions=(0, -1), head_indices=(1,))
    assert repr(maps).splitlines() == [
        "AttentionMaps of BertModel: 2 attention calls",
        "  calls: 0 'encoder.layer.0.attention.self' (self) to 1 'encoder.layer.1.attention.self' (self)",
        "  weights: (batch 2, head 1, query 2, key 5)",
        "  summed_norms: (batch 2, query 2, key 5)",
        "  heads: 1",
        "  rows: 0, -1",
        "  input_ids (the first of 2 examples): 3 4 5 6 7",
    ]


def test_shapes_that_differ_and_measures_that_are_absent_are_counted(emitting):
    gated = record("gated", query=2, gate=torch.rand(2, 3, 2, 6, dtype=torch.float64))
    text = repr(attention_maps(emitting(record("plain"), gated), IDS, QUANTITIES))
    assert "weights: 1 × (batch 2, head 3, query 4, key 5), 1 × (batch 2, head 3, query 2, key 5)" in text
    assert "transformed_norms: 1 × (batch 2, head 3, key 5), 1 without" in text


def test_a_long_text_stays_short_and_on_its_lines(emitting):
    maps = attention_maps(emitting(*(record(f"layer.{i}") for i in range(40))), IDS)
    spoken = replace(maps, input_tokens={"input_ids": (("a\nb", "", *["word"] * 500),)})
    assert len(repr(spoken)) < 600
    assert r"input_ids: 'a\nb' '' word word" in repr(spoken)


def test_maps_keep_no_model_alive_and_pickle_none(bert):
    model = copy.deepcopy(bert)
    maps, gone = attention_maps(model, IDS), weakref.ref(model)
    assert maps.calls[0].module is model.encoder.layer[0].attention.self
    again = pickle.loads(pickle.dumps(maps))
    assert (again.calls, again.calls[0].module) == (maps.calls, None)
    assert torch.equal(again.weights[0], maps.weights[0])
    del model
    gc.collect()
    assert gone() is None
    assert maps.calls[0].module is None


def test_a_pickle_is_about_as_large_as_its_numbers(bert):
    maps = attention_maps(bert, IDS)
    numbers = sum(tensor.nbytes for results in maps.results.values() for tensor in results)
    assert len(pickle.dumps(maps)) < numbers + 10_000
