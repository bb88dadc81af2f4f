"""A dozen sentences about films, with the words that carry their judgement: for a first look at a study."""

from __future__ import annotations

from captum_norm.study.data import Example, Span

# The evidence stands between brackets.
_MARKED = (
    ("A [delightful], [warm] film that never feels forced.", "positive"),
    ("The plot is [thin] and the jokes are [tired].", "negative"),
    ("[One of the best] films of the year, with [superb] acting.", "positive"),
    ("I [wanted to leave] after ten minutes.", "negative"),
    ("It is [not a bad film], and the ending is [moving].", "positive"),
    ("Two hours of my life that I will [never get back].", "negative"),
    ("The cast is famous, but the film is [dull], [dull], [dull].", "negative"),
    ("[Beautifully] shot and [quietly devastating].", "positive"),
    ("A [mess] from the first scene to the last.", "negative"),
    ("It [made me laugh] more than anything I have seen this year.", "positive"),
    ("[Lifeless] characters wander through a [pointless] story.", "negative"),
    ("The dialogue [sparkles] and the music is [gorgeous].", "positive"),
)


def sample_texts() -> list[Example]:
    """The sentences, their labels and their evidence.

    Example:
        >>> example = sample_texts()[0]
        >>> [example.text[start:end] for start, end in example.evidence]
        ['delightful', 'warm']
    """
    return [_unmarked(marked, label, key) for key, (marked, label) in enumerate(_MARKED)]


def _unmarked(marked: str, label: str, key: int) -> Example:
    text, starts, spans = "", list[int](), list[Span]()
    for character in marked:
        if character == "[":
            starts.append(len(text))
        elif character == "]":
            spans.append((starts.pop(), len(text)))
        else:
            text += character
    return Example(text, label, tuple(spans), str(key))
