"""Which passages of a prompt are asked about: sentences, paragraphs, turns of a chat, or spans of characters.

Sources are half-open spans of characters of the prompt's text that do not overlap and leave nothing of it but blanks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Span = tuple[int, int]
SourcesType = str | Callable[[str], Sequence[Span]] | Sequence[Any]
"""``"sentences"``, ``"paragraphs"``, ``"turns"`` of a chat, a function from the text to spans, or the spans themselves;
``...`` among them stands for the rest of the prompt as one source."""

# A sentence ends behind a full stop and what closes with it, where a blank follows, or at the end of a line.
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
_PARAGRAPH = re.compile(r"\n\s*\n")


def sentences(text: str) -> list[Span]:
    """The sentences of a text, blanks left out.

    Example:
        >>> [("It rains. We stay!"[a:b]) for a, b in sentences("It rains. We stay!")]
        ['It rains.', 'We stay!']
    """
    return _between(text, _SENTENCE)


def paragraphs(text: str) -> list[Span]:
    """The paragraphs of a text, between lines that are blank."""
    return _between(text, _PARAGRAPH)


_SPLITTERS = {"sentences": sentences, "paragraphs": paragraphs}


def source_spans(sources: SourcesType, text: str) -> list[Span]:
    """The spans of the sources in a text.

    Args:
        sources: how they are told, see ``SourcesType``.
        text: the prompt's.

    Raises:
        TypeError: for anything else.
        ValueError: if there are none, or they overlap, lie outside the text, or leave some of it to none.
    """
    if isinstance(sources, str):
        if sources == "turns":
            raise ValueError('sources="turns" are those of a chat: give the prompt as a list of {"role", "content"}.')
        if sources not in _SPLITTERS:
            known = ", ".join(map(repr, _SPLITTERS))
            raise ValueError(f'sources should be {known}, "turns", a function or spans of characters, got {sources!r}.')
        spans: Sequence[Any] = _SPLITTERS[sources](text)
    else:
        spans = sources(text) if callable(sources) else sources
    return _checked(spans, text)


def chat_turns(messages: Sequence[Mapping[str, Any]], render: Callable[[list[dict[str, Any]]], str]) -> list[Span]:
    """Where the contents of a chat's messages stand in the text that its template makes of them.

    Each is told by rendering the chat again with a mark in it: the same letters stand in the template, too ("user"),
    and in other messages.

    Args:
        messages: the chat.
        render: from a chat to the text.

    Raises:
        ValueError: for a message that is no text, and one that the template changes, leaves out or writes several
            times.

    Example:
        >>> chat = [{"role": "user", "content": "use"}]
        >>> chat_turns(chat, lambda some: "".join(f"<{one['role']}>{one['content']}" for one in some))
        [(6, 9)]
    """
    given = [dict(message) for message in messages]
    text = render(given)
    mark = next(letter for letter in map(chr, _PRIVATE) if letter not in text)
    return [_turn(given, number, text, render, mark) for number in range(len(given))]


_PRIVATE = range(0xF0000, 0xFFFFE)  # characters that no text means anything by


def _turn(
    chat: list[dict[str, Any]], number: int, text: str, render: Callable[[list[dict[str, Any]]], str], mark: str
) -> Span:
    """Where a message's content stands, blanks around it left out."""
    content = chat[number]["content"]
    start, end = (isinstance(content, str) and _stripped(content, 0, len(content))) or (0, 0)
    times = 0
    # Templates look at how a content begins or ends, and write something else where the mark is the first or the last.
    for place in dict.fromkeys((start, end, (start + end) // 2) if start < end else ()):
        marked = {**chat[number], "content": content[:place] + mark + content[place:]}
        found = render([*chat[:number], marked, *chat[number + 1 :]])
        if found.replace(mark, "") != text:
            continue
        times = max(times, found.count(mark))
        begin = found.find(mark) - (place - start)
        if found.count(mark) == 1 and begin >= 0 and text.startswith(content[start:end], begin):
            return begin, begin + end - start
    what = f"stands {times} times in" if times > 1 else "is not, as it is, in"
    raise ValueError(
        f"message {number} of the chat, {content!r}, {what} the text that the template makes, so that its place cannot "
        "be told. Give sources= as spans of characters of tokenizer.apply_chat_template(chat, tokenize=False, "
        "add_generation_prompt=True)."
    )


def is_chat(given: Any) -> bool:
    """Whether a prompt is a list of messages."""
    listed = isinstance(given, Sequence) and not isinstance(given, str | Tensor) and len(given) > 0
    return listed and all(isinstance(one, Mapping) and "content" in one for one in given)


def _between(text: str, border: re.Pattern[str]) -> list[Span]:
    ends = [match.end() for match in border.finditer(text)] + [len(text)]
    starts = [0, *ends[:-1]]
    return [span for span in (_stripped(text, start, end) for start, end in zip(starts, ends, strict=True)) if span]


def _stripped(text: str, start: int, end: int) -> Span | None:
    part = text[start:end]
    if not part.strip():
        return None
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def _checked(spans: Any, text: str) -> list[Span]:
    given = [span for span in spans if span is not ...] if isinstance(spans, Sequence) else None
    if given is None or not all(_is_span(span) for span in given):
        raise TypeError(
            f"sources should be spans of characters, (start, stop) each, or the name of a splitter, got {spans!r}."
        )
    owner: list[int | None] = [None] * len(text)
    for number, (start, stop) in enumerate(given):
        if not 0 <= start < stop <= len(text):
            raise ValueError(f"source {number}, ({start}, {stop}), lies outside the prompt of {len(text)} characters.")
        taken = next((owner[at] for at in range(start, stop) if owner[at] is not None), None)
        if taken is not None:
            raise ValueError(f"sources {taken} and {number} overlap, {given[taken]} and ({start}, {stop}).")
        owner[start:stop] = [number] * (stop - start)
    left = [at for at, of in enumerate(owner) if of is None and not text[at].isspace()]
    if left and len(given) == len(spans):
        stop = next((at for at in range(left[0], len(text)) if owner[at] is not None), len(text))
        raise ValueError(
            f"the sources do not cover the prompt: {text[left[0] : stop].strip()!r}, ({left[0]}, {stop}), belongs to "
            "none. Give it a source of its own, or write ... among them, one source for all the rest."
        )
    if not given:
        raise ValueError("there are no sources: the prompt is blank, or none were given.")
    return [(int(start), int(stop)) for start, stop in given]


def _is_span(span: Any) -> bool:
    return isinstance(span, Sequence) and len(span) == 2 and all(type(end) is int for end in span)
