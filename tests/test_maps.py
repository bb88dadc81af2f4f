"""attention_maps says of every call what its definition says, refuses what it cannot take, and keeps its file whole."""

import json
import os
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from captum_norm import functional
from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, InexactCaptureError, Positions
from captum_norm.forward.inputs import longest_input, named_inputs, position_sources
from captum_norm.maps import AttentionMaps, attention_layers, attention_maps, checked_calls

QUANTITIES = ("weights", "transformed_norms", "head_norms", "summed_norms")
IDS = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 0, 0]])
MASK = (IDS != 0).long()


def record(
    name="layer.0.attention", query=4, key=5, heads=3, dtype=torch.float64, gate=None, call=0
) -> AttentionRecord:
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(dtype)  # noqa: E731
    return AttentionRecord(
        call=AttentionCall(name, "self", call, heads, f"{name}.dense.weight"),
        weights=draw(2, heads, query, key).softmax(-1),
        values=draw(2, heads, key, 6),
        W_O=draw(heads, 6, 8),
        b_O=None,
        gate=gate,
        queries=Positions(0, torch.arange(query)),
        keys=Positions(0, torch.arange(key)),
        unknown_keys="",
        query_mask=torch.ones(2, query, dtype=torch.bool),
        key_mask=None,
        certificate=Certificate(1e-15, 1e-12),
    )


def inexact(name="layer.1.attention") -> InexactCaptureError:
    error = InexactCaptureError(f"{name}: off by 0.5")
    error.call = AttentionCall(name, "self", 0, 2, "")
    return error


@pytest.fixture
def emitting(monkeypatch):
    """Makes a model out of records: running it hands them over, as a recording would."""
    receivers = []

    @contextmanager
    def recording(on_record, *, sources=(), model=None, on_inexact=None, blocks=False):
        receivers.append((on_record, on_inexact))
        yield []
        receivers.pop()

    monkeypatch.setattr("captum_norm.capture.running.recording", recording)

    class Emitting(nn.Module):
        def __init__(self, *calls):
            super().__init__()
            self.emitted = calls

        def forward(self, input_ids: Tensor) -> Tensor:
            on_record, on_inexact = receivers[-1]
            for call in self.emitted:
                (on_inexact if isinstance(call, InexactCaptureError) else on_record)(call)
            return input_ids

    return Emitting


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    return BertModel(config).eval()


# what is computed


def test_every_quantity_is_its_function_of_the_record(emitting):
    one, two = record("a"), record("b", query=2, key=3, heads=2)
    maps = attention_maps(emitting(one, two), IDS, QUANTITIES)
    for i, r in enumerate((one, two)):
        torch.testing.assert_close(maps.weights[i], r.weights)
        torch.testing.assert_close(maps.transformed_norms[i], functional.transformed_norms(r.values, r.W_O))
        torch.testing.assert_close(maps.head_norms[i], functional.head_norms(r.weights, r.values, r.W_O))
        torch.testing.assert_close(maps.summed_norms[i], functional.summed_norms(r.weights, r.values, r.W_O))
    assert [call.name for call in maps.calls] == ["a", "b"]
    assert [float(c) for c in maps.certificate] == [1e-15, 1e-15]


def test_weights_of_a_bert_are_those_it_returns_itself(bert):
    maps = attention_maps(bert, {"input_ids": IDS, "attention_mask": MASK})
    returned = bert(IDS, MASK, output_attentions=True).attentions
    real = MASK.bool()
    for mine, theirs in zip(maps.weights, returned, strict=True):
        torch.testing.assert_close(mine.transpose(1, 2)[real], theirs.transpose(1, 2)[real])


def test_a_mapping_a_tuple_and_a_tensor_say_the_same(bert):
    everything = torch.ones_like(MASK)
    keyword = attention_maps(bert, {"input_ids": IDS, "attention_mask": everything})
    for inputs in ((IDS, everything), IDS):
        torch.testing.assert_close(attention_maps(bert, inputs).summed_norms, keyword.summed_norms)


