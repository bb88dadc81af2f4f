"""How a method reads cross-attention: the layer that was asked for and no other, with heads where it has them."""

import pytest
import torch

from captum_norm import attention_maps
from captum_norm.alignment import METHODS
from captum_norm.alignment.methods import link_method
from captum_norm.measures import MEASURES
from tests.alignment.families import family

MEASURED = {measure.aligner: measure for measure in MEASURES.values() if measure.aligner}


@pytest.fixture(scope="module")
def marian():
    model, tokenizer = family("marian")
    source = tokenizer("der kleine hund .", return_tensors="pt")["input_ids"]
    target = tokenizer(text_target="the little dog .", return_tensors="pt")["input_ids"]
    return model, {"input_ids": source, "decoder_input_ids": target}


@pytest.mark.parametrize("name", METHODS)
def test_one_layer_alone_is_what_it_is_among_all(marian, name):
    model, inputs = marian
    every = METHODS[name].read(model, inputs, False, None)
    assert len(every) == 2
    for layer, whole in enumerate(every):
        alone = METHODS[name].read(model, inputs, False, layer)
        torch.testing.assert_close(alone[layer].summed, whole.summed)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "rollout"])  # which needs the layers before
def test_layers_that_were_not_asked_for_are_not_measured(marian, name):
    model, inputs = marian
    for layer in (0, 1):
        maps = METHODS[name].read(model, inputs, True, layer)
        assert [one.summed is None for one in maps] == [number != layer for number in (0, 1)]
        assert maps[1 - layer].by_head is None


@pytest.mark.parametrize("name", MEASURED)
def test_a_measure_is_that_of_attention_maps_without_the_residuals_column(marian, name):
    model, inputs = marian
    measure = MEASURED[name]
    names = [measure.name, *filter(None, [measure.of_one_head])]
    maps = attention_maps(model, inputs, names)
    crossing = [i for i, call in enumerate(maps.calls) if call.kind == "cross"]
    keys = inputs["input_ids"].shape[1]
    for i, found in zip(crossing, METHODS[name].read(model, inputs, True, None), strict=True):
        torch.testing.assert_close(found.summed, getattr(maps, measure.name)[i][..., :keys])
        assert METHODS[name].has_heads == bool(measure.of_one_head) == (found.by_head is not None)
        if found.by_head is not None:
            torch.testing.assert_close(found.by_head, getattr(maps, measure.of_one_head)[i])


def test_heads_are_read_only_where_they_are_wanted(marian):
    model, inputs = marian
    assert all(found.by_head is None for found in METHODS["norm"].read(model, inputs, False, None))


def test_an_unknown_method_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"method should be one of norm, weights, .*, got 'norms'"):
        link_method("norms")


def test_a_block_that_cannot_be_read_is_named_with_the_way_out(marian):
    _, inputs = marian

    class Bare(torch.nn.Module):
        """Cross-attention with no residual around it."""

        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(500, 8)
            self.cross = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, input_ids, decoder_input_ids):
            source, target = self.table(input_ids), self.table(decoder_input_ids)
            return self.cross(target, source, source)[0]

    for name, measure in (("block_norm", "res_ln_norms"), ("alti", "alti")):
        with pytest.raises(ValueError, match=rf"'cross' has no {measure}: .*method=\"norm\" measures"):
            METHODS[name].read(Bare().eval(), inputs, False, None)
