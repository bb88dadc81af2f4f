"""Each token that a language model writes is explained by the row that predicted it, whatever the prompt came as."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import re
import struct
import threading
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from captum.attr import FeatureAblation, LLMAttributionResult, TextTemplateInput, TextTokenInput
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerFast

from captum_norm.attr import (
    AttentionFlow,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    AttentionWeights,
    DecompX,
    LayerAttentionNorm,
    LLMAttentionAttribution,
)
from captum_norm.attr._captum import BaseLLMAttribution
from captum_norm.forward import HFForward

from . import llama2c
from .methods import INPUT_METHODS
from .models import VOCABULARY, ids, tiny

close = torch.testing.assert_close
every_input_method = pytest.mark.parametrize("row", INPUT_METHODS, ids=lambda row: row.name)

TEXTS = ["the cat sat on the mat", "a cat and a dog", "the dog ran to the cat, and sat", "an ant can do it"]


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: a space belongs to the word after it, nothing is put before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|end|>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """Llama's kind: spaces are characters, and <s> comes before each text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return sentence_piece()


@pytest.fixture
def method(tokenizer) -> LLMAttentionAttribution:
    return LLMAttentionAttribution(AttentionNorm(tiny("Llama")), tokenizer)


def counted(model: nn.Module) -> list[int]:
    """The length of what the model reads, call by call."""
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _m, args, kwargs: lengths.append(args[0].shape[1]), with_kwargs=True)
    return lengths


# what the scores are


@pytest.mark.wide(5)
@every_input_method
@pytest.mark.parametrize("family", ["GPT2", "Llama"])
@pytest.mark.filterwarnings("ignore:alti")  # of rows that are nobody's target
def test_a_target_token_has_the_scores_of_the_row_that_predicts_it(row, family):
    model = tiny(family)
    prompt, target = ids(4), ids(3, seed=1)
    found = LLMAttentionAttribution(row.build(model), sentence_piece()).attribute(prompt, target)
    whole = torch.cat([prompt, target])[None]
    for number in range(3):
        explained = (-1, int(target[number])) if row.reads_target else None
        row_of = {} if row.method is DecompX else {"position": -1}
        alone = row.build(model).attribute(whole[:, : 4 + number], explained, **row_of)
        close(found.token_attr[number], alone[0, :4], rtol=1e-5, atol=1e-7)
    close(found.seq_attr, found.token_attr.sum(0))


@pytest.mark.parametrize(
    "kind", [AttentionWeights, AttentionNorm, AttentionRollout, AttentionFlow, AttentionRelevance, DecompX]
)
def test_one_pass_serves_all_target_tokens(kind):
    model = tiny("Llama")
    lengths = counted(model)
    LLMAttentionAttribution(kind(model), sentence_piece()).attribute(ids(4), ids(5))
    # The last target token is predicted, not read; DecompX needs it to see that the model does not look ahead.
    assert lengths == [9 if kind is DecompX else 8]


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_what_decompx_gives_to_tokens_and_biases_is_the_target_tokens_logit(family):
    model = tiny(family)
    prompt, target = ids(4), ids(3, seed=1)
    method = LLMAttentionAttribution(DecompX(model), sentence_piece())
    result = method.attribute(prompt, target)
    with torch.no_grad():
        logits = model(torch.cat([prompt, target])[None]).logits[0, 3:6]
    of_tokens = result.token_attr.sum(1) + method.report.to_left_out + method.report.to_target
    close(of_tokens + method.report.delta, logits[torch.arange(3), target])
    for number in range(3):
        whole = torch.cat([prompt, target[:number]])[None]
        alone = DecompX(model).attribute(whole, (-1, int(target[number])))
        close(result.token_attr[number], alone[0, :4], rtol=1e-4, atol=1e-5)
    assert (method.report.delta.abs() > 1e-3).any() == (family == "GPT2")  # Llama has no biases
    assert method.multiplies_by_inputs is True
    assert not method.report.delta.requires_grad


def test_a_target_may_end_where_the_models_positions_end():
    model = tiny("GPT2")
    result = LLMAttentionAttribution(AttentionNorm(model), byte_level()).attribute(ids(20), ids(13))
    assert result.token_attr.shape == (13, 20)
    with pytest.raises(ValueError, match="33 tokens, but its table of positions ends at 32"):
        LLMAttentionAttribution(AttentionNorm(model), byte_level()).attribute(ids(20), ids(14))


