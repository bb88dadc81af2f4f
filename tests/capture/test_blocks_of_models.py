"""The blocks of real models: fifteen architectures and other makes, batches with padding, generation, threads."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_norm import ALTI, AttentionBlockNorm, HFForward
from captum_norm.capture import AttentionRecord, recording
from captum_norm.capture.blocks import read
from captum_norm.capture.blocks.forms import Kept, State
from captum_norm.capture.blocks.read import UnreadableBlockError, residual_key
from captum_norm.capture.call import Positions
from captum_norm.functional import rollout_encoder_decoder
from captum_norm.measures import alti_contributions
from tests.architectures import ARCHITECTURES
from tests.architectures import ids as some_ids
from tests.capture.test_blocks import block_of, check_reconstruction, found_in, recorded
from tests.capture.test_untouched import hooks
from tests.capture.written_blocks import PARALLEL, POST, PRE, Found

SANDWICH = Found(inner="rms norm")
LATER = Found(feed_forward="later")
LATER_POST = Found(norm="layer norm", feed_forward="later")
KINDS = {
    "BERT": POST, "RoBERTa": POST, "DeBERTa-v2": POST, "ModernBERT": PRE, "GPT-2": PRE, "GPT-NeoX": PARALLEL,
    "Llama": PRE, "Qwen3": PRE, "Gemma-2": SANDWICH, "Mixtral": PRE, "T5": (PRE, LATER, PRE),
    "BART": (POST, LATER_POST, POST), "Marian": (POST, LATER_POST, POST), "ViT": PRE, "Whisper": (PRE, LATER, PRE),
}  # fmt: skip
"""What each layer's blocks are: of the only stack, or of the encoder, the decoder itself and its cross-attention."""


