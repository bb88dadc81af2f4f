"""Attention of 45 kinds of models is read exactly, and a record that is wrong in any way is caught.

The whole table, every model type of transformers, is made by ``python -m tests.coverage.run``.
"""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from captum_norm.capture import AttentionRecord, recording
from captum_norm.proof import Prover, compare_attentions
from tests.coverage import formats, libraries, rows
from tests.coverage.check import Explained, Result, build, check, forward
from tests.coverage.library_models import Example
from tests.coverage.methods import asked
from tests.coverage.page import libraries_part, page
from tests.coverage.refusals import answered_anyway, rightly_refused
from tests.coverage.rows import check_rows
from tests.coverage.run import kept, load, run
from tests.coverage.tiny import tiny_config

# One of each kind: encoders, decoders, encoder-decoders, pictures, films, sound, series, tables, several at once;
# grouped heads, latent values, sinks, gates, norms, relative positions, windows, shared layers, Conv1D, einsum.
TYPES = """
    albert bart bert big_bird bitnet bloom clip convbert data2vec-audio deberta-v2 deepseek_v3
    detr distilbert falcon gemma2 gpt2 gpt_neox gpt_oss gptj jamba layoutlm llama llava longformer mobilebert
    modernbert mpnet opt patchtst perceiver pvt qwen3_next roberta roformer segformer squeezebert swin t5
    time_series_transformer videomae vit wav2vec2 wavlm whisper xlnet
""".split()