def test_probabilities_are_those_the_model_gave():
    model = tiny("GPT2")
    result = LLMAttentionAttribution(AttentionNorm(model), byte_level()).attribute(ids(4), ids(3))
    with torch.no_grad():
        logits = model(torch.cat([ids(4), ids(3)])[None]).logits[0, 3:6]
    close(result.output_probs, logits.softmax(-1)[torch.arange(3), ids(3)])


def test_one_token_of_prompt_and_one_of_target_are_enough(method):
    result = method.attribute([1], [5])
    assert result.token_attr.shape == (1, 1)
    close(result.seq_attr, AttentionNorm(method.model).attribute(torch.tensor([[1]]))[0])


def test_trials_are_averaged(method):
    once, thrice = method.attribute("a cat", "sat"), method.attribute("a cat", "sat", num_trials=3)
    close(thrice.token_attr, once.token_attr)
    model = tiny("GPT2")
    lengths = counted(model)
    LLMAttentionAttribution(AttentionWeights(model), byte_level()).attribute(ids(4), ids(2), num_trials=3)
    assert lengths == [5, 5, 5]


# what a prompt and a target may be


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_a_prompt_is_the_same_in_every_form(make):
    tokenizer = make()
    method = LLMAttentionAttribution(AttentionNorm(tiny("Llama")), tokenizer)
    text = "the dog sat"
    numbers = tokenizer.encode(text)
    assert (numbers[0] == 1) == (make is sentence_piece)  # <s>, if this tokenizer puts it there
    tokens = tokenizer.convert_ids_to_tokens(numbers)
    expected = method.attribute(text, "a cat")
    for form in (numbers, tuple(numbers), torch.tensor(numbers), torch.tensor([numbers]), tokens):
        found = method.attribute(form, "a cat")
        close(found.token_attr, expected.token_attr, rtol=0, atol=0)
        assert found.input_tokens == expected.input_tokens
    captums = TextTokenInput(text, tokenizer)
    found = method.attribute(captums, "a cat")
    close(found.token_attr, expected.token_attr, rtol=0, atol=0)
    assert found.input_tokens == captums.values == tokens
    assert found.inp is captums


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_a_target_is_the_same_in_every_form(make):
    tokenizer = make()
    method = LLMAttentionAttribution(AttentionNorm(tiny("Llama")), tokenizer)
    numbers = tokenizer.encode("a cat", add_special_tokens=False)
    expected = method.attribute("the dog", "a cat")
    assert len(expected.output_tokens) == len(numbers)
    for form in (numbers, torch.tensor(numbers), torch.tensor([numbers]), tokenizer.convert_ids_to_tokens(numbers)):
        close(method.attribute("the dog", form).token_attr, expected.token_attr, rtol=0, atol=0)


@pytest.mark.parametrize("cached", [True, False])
def test_without_a_target_the_model_writes_it(method, cached):
    arguments = {"max_new_tokens": 4, "do_sample": False}
    result = method.attribute("a cat", gen_args=arguments, use_cached_outputs=cached)
    prompt = method.tokenizer("a cat", return_tensors="pt")["input_ids"]
    written = method.model.generate(prompt, **arguments)[0, prompt.shape[1] :]
    close(result.token_attr, method.attribute("a cat", written).token_attr)


@pytest.mark.parametrize("by", ["gen_args", "configuration"])
def test_what_generate_wraps_in_an_output_is_read(method, by):
    arguments = {"max_new_tokens": 3, "do_sample": False}
    plain = method.attribute("a cat", gen_args=arguments)
    if by == "configuration":
        method.model.generation_config.return_dict_in_generate = True
    else:
        arguments["return_dict_in_generate"] = True
    wrapped = method.attribute("a cat", gen_args=arguments)
    assert wrapped.output_tokens == plain.output_tokens
    close(wrapped.token_attr, plain.token_attr)


# what the model is given beside the prompt

PROMPT, TARGET = [4, 5, 6], [7, 8, 9, 10]