def randomised(model: nn.Module) -> nn.Module:
    """The model with gammas that are not one and betas that are not zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=KINDS)
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def records(architecture) -> list[AttentionRecord]:
    torch.manual_seed(0)
    return recorded(randomised(architecture.build()), **architecture.batch())


def test_every_block_is_found_for_what_it_is(architecture, records):
    kinds = KINDS[architecture.name]
    for record in records:
        found = found_in(block_of(record))
        assert record.call.kind in ("self", "causal", "cross")
        if isinstance(kinds, Found):
            assert found == kinds, record.call
        else:
            side = 2 if record.call.kind == "cross" else 0 if "encoder." in record.call.name else 1
            assert found == kinds[side], record.call


def test_every_block_adds_up_to_its_own_output(architecture, records):
    tolerance = 1e-4 if architecture.only_float32 else 1e-5 if architecture.casts else 1e-9
    for record in records:
        check_reconstruction(record, tolerance)
        own = block_of(record).residual_key
        assert own == ("column" if record.call.kind == "cross" else "diagonal")


def test_the_block_goes_on_where_the_next_begins(architecture, records):
    """Post-norm: what the second norm gives out is the next residual. The blocks form one stream."""
    for record, following in pairwise(records):
        block, after = block_of(record), block_of(following)
        if (
            block.output.shape != after.output.shape
            or "encoder." in record.call.name != "encoder." in following.call.name
        ):
            continue
        if block.second_norm is not None:
            torch.testing.assert_close(block.second_norm.output(), after.residual.double(), rtol=1e-6, atol=1e-6)
        elif block.feed_forward == "later":
            torch.testing.assert_close(block.output, after.residual)
        torch.testing.assert_close(block.behind, after.residual)


def test_rows_of_alti_rolled_out_sum_to_one_source_and_prefix_together(architecture, records):
    if architecture.name == "Whisper":  # convolutions over time make positions that are no input's
        crossing = [record for record in records if record.call.kind == "cross"]
        encoder = [record for record in records if record.call.kind == "self"]
        prefix = [record for record in records if record.call.kind == "causal"]
        maps = ([alti_contributions(record) for record in group] for group in (encoder, prefix, crossing))
        scores: Any = rollout_encoder_decoder(*maps)
        left_out = torch.zeros(())
    else:
        torch.manual_seed(0)
        model, inputs = randomised(architecture.build()), architecture.batch()
        method = ALTI(HFForward(model) if architecture.encoder_decoder else model)
        scores = method.attribute(tuple(inputs.values()), position="all")
        left_out = method.report.left_out[0]  # a class token is no input
    total = sum(score.sum(-1) for score in scores) + left_out
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5 if architecture.only_float32 else 1e-10)


# ---------------------------------------------------------------------------------------------- other makes


_SMALL: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 4}
_PICTURE = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4}
_ENCODER_DECODER = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
}  # fmt: skip
_SPEECH = {
    **{name: size for name, size in _SMALL.items() if name != "max_position_embeddings"}, "conv_dim": [8, 8],
    "conv_stride": [2, 2], "conv_kernel": [3, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
MAKES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "Falcon": ("FalconModel", {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
               PARALLEL),
    "GPT-J": ("GPTJModel", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32,
                            "rotary_dim": 4}, PARALLEL),
    "Cohere": ("CohereModel", _GROUPED, PARALLEL),
    "OLMo 2": ("Olmo2Model", _GROUPED, SANDWICH),
    "Gemma 3": ("Gemma3TextModel", _GROUPED, SANDWICH),
    "Granite": ("GraniteModel", {**_GROUPED, "residual_multiplier": 0.3}, Found(inner="scale")),
    "BLOOM": ("BloomModel", {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4}, PRE),
    "OPT": ("OPTModel", {**_SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}, PRE),
    "ALBERT": ("AlbertModel", {**_SMALL, "embedding_size": 8}, POST),
    "XLNet": ("XLNetModel", {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24}, POST),
    "XLM": ("XLMModel", {"vocab_size": 40, "emb_dim": 16, "n_layers": 2, "n_heads": 4}, POST),
    "DistilBERT": ("DistilBertModel", {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24},
                   POST),
    "mBART": ("MBartModel", _ENCODER_DECODER, (PRE, LATER, PRE)),
    "Swin": ("SwinModel", _PICTURE, PRE),
    "Swin v2": ("Swinv2Model", _PICTURE, Found(inner="layer norm")),
    "DINOv2": ("Dinov2Model", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
                               "patch_size": 4}, Found(inner="scale")),
    "Conformer": ("Wav2Vec2ConformerModel", _SPEECH, Found(second="layer norm")),
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    model_class = getattr(transformers, MAKES[name][0])
    torch.manual_seed(0)
    model = randomised(model_class(model_class.config_class(**MAKES[name][1])).double().eval())
    if model.main_input_name == "input_ids":
        more = {"decoder_input_ids": some_ids(2, 4, seed=1)} if name == "mBART" else {}
        return model, {"input_ids": some_ids(2, 6), **more}
    if model.main_input_name == "input_values":
        return model, {"input_values": torch.randn(2, 60).double()}
    return model, {"pixel_values": torch.randn(2, 3, 16, 16).double()}


@pytest.mark.parametrize("name", MAKES)
def test_blocks_of_other_makes_are_found_and_add_up(name):
    model, inputs = make(name)
    kinds = MAKES[name][2]
    for record in recorded(model, **inputs):
        check_reconstruction(record, 1e-5 if name in ("Gemma 3", "OLMo 2", "Granite", "Cohere") else 1e-9)
        side = 2 if record.call.kind == "cross" else 0 if "encoder." in record.call.name else 1
        assert found_in(block_of(record)) == (kinds if isinstance(kinds, Found) else kinds[side])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_blocks_of_torchs_own_transformer(norm_first, batch_first, monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    model = nn.Transformer(16, 4, 2, 2, 24, norm_first=norm_first, batch_first=batch_first).double().eval()
    source, target = torch.randn(2, 5, 16).double(), torch.randn(2, 4, 16).double()
    given = (source, target) if batch_first else (source.transpose(0, 1), target.transpose(0, 1))
    records = recorded(randomised(model), *given)
    assert len(records) == 6
    for record in records:
        check_reconstruction(record)
        itself_alone = record.call.name.startswith("decoder") and record.call.kind != "cross"
        kinds = (LATER, PRE) if norm_first else (LATER_POST, POST)
        assert found_in(block_of(record)) == kinds[not itself_alone]
    # the first block's residual is the input itself, whatever the layout
    torch.testing.assert_close(block_of(records[0]).residual, source)


def test_keys_and_queries_of_different_widths_have_a_residual_as_wide_as_the_queries():
    """MobileBERT's bottleneck: the residual is another projection of the input than the queries are made of."""
    config = transformers.MobileBertConfig(**{**_SMALL, "embedding_size": 8, "intra_bottleneck_size": 8})
    model = transformers.MobileBertModel(config).double().eval()
    for record in recorded(model, input_ids=some_ids(2, 6)):
        assert record.block is None
        assert "was not seen to be added to a residual stream" in record.no_block


# ---------------------------------------------------------------------------------------------- how models run


IDS = torch.tensor([[6, 14, 9, 33, 8], [12, 7, 21, 5, 30]])
MASK = {"right": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), "left": torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])}


