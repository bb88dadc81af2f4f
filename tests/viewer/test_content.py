"""The page holds what the maps hold: tokens without padding, numbers, and what stands beside them."""

import pytest
import torch

from captum_norm.capture import AttentionCall, Positions
from captum_norm.viewer.content import Additions, call_labels, content
from tests.tokenizers_of_every_kind import TOKENIZERS
from tests.viewer.made import arrays_of, attention, call, made_maps


def told(maps, **choices):
    return content(maps, Additions(**choices))


def test_numbers_are_those_of_the_maps():
    results = attention(5)
    page = told(made_maps(results))
    assert page["bits"] == 16
    for i, stored in enumerate(page["examples"][0]["maps"]):
        weights, lengths = arrays_of(stored, "weights"), arrays_of(stored, "lengths")
        torch.testing.assert_close(weights, results["weights"][i][0], atol=2e-5, rtol=0)
        torch.testing.assert_close(weights * lengths[:, None], results["head_norms"][i][0], atol=2e-4, rtol=0)
        torch.testing.assert_close(arrays_of(stored, "summed_norms"), results["summed_norms"][i], atol=1e-4, rtol=0)


def test_norms_per_head_are_stored_whole_where_they_are_no_product_of_weight_and_length():
    results = attention(5)
    results["head_norms"][0] = results["head_norms"][0] + torch.rand(1, 2, 5, 5)  # as behind a gate of the query
    first, second = told(made_maps(results))["examples"][0]["maps"]
    assert [array["name"] for array in first["arrays"]] == ["weights", "head_norms", "summed_norms"]
    assert [array["name"] for array in second["arrays"]] == ["lengths", "weights", "summed_norms"]
    torch.testing.assert_close(arrays_of(first, "head_norms"), results["head_norms"][0][0], atol=2e-4, rtol=0)


def test_padding_is_left_out():
    results, mask = attention(4, batch=2), torch.tensor([[True, True, True, True], [False, True, True, False]])
    maps = made_maps(results, [["[CLS]", "a", "b", "[SEP]"], ["[PAD]", "c", "d", "[PAD]"]], masks=mask)
    page = told(maps)
    first, second = (example["maps"][0] for example in page["examples"])
    assert page["axes"][first["keys"]]["written"] == ["[CLS]", "a", "b", "[SEP]"]
    assert page["axes"][second["keys"]]["written"] == page["axes"][second["queries"]]["written"] == ["c", "d"]
    assert page["axes"][second["keys"]]["places"] == [1, 2]
    torch.testing.assert_close(arrays_of(second, "weights"), results["weights"][0][1, :, 1:3, 1:3], atol=2e-5, rtol=0)


def test_marks_are_read_off_all_tokens_of_an_input_not_those_of_one_axis():
    tokens = [["a", "ä½ł", "å¥½"], ["Ġa", "b", "c"]]
    maps = made_maps(attention(3, batch=2), tokens, masks=torch.tensor([[False, True, False], [True, True, True]]))
    page = told(maps)
    assert page["axes"][page["examples"][0]["maps"][0]["keys"]]["written"] == ["你"]
    cut = made_maps(attention(3), [["ðŁ", "ĺ", "Ģ"]], masks=torch.tensor([[False, True, True]]))
    assert told(cut)["axes"][0]["written"] == ["0x98", "0x80"]
    given = told(made_maps(attention(2)), tokens=["Ġurnata", "tajba"], tokenizer=TOKENIZERS["MiniLM"])
    assert given["axes"][0]["written"] == ["Ġurnata", "tajba"]


def test_tokens_stand_in_the_page_once():
    page = told(made_maps(attention(4, calls=5), [["a", "b", "c", "d"]]))
    assert len(page["axes"]) == 1
    assert {(m["queries"], m["keys"]) for m in page["examples"][0]["maps"]} == {(0, 0)}


def cross_maps():
    weights, with_residual = torch.rand(1, 2, 3, 4), torch.rand(1, 3, 5)
    return made_maps(
        {"weights": [weights], "res_norms": [with_residual]},
        calls=[call("decoder.0.cross", "cross")],
        keys=[Positions("input_ids", torch.arange(4))],
        queries=[Positions("decoder_input_ids", torch.arange(3))],
    )


def test_cross_attention_has_two_lists_of_tokens_and_the_residual_one_more_column():
    maps = cross_maps()
    given = {"input_ids": ["ein", "roter", "ball", "</s>"], "decoder_input_ids": [["<pad>", "a", "red"]]}
    page = told(maps, tokens=given, prompt=1)
    [stored] = page["examples"][0]["maps"]
    assert page["axes"][stored["keys"]]["written"] == ["ein", "roter", "ball", "</s>"]
    assert page["axes"][stored["queries"]]["written"] == ["<pad>", "a", "red"]
    assert arrays_of(stored, "weights").shape == (2, 3, 4)
    torch.testing.assert_close(arrays_of(stored, "res_norms"), maps.res_norms[0], atol=5e-5, rtol=0)


