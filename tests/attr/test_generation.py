"""What is said of a token while it is written is what the whole text says of it afterwards."""

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from captum_norm import ALTI, AttentionBlockNorm, AttentionNorm, AttentionRollout, AttentionWeights, DecompX
from captum_norm.attr import GenerationAttribution
from captum_norm.functional import norms

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.4, "pad_token_id": 0,
}  # fmt: skip


class Gated(nn.Module):
    """W_O behind a gate that the mixed values make of themselves."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.gate, self.projection = nn.Linear(projection.in_features, projection.in_features), projection

    def forward(self, mixed: torch.Tensor) -> torch.Tensor:
        return self.projection(mixed * self.gate(mixed).sigmoid())


def gated(model):
    for layer in model.model.layers:
        layer.self_attn.o_proj = Gated(layer.self_attn.o_proj)
    return model


MODELS = {
    "keys in groups": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "a gate of its own": lambda: gated(LlamaForCausalLM(LlamaConfig(**SIZES))),
}
WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "a static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}
PROMPT = torch.tensor([[5, 9, 14, 7, 33, 21]])


def model_of(name: str, attention: str = "sdpa"):
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    model.set_attn_implementation(attention)
    return model


def write(model, prompt=PROMPT, tokens=10, **arguments):
    torch.manual_seed(1)
    mask = (prompt != 0).long()
    return model.generate(prompt, attention_mask=mask, max_new_tokens=tokens, suppress_tokens=[0], **arguments)


def expected(method, sequence):
    """(token, position), from a pass over the text without its padding."""
    real = sequence[sequence != 0]
    return method.attribute(real[None, :-1], position="all")[0]


@pytest.mark.wide(3)
@pytest.mark.parametrize(
    ("name", "way", "attention"),
    [
        *((name, way, "sdpa") for name in ("keys in groups", "a window") for way in WAYS),
        ("a window", "greedy", "eager"),
        ("a gate of its own", "greedy", "sdpa"),
    ],
)
def test_scores_are_those_of_the_whole_text(name, way, attention):
    model = model_of(name, attention)
    plain = write(model, **WAYS[way])
    for build in (AttentionNorm, AttentionWeights, AttentionBlockNorm) if way == "greedy" else (AttentionNorm,):
        method = build(model, aggregate=-1 if build is AttentionWeights else "mean")
        with GenerationAttribution(method) as generation:
            written = write(model, **WAYS[way])
        assert torch.equal(written, plain)
        assert "forward" not in model.__dict__
        scores = generation.scores(written)
        for found, sequence in zip(scores, written, strict=True):
            rows = expected(method, sequence)[PROMPT.shape[1] - 1 :]
            torch.testing.assert_close(found[: len(rows), : rows.shape[1]], rows, rtol=1e-4, atol=1e-6)
            assert not found[:, rows.shape[1] :].any()
            assert not found[len(rows) :].any()
        assert all(float(certificate) <= certificate.tolerance for _, certificate in generation.certificates)


def test_prompts_with_padding_are_explained_as_each_alone():
    model = model_of("keys in groups")
    prompts = torch.cat([PROMPT, torch.tensor([[0, 0, 11, 12, 13, 30]])])
    method = AttentionNorm(model)
    with GenerationAttribution(method) as generation:
        written = write(model, prompts, min_new_tokens=10)
    for found, sequence, padded in zip(generation.scores(written), written, (0, 2), strict=True):
        rows = expected(method, sequence[padded:])[PROMPT.shape[1] - 1 - padded :]
        torch.testing.assert_close(found[:, padded:-1], rows, rtol=1e-4, atol=1e-6)
        assert not found[:, :padded].any()


def small(of, config, seed, scale=2.0, **sizes):
    torch.manual_seed(seed)
    sizes = SIZES | {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.02} | sizes
    model = of(config(**sizes)).eval()
    model.generation_config.eos_token_id = sizes["eos_token_id"]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale if weight.ndim == 2 else 1)
    return model


def agree(scores, model, written, prompt, starts=None):
    method = AttentionNorm(model)
    for found, sequence, start in zip(scores, written, starts or [0] * len(written), strict=True):
        rows = method.attribute(sequence[None, start:-1], position="all")[0, prompt - 1 - start :]
        torch.testing.assert_close(found[:, start:-1], rows, rtol=1e-3, atol=1e-5)
        assert not found[:, :start].any()


@pytest.mark.parametrize(("layers", "seed"), [(2, 107), (2, 115), (1, 104)])
def test_beams_that_a_window_leaves_alike_are_told_apart_by_what_is_not(layers, seed):
    """The last three tokens of two beams are often alike, and so is all that the first layer has cached of them.

    In the only layer there is nothing else, and their texts alone differ.
    """
    sizes = {"vocab_size": 8, "sliding_window": 3, "num_hidden_layers": layers, "eos_token_id": None}
    model = small(MistralForCausalLM, MistralConfig, seed, **sizes, pad_token_id=None)
    with GenerationAttribution(AttentionNorm(model)) as generation:
        written = model.generate(
            torch.tensor([[6, 2, 3, 4, 5]]), max_new_tokens=7, num_beams=4, num_return_sequences=4, pad_token_id=0
        )
    agree(generation.scores(written), model, written, 5)


@pytest.mark.parametrize(("seed", "beams"), [(0, 4), (3, 2), (3, 3)])
def test_beams_of_one_prompt_behind_other_masks_are_told_apart_by_where_they_run(seed, beams):
    model = small(LlamaForCausalLM, LlamaConfig, seed, vocab_size=19, eos_token_id=None)
    prompts, mask = torch.tensor([[10, 12, 3, 4, 5]] * 3), torch.ones(3, 5, dtype=torch.long)
    mask[1, :1], mask[2, :2] = 0, 0
    with GenerationAttribution(AttentionNorm(model)) as generation:
        written = model.generate(prompts, attention_mask=mask, max_new_tokens=5, num_beams=beams)
    assert not {"forward", "_get_stopping_criteria"} & model.__dict__.keys()
    agree(generation.scores(written), model, written, 5, starts=[0, 1, 2])
    with pytest.raises(ValueError, match="in their order"):
        generation.scores(written[1:2])


def test_some_of_the_sequences_or_others_first_are_found_by_their_tokens():
    model = small(LlamaForCausalLM, LlamaConfig, 5, eos_token_id=None)
    with GenerationAttribution(AttentionNorm(model)) as generation:
        written = model.generate(
            torch.tensor([[10, 12, 3], [7, 12, 3]]), max_new_tokens=4, num_beams=3, num_return_sequences=2
        )
    for some in ([3, 2, 1, 0], [2], [1, 3]):
        agree(generation.scores(written[some]), model, written[some], 3)


class After(StoppingCriteria):
    """Stops behind a token."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