@pytest.mark.parametrize("side", MASK)
@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama"])
def test_a_padded_example_has_the_block_that_it_has_alone(name, side):
    model, mask = randomised(ARCHITECTURES[name].build()), MASK[side]
    real = mask[1].bool()
    positions = (mask.cumsum(-1) - 1).clamp_min(0) if name != "BERT" else torch.arange(5).expand(2, 5)
    together = recorded(model, input_ids=IDS, attention_mask=mask, position_ids=positions)
    alone = recorded(model, input_ids=IDS[1:, real], position_ids=positions[1:, real])
    for record, expected in zip(together, alone, strict=True):
        check_reconstruction(record, 1e-5)
        for tensor in ("residual", "output"):
            one = getattr(block_of(record), tensor)[1:, real]
            torch.testing.assert_close(one, getattr(block_of(expected), tensor), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "GPT-NeoX", "Gemma-2"])
def test_each_step_of_generation_has_the_block_of_its_query(name):
    """With a cache, a query is the last of its keys; its block is that of the same row without a cache."""
    model = randomised(ARCHITECTURES[name].build())
    arguments = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        expected = model.generate(IDS, attention_mask=torch.ones_like(IDS), **arguments)
        with recording(blocks=True) as records:
            output = model.generate(IDS, attention_mask=torch.ones_like(IDS), **arguments)
    assert torch.equal(output, expected)
    whole = recorded(model, input_ids=output)
    layers = len(whole)
    assert len(records) == 3 * layers
    for number, record in enumerate(records):
        block = block_of(record)
        check_reconstruction(record, 1e-5)
        step, reference = number // layers, block_of(whole[number % layers])
        rows = slice(0, 5) if step == 0 else slice(4 + step, 5 + step)
        torch.testing.assert_close(block.residual, reference.residual[:, rows], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(block.output, reference.output[:, rows], rtol=1e-5, atol=1e-6)
        assert found_in(block) == KINDS[name]
        keys = record.weights.shape[-1]  # of a sliding window no more than it holds
        assert block.residual_key == "diagonal" if step == 0 else block.residual_key.tolist() == [keys - 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "Gemma-2", "T5"])
def test_blocks_are_read_in_every_dtype(name, dtype):
    architecture = ARCHITECTURES[name]
    model = randomised(architecture.build()).to(dtype)
    for record in recorded(model, **architecture.batch(dtype)):
        check_reconstruction(record, {torch.bfloat16: 0.06, torch.float16: 0.01, torch.float64: 1e-5}[dtype])
        assert block_of(record).certificate.error <= block_of(record).certificate.tolerance


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("ending", ["success", "error", "interrupt"])
def test_nothing_is_left_behind(attention, ending):
    model = ARCHITECTURES["BERT"].build(attention)
    before, random = hooks(model), torch.get_rng_state()
    expected = model(input_ids=IDS).logits
    try:
        with recording(blocks=True):
            model.bert.embeddings(input_ids=IDS)
            model.bert.encoder.layer[0](model.bert.embeddings(input_ids=IDS))
            if ending != "success":
                raise RuntimeError if ending == "error" else KeyboardInterrupt
    except (RuntimeError, KeyboardInterrupt):
        assert ending != "success"
    assert hooks(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model(input_ids=IDS).logits, expected)


def test_a_recording_holds_two_blocks_at_a_time(monkeypatch):
    """The one that is complete and the one after it; nothing waits for the garbage collector."""
    states: list[Any] = []
    monkeypatch.setattr(State, "__post_init__", lambda s: Kept.__post_init__(s) or states.append(weakref.ref(s)))
    alive: list[int] = []

    def look(record: AttentionRecord) -> None:
        assert record.block is not None
        alive.append(sum(ref() is not None for ref in states))

    model = transformers.BertModel(transformers.BertConfig(**{**_SMALL, "num_hidden_layers": 6})).eval()
    with torch.no_grad(), recording(look, blocks=True):
        model(IDS)
    of_a_block = 4  # what attention wrote, two sums, what the feed-forward part wrote
    assert len(states) == 6 * of_a_block
    assert max(alive) <= 2 * of_a_block
    assert not any(ref() for ref in states)


def test_threads_read_blocks_of_the_same_model_at_once():
    model = ARCHITECTURES["GPT-NeoX"].build()
    expected = recorded(model, input_ids=IDS)
    found: dict[int, list[AttentionRecord]] = {}

    def work(name: int) -> None:
        with torch.no_grad(), recording(blocks=True) as records:
            model(input_ids=IDS)
        found[name] = list(records)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for records in found.values():
        for a, b in zip(records, expected, strict=True):
            assert torch.equal(block_of(a).output, block_of(b).output)