def test_the_residual_column_stays_where_padding_goes():
    maps = cross_maps()
    object.__setattr__(maps, "key_masks", (torch.tensor([[True, False, True, False]]),))
    [stored] = told(maps)["examples"][0]["maps"]
    torch.testing.assert_close(arrays_of(stored, "res_norms"), maps.res_norms[0][..., [0, 2, 4]], atol=5e-5, rtol=0)


def test_the_prompt_is_marked_in_what_a_decoder_reads():
    maps = made_maps(attention(4, calls=1), [["a", "b", "c", "d"]], calls=[call("h.0", "causal")])
    assert told(maps, prompt=2)["axes"][0]["prompt"] == 2
    assert "prompt" not in told(maps)["axes"][0]
    twice = made_maps(attention(4, calls=1, batch=2), [["a", "b", "c", "d"]] * 2, calls=[call("h.0", "causal")])
    assert [axis["prompt"] for axis in told(twice, prompt=[1, 3])["axes"]] == [1, 3]


def test_patches_are_named_by_row_and_column_and_films_are_frames_below_each_other():
    where = Positions("pixel_values", torch.tensor([-1, 0, 1, 2, 3, 4, 5]), grid=(2, 3))
    page = told(made_maps(attention(7, calls=1), keys=[where], queries=[where]))
    assert page["axes"][0]["grid"] == [2, 3]
    assert page["axes"][0]["written"] == ["(no patch)", "0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]
    film = Positions("pixel_values", torch.arange(8), grid=(2, 2, 2))
    assert told(made_maps(attention(8, calls=1), keys=[film], queries=[film]))["axes"][0]["grid"] == [4, 2]


def test_a_measure_that_a_call_lacks_is_absent_with_its_reason():
    results = attention(3)
    results["head_norms"][1] = "a gate stands between"
    page = told(made_maps(results))
    assert page["calls"][0]["absent"] == {}
    assert "a gate stands between" in page["calls"][1]["absent"]["head_norms"]


def test_heads_keep_the_numbers_of_the_model():
    maps = made_maps(attention(3), calls=[call(f"layer.{i}", heads=8) for i in range(2)], head_indices=(1, -1))
    assert [one["heads"] for one in told(maps)["calls"]] == [[1, 7], [1, 7]]


def test_only_the_chosen_examples_are_stored():
    maps = made_maps(attention(3, batch=4))
    assert [one["number"] for one in told(maps, examples=[2, -1])["examples"]] == [2, 3]
    assert [one["number"] for one in told(maps, examples=1)["examples"]] == [1]


def test_many_numbers_are_stored_in_fewer_bits():
    assert told(made_maps(attention(40, heads=4, calls=20)))["bits"] == 8


def test_certificates_are_told():
    [first, _] = told(made_maps(attention(3)))["calls"]
    assert (first["error"], first["tolerance"]) == (1e-7, 1e-5)


@pytest.mark.parametrize(
    ("names", "labels", "groups"),
    [
        (["enc.layer.0.att", "enc.layer.1.att"], ["0", "1"], {"enc.layer.#.att"}),
        (["enc.0.self", "enc.1.self", "dec.0.self"], ["0", "1", "0"], {"enc.#.self", "dec.#.self"}),
        (["stage.0.block.0", "stage.0.block.1", "stage.1.block.0"], ["0.0", "0.1", "1.0"], {"stage.#.block.#"}),
        (["albert.0.attention", "albert.0.attention"], ["call 0", "call 1"], {"albert.#.attention"}),
        (["attention", ""], ["call 0", "call 1"], {"attention", ""}),
    ],
)  # fmt: skip
def test_calls_are_grouped_by_name_and_told_apart_by_number(names, labels, groups):
    found = call_labels([AttentionCall(name, "self", 0, 2, "") for name in names])
    assert [one.label for one in found] == labels
    assert {one.group for one in found} == groups


@pytest.mark.parametrize(
    ("maps", "choices", "said"),
    [
        (made_maps({"transformed_norms": [torch.rand(1, 2, 3)]}), {}, "no map over queries and keys"),
        (made_maps({"weights": [torch.full((1, 2, 3, 3), torch.nan)]}), {}, "weights of attention call 0 holds NaN"),
        (made_maps(attention(3)), {"examples": 1}, "examples names 1, but the batch holds 1"),
        (made_maps(attention(3)), {"examples": []}, "names nothing"),
        (made_maps(attention(3, batch=2)), {"prompt": [1]}, "prompt holds 1 entries"),
        (made_maps(attention(3, batch=2)), {"images": [torch.zeros(2, 2)]}, "images holds 1 entries"),
        (made_maps(attention(3)), {"tokens": {"input_ids": "abc"}}, "a list of labels"),
        (made_maps(attention(3, batch=2)), {"tokens": ["a", "b", "c"]}, "labels of 1 examples"),
    ],
)
def test_what_does_not_fit_is_refused(maps, choices, said):
    with pytest.raises(ValueError, match=said):
        told(maps, **choices)
