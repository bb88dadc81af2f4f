"""The texts of a study, with label and human evidence where they are known: from a file, a data set, or Python.

A file is JSONL (one object per line), CSV or TSV (with a header), or a data set of the ``datasets`` package by its id.
A record may hold a pair of texts.  Evidence marks the characters of a text that justify its label: spans
``[[start, end], ...]`` of characters (end excluded), or flags ``[0, 1, ...]``, one per word between white space.  An
example that cannot be used is an error here, with its line, before any model runs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from captum_norm.numerals import at_least
from captum_norm.study.records import FORMATS, records_of_dataset, records_of_file
from captum_norm.text_files import check_characters

Span = tuple[int, int]

LATER_FIELDS = ("span", "span_pair", "written", "sources", "foil")
"""What examples may have since stores of before had none of it."""


@dataclass(frozen=True)
class Example:
    """One text.

    Attributes:
        text: the text.
        label: its class, as a number or as the model names it; None where it is not known.
        evidence: spans of characters (start, end), end excluded; None where none is known.
        key: what it is called in the results; unique in a study.
        where: where it comes from, for error messages.
        text_pair: the second text of a pair (a hypothesis, a question's passage); None for a single text.
        evidence_pair: spans of characters of the second text.
        span: the characters that are asked about: of a token classifier the word whose tag is explained, of a question
            the answer; their first token counts.
        span_pair: the same, where it stands in the second text.
        written: what an encoder-decoder has written so far, whose next token is explained; None for nothing yet.
        sources: spans of characters of the text that metrics rank and remove as a whole (``level="source"``); what lies
            in none stays.
        foil: the class, or for a language model the continuation, that the label is set against.

    Example:
        >>> Example("A warm film.", evidence=((2, 6),)).evidence
        ((2, 6),)
    """

    text: str
    label: int | str | None = None
    evidence: tuple[Span, ...] | None = None
    key: str = ""
    where: str = "example"
    text_pair: str | None = None
    evidence_pair: tuple[Span, ...] | None = None
    span: Span | None = None
    span_pair: Span | None = None
    written: str | None = None
    sources: tuple[Span, ...] | None = None
    foil: int | str | None = None

    def __post_init__(self) -> None:
        for text in self.texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{self.where}: the text is empty, so there is nothing to explain. Leave it out.")
        given = (*self.texts, self.written, self.key, self.label, self.foil)
        check_characters(self.where, *(one for one in given if isinstance(one, str)))
        for what, label in (("label", self.label), ("foil", self.foil)):
            if isinstance(label, str) and not label.strip():
                raise ValueError(f"{self.where}: the {what} is empty. Leave it out where it is not known.")
        if (self.evidence_pair or self.span_pair) and self.text_pair is None:
            what = "evidence" if self.evidence_pair else "a span"
            raise ValueError(f"{self.where} has {what} of a second text, and no second text.")
        if self.span is not None and self.span_pair is not None:
            raise ValueError(f"{self.where} has a span in both texts: one place is asked about.")
        marked = ((self.evidence, self.span), (self.evidence_pair, self.span_pair))
        for text, (evidence, span) in zip(self.texts, marked, strict=False):
            for of in evidence or ():
                _check_span(f"{self.where}: evidence", of, text)
            if span is not None:
                _check_span(f"{self.where}: span", span, text)
        last = 0
        for start, end in sorted(self.sources or ()):
            if not last <= start < end <= len(self.text):
                raise ValueError(
                    f"{self.where}: source [{start}, {end}] is empty, overlaps another one or ends beyond its text of "
                    f"{len(self.text)} characters."
                )
            last = end

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or both of a pair."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True)
class Fields:
    """Which field of a record holds what; None for what no field holds.

    Attributes:
        text: the text.
        label: the class.
        evidence: spans or flags.
        key: the example's name; None numbers the examples from 0.
        text_pair: the second text of a pair.
        evidence_pair: spans or flags of the second text.
        span: ``[start, end]``, the characters asked about.
        span_pair: the same in the second text.
        written: what has been written so far.
        sources: spans of the text that are ranked and removed as a whole.
        foil: the class that the label is set against.
    """

    text: str = "text"
    label: str | None = None
    evidence: str | None = None
    key: str | None = None
    text_pair: str | None = None
    evidence_pair: str | None = None
    span: str | None = None
    span_pair: str | None = None
    written: str | None = None
    sources: str | None = None
    foil: str | None = None


def read_examples(
    source: str | Path,
    fields: Fields | None = None,
    *,
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """The examples of a file, or of a data set by its id.

    Args:
        source: a path that ends in .jsonl, .csv or .tsv; anything else is an id for ``datasets.load_dataset``.
        fields: which field holds what.  None: ``text``, ``id`` for the key, and all others by their own names where a
            record has them.
        split: of a data set by id: ``"validation"``.
        subset: of a data set by id: its configuration.
        limit: only the first so many.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if ``limit`` is no whole number.
        ValueError: naming the line, for a record that is no example; or if there is none at all, or ``limit`` is below
            1.
        ImportError: if ``datasets`` is needed and not installed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "films.jsonl"
        ...     _ = path.write_text('{"text": "A warm film.", "evidence": [0, 1, 0]}')
        ...     read_examples(path)[0].evidence
        ((2, 6),)
    """
    if limit is not None:
        limit = at_least(1, limit, "read_examples: limit")
    path = Path(source).expanduser()
    from_file = path.suffix.lower() in FORMATS
    records = records_of_file(path) if from_file else records_of_dataset(str(source), split, subset)
    return as_examples(islice(records, limit), fields, name=str(source))


def as_examples(data: Iterable[Any], fields: Fields | None = None, *, name: str = "data") -> list[Example]:
    """Examples from anything like them: `Example`, texts, pairs of texts, mappings, (where, mapping) from a file.

    Raises:
        TypeError: for an entry of another kind.
        ValueError: as `read_examples`.

    Example:
        >>> [example.key for example in as_examples(["A warm film.", "A cold one."])]
        ['0', '1']
    """
    examples: list[Example] = []
    for number, entry in enumerate(data):
        from_file = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)
        where, content = entry if from_file else (f"{name}, example {number}", entry)
        names = fields or (_usual_fields(content) if isinstance(content, Mapping) else Fields())
        examples.append(_example(content, names, str(number), where))
    if not examples:
        raise ValueError(f"{name} holds no example.")
    _check_keys(examples)
    return examples


def digest_of(examples: Iterable[Example]) -> str:
    """A fingerprint of the examples, in order; what came later than the first stores counts where it is given."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        given = asdict(example).items()
        content = {name: of for name, of in given if name != "where" and (of is not None or name not in LATER_FIELDS)}
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()


def _usual_fields(record: Mapping[str, Any]) -> Fields:
    names = {"label": "label", "evidence": "evidence", "key": "id"}
    names |= {name: name for name in ("text_pair", "evidence_pair", *LATER_FIELDS)}
    return Fields(**{field: name for field, name in names.items() if name in record})


def _example(content: Any, fields: Fields, number: str, where: str) -> Example:
    if isinstance(content, Example):
        return replace(content, key=content.key or number, where=where)
    if isinstance(content, str):
        return Example(content, key=number, where=where)
    if isinstance(content, tuple | list) and len(content) == 2 and all(isinstance(text, str) for text in content):
        return Example(content[0], key=number, where=where, text_pair=content[1])
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise TypeError(f"{where} should be a text, a pair of texts, a mapping or an Example, got {kind}.")
    asked: dict[str, Any] = {}
    for name in (name for name in LATER_FIELDS if getattr(fields, name) is not None):
        asked[name] = _later(name, _field(content, getattr(fields, name), where), where)
    text, spans = _text(content, fields.text, fields.evidence, where)
    second: tuple[Any, Any] = (None, None)
    if fields.text_pair is not None and _field(content, fields.text_pair, where) is not None:
        second = _text(content, fields.text_pair, fields.evidence_pair, where)
    label = None if fields.label is None else _label(_field(content, fields.label, where), where)
    key = number if fields.key is None else _key(content, fields.key, where)
    return Example(text, label, spans, key, where, *second, **asked)


def _key(record: Mapping[str, Any], name: str, where: str) -> str:
    key = _field(record, name, where)
    if key is None:
        raise ValueError(f"{where}: the field {name!r} is null and names nothing. Give a name, or leave the field out.")
    return str(key)


def _later(name: str, given: Any, where: str) -> Any:
    """One of the fields that stores of before had none of."""
    if name == "foil":
        return _label(given, where, "foil")
    if name == "written":
        if given is not None and not isinstance(given, str):
            raise ValueError(f"{where}: written should be a text, got {type(given).__name__}.")
        return given
    given = _from_json(given, name, where)
    if given is None:
        return None
    if name != "sources":
        return _span(given, f"{where}: {name} should be [start, end]")
    if not isinstance(given, list | tuple):
        raise ValueError(f"{where}: sources should be a list of spans, got {given!r}.")
    return tuple(_span(span, f"{where}: sources should be spans [start, end]") for span in given)


def _text(
    record: Mapping[str, Any], name: str, evidence: str | None, where: str
) -> tuple[str, tuple[Span, ...] | None]:
    """A text and its evidence."""
    text = _field(record, name, where)
    if not isinstance(text, str):
        raise ValueError(f"{where}: the field {name!r} should be a text, got {type(text).__name__}.")
    return text, None if evidence is None else _spans(_field(record, evidence, where), text, where)


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise ValueError(f"{where} has no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}.")
    return record[name]


def _label(label: Any, where: str, what: str = "label") -> int | str | None:
    if label is None or isinstance(label, str):
        return label.strip() if label and label.strip() else None
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    raise ValueError(f"{where}: the {what} should be a number or a name, got {label!r}.")


def _spans(evidence: Any, text: str, where: str) -> tuple[Span, ...] | None:
    """Spans of characters, from spans or from flags, themselves or as JSON; None for nothing."""
    evidence = _from_json(evidence, "evidence", where)
    if evidence is None or evidence == []:
        return None
    if not isinstance(evidence, list | tuple):
        raise ValueError(f"{where}: evidence should be a list of spans or of flags, got {evidence!r}.")
    if all(isinstance(flag, int) and flag in (0, 1) for flag in evidence):
        return _flagged(evidence, text, where)
    return tuple(_span(span, f"{where}: evidence should be spans [start, end] or flags 0 and 1") for span in evidence)


def _span(span: Any, should: str) -> Span:
    whole = isinstance(span, list | tuple) and len(span) == 2 and all(type(end) is int for end in span)
    if not whole:
        raise ValueError(f"{should}, got {span!r}.")
    return span[0], span[1]


def _from_json(given: Any, name: str, where: str) -> Any:
    """What a text holds as JSON; None for an empty one, and everything else as it is."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given) if given.strip() else None
    except ValueError as error:
        raise ValueError(f"{where}: {name} is no JSON: {given!r}.") from error


def _flagged(flags: Sequence[int], text: str, where: str) -> tuple[Span, ...]:
    words = [word.span() for word in re.finditer(r"\S+", text)]
    if len(flags) != len(words):
        raise ValueError(f"{where}: evidence has {len(flags)} flags, but its text has {len(words)} words.")
    return tuple(span for flag, span in zip(flags, words, strict=True) if flag)


def _check_span(what: str, span: Span, text: str) -> None:
    start, end = span
    if not 0 <= start < end:
        raise ValueError(f"{what} [{start}, {end}] is no span: it should be 0 <= start < end.")
    if end > len(text):
        raise ValueError(f"{what} [{start}, {end}] ends beyond its text of {len(text)} characters.")


def _check_keys(examples: list[Example]) -> None:
    seen: dict[str, str] = {}
    for example in examples:
        if example.key in seen:
            raise ValueError(f"{example.where} has the key {example.key!r}, as {seen[example.key]}: keys are unique.")
        seen[example.key] = example.where