def asked_with(model: nn.Module, of: Any = AttentionNorm, target: Any = TARGET, **fixed: Any) -> LLMAttributionResult:
    method = LLMAttentionAttribution(of(HFForward(model, **fixed)), sentence_piece())
    gen_args = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None} if target is None else None
    return method.attribute(PROMPT, target, gen_args=gen_args)


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
@pytest.mark.parametrize("start", [0, 3])
def test_positions_of_the_prompt_count_on_over_the_target(family, start):
    model = tiny(family)
    positions = torch.arange(start, start + 3)[None]
    found = asked_with(model, position_ids=positions)
    whole, counted = torch.tensor([PROMPT + TARGET]), torch.arange(start, start + 7)[None]
    with torch.no_grad():
        chances = model(whole, position_ids=counted).logits[0].softmax(-1)
    close(found.output_probs, chances[[2, 3, 4, 5], TARGET])
    forward = HFForward(model, position_ids=counted)
    rows = [AttentionNorm(forward).attribute(whole, position=row)[0, :3] for row in range(2, 6)]
    close(found.token_attr, torch.stack(rows))


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
@pytest.mark.parametrize("start", [0, 3])
def test_what_is_written_at_positions_that_count_on_is_explained_there(family, start):
    """Some versions of transformers give each token that is written the prompt's last position: that is refused."""
    model = tiny(family)
    positions = torch.arange(start, start + 3)[None]
    try:
        written = asked_with(model, target=None, position_ids=positions)
    except ValueError as error:
        assert re.search(r"while \w+ wrote, the last position was \[(\d), \1, \1\], not", str(error))  # noqa: PT017
        return
    again = asked_with(model, target=method_ids(model, positions), position_ids=positions)
    close(written.token_attr, again.token_attr)


def method_ids(model: nn.Module, positions: Tensor) -> Tensor:
    """What the model writes, its positions counted on by hand."""
    text = torch.tensor([PROMPT])
    for _ in range(3):
        counted = int(positions[0, 0]) + torch.arange(text.shape[1])[None]
        with torch.no_grad():
            text = torch.cat([text, model(text, position_ids=counted).logits[:, -1:].argmax(-1)], dim=1)
    return text[0, 3:]


def test_a_mask_and_types_of_the_prompt_go_on_over_the_target():
    model = tiny("GPT2")
    mask, types = torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0]])
    found = asked_with(model, attention_mask=mask, token_type_ids=types)
    further = {"attention_mask": [[0, 1, 1, 1, 1, 1, 1]], "token_type_ids": [[1, 1, 0, 0, 0, 0, 0]]}
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + TARGET]), **{k: torch.tensor(v) for k, v in further.items()}).logits[0]
    close(found.output_probs, logits.softmax(-1)[[2, 3, 4, 5], TARGET])


@pytest.mark.parametrize("target", [TARGET, None], ids=["given", "written"])
@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"position_ids": torch.arange(3)}, r"position_ids, of shape \(3,\), .* of 3 tokens, and only \(1, 3\)"),
        ({"position_ids": torch.arange(3).repeat(2, 1)}, r"position_ids, of shape \(2, 3\).*only \(1, 3\)"),
        ({"position_ids": torch.tensor([[0, 2, 4]])}, r"it ends in \[2, 4\], from which no count goes on"),
        ({"position_ids": torch.tensor([[5, 0, 1]])}, r"it ends in \[0, 1\], from which no count goes on"),
        ({"position_ids": torch.tensor([[0.0, 1.0, 2.0]])}, "from which no count goes on"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, r"of shape \(1, 1, 3, 3\).*use the method itself"),
        ({"attention_mask": {"full_attention": None}}, "attention_mask, a dict"),
        ({"attention_mask": torch.ones(1, 7)}, r"attention_mask, of shape \(1, 7\), for a prompt of 3"),
        ({"token_type_ids": torch.tensor([[0, 0, 1]])}, "token_type_ids that HFForward fixes end in another type"),
        ({"labels": torch.tensor([[4, 5, 6]])}, "labels, of shape .* it is not known what it says of a target"),
        ({"inputs_embeds": torch.zeros(1, 3, 16)}, "inputs_embeds, of shape"),
        ({"logits_to_keep": 1}, "fixes logits_to_keep, which drops rows of the logits"),
        ({"logits_to_keep": torch.tensor([2])}, "fixes logits_to_keep, which drops rows of the logits"),
    ],
)  # fmt: skip
def test_what_is_not_known_to_go_on_over_a_target_is_refused_by_name(fixed, message, target):
    with pytest.raises(ValueError, match=message):
        asked_with(tiny("GPT2"), target=target, **fixed)


def test_a_cache_is_refused_as_each_pass_would_add_to_it():
    with pytest.raises(ValueError, match="fixes past_key_values, to which each pass adds"):
        asked_with(tiny("GPT2"), past_key_values=DynamicCache())


def test_what_says_nothing_of_tokens_is_given_as_it_is():
    model = tiny("GPT2")
    plain = asked_with(model)
    fixed = {"use_cache": False, "logits_to_keep": 0, "attention_mask": None, "position_ids": None, "labels": None}
    close(asked_with(model, **fixed).token_attr, plain.token_attr)
    for of in (AttentionNorm, DecompX):
        found = asked_with(model, of, return_dict=False)
        close(found.output_probs, plain.output_probs)
    assert len(asked_with(model, target=None, return_dict=False).output_tokens) == 3
    one = asked_with(model, target=[7], position_ids=torch.tensor([[0, 2, 4]]))  # nothing of the target is read
    assert one.token_attr.shape == (1, 3)


