"""The tidy table has every number of the maps once, beside what it belongs to."""

import sys

import pytest
import torch

from captum_norm.maps import attention_maps
from tests.maps.records import IDS, MASK, QUANTITIES, record

pandas = pytest.importorskip("pandas")


def test_every_number_stands_beside_its_call_head_row_and_key(bert):
    maps = attention_maps(bert, IDS, ("weights", "summed_norms", "mean_weights"))
    table = maps.to_pandas()
    assert list(table) == [
        "quantity", "call", "name", "kind", "example", "head", "query", "key", "query_token", "key_token", "value",
    ]  # fmt: skip
    assert len(table) == sum(tensor.numel() for results in maps.results.values() for tensor in results)
    for row in table.sample(50, random_state=0).itertuples():
        heads = () if pandas.isna(row.head) else (row.head,)
        assert row.value == float(maps.results[row.quantity][row.call][(row.example, *heads, row.query, row.key)])
        assert row.name == maps.calls[row.call].name
        assert (row.query_token, row.key_token) == tuple(str(int(IDS[row.example, i])) for i in (row.query, row.key))


def test_padding_is_left_out(bert):
    table = attention_maps(bert, {"input_ids": IDS, "attention_mask": MASK}).to_pandas("summed_norms")
    assert table.groupby("example").size().tolist() == [2 * 5 * 5, 2 * 3 * 3]
    assert table.loc[table["example"] == 1, "key"].max() == 2


def test_heads_and_rows_keep_their_numbers_in_the_model(bert):
    table = attention_maps(bert, IDS, head_indices=(2, 0), positions=(3,)).to_pandas(["weights"])
    assert (set(table["head"]), set(table["query"]), set(table["query_token"])) == ({0, 2}, {3}, {"6", "0"})


def test_an_axis_that_a_measure_lacks_is_na_and_an_absent_measure_has_no_rows(emitting):
    gated = record("gated", gate=torch.rand(2, 3, 4, 6, dtype=torch.float64))
    table = attention_maps(emitting(record("plain"), gated), IDS, QUANTITIES).to_pandas()
    norms = table[table["quantity"] == "transformed_norms"]
    assert set(norms["name"]) == {"plain"}
    assert norms["query"].isna().all()
    assert norms["query_token"].isna().all()


def test_the_residual_of_cross_attention_is_a_key(emitting):
    maps = attention_maps(emitting(record()), IDS)
    wider = [torch.cat([tensor, tensor[..., :1]], dim=-1) for tensor in maps.results["summed_norms"]]
    maps.results["summed_norms"][:] = wider
    assert "residual" in set(maps.to_pandas("summed_norms")["key_token"])


def test_a_measure_that_is_not_held_is_named(emitting):
    with pytest.raises(AttributeError, match="head_norms was not computed"):
        attention_maps(emitting(record()), IDS).to_pandas("head_norms")


def test_without_pandas_the_error_names_the_extra(emitting, monkeypatch):
    maps = attention_maps(emitting(record()), IDS)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"AttentionMaps\.to_pandas needs pandas.*captum-norm\[study\]"):
        maps.to_pandas()