# ---------------------------------------------------------------------------------------------- wrong readings


def test_what_a_block_is_read_as_must_reproduce_what_the_model_computed(monkeypatch):
    """Each mistake in what is read is caught by the check, on both kinds of block."""
    kinds = {"BERT": ("gamma", "eps", "centring", "beta"), "Gemma-2": ("gamma", "eps"), "GPT-2": ()}
    for name, mistakes in kinds.items():
        model = randomised(ARCHITECTURES[name].build())
        for mistake in mistakes:
            monkeypatch.setattr(read, "_frozen", MISTAKES[mistake])
            assert {r.block for r in recorded(model, input_ids=IDS)} == {None}, (name, mistake)
            assert "does not reproduce" in recorded(model, input_ids=IDS)[0].no_block
            monkeypatch.undo()
        for where in ("residual", "part", "both"):
            monkeypatch.setattr(read, "_summands", other_rows(where))
            assert {r.block for r in recorded(model, input_ids=IDS)} == {None}, (name, where)
            monkeypatch.undo()


def changed(**how: Any) -> Any:
    true = read._frozen

    def wrong(*arguments: Any) -> Any:
        norm = true(*arguments)
        return replace(norm, **{name: change(getattr(norm, name)) for name, change in how.items()})

    return wrong


MISTAKES = {
    "gamma": changed(weight=lambda weight: weight.roll(1)),
    "eps": changed(eps=lambda eps: eps + 1e-2, factor=lambda factor: None if factor is None else factor * 1.001),
    "centring": changed(centred=lambda centred: not centred),
    "beta": changed(bias=lambda bias: None),
}


def other_rows(where: str) -> Any:
    true = read._summands

    def wrong(*arguments: Any) -> tuple[Tensor, Tensor]:
        residual, part = true(*arguments)
        return residual.roll(int(where != "part"), 1), part.roll(int(where != "residual"), 1)

    return wrong


QUERIES = Positions(0, torch.tensor([3, 4]))


@pytest.mark.parametrize(
    ("queries", "keys", "cached", "sizes", "expected"),
    [
        (QUERIES, Positions(0, torch.tensor([3, 4])), False, (2, 2), "diagonal"),
        (QUERIES, Positions(0, torch.tensor([4, 0, 3])), False, (2, 3), [2, 0]),
        (QUERIES, Positions(0, torch.tensor([0, 1, 2, 3, 4])), False, (2, 5), [3, 4]),
        (None, None, False, (3, 3), "diagonal"),
        (None, None, True, (2, 5), [3, 4]),
        (QUERIES, Positions(1, torch.tensor([3, 4, 5])), True, (2, 3), [1, 2]),
    ],
)
def test_which_key_a_query_is_itself(queries, keys, cached, sizes, expected):
    own = residual_key(queries, keys, False, cached, *sizes)
    assert own == expected if isinstance(own, str) else own.tolist() == expected
    assert residual_key(queries, keys, True, cached, *sizes) == "column"


def test_a_query_that_is_no_key_is_not_guessed():
    keys = Positions(0, torch.tensor([0, 1, 3]))
    for cached in (False, True):
        with pytest.raises(UnreadableBlockError, match="which of the 3 keys each of the 4 queries is itself"):
            residual_key(Positions(0, torch.tensor([0, 1, 2, 3])), keys, False, cached, 4, 3)
    with pytest.raises(UnreadableBlockError, match="which of the 5 keys each of the 2 queries is itself"):
        residual_key(None, None, False, False, 2, 5)
    with pytest.raises(UnreadableBlockError, match="which of the 3 keys each of the 3 queries is itself"):
        residual_key(None, None, False, False, 3, 3, in_order=False)
    no_input = Positions(0, torch.tensor([-1, 0])), Positions(0, torch.tensor([-1, 0, 5]))  # another class token?
    with pytest.raises(UnreadableBlockError, match="which of the 3 keys each of the 2 queries is itself"):
        residual_key(*no_input, False, False, 2, 3)


def test_the_rows_of_a_method_are_those_of_all_positions():
    """Few rows are computed from a cut block; all of them from the whole one."""
    for name in ("BERT", "Gemma-2", "GPT-NeoX"):
        method = AttentionBlockNorm(randomised(ARCHITECTURES[name].build()))
        every = method.attribute(IDS, position="all")
        for position in (0, 3, -1, [1, 4]):
            row = torch.as_tensor(position).expand(2)
            expected = every[torch.arange(2), row]
            torch.testing.assert_close(method.attribute(IDS, position=position), expected, rtol=1e-6, atol=1e-8)