def test_positions_that_go_on_beyond_the_models_table_are_refused():
    model = tiny("GPT2")
    last = model.config.n_positions - 1
    with pytest.raises(ValueError, match=f"position_ids that HFForward fixes go on to {last + 3} over the target"):
        asked_with(model, position_ids=torch.arange(last - 2, last + 1)[None])


def test_a_model_that_writes_at_positions_of_its_own_is_refused():
    model = tiny("GPT2")
    prepare = model.prepare_inputs_for_generation
    model.prepare_inputs_for_generation = functools.wraps(prepare)(
        lambda *args, **given: prepare(*args, **given) | {"position_ids": torch.zeros(1, 1, dtype=torch.long)}
    )
    with pytest.raises(ValueError, match=r"wrote, the last position was \[0, 0, 0\], not \[2, 3, 4\]"):
        asked_with(model, target=None, position_ids=torch.arange(3)[None])
    assert not model._forward_pre_hooks


def test_what_generate_is_given_alone_is_refused():
    method = LLMAttentionAttribution(AttentionNorm(tiny("GPT2")), sentence_piece())
    ones, ids = torch.ones(1, 3).long(), torch.tensor([PROMPT])
    for name, value in (("attention_mask", torch.tensor([[0, 1, 1]])), ("token_type_ids", ones)):
        with pytest.raises(ValueError, match=f"gen_args has {name}.*HFForward\\(model, {name}=...\\)"):
            method.attribute(PROMPT, gen_args={"max_new_tokens": 2, name: value})
    for name in ("input_ids", "inputs"):
        with pytest.raises(ValueError, match=f"gen_args has {name}, which is the prompt itself"):
            method.attribute(PROMPT, gen_args={"max_new_tokens": 2, name: ids})
    for own in ({"attention_mask": ones}, {"suppress_tokens": torch.tensor([3])}):  # the latter the model never sees
        assert method.attribute(PROMPT, gen_args={"max_new_tokens": 2, **own}).token_attr.shape[1] == 3
    types = torch.zeros(1, 3).long()
    both = LLMAttentionAttribution(AttentionNorm(HFForward(method.model, token_type_ids=types)), method.tokenizer)
    assert both.attribute(PROMPT, gen_args={"max_new_tokens": 2, "token_type_ids": types}).token_attr.shape[1] == 3


