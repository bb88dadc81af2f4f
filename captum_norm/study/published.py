"""Texts with evidence in the forms that published data sets have: ERASER, e-SNLI, HateXplain, CoS-E, BLiMP, alignments.

- ``eraser``: annotations ``*.jsonl``, documents in ``docs/``, ``docs.jsonl`` or ``docs.tar.gz`` beside them (DeYoung et
  al. 2020, https://arxiv.org/abs/1911.03429).  Two documents are a pair; so are a document and its query.
- ``esnli``: ``esnli_*.csv`` (Camburu et al. 2018, https://arxiv.org/abs/1812.01193), premise and hypothesis, with the
  words that most annotators marked between stars.
- ``hatexplain``: ``dataset.json`` (Mathew et al. 2021, https://arxiv.org/abs/2012.10289), label and words by majority.
- ``cose``: ``cose_*_processed.jsonl`` (Rajani et al. 2019, https://arxiv.org/abs/1906.02361) beside CommonsenseQA's
  ``*_rand_split.jsonl``: question and right answer, with the selected words of the question.
- ``blimp``: ``*.jsonl`` (Warstadt et al. 2020, https://arxiv.org/abs/1912.00582): what both sentences of a minimal pair
  begin with, and the good continuation as its label; there is no evidence.
- ``alignment``: ``alignment.talp`` beside ``test.de`` and ``test.en`` (Vilar et al. 2006,
  https://www-i6.informatik.rwth-aachen.de/goldAlignment/): of every sentence what was translated before one of its
  words, the one nearest to the middle that is surely aligned, that word as label, and as evidence the words it is of.

None of the data sets is copied here.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captum_norm.study.data import Example, Span
from captum_norm.study.records import json_object, records_of_lines, records_of_table
from captum_norm.text_files import ENCODING, read_lines, read_text

_CLITICS = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m")


def eraser_examples(path: Path) -> Iterator[Example]:
    """The annotations of a file, a text or a pair each."""
    documents = _documents(path.parent)
    for where, record in records_of_lines(path):
        with in_form("eraser", where):
            passages = [passage for group in record["evidences"] for passage in group]
            names = record.get("docids") or list(dict.fromkeys(p["docid"] for p in passages))
            names = names or [record["annotation_id"]]
            missing = next((name for name in names if name not in documents), None)
            if missing is not None or len(names) > 2:
                lacks = f"the document {missing!r} is not beside it"
                found = f"{len(names)} documents" if missing is None else lacks
                raise ValueError(f"{where}: {found}; one or two are needed, in docs/, docs.jsonl or docs.tar.gz.")
            texts = [joined(documents[name], glued=()) for name in names]
            evidence = [
                tuple(passage_span(spans, p, where) for p in passages if p["docid"] == name)
                for name, (_, spans) in zip(names, texts, strict=True)
            ]
            second = texts[1][0] if len(texts) > 1 else record.get("query") or None
            if any(evidence):
                of_second = evidence[1] if len(evidence) > 1 else None
                key = record["annotation_id"]
                yield Example(texts[0][0], record["classification"], evidence[0], key, where, second, of_second)


def esnli_examples(path: Path) -> Iterator[Example]:
    """The pairs of a file in which somebody has marked a word."""
    for where, row in records_of_table(path):
        with in_form("esnli", where):
            texts, evidence = [], []
            for number in (1, 2):
                marked = [row[name] for name in row if re.fullmatch(rf"Sentence{number}_marked_\d", name) and row[name]]
                text, spans = joined(row[f"Sentence{number}"].split(), glued=())
                texts.append(text)
                evidence.append(_by_majority([[bool(re.search(r"\*.+\*", word)) for word in of.split()]
                                              for of in marked], spans))
            if any(evidence):
                yield Example(texts[0], row["gold_label"], evidence[0], row["pairID"], where, texts[1], evidence[1])


def hatexplain_examples(path: Path) -> Iterator[Example]:
    """The posts of a file with marked words and a label of most annotators."""
    for key, record in json_object(read_text(path), str(path)).items():
        where = f"{path}, {key}"
        with in_form("hatexplain", where):
            label, votes = Counter(annotator["label"] for annotator in record["annotators"]).most_common(1)[0]
            text, spans = joined(record["post_tokens"], glued=())
            evidence = _by_majority(record["rationales"], spans)
            if evidence and 2 * votes > len(record["annotators"]):
                yield Example(text, label, evidence, key, where)


def cose_examples(path: Path) -> Iterator[Example]:
    """The questions with their right answer, where the selected words stand in the question."""
    questions: dict[str, Any] = {}
    for file in sorted(path.parent.glob("*_rand_split*.jsonl")):
        for where, asked in records_of_lines(file):
            with in_form("cose", where):
                _add(questions, asked["id"], asked, where)
    if not questions:
        raise ValueError(f"{path}: the questions (*_rand_split.jsonl of CommonsenseQA) should lie beside it.")
    for where, record in records_of_lines(path):
        with in_form("cose", where):
            question = questions.get(record["id"])
            selected = record["explanation"]["selected"].strip()
            if question is None or not selected:
                continue
            stem = question["question"]["stem"]
            # looked for in the stem itself: in stem.lower() characters stand elsewhere, where one of them becomes two
            found = re.search(re.escape(selected), stem, re.IGNORECASE)
            answers = {choice["label"]: choice["text"] for choice in question["question"]["choices"]}
            right = question["answerKey"]
            if found:
                yield Example(stem, right, (found.span(),), record["id"], where, answers[right])


def blimp_examples(path: Path) -> Iterator[Example]:
    """The pairs whose sentences begin alike and go on with another word: what they share, and both words.

    Where one sentence ends and the other goes on, it is a mark that differs, and no word is set against another.
    """
    for number, (where, record) in enumerate(records_of_lines(path)):
        with in_form("blimp", where):
            good, bad = record["sentence_good"].split(), record["sentence_bad"].split()
            shared = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), None)
            label, foil = (words[shared].strip(".,!?") if shared else "" for words in (good, bad))
            if label and foil and label != foil:
                key = f"{record.get('UID', path.stem)}-{record.get('pairID', number)}"
                yield Example(" ".join(good[:shared]), label, None, key, where, foil=foil)


def alignment_examples(path: Path) -> Iterator[Example]:
    """The pairs of a file of alignments, a word of each translation."""
    files = (path.parent / "test.de", path.parent / "test.en", path)
    sides = [read_lines(file) for file in files]
    if len(set(map(len, sides))) > 1:
        found = ", ".join(f"{file.name} has {len(side)}" for file, side in zip(files, sides, strict=True))
        raise ValueError(f"{path}: a line should belong to a line of test.de and one of test.en, but {found} lines.")
    for number, (source, translation, links) in enumerate(zip(*sides, strict=True), 1):
        (text, spans), words = joined(source.split(), glued=()), translation.split()
        sure = _sure(links, len(spans), len(words), f"{path}, line {number}")
        chosen = min((word for _, word in sure if word > 0), key=lambda word: abs(word - len(words) / 2), default=None)
        if chosen is not None:
            evidence = tuple(spans[of] for of in sorted(of for of, word in sure if word == chosen))
            key, where = f"{path.stem}-{number}", f"{path}, line {number}"
            yield Example(text, words[chosen], evidence, key, where, written=" ".join(words[:chosen]))


def joined(words: Sequence[str], glued: Collection[str] = _CLITICS) -> tuple[str, list[Span]]:
    """Words joined by spaces, but for those glued to the word before; and where each of them stands.

    Example:
        >>> joined(["It", "does", "n't"])
        ("It doesn't", [(0, 2), (3, 7), (7, 10)])
    """
    text, spans = "", list[Span]()
    for word in words:
        text += " " if text and word not in glued else ""
        spans.append((len(text), len(text) + len(word)))
        text += word
    return text, spans


def _by_majority(flags: Iterable[Sequence[Any]], spans: Sequence[Span]) -> tuple[Span, ...]:
    """The words that more than half of the annotators marked, of those who marked every word or none of this text."""
    whole = [of for of in flags if len(of) == len(spans)]
    marked = [2 * sum(bool(of[word]) for of in whole) > len(whole) for word in range(len(spans))]
    return tuple(span for span, is_marked in zip(spans, marked, strict=True) if is_marked)


def _sure(line: str, sources: int, targets: int, where: str) -> list[tuple[int, int]]:
    """The sure links of a line, (source word, target word) counted from 0."""
    sure = []
    for item in line.split():
        parts = re.fullmatch(r"(\d+)([-p])(\d+)", item)
        if parts is None:
            raise ValueError(f"{where} holds {item!r}, which is no link: they are like 4-7 (sure) or 4p7 (possible).")
        of, word = int(parts[1]), int(parts[3])
        if not (1 <= of <= sources and 1 <= word <= targets):
            raise ValueError(
                f"{where} holds the link {item}, but its sentences have {sources} and {targets} words, counted from 1. "
                "The sentences should be cut into words as they were when the links were made."
            )
        if parts[2] == "-":
            sure.append((of - 1, word - 1))
    return sure


def _documents(folder: Path) -> dict[str, list[str]]:
    """The words of every document."""
    documents: dict[str, list[str]] = {}
    if (folder / "docs.jsonl").is_file():
        for where, record in records_of_lines(folder / "docs.jsonl"):
            with in_form("eraser", where):
                _add(documents, record["docid"], record["document"].split(), where)
    if (folder / "docs").is_dir():
        for file in sorted((folder / "docs").iterdir()):
            _add(documents, file.name, read_text(file).split(), str(file))
    if (folder / "docs.tar.gz").is_file():
        for name, words in documents_of_archive(folder / "docs.tar.gz").items():
            _add(documents, name, words, str(folder / "docs.tar.gz"))
    return documents


def documents_of_archive(path: Path) -> dict[str, list[str]]:
    """The words of every document of a tar archive, by the names of their files.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such archive, a document is not UTF-8, or two of one name differ.
    """
    documents: dict[str, list[str]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    words = content.read().decode(ENCODING).split()
                    _add(documents, Path(member.name).name, words, f"{path}, {member.name}")
    except (tarfile.TarError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no archive of UTF-8 documents: {error}.") from error
    return documents


def _add(known: dict[str, Any], name: str, content: Any, where: str) -> None:
    """Keep something by its name, of which no other thing may be known."""
    if known.setdefault(name, content) != content:
        raise ValueError(f"{where}: {name!r} was read before, and was another. Leave one of the two out.")


def passage_span(spans: Sequence[Span], passage: Mapping[str, Any], where: str) -> Span:
    """The characters of an ERASER passage, which is told by its tokens.

    Raises:
        ValueError: if its document has no such tokens.
    """
    start, end = passage["start_token"], passage["end_token"]
    if not 0 <= start < end <= len(spans):
        raise ValueError(f"{where}: a passage of tokens {start} to {end}, but its document has {len(spans)} tokens.")
    return spans[start][0], spans[end - 1][1]


@contextmanager
def in_form(form: str, where: str) -> Iterator[None]:
    """What a record lacks to be in a published form, said with its place."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{where} has no {error}, which records of {form} have. Is it a file of {form}?") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{where} is not written as records of {form} are: {error}.") from error
