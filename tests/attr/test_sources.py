"""Scores by source: sentences, paragraphs, turns of a chat and spans of characters are sums of their tokens."""

import pytest
import torch

from captum_norm import ALTILogit, AttentionNorm, LLMAttentionAttribution, SpanTrace
from captum_norm.attr._sources import paragraphs, sentences, source_spans
from tests.attr.models import tiny
from tests.attr.test_llm import sentence_piece

pytestmark = pytest.mark.filterwarnings("ignore:alti. no input brings the output nearer")

close = torch.testing.assert_close
PROMPT = "a b c. b a!\n\nc c b"


@pytest.fixture
def method():
    return LLMAttentionAttribution(AttentionNorm(tiny("Llama")), sentence_piece())


def test_texts_are_split_at_sentences_and_paragraphs():
    assert [PROMPT[a:b] for a, b in sentences(PROMPT)] == ["a b c.", "b a!", "c c b"]
    assert [PROMPT[a:b] for a, b in paragraphs(PROMPT)] == ["a b c. b a!", "c c b"]
    text = 'He said "no." Then (he left.) Pi is 3.14 now'
    assert [text[a:b] for a, b in sentences(text)] == ['He said "no."', "Then (he left.)", "Pi is 3.14 now"]
    assert sentences("一。二") == [(0, 2), (2, 3)]
    assert sentences(" \n") == []


@pytest.mark.parametrize("attribution", [AttentionNorm, SpanTrace, ALTILogit])
def test_a_source_has_the_sum_of_its_tokens(attribution):
    method = LLMAttentionAttribution(attribution(tiny("Llama")), sentence_piece())
    by_token = method.attribute(PROMPT, target="a a")
    whole_text = lambda text: [(0, len(text))]  # noqa: E731
    for sources, number in (("sentences", 3), ("paragraphs", 2), ([(0, 7), ...], 2), (whole_text, 1)):
        found = method.attribute(PROMPT, target="a a", sources=sources)
        assert found.token_attr.shape == (2, number)
        whole = found.token_attr.sum(1) + method.report.to_left_out
        close(whole, by_token.token_attr.sum(1), rtol=1e-5, atol=1e-5)
    assert found.input_tokens == [PROMPT]
    assert method.attribute(PROMPT, target="a", sources="sentences").input_tokens == ["a b c.", "b a!", "c c b"]


def test_a_chat_is_scored_by_turns(method):
    method.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    said = (("user", "a b c"), ("assistant", "c"), ("user", "a"))
    chat = [{"role": role, "content": content} for role, content in said]
    found = method.attribute(chat, target="a")
    assert found.input_tokens == ["a b c", "c", "a", "..."]
    close(found.token_attr, method.attribute(chat, target="a", sources="turns").token_attr)
    text = "<user> a b c\n<assistant> c\n<user> a\n"
    spans = method.attribute(chat, target="a", sources=[(7, 12), (25, 26), (34, 35), ...])
    assert text[25:26] == "c"
    close(found.token_attr, spans.token_attr)


BAD = {
    "a gap": ([(0, 6)], ValueError, r"do not cover the prompt: 'b a!.*' *, \(7, 18\), belongs to none"),
    "an overlap": ([(0, 8), (7, 18)], ValueError, r"sources 0 and 1 overlap, \(0, 8\) and \(7, 18\)"),
    "outside": ([(0, 99)], ValueError, r"source 0, \(0, 99\), lies outside the prompt of 18 characters"),
    "empty": ([(3, 3), ...], ValueError, "lies outside"),
    "none": ([], ValueError, "do not cover the prompt"),
    "a word": ("words", ValueError, "sources should be 'sentences', 'paragraphs', \"turns\".* got 'words'"),
    "turns of no chat": ("turns", ValueError, "those of a chat"),
    "numbers": ([1, 2], TypeError, "should be spans of characters"),
}


@pytest.mark.parametrize("name", BAD)
def test_sources_that_are_none_are_answered_by_what_was_found(name, method):
    sources, error, message = BAD[name]
    with pytest.raises(error, match=message):
        method.attribute(PROMPT, target="a", sources=sources)


def test_sources_are_passages_of_a_text(method):
    with pytest.raises(TypeError, match="passages of a text or a chat, but the prompt is list"):
        method.attribute([5, 6, 7], target="a", sources="sentences")
    with pytest.raises(ValueError, match="the prompt is blank"):
        source_spans("sentences", " ")