class WithRowsOfAPicture(nn.Module):
    """Its logits have two rows in front of those of the text."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        output = self.model(input_ids)
        output["logits"] = torch.cat([output["logits"][:, :2], output["logits"]], dim=1)
        return output


def test_logits_of_more_rows_than_tokens_are_refused(tokenizer):
    method = LLMAttentionAttribution(AttentionNorm(WithRowsOfAPicture(tiny("GPT2")).eval()), tokenizer)
    with pytest.raises(ValueError, match="WithRowsOfAPicture gives 8 rows of logits for 6 tokens"):
        method.attribute(PROMPT, TARGET)


def test_tokens_are_shown_as_text():
    gpt = LLMAttentionAttribution(AttentionNorm(tiny("GPT2")), byte_level())
    assert gpt.attribute("the cat", " sat").input_tokens == ["the", "cat"]
    llama = LLMAttentionAttribution(AttentionNorm(tiny("Llama")), sentence_piece())
    assert llama.attribute("the cat", "the dog").input_tokens == ["<s>", "the", "cat"]


def test_an_id_without_a_name_goes_by_its_number(method):
    assert method.attribute([1, 59], [58]).input_tokens == ["<s>", "<59>"]


# what is left out


def test_skipped_tokens_have_no_score_and_are_named(method):
    everything = method.attribute("the cat", "a dog")
    rest = method.attribute("the cat", "a dog", skip_tokens=["<s>"])
    assert rest.input_tokens == everything.input_tokens[1:]
    close(rest.token_attr, everything.token_attr[:, 1:], rtol=0, atol=0)
    assert method.report.left_out == ("<s>",)
    close(method.report.to_left_out, everything.token_attr[:, 0])
    by_id = method.attribute("the cat", "a dog", skip_tokens=[1])
    close(by_id.token_attr, rest.token_attr, rtol=0, atol=0)


def test_captums_skip_tokens_hold_and_may_be_more(method):
    inp = TextTokenInput("the cat", method.tokenizer, skip_tokens=["<s>"])
    found = method.attribute(inp, "a dog")
    assert found.input_tokens == inp.values
    close(found.token_attr, method.attribute("the cat", "a dog", skip_tokens=["<s>"]).token_attr)
    assert method.attribute(inp, "a dog", skip_tokens=[inp.values[0]]).input_tokens == inp.values[1:]
    assert len(method.report.left_out) == 2


@pytest.mark.parametrize("skip", [None, ["<s>"]])
def test_what_is_scored_and_what_is_not_make_the_whole_row(tokenizer, skip):
    method = LLMAttentionAttribution(AttentionWeights(tiny("Llama")), tokenizer)
    result = method.attribute("the cat", "a dog ran", skip_tokens=skip)
    close(
        result.token_attr.sum(1) + method.report.to_left_out + method.report.to_target,
        torch.ones(len(result.token_attr)),
    )
    assert method.report.to_target[0] == 0


def test_certificates_are_kept(method):
    method.attribute("the cat", "a dog")
    assert [call.kind for call, _ in method.report.certificates] == ["causal", "causal"]
    assert all(float(certificate) < certificate.tolerance for _, certificate in method.report.certificates)


# templates


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_the_tokens_of_a_value_are_added_up(make):
    method = LLMAttentionAttribution(AttentionNorm(tiny("Llama")), make())
    inp = TextTemplateInput("the {} sat on {}", ["cat and dog", "the mat"])
    result = method.attribute(inp, "a dog")
    report = method.report
    tokens = method.attribute("the cat and dog sat on the mat", "a dog")
    assert result.input_tokens == ["cat and dog", "the mat"]
    offset = 1 if make is sentence_piece else 0
    encoded = make()("the cat and dog sat on the mat", return_offsets_mapping=True, add_special_tokens=False)
    for number, (first, last) in enumerate([(4, 15), (23, 30)]):
        mine = [n + offset for n, (s, e) in enumerate(encoded["offset_mapping"]) if s < last and e > first]
        close(result.token_attr[:, number], tokens.token_attr[:, mine].sum(1))
    close(result.token_attr.sum(1) + report.to_left_out, tokens.token_attr.sum(1))
    assert report.left_out[-3:] == ("the", "sat", "on")


def test_templates_may_be_functions_take_names_and_repeat_a_value(method):
    by_place = method.attribute(TextTemplateInput("{0} and {1} and {0}", ["a cat", "a dog"]), "sat")
    values = {"one": "a cat", "two": "a dog"}
    by_name = method.attribute(TextTemplateInput("{one} and {two} and {one}", values), "sat")
    by_function = method.attribute(
        TextTemplateInput(lambda one, two: f"{one} and {two} and {one}", ["a cat", "a dog"]), "sat"
    )
    close(by_name.token_attr, by_place.token_attr)
    close(by_function.token_attr, by_place.token_attr)
    tokens = method.attribute("a cat and a dog and a cat", "sat")
    twice = [n for n, token in enumerate(tokens.input_tokens) if token == "cat"]
    assert len(twice) == 2
    assert (by_place.token_attr[:, 0] >= tokens.token_attr[:, twice].sum(1)).all()


def test_values_of_one_group_are_one_feature(method):
    values = ["cat", "mat", "dog"]
    alone = method.attribute(TextTemplateInput("the {} the {} the {}", values), "sat")
    grouped = method.attribute(TextTemplateInput("the {} the {} the {}", values, mask=[0, 1, 0]), "sat")
    together = alone.token_attr[:, 0] + alone.token_attr[:, 2]
    close(grouped.token_attr, torch.stack([together, alone.token_attr[:, 1], together], dim=1))
    assert grouped.input_tokens == values


def test_a_token_of_two_values_is_divided_by_characters(method):
    whole = method.attribute("the cat", "sat", skip_tokens=["<s>"])
    assert whole.input_tokens == ["the", "cat"]
    parts = method.attribute(TextTemplateInput("the {}{}", ["c", "at"]), "sat")
    close(parts.token_attr, whole.token_attr[:, 1:] * torch.tensor([1 / 3, 2 / 3]))


def test_a_template_that_changes_its_values_is_refused(method):
    with pytest.raises(ValueError, match="the template changes its value 'cat'"):
        method.attribute(TextTemplateInput(lambda value: f"the {value[:2]}", ["cat"]), "sat")
    with pytest.raises(ValueError, match="no token of the prompt 'the cat' belongs to a value"):
        method.attribute(TextTemplateInput("the cat{}", [""]), "sat")


def test_values_of_a_template_may_be_numbers_as_they_are_written(tokenizer):
    method = LLMAttentionAttribution(AttentionNorm(tiny("Llama")), tokenizer)
    found = method.attribute(TextTemplateInput("the {} cat {}", [5, 0.5]), "a")
    assert found.input_tokens == ["5", "0.5"]
    close(found.token_attr, method.attribute(TextTemplateInput("the {} cat {}", ["5", "0.5"]), "a").token_attr)
    for template in ("the {:03d} cat", lambda value: f"the {value + 1} cat"):
        with pytest.raises(ValueError, match="the template changes its value 5"):
            method.attribute(TextTemplateInput(template, [5]), "a")


def test_a_tokenizer_without_offsets_cannot_take_templates(method):
    class WithoutOffsets:
        encode, convert_ids_to_tokens, convert_tokens_to_ids = (
            staticmethod(getattr(method.tokenizer, name))
            for name in ("encode", "convert_ids_to_tokens", "convert_tokens_to_ids")
        )

        def __call__(self, text: str, **options: Any) -> Any:
            raise NotImplementedError("return_offset_mapping is not available")

    other = LLMAttentionAttribution(AttentionNorm(method.model), WithoutOffsets())
    assert other.attribute("the cat", "sat").input_tokens == ["<s>", "▁the", "▁cat"]
    with pytest.raises(ValueError, match="WithoutOffsets does not say which characters"):
        other.attribute(TextTemplateInput("the {}", ["cat"]), "sat")


# Captum's side


def test_it_is_captums_interface(method):
    assert isinstance(method, BaseLLMAttribution)
    assert LLMAttentionAttribution.get_name() == "LLM Attention Attribution"
    assert method.has_convergence_delta() is False
    assert method.multiplies_by_inputs is False
    with pytest.raises(NotImplementedError, match="LLMAttentionAttribution"):
        method.attribute_future()
    result = method.attribute("the cat", "a dog")
    assert isinstance(result, LLMAttributionResult)
    assert not result.token_attr.requires_grad
    assert result.seq_attr_dict.keys() == set(result.input_tokens)


def test_both_plots_can_be_drawn(method):
    result = method.attribute("the cat sat", "a dog")
    figure, axes = result.plot_token_attr()
    assert [label.get_text() for label in axes.get_xticklabels()] == result.input_tokens
    assert [label.get_text() for label in axes.get_yticklabels()] == result.output_tokens
    plt.close(figure)
    figure, axes = result.plot_seq_attr()
    assert len(axes.patches) == 2 * len(result.input_tokens)  # bars up and bars down
    plt.close(figure)


def test_any_forward_of_the_model_will_do(tokenizer):
    model = tiny("Llama")
    expected = LLMAttentionAttribution(AttentionNorm(model), tokenizer).attribute("the cat", "a dog")
    for forward in (HFForward(model), HFForward(model, mode="gate"), HFForward(model, use_cache=False)):
        found = LLMAttentionAttribution(AttentionNorm(forward), tokenizer)
        assert found.model is model
        close(found.attribute("the cat", "a dog").token_attr, expected.token_attr, rtol=0, atol=0)


def test_kind_and_call_reach_the_method(method):
    close(method.attribute("a cat", "sat", kind="self").token_attr, method.attribute("a cat", "sat").token_attr)
    with pytest.raises(ValueError, match='kind should be "self"'):
        method.attribute("a cat", "sat", kind="all")


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_model_method_and_random_numbers_are_untouched(method):
    model = method.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config, forward = model.config.to_dict(), method.attr_method.forward_func
    random = torch.get_rng_state()
    prompt = ids(1, 4)
    kept = prompt.clone()
    method.attribute(prompt, gen_args={"max_new_tokens": 2, "do_sample": False})
    with pytest.raises(ValueError, match="empty"):
        method.attribute("", "a")
    assert torch.equal(prompt, kept)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.config.to_dict() == config
    assert method.attr_method.forward_func is forward
    assert not model.training
    assert hooks(model) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_work_alike(method, duplicate):
    expected = method.attribute("the cat", "a dog").token_attr
    close(duplicate(method).attribute("the cat", "a dog").token_attr, expected, rtol=0, atol=0)


def test_threads_do_not_disturb_each_other(method):
    prompts = ["the cat", "a dog and a cat", "the mat sat"]
    expected = [method.attribute(prompt, "a dog").token_attr for prompt in prompts]
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        for _ in range(3):
            found[number] = method.attribute(prompts[number], "a dog").token_attr

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, scores in enumerate(expected):
        close(found[number], scores, rtol=0, atol=0)


# what is refused


@pytest.mark.parametrize(
    ("prompt", "target", "options", "error", "message"),
    [
        ("", "a", {}, ValueError, "the prompt is empty"),
        ([], "a", {}, ValueError, "the prompt is empty"),
        ("a", "", {}, ValueError, "the target is empty"),
        ("a", [], {}, ValueError, "the target is empty"),
        ("a", [60], {}, ValueError, "target input_ids holds ids from 60 to 60, but the model knows 0 to 59"),
        ([99], "a", {}, ValueError, "input_ids holds ids from 99 to 99, but the model knows 0 to 59"),
        ("a", "xyz", {}, ValueError, "target 'xyz' is not in the vocabulary.*'<unk>' stands for"),
        ("a", ["▁a", "zebra"], {}, ValueError, "target: 'zebra' is no token of the vocabulary"),
        (["the cat", "a dog"], "a", {}, ValueError, "inp: 'the cat' is no token.*several texts one by one"),
        (torch.ones(2, 3).long(), "a", {}, ValueError, r"inp should be the ids of one example.*\(2, 3\)"),
        (torch.ones(3), "a", {}, ValueError, "inp should be the ids of one example.*float32"),
        ({"input_ids": [1]}, "a", {}, TypeError, "inp should be a list of ids or of tokens, got dict"),
        ("a", 5, {}, TypeError, "target should be a list of ids or of tokens, got int"),
        ([True], "a", {}, TypeError, "got bool True in it"),
        ("a", "a", {"skip_tokens": "<s>"}, TypeError, "skip_tokens should be a list"),
        ("a", "a", {"skip_tokens": ["[CLS]"]}, ValueError, r"skip_tokens: '\[CLS\]' is no token"),
        ("a", "a", {"skip_tokens": [99]}, ValueError, "skip_tokens input_ids holds ids from 99 to 99"),
        ("a", "a", {"skip_tokens": [-1]}, ValueError, "skip_tokens: -1 is no id of a token"),
        ("a", [2**70], {}, ValueError, "target: 11.* is no id of a token"),
        ("a \ud800", "a", {}, ValueError, "the prompt: character 2 is .* half a character"),
        (TextTemplateInput("{}", ["\ud800"]), "a", {}, ValueError, "the prompt: character 0 is"),
        ("a", "a\udce9", {}, ValueError, "the target: character 1 is"),
        (["\ud800"], "a", {}, ValueError, "inp, .*: character 0 is"),
        ("a", "a", {"skip_tokens": ["<s>", "▁a"]}, ValueError, "skip_tokens leaves nothing of the prompt"),
        ("a", "a", {"gen_args": {"max_new_tokens": 3}}, ValueError, "gen_args say how to write a target"),
        ("a", "a", {"num_trials": 0}, ValueError, "num_trials should be a number of passes"),
        ("a", "a", {"position": 1}, TypeError, "sets position itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_explained_is_refused(method, prompt, target, options, error, message):
    with pytest.raises(error, match=message):
        method.attribute(prompt, target, **options)


def test_a_model_that_looks_ahead_is_refused(tokenizer):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    method = LLMAttentionAttribution(AttentionNorm(BertForMaskedLM(config).eval()), tokenizer)
    for target in ("a", "a dog"):
        with pytest.raises(ValueError, match=r"encoder\.layer\.0\.attention.*of BertForMaskedLM looks ahead"):
            method.attribute("the cat", target)
    signed = LLMAttentionAttribution(DecompX(method.model), tokenizer)
    with pytest.raises(ValueError, match="attention of BertForMaskedLM looks ahead"):
        signed.attribute("the cat", "a")
    with pytest.raises(ValueError, match="BertModel cannot generate a target"):
        LLMAttentionAttribution(AttentionNorm(tiny("Bert").bert), tokenizer).attribute("the cat")
    with pytest.raises(ValueError, match="BartForConditionalGeneration is an encoder-decoder"):
        LLMAttentionAttribution(AttentionNorm(tiny("Bart")), tokenizer)


def test_what_is_no_method_model_or_tokenizer_is_refused(tokenizer):
    model = tiny("Llama")
    with pytest.raises(TypeError, match=r"FeatureAblation is none of this package's methods.*captum\.attr"):
        LLMAttentionAttribution(FeatureAblation(model), tokenizer)
    with pytest.raises(TypeError, match="LayerAttentionNorm is a layer class"):
        LLMAttentionAttribution(LayerAttentionNorm(model, model.model.layers[0]), tokenizer)
    with pytest.raises(TypeError, match="AttentionNorm was built on <function"):
        LLMAttentionAttribution(AttentionNorm(lambda tokens: model(tokens)), tokenizer)
    with pytest.raises(TypeError, match="tokenizer should be the model's tokenizer, got NoneType"):
        LLMAttentionAttribution(AttentionNorm(model), None)


# a real one


@pytest.fixture(scope="module")
def dreams(data: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """A decoder of 260 thousand parameters that writes English-like text, and its tokenizer."""
    folder = data / "aidreams260k"
    return llama2c.load_model(folder / "aidreams260K.bin"), llama2c.load_tokenizer(folder / "tok512.bin", 512)


def merged_by_definition(text: str, path: Path) -> list[bytes]:
    """SentencePiece's byte-pair encoding: the neighbours whose merged token scores highest, again and again."""
    data, place, scores = path.read_bytes(), 4, {}
    for _ in range(512):
        score, length = struct.unpack_from("<fi", data, place)
        scores[data[place + 8 : place + 8 + length].decode()] = score
        place += 8 + length
    pieces = list(" " + text)
    while True:
        merges = [(scores.get(a + b, -1e9), -n) for n, (a, b) in enumerate(itertools.pairwise(pieces))]
        best, where = max(merges, default=(-1e9, 0))
        if best == -1e9:
            return pieces
        pieces[-where : 2 - where] = ["".join(pieces[-where : 2 - where])]