def test_only_the_chosen_heads_and_rows_are_kept(emitting):
    model = emitting(record())
    whole = attention_maps(model, IDS, QUANTITIES)
    part = attention_maps(model, IDS, QUANTITIES, head_indices=[2, 0], positions=[-1, 1])
    torch.testing.assert_close(part.weights[0], whole.weights[0][:, [2, 0]][:, :, [3, 1]])
    torch.testing.assert_close(part.head_norms[0], whole.head_norms[0][:, [2, 0]][:, :, [3, 1]])
    torch.testing.assert_close(part.transformed_norms[0], whole.transformed_norms[0][:, [2, 0]])
    torch.testing.assert_close(part.summed_norms[0], whole.summed_norms[0][:, [3, 1]])
    assert part.queries[0].index.tolist() == [3, 1]
    assert part.query_masks[0].shape == (2, 2)
    assert (part.head_indices, part.positions) == ((2, 0), (-1, 1))


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ([1], ["encoder.layer.1.self"]),
        (0, ["encoder.layer.0.self"]),
        ([-1, 0], ["encoder.layer.0.self", "pooler"]),
        ("encoder.layer.1", ["encoder.layer.1.self"]),
        ("encoder", ["encoder.layer.0.self", "encoder.layer.1.self"]),
        (["pooler", 0], ["encoder.layer.0.self", "pooler"]),
    ],
    ids=str,
)
def test_calls_are_chosen_by_index_or_by_name(emitting, layers, names):
    model = emitting(record("encoder.layer.0.self"), record("encoder.layer.1.self"), record("pooler"))
    maps = attention_maps(model, IDS, layers=layers)
    assert [call.name for call in maps.calls] == names
    assert len(maps) == len(maps.weights) == len(names)


def test_layer_1_is_not_layer_10(emitting):
    maps = attention_maps(emitting(record("layer.10"), record("layer.1")), IDS, layers="layer.1")
    assert [call.name for call in maps.calls] == ["layer.1"]


def test_a_module_called_twice_is_two_calls(emitting):
    maps = attention_maps(emitting(record("shared", call=0), record("shared", call=1)), IDS)
    assert [(call.name, call.call) for call in maps.calls] == [("shared", 0), ("shared", 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_models_give_float32(emitting, dtype):
    maps = attention_maps(emitting(record(dtype=dtype)), IDS, QUANTITIES)
    assert {getattr(maps, name)[0].dtype for name in QUANTITIES} == {torch.float32}


def test_results_are_detached_and_the_model_is_as_it_was(bert):
    before = {name: p.clone() for name, p in bert.state_dict().items()}
    random = torch.get_rng_state()
    maps = attention_maps(bert, IDS, QUANTITIES)
    assert not any(getattr(maps, name)[0].requires_grad for name in QUANTITIES)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], p) for name, p in bert.state_dict().items())
    assert not bert.training
    assert all(p.grad is None and p.requires_grad for p in bert.parameters())


def test_where_keys_and_rows_lie_is_told_by_the_inputs_name(bert):
    maps = attention_maps(bert, {"input_ids": IDS, "attention_mask": MASK})
    assert maps.keys[0].source == maps.queries[0].source == "input_ids"
    assert maps.keys[0].index.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(maps.key_masks[0], MASK.bool())
    assert maps.tokens == ((3, 4, 5, 6, 7), (3, 4, 5, 0, 0))
    assert maps.key_tokens(0, example=1) == ["3", "4", "5", "0", "0"]
    assert maps.versions["model"] == "BertModel"
    assert maps.versions["torch"] == torch.__version__


def test_a_tokenizers_encoding_brings_its_tokens_as_strings(bert):
    pieces = Tokenizer(WordLevel({"[PAD]": 0, "a": 1, "warm": 2, "film": 3}, unk_token="a"))
    pieces.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]")
    encoding = tokenizer(["a warm film", "film"], padding=True, return_tensors="pt", return_token_type_ids=False)
    maps = attention_maps(bert, encoding)
    assert maps.tokens == (("a", "warm", "film"), ("film", "[PAD]", "[PAD]"))
    assert maps.query_tokens(1, example=1) == ["film", "[PAD]", "[PAD]"]
    plain = attention_maps(bert, dict(encoding))
    assert plain.tokens == ((1, 2, 3), (3, 0, 0))


def test_layers_are_listed_with_those_that_cannot_be_read(emitting):
    model = emitting(record("a"), inexact("b"))
    assert [call.name for call in attention_layers(model, IDS)] == ["a", "b"]
    found = checked_calls(model, IDS)
    assert [(c.certificate is None, c.refusal) for c in found] == [(False, ""), (True, "b: off by 0.5")]


# what is refused


def test_an_unknown_quantity_is_answered_with_those_there_are(bert):
    with pytest.raises(ValueError, match=r"'alphas'. There are: weights, transformed_norms, head_norms, summed_norms"):
        attention_maps(bert, IDS, ("alphas",))


