"""Scores by source: sentences, paragraphs, turns of a chat and spans of characters are sums of their tokens."""

import pytest
import torch

from captum_norm import ALTILogit, AttentionNorm, LLMAttentionAttribution, SpanTrace
from captum_norm.attr._sources import chat_turns, paragraphs, sentences, source_spans
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
    chat = said("a b c", "a", "c")
    found = method.attribute(chat, target="a")
    assert found.input_tokens == ["a b c", "a", "c", "..."]
    close(found.token_attr, method.attribute(chat, target="a", sources="turns").token_attr)
    text = "<user> a b c\n<assistant> a\n<user> c\n"
    spans = method.attribute(chat, target="a", sources=[(7, 12), (25, 26), (34, 35), ...])
    assert (text[25:26], text[34:35]) == ("a", "c")
    close(found.token_attr, spans.token_attr)


def rendered_by(template):
    tokenizer = sentence_piece()
    tokenizer.chat_template = template
    return lambda chat: tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def said(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("answer", ["Paris", "a", "user", "s", "start", "assistant\ns", " a ", "P", "|", "\U000f0000"])
def test_a_chat_turn_is_found_behind_its_mark(answer):
    chat, render = said("P or a?", answer, answer), rendered_by(MARKED)
    text, at, expected = render(chat), 0, []
    for one in chat:
        begin = f"<|im_start|>{one['role']}\n"
        at = text.index(begin, at) + len(begin)
        expected.append((at, at + len(one["content"].strip())))
    assert chat_turns(chat, render) == expected


@pytest.mark.parametrize("look", ["m.content.startswith('<t>')", "m.content.endswith('</t>')"])
def test_a_chat_turn_is_found_where_the_template_looks_at_its_ends(look):
    named = "{% if " + look + " %}T:{% else %}U:{% endif %}"
    render = rendered_by("{% for m in messages %}" + named + "{{ m.content }}{% endfor %}")
    chat = said("<t>a</t>", "T", "<t>a</t>")
    assert render(chat) == "T:<t>a</t>U:TT:<t>a</t>"
    assert chat_turns(chat, render) == [(2, 10), (12, 13), (15, 23)]


def test_turns_whose_template_writes_them_in_another_order_are_found():
    render = rendered_by("{% for m in messages | reverse %}{{ m.content }};{% endfor %}")
    assert chat_turns(said("a", "b", "a"), render) == [(4, 5), (2, 3), (0, 1)]


@pytest.mark.parametrize(
    ("template", "contents", "message"),
    [
        ("{{ messages[0].content }} {{ messages[0].content }}", "a", "0 of the chat, 'a', stands 2 times in"),
        ("{{ messages[0].content }}", "aa", "1 of the chat, 'a', is not, as it is, in the text.*sources= as spans"),
        ("{% for m in messages %}{{ m.content | upper }}a{% endfor %}", "ab", "0 of the chat, 'a', is not, as it is"),
        ("{{ messages[0].content.split('b')[-1] }}", ["abc"], "0 of the chat, 'abc', is not, as it is"),
        ("{% if messages[0].content | length > 1 %}aa{% endif %}{{ messages[0].content }}aa", "a", "0 .* is not"),
        ("{% for m in messages %}a{{ m.content }}{% endfor %}", "a ", "1 of the chat, ' ', is not, as it is"),
        ("{{ messages[0].content[0].text }}", [[{"type": "text", "text": "a"}]], "0 of the chat, .*, is not, as it is"),
    ],
)  # fmt: skip
def test_a_turn_whose_place_cannot_be_told_is_refused(template, contents, message):
    with pytest.raises(ValueError, match=f"message {message}"):
        chat_turns(said(*contents), rendered_by(template))


def test_other_sources_of_a_chat_need_no_turns(method):
    method.tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }} a. {% endfor %}"
    found = method.attribute(said("a b", "c"), target="a", sources="sentences")
    assert len(found.input_tokens) == 2
    with pytest.raises(ValueError, match="message 0 of the chat"):
        method.attribute(said("a b", "c"), target="a")


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