@pytest.fixture(autouse=True)
def _warnings_of_transformers() -> Iterator[None]:
    """What transformers warns of while building untrained models is not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_there_are_forty_five_types():
    assert len(TYPES) == len(set(TYPES)) == 45


@pytest.mark.wide(4)
@pytest.mark.parametrize("model_type", TYPES)
def test_every_attention_call_is_read_exactly(model_type):
    result = check(model_type)
    assert result.status == "exact", result
    assert result.same
    assert result.worst <= 1e-5
    assert result.proved == min(result.calls, 12), result.notes
    assert result.attentions[1] == 0


@pytest.mark.parametrize("model_type", ["gemma2", "swin", "t5"])
def test_rows_asked_for_alone_are_those_of_whole_maps(model_type):
    result = check_rows(model_type)
    assert result.different == []
    assert result.calls == {"gemma2": 2, "swin": 5, "t5": 6}[model_type]
    assert result.rows > 100
    assert (result.answers > 0) == (model_type != "swin")
    assert max(result.worst.values()) <= 1e-6
    # Swin's small weights differ by 1.04e-6 of themselves where a processor sums up scores of 10 in another order.
    assert model_type == "swin" or max(result.each.values()) <= 1e-6
    assert max(check_rows(model_type, torch.float64).each.values()) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_rows_of_every_kind_of_model_are_those_of_whole_maps(model_type):
    assert check_rows(model_type).different == []


@pytest.mark.parametrize("model_type", ["mamba", "resnet"])
def test_a_model_without_attention_has_no_records(model_type):
    assert check(model_type).status == "none"


def test_two_products_that_are_subtracted_are_one_call():
    """The check counts products, of which differential attention has two in each call, or one in transformers 4."""
    result = check("diffllama")
    assert (result.calls, result.refusals) == (2, [])
    assert result.products == (4 if int(transformers.__version__.split(".")[0]) > 4 else 2)
    assert result.same
    assert result.worst <= 1e-5


@pytest.mark.parametrize("model_type", ["levit"])
def test_what_cannot_be_read_exactly_is_refused_by_name(model_type):
    result = check(model_type)
    assert result.status == "refused"
    assert result.same
    assert "(call 0): " in result.reason


# ------------------------------------------------------------------------------------------------- negative controls


def _keys_permuted(record: AttentionRecord) -> AttentionRecord:
    order = torch.arange(record.weights.shape[-1]).roll(1)
    return replace(record, weights=record.weights[..., order], values=record.values[:, :, order])


WRONG: dict[str, Callable[[AttentionRecord], AttentionRecord]] = {
    "rows flipped": lambda r: replace(r, weights=r.weights.flip(2)),
    "heads rolled": lambda r: replace(r, weights=r.weights.roll(1, dims=1)),
    "values swapped between keys": lambda r: replace(r, values=r.values[:, :, [1, 0, *range(2, r.values.shape[2])]]),
    "keys permuted in weights and values together": _keys_permuted,
    "W_O of another head": lambda r: replace(r, W_O=r.W_O.roll(1, dims=0)),
    "W_O transposed within heads": lambda r: replace(r, W_O=r.W_O.flip(1)),
    "examples exchanged": lambda r: replace(r, weights=r.weights.flip(0)),
    "bias added to a value": lambda r: replace(r, values=r.values + 0.05),
}


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama", "t5", "xlnet", "vit"])
def proved(request) -> tuple[Prover, list[AttentionRecord]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build(request.param, Result(request.param))
    assert built is not None
    model, inputs = built
    with recording(model=model) as records:
        forward(model, inputs)
    return Prover(model, lambda: forward(model, inputs)), list(records)


def _every_key(prover: Prover, record: AttentionRecord) -> str:
    return prover.prove(record, torch.Generator().manual_seed(0), keys=record.weights.shape[-1]).status


def test_true_records_are_proved_at_every_key(proved):
    prover, records = proved
    assert records
    assert {_every_key(prover, record) for record in records} == {"proved"}


@pytest.mark.wide(5)
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_record_is_caught(proved, mistake):
    prover, records = proved
    assert {_every_key(prover, WRONG[mistake](record)) for record in records} <= {"wrong", "open"}
    assert _every_key(prover, WRONG[mistake](records[0])) == "wrong" or mistake == "bias added to a value"


@pytest.mark.parametrize("mistake", ["rows flipped", "heads rolled", "examples exchanged"])
def test_wrong_weights_equal_no_returned_attention(proved, mistake):
    _, records = proved
    returned = [record.weights.clone() for record in records]
    assert compare_attentions(returned, records) == (len(records), 0)
    assert compare_attentions(returned, [WRONG[mistake](record) for record in records]) == (0, len(records))


# ------------------------------------------------------------------------------------------------------- the script


def test_configurations_of_transformers_are_left_as_they_are():
    before = copy.deepcopy(tiny_config("qwen2_vl").to_dict())
    tiny_config("bert")
    assert tiny_config("qwen2_vl").to_dict() == before


def test_a_page_says_exact_refused_none_and_unbuilt(tmp_path):
    store = tmp_path / "results.jsonl"
    run(["bert", "levit", "mamba", "timm_wrapper"], store, jobs=1, timeout=60)
    results = load(store)
    text = page(list(results.values()))
    assert {t: r.status for t, r in results.items()} == {
        "bert": "exact", "levit": "refused", "mamba": "none", "timm_wrapper": "unbuilt",
    }  # fmt: skip
    for words in (
        "## Refused",
        "not seen to enter an output projection",
        "requires the timm library",
        "| bert | BertModel |",
        "| ALTI | 1 | 1 a call is refused |",
        "| 1 | patches overlap, or are merged or pooled on the way",
    ):
        assert words in text


def test_the_exit_status_tells_of_the_types_that_were_asked_for(tmp_path, capsys):
    """Of another type that an earlier run found different a run says nothing: the page, which has all of them, does."""
    store, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    store.write_text(json.dumps({"model_type": "vjepa2", "calls": 1, "different": ["weights: off by 1.6e-06"]}) + "\n")
    page.write_text(rows.BEGIN + rows.END)
    arguments = ["--store", str(store), "--jobs", "1", "--page", str(page)]
    assert rows.main(["--only", "mamba", *arguments]) == 0
    assert "off by" not in capsys.readouterr().out
    assert "1 types differ" in page.read_text()
    assert rows.main(["--minutes", "0", *arguments]) == 1
    assert "vjepa2: weights: off by 1.6e-06" in capsys.readouterr().out


def test_results_are_kept_under_the_code_that_gave_them(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.coverage.run.captum_norm.__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "method.py").write_text("a = 1\n")
    before = kept("types")
    assert kept("types") == before != kept("rows")
    (tmp_path / "method.py").write_text("a = 2\n")
    assert kept("types") != before


def test_types_are_told_apart_by_what_keeps_calls_from_being_composed():
    mixed = "ValueError: positions are mixed by {}"
    answers = {"bert": "", "swin": "no", "bridgetower": "no", "jamba": mixed.format("mul in 'layers.0.mamba'"),
               "sam_vision_model": mixed.format("conv2d (neighbours, kernel (3, 3))"), "new": "no"}  # fmt: skip
    rightly = rightly_refused({name: {"AttentionRollout": why} for name, why in answers.items()})
    kinds = {types: kind for _, kind, types in rightly}
    starts = {"swin": "patches", "jamba": "hybrids", "sam_vision_model": "convolutions", "new": "not gone"}
    assert set(kinds) == set(starts)
    for name, start in starts.items():
        assert kinds[name].startswith(start)
    assert list(answered_anyway({"swin": {"AttentionRollout": ""}, "bert": {"AttentionRollout": ""}})) == ["swin"]


def test_pictures_one_behind_the_other_are_asked_for_one_at_a_time():
    built = build("qwen2_5_vl_vision", Result("qwen2_5_vl_vision"))
    if built is None:
        pytest.skip("these transformers have no such model by itself")
    model, inputs = built
    explained = Explained(model, inputs)
    assert len(inputs["hidden_states"]) == 2 * explained.given.shape[1]
    assert explained(explained.given).shape[:2] == (1, 16)
    assert asked("AttentionNorm", explained, explained.given, None) == ""


def test_the_page_of_libraries_is_the_second_part_and_stays_when_the_first_is_written_anew(tmp_path):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = libraries.look("here", "a_layer", lambda: Example(encoder, encoder, torch.randn(1, 4, 8), (0, 1)))
    assert (found.calls, found.proved, found.wrong) == (1, 1, [])
    assert found.answers["AttentionNorm"] == found.answers["DecompX"] == ""
    second = libraries.page([found, libraries.Found("there", "unbuilt", unbuilt="ImportError")])
    assert "1 tiny random models of 1 libraries" in second
    assert "| here | a\\_layer | 1 | 1 |" in second
    assert libraries_part(f"# First\n\n{second}") == f"\n{second}"


def test_the_table_of_formats_says_how_far_a_quantised_model_is_from_its_own_matrices(monkeypatch):
    missing = {"not installed": lambda: importlib.import_module("no_such_library")}
    monkeypatch.setattr(formats, "FORMATS", missing | {"dynamic": formats.FORMATS["torch dynamic int8"]})
    head, _, line = formats.table().splitlines()
    found = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert 1e-4 < float(found["certificate"]) <= float(found["allowed"]) < 0.1
    assert 1e-4 < float(found["weights"]) < 0.1
    assert found["DecompX |"] == "refused |"