def test_a_quantity_that_was_not_asked_for_is_no_attribute(emitting):
    maps = attention_maps(emitting(record()), IDS)
    with pytest.raises(AttributeError, match=r"head_norms was not computed, only weights, summed_norms"):
        _ = maps.head_norms
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = maps.colour


def test_an_element_wise_gate_leaves_f_without_a_norm(emitting):
    gated = record("gated", gate=torch.rand(2, 3, 4, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="no chosen call has transformed_norms: gated: an element-wise gate"):
        attention_maps(emitting(gated), IDS, ("transformed_norms",))
    maps = attention_maps(emitting(record("plain"), gated), IDS, QUANTITIES)
    assert maps.transformed_norms[0].shape == (2, 3, 5)
    with pytest.raises(ValueError, match="gated has no transformed_norms: an element-wise gate"):
        _ = maps.transformed_norms[1]
    with pytest.raises(ValueError, match="gated has no"):
        list(maps.transformed_norms)
    expected = functional.summed_norms(gated.weights, gated.values, gated.W_O, gate=gated.gate)
    torch.testing.assert_close(maps.summed_norms[1], expected)


def test_gates_are_cut_with_heads_and_rows(emitting):
    gated = record(gate=torch.rand(2, 3, 4, 1, dtype=torch.float64))
    whole = attention_maps(emitting(gated), IDS, QUANTITIES)
    part = attention_maps(emitting(gated), IDS, QUANTITIES, head_indices=[1], positions=[2])
    torch.testing.assert_close(part.head_norms[0], whole.head_norms[0][:, [1]][:, :, [2]])
    torch.testing.assert_close(part.summed_norms[0], whole.summed_norms[0][:, [2]])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": [7]}, r"layers holds 7, which is no attention call.*0 'layer.0.attention'"),
        ({"layers": [-2]}, r"layers holds -2, but the model makes 1 attention calls"),
        ({"layers": "layer.00"}, r"layers holds 'layer.00'"),
        ({"head_indices": [3]}, r"head_indices holds 3, but 'layer.0.attention' has 3 heads"),
        ({"positions": [-5]}, r"positions holds -5, but 'layer.0.attention' has 4 rows"),
        ({"quantities": ()}, r"was asked for no quantity"),
    ],
    ids=str,
)
def test_choices_that_do_not_exist_are_named(emitting, choice, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(emitting(record()), IDS, **choice)


def test_a_call_that_cannot_be_read_is_an_error_unless_it_was_not_asked_for(emitting):
    model = emitting(record("a"), inexact("b"), record("c"))
    with pytest.raises(InexactCaptureError, match=r"off by 0\.5"):
        attention_maps(model, IDS)
    assert [call.name for call in attention_maps(model, IDS, layers=["a", 2]).calls] == ["a", "c"]


def test_a_model_in_which_no_attention_is_seen_is_an_error_with_the_way_out():
    with pytest.raises(ValueError, match=r'Linear ran, but no attention call was seen.*attn_implementation="sdpa"'):
        attention_maps(nn.Linear(3, 3), torch.randn(2, 4, 3))


def test_float_ids_are_refused_with_the_remedy(bert):
    with pytest.raises(TypeError, match=r"input_ids is torch.float32.*inputs_embeds"):
        attention_maps(bert, IDS.float())

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, x):
            return self.table(x)

    with pytest.raises(TypeError, match="Own looks up token ids"):
        attention_maps(Own(), IDS.float())


def test_a_text_longer_than_the_positions_is_refused(bert):
    with pytest.raises(ValueError, match=r"input_ids has 17 tokens, but its table of positions ends at 16"):
        attention_maps(bert, torch.ones(1, 17).long())


def test_ids_beyond_the_vocabulary_are_refused(bert):
    with pytest.raises(ValueError, match=r"ids from 1 to 30, but the model knows 0 to 29"):
        attention_maps(bert, torch.tensor([[1, 30]]))


def test_nothing_to_attend_to_is_refused(bert):
    with pytest.raises(ValueError, match=r"input_ids is empty, shape \(1, 0\)"):
        attention_maps(bert, torch.ones(1, 0).long())


def test_a_list_is_no_input(bert):
    with pytest.raises(TypeError, match="BertModel cannot be called with a list"):
        attention_maps(bert, [1, 2, 3])