def test_the_real_decoders_tokenizer_is_its_own(dreams, data):
    text = "I was walking in a dark forest, and the water sang."
    tokens = dreams[1].convert_ids_to_tokens(dreams[1].encode(text))
    expected = merged_by_definition(text, data / "aidreams260k" / "tok512.bin")
    assert tokens == ["<s>", *(piece.replace(" ", "▁") for piece in expected)]


def test_the_real_decoder_writes_and_every_token_is_explained(dreams):
    model, tokenizer = dreams
    method = LLMAttentionAttribution(AttentionNorm(model), tokenizer)
    result = method.attribute("I was walking in a dark forest", gen_args={"max_new_tokens": 12, "do_sample": False})
    assert result.token_attr.shape == (12, 17)
    assert result.output_probs.mean() > 0.3  # of 512 tokens: it has learned to write
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(["▁w", "as"])) == "was"


def test_the_real_decoder_gives_its_first_token_no_more_than_others(dreams):
    """The figures in the documentation: this decoder has no attention sink, neither by weight nor by norm."""
    model, tokenizer = dreams
    prompts = ("I was walking", "In the dream", "The water", "A voice", "I am", "Light falls", "There is a door")
    prompts += ("We remember",)
    shares, even = {}, []
    for kind in (AttentionWeights, AttentionNorm):
        found = []
        method = LLMAttentionAttribution(kind(model), tokenizer)
        for prompt in prompts:
            result = method.attribute(prompt, gen_args={"max_new_tokens": 32, "do_sample": False})
            found.append(result.token_attr[:, 0] / (result.token_attr.sum(1) + method.report.to_target))
            even.append(1 / (len(result.input_tokens) + torch.arange(32)))
        shares[kind] = float(torch.cat(found).mean())
    assert shares[AttentionWeights] == pytest.approx(0.040, abs=5e-4)
    assert shares[AttentionNorm] == pytest.approx(0.050, abs=6e-4)
    assert float(torch.cat(even).mean()) == pytest.approx(0.054, abs=5e-4)


class Shifted(nn.Module):
    """A part in which each position reads the one before it, too."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x + nn.functional.pad(x[:, :-1], (0, 0, 1, 0)))


def test_mixers_are_taken_for_the_identity_where_that_is_asked_for_and_listed():
    from captum_norm.comparison import compare
    from captum_norm.study import Variant

    model, tokenizer = tiny("GPT2"), byte_level()
    model.transformer.h[0].mlp = Shifted(model.transformer.h[0].mlp)
    method = LLMAttentionAttribution(AttentionRollout(model), tokenizer)
    with pytest.raises(ValueError, match=r"positions are mixed by add in 'transformer.h.0.mlp'"):
        method.attribute(TEXTS[0], target=" a")
    method.attribute(TEXTS[0], target=" a", mixers_as_identity=True)
    assert [mixer.module for mixer in method.report.mixers] == ["transformer.h.0.mlp"]
    asked = {"methods": ["AttentionRollout", "DecompX"], "mixers_as_identity": True}
    assert "transformer.h.0.mlp" in compare(model, tokenizer, TEXTS[0], **asked).mixers[0]
    assert Variant("ALTI", arguments={"mixers_as_identity": True}).title == "ALTI(mixers_as_identity=True)"