ENDS = {
    "an argument": lambda end: {"eos_token_id": end},
    "a list of them": lambda end: {"eos_token_id": [38, end]},
    "a configuration": lambda end: {"generation_config": GenerationConfig(eos_token_id=end, pad_token_id=0)},
    "a criterion": lambda end: {"eos_token_id": 38, "stopping_criteria": StoppingCriteriaList([After(end)])},
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("told", ENDS)
def test_a_sequence_ends_where_generate_was_told(told, beams):
    """Whatever the model's own configuration says: here the first token that would be written."""
    model = small(LlamaForCausalLM, LlamaConfig, 0, scale=6.0, vocab_size=40, eos_token_id=None)
    prompts = torch.tensor([[10, 20, 30, 14, 5], [11, 21, 31, 4, 5]])
    plain = model.generate(prompts, max_new_tokens=6)
    end, first = int(plain[0, 7]), int(plain[0, 5])
    assert end not in plain[1, 5:]
    model.generation_config.eos_token_id = first
    with GenerationAttribution(AttentionNorm(model)) as generation:
        written = model.generate(prompts, max_new_tokens=6, num_beams=beams, suppress_tokens=[0], **ENDS[told](end))
    lengths = [next((p + 1 for p in range(5, 11) if row[p] == end), written.shape[1]) for row in written]
    assert min(lengths) < max(lengths) == written.shape[1]
    for number, (found, sequence, length) in enumerate(zip(generation.scores(written), written, lengths, strict=True)):
        agree(found[None, : length - 5, :length], model, sequence[None, :length], 5)
        assert not found[length - 5 :].any(), number


def test_a_sequence_that_is_written_on_behind_a_criterion_has_no_end_there():
    """Without an end of sequence generate fills nothing up: it goes on with all until the last one stops."""
    model = small(LlamaForCausalLM, LlamaConfig, 0, scale=6.0, vocab_size=40, eos_token_id=None)
    prompts = torch.tensor([[10, 20, 30, 14, 5], [11, 21, 31, 4, 5]])
    plain = model.generate(prompts, max_new_tokens=6)
    with GenerationAttribution(AttentionNorm(model)) as generation:
        stop = StoppingCriteriaList([After(int(plain[0, 7]))])
        written = model.generate(prompts, max_new_tokens=6, stopping_criteria=stop)
    assert torch.equal(written, plain)
    agree(generation.scores(written), model, written, 5)


def test_where_a_loop_of_ones_own_ends_has_to_be_told():
    model, text = small(LlamaForCausalLM, LlamaConfig, 5), torch.tensor([[10, 12, 3, 4]])
    with GenerationAttribution(AttentionNorm(model)) as generation, torch.no_grad():
        for token in (7, 2, 9):
            model(text, use_cache=False)
            text = torch.cat([text, torch.tensor([[token]])], 1)
    with pytest.raises(ValueError, match=r"token 2 at position 5 of sequence 0 .* ends=\[2\]\) if it did, ends=\[\]"):
        generation.scores(text)
    agree(generation.scores(text, ends=[]), model, text, 4)
    assert generation.scores(text, ends=[2])[0].any(1).tolist() == [True, True, False]


@pytest.mark.parametrize("cache", [True, False])
def test_a_loop_of_ones_own_is_followed_as_generate_is(cache):
    model, texts = small(LlamaForCausalLM, LlamaConfig, 5), torch.tensor([[10, 12, 3, 4], [10, 12, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with GenerationAttribution(AttentionNorm(model)) as generation, torch.no_grad():
        kept = None
        for _ in range(4):
            read = texts if kept is None else texts[:, -1:]
            places = (mask.cumsum(1) - 1).clamp_min(0)[:, -read.shape[1] :]
            output = model(read, attention_mask=mask, position_ids=places, past_key_values=kept, use_cache=cache)
            kept = output.past_key_values
            texts = torch.cat([texts, torch.tensor([[5], [5]])], 1)
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    agree(generation.scores(texts), model, texts, 4, starts=[0, 2])
    with pytest.raises(ValueError, match="in their order"):
        generation.scores(texts[1:])


@pytest.mark.parametrize("name", ["keys in groups", "a window"])
@pytest.mark.parametrize("parts", [{}, {"residual": False}, {"layer_norm": False}])
def test_a_block_is_measured_over_a_static_cache_as_over_one_that_grows(name, parts):
    """The room of a static cache stands behind the key of the query itself."""
    model = model_of(name)
    method, found = AttentionBlockNorm(model, **parts), []
    for cache in ({}, {"cache_implementation": "static"}):
        with GenerationAttribution(method) as generation:
            written = write(model, min_new_tokens=10, **cache)
        found.append(generation.scores(written)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1][:, :-1], expected(method, written[0])[5:], rtol=1e-4, atol=1e-6)


def test_what_a_key_needs_is_prepared_once(monkeypatch):
    prepared, prepare = [], norms._key_factors

    def counted(values, *rest):
        prepared.append(values.shape[2])
        return prepare(values, *rest)

    monkeypatch.setattr(norms, "_key_factors", counted)
    model = model_of("keys in groups")
    with GenerationAttribution(AttentionNorm(model)):
        write(model, tokens=20, min_new_tokens=20)
    assert prepared == [6, 6, 16, 16]  # the prompt's keys and the first sixteen new ones, of two layers


@pytest.mark.parametrize("build", [AttentionRollout, ALTI, DecompX])
def test_a_method_that_takes_other_rows_is_refused(build):
    with pytest.raises(TypeError, match="GenerationAttribution"):
        GenerationAttribution(build(model_of("keys in groups")))


def test_what_cannot_be_followed_is_refused_by_name():
    model, other = model_of("keys in groups"), model_of("keys in groups")

    def refused(match, run):
        with pytest.raises(ValueError, match=match), GenerationAttribution(AttentionWeights(model)):
            run()
        assert "forward" not in model.__dict__
        assert not model.generation_config.prefill_chunk_size

    refused("assisted decoding", lambda: write(model, assistant_model=other))
    refused("a prompt in chunks", lambda: write(model, prefill_chunk_size=3))
    refused("a second generate", lambda: (write(model), write(model)))
    refused("a second generate", lambda: (write(model), write(model, PROMPT[:, :1])))
    refused("a second text", lambda: (model(PROMPT), model(PROMPT[:, :1])))
    refused("a second text", lambda: (model(PROMPT[:, :1]), model(PROMPT[:, 1:2])))
    refused("guidance_scale", lambda: write(model, guidance_scale=1.5))
    refused("guidance_scale", lambda: write(model, guidance_scale=1.5, negative_prompt_ids=PROMPT[:, :3]))
    refused("Give the prompt as ids", lambda: model(inputs_embeds=torch.randn(1, 4, 16)))
    cache = model(PROMPT[:, :3]).past_key_values
    refused("was the cache empty", lambda: model(PROMPT[:, 3:], past_key_values=cache))
    sizes = {"d_model": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 9}
    bart = BartForConditionalGeneration(BartConfig(**sizes, encoder_layers=1, decoder_layers=1))
    with pytest.raises(ValueError, match="encoder-decoder"):
        GenerationAttribution(AttentionNorm(bart))


def test_a_cache_whose_keys_change_places_is_refused():
    model = model_of("keys in groups")
    cache = model(PROMPT).past_key_values

    def swap():
        first = model(PROMPT, use_cache=True)
        for layer in first.past_key_values.layers:
            layer.keys, layer.values = layer.keys.flip(2), layer.values.flip(2)
        model(PROMPT[:, :1], past_key_values=first.past_key_values)

    assert cache is not None
    with pytest.raises(ValueError, match="not those of the step before"), GenerationAttribution(AttentionNorm(model)):
        swap()


def test_only_what_was_written_has_scores():
    model = model_of("keys in groups")
    generation = GenerationAttribution(AttentionWeights(model))
    with pytest.raises(ValueError, match="wrote nothing"):
        generation.scores(PROMPT)
    with generation:
        written = write(model)
    with pytest.raises(ValueError, match="was not written within"):
        generation.scores(written.flip(1))
    for prompt in (PROMPT, PROMPT[:, :2]):
        with pytest.raises(ValueError, match="hold nothing that was written"):
            generation.scores(prompt)
    with pytest.raises(ValueError, match="steps ran within"):
        generation.scores(torch.cat([written] * 2, 1))
    for one, found in ((written[0], "int64 of shape"), (written.tolist(), "list"), (written.float(), "float32")):
        with pytest.raises(ValueError, match=rf"should be what generate returned.*got .*{found}.*written\[:1\]"):
            generation.scores(one)
    assert generation.scores(written[:1]).shape[0] == 1
