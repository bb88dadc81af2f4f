"""The texts of a study, with label and human evidence where they are known: from a file, a data set, or Python.

A file is JSONL (one object per line), CSV or TSV (with a header), or a data set of the ``datasets`` package by its id.
A record may hold a pair of texts.  Evidence marks the characters of a text that justify its label: spans
``[[start, end], ...]`` of characters (end excluded), or flags ``[0, 1, ...]``, one per word between white space.  An
example that cannot be used is an error here, with its line, before any model runs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from captum_norm.optional_packages import required

_FORMATS = {".jsonl": "JSONL", ".csv": "CSV", ".tsv": "TSV"}

Span = tuple[int, int]


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

    def __post_init__(self) -> None:
        for text in self.texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{self.where}: the text is empty, so there is nothing to explain. Leave it out.")
        if self.evidence_pair and self.text_pair is None:
            raise ValueError(f"{self.where} has evidence of a second text, and no second text.")
        for text, evidence in zip(self.texts, (self.evidence, self.evidence_pair), strict=False):
            for start, end in evidence or ():
                if not 0 <= start < end:
                    raise ValueError(
                        f"{self.where}: evidence [{start}, {end}] is no span: it should be 0 <= start < end."
                    )
                if end > len(text):
                    raise ValueError(
                        f"{self.where}: evidence [{start}, {end}] ends beyond its text of {len(text)} characters."
                    )

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
    """

    text: str = "text"
    label: str | None = None
    evidence: str | None = None
    key: str | None = None
    text_pair: str | None = None
    evidence_pair: str | None = None


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
        fields: which field holds what.  None: ``text``, and ``text_pair``, ``label``, ``evidence``,
            ``evidence_pair`` and ``id`` where a record has them.
        split: of a data set by id: ``"validation"``.
        subset: of a data set by id: its configuration.
        limit: only the first so many.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line, for a record that is no example; or if there is none at all.
        ImportError: if ``datasets`` is needed and not installed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "films.jsonl"
        ...     _ = path.write_text('{"text": "A warm film.", "evidence": [0, 1, 0]}')
        ...     read_examples(path)[0].evidence
        ((2, 6),)
    """
    path = Path(source).expanduser()
    records = _records(path) if path.suffix.lower() in _FORMATS else _dataset(str(source), split, subset)
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
    """A fingerprint of the examples: texts, labels, evidence and keys, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        content = {name: value for name, value in asdict(example).items() if name != "where"}
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    reader = _jsonl if path.suffix.lower() == ".jsonl" else _separated
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}.") from error


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where} is no JSON: {error}.") from error
            if not isinstance(record, dict):
                raise ValueError(f"{where} should be an object with fields, got {type(record).__name__}.")
            yield where, record


def _separated(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kind = path.suffix.lower()
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts are longer than the 128 KiB that csv expects
    quoting: Any = {"quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",", **quoting)
        try:
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where} should have {len(rows.fieldnames or ())} columns, as its header.")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}.") from error


def _dataset(source: str, split: str | None, subset: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if Path(source).exists() or source.startswith((".", "/", "~")):
        raise ValueError(
            f"{source}: data should be a file that ends in {', '.join(_FORMATS)}, or the id of a data set."
        )
    if split is None:
        raise ValueError(f"{source} is taken for the id of a data set, which has splits: say which (split = ...).")
    datasets = required("datasets", f"data {source!r}")
    loaded = datasets.load_dataset(source, subset, split=split)
    for number, record in enumerate(loaded):
        yield f"{source} ({split}), example {number}", record


def _usual_fields(record: Mapping[str, Any]) -> Fields:
    names = {"label": "label", "evidence": "evidence", "key": "id"} | {n: n for n in ("text_pair", "evidence_pair")}
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
    text, spans = _text(content, fields.text, fields.evidence, where)
    second: tuple[Any, Any] = (None, None)
    if fields.text_pair is not None and _field(content, fields.text_pair, where) is not None:
        second = _text(content, fields.text_pair, fields.evidence_pair, where)
    label = None if fields.label is None else _label(_field(content, fields.label, where), where)
    key = number if fields.key is None else str(_field(content, fields.key, where))
    return Example(text, label, spans, key, where, *second)


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


def _label(label: Any, where: str) -> int | str | None:
    if label is None or isinstance(label, str):
        return label.strip() if label and label.strip() else None
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    raise ValueError(f"{where}: the label should be a number or a name, got {label!r}.")


def _spans(evidence: Any, text: str, where: str) -> tuple[Span, ...] | None:
    """Spans of characters, from spans or from flags, themselves or as JSON; None for nothing."""
    if isinstance(evidence, str) and evidence.strip():
        try:
            evidence = json.loads(evidence)
        except ValueError as error:
            raise ValueError(f"{where}: evidence is no JSON: {evidence!r}.") from error
    if evidence is None or evidence in ("", []):
        return None
    if not isinstance(evidence, list | tuple):
        raise ValueError(f"{where}: evidence should be a list of spans or of flags, got {evidence!r}.")
    if all(isinstance(flag, int) and flag in (0, 1) for flag in evidence):
        return _flagged(evidence, text, where)
    return tuple(_span(span, where) for span in evidence)


def _span(span: Any, where: str) -> Span:
    whole = isinstance(span, list | tuple) and len(span) == 2 and all(type(end) is int for end in span)
    if not whole:
        raise ValueError(f"{where}: evidence should be spans [start, end] or flags 0 and 1, got {span!r}.")
    return span[0], span[1]


def _flagged(flags: Sequence[int], text: str, where: str) -> tuple[Span, ...]:
    words = [word.span() for word in re.finditer(r"\S+", text)]
    if len(flags) != len(words):
        raise ValueError(f"{where}: evidence has {len(flags)} flags, but its text has {len(words)} words.")
    return tuple(span for flag, span in zip(flags, words, strict=True) if flag)


def _check_keys(examples: list[Example]) -> None:
    seen: dict[str, str] = {}
    for example in examples:
        if example.key in seen:
            raise ValueError(f"{example.where} has the key {example.key!r}, as {seen[example.key]}: keys are unique.")
        seen[example.key] = example.where