def test_weights_that_are_nan_name_the_first_call_they_reach(bert):
    broken = BertModel(bert.config).eval()
    with torch.no_grad():
        broken.encoder.layer[1].attention.self.value.weight[0, 0] = torch.nan
    with pytest.raises(InexactCaptureError, match=r"encoder\.layer\.1\.\S* .*NaN"):
        attention_maps(broken, IDS)


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        (lambda: BertModel(BertConfig(max_position_embeddings=20, **TINY)), 20),
        (lambda: RobertaModel(RobertaConfig(max_position_embeddings=20, pad_token_id=1, **TINY)), 18),
        (lambda: GPT2Model(GPT2Config(n_positions=20, n_embd=8, n_layer=1, n_head=2, vocab_size=30)), 20),
        (lambda: nn.Linear(2, 2), None),
    ],
    ids=["bert", "roberta", "gpt2", "linear"],
)
def test_the_longest_input_is_what_the_table_of_positions_holds(model, longest):
    assert longest_input(model()) == longest


TINY = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


def test_positional_inputs_get_the_names_of_forward(bert):
    assert list(named_inputs(bert, (IDS, MASK))) == ["input_ids", "attention_mask"]
    assert list(position_sources(named_inputs(bert, (IDS, MASK)))) == ["input_ids"]
    assert list(named_inputs(lambda *args: None, (IDS, MASK))) == ["input 0", "input 1"]
    x = torch.randn(1, 2, 4)
    assert list(position_sources(named_inputs(nn.MultiheadAttention(4, 1), (x, x, x)))) == ["query"]


# the file


@pytest.fixture
def saved(emitting, tmp_path):
    gated = record("gated", gate=torch.rand(2, 3, 4, 6, dtype=torch.float64))
    maps = attention_maps(emitting(record("plain"), gated), {"input_ids": IDS}, QUANTITIES)
    path = tmp_path / "maps.safetensors"
    maps.save(path)
    return maps, path


def test_what_is_loaded_is_what_was_saved(saved):
    maps, path = saved
    again = AttentionMaps.load(path)
    assert again.calls == maps.calls
    assert again.certificate == maps.certificate
    assert (again.tokens, again.versions, again.quantities) == (maps.tokens, maps.versions, maps.quantities)
    for name in ("weights", "head_norms", "summed_norms"):
        assert all(map(torch.equal, getattr(again, name), getattr(maps, name)))
    assert torch.equal(again.transformed_norms[0], maps.transformed_norms[0])
    with pytest.raises(ValueError, match="gated has no transformed_norms: an element-wise gate"):
        _ = again.transformed_norms[1]
    assert again.keys[0].source == "input_ids"
    assert torch.equal(again.keys[0].index, maps.keys[0].index)
    assert torch.equal(again.query_masks[1], maps.query_masks[1])
    assert again.key_masks == (None, None)


def test_modules_stay_out_of_the_file(bert, tmp_path):
    maps = attention_maps(bert, IDS)
    assert maps.calls[0].module is not None
    maps.save(tmp_path / "maps")
    assert AttentionMaps.load(tmp_path / "maps").calls[0].modules == ()


def test_tokens_of_any_script_survive_the_file(saved, tmp_path):
    named = replace(saved[0], input_tokens={"input_ids": (("[CLS]", "naïve", "日本"), ('"', "\\", "\n"))})
    named.save(tmp_path / "named")
    assert AttentionMaps.load(tmp_path / "named").tokens == named.tokens


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        AttentionMaps.load(tmp_path / "nothing")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:20])


def emptied(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("these are no maps")


def pickled(path):
    torch.save({"weights": torch.ones(2)}, path)


def foreign(path):
    save_file({"weights/0": torch.ones(1, 1, 2, 2)}, path)


def of_other_shape(path):
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | {"weights/0": torch.ones(3)}, path, metadata)


def without_a_tensor(path):
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["weights/0"]
    save_file(tensors, path, metadata)


def described_wrongly(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"captum_norm.AttentionMaps": json.dumps({"calls": 3})})


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        cut_in_the_header,
        emptied,
        text,
        pickled,
        foreign,
        of_other_shape,
        without_a_tensor,
        described_wrongly,
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(saved, damage):
    _, path = saved
    damage(path)
    with pytest.raises(ValueError, match=r"maps\.safetensors cannot be read as attention maps: .*attention_maps\("):
        AttentionMaps.load(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    maps, path = saved
    before = path.read_bytes()

    def fail(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("captum_norm.maps.saving.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        maps.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_does_not_exist_is_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        saved[0].save(tmp_path / "nowhere" / "maps")


def test_maps_move_to_a_device_as_a_whole(saved):
    moved = saved[0].to("meta")
    assert {moved.weights[0].device.type, moved.keys[0].index.device.type} == {"meta"}
    assert moved.calls == saved[0].calls
