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

import csv
import json
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from captum_norm.study.data import Example, Span
from captum_norm.text_files import ENCODING, read_lines, read_text

_CLITICS = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m")


def eraser_examples(path: Path) -> Iterator[Example]:
    """The annotations of a file, a text or a pair each."""
    documents = _documents(path.parent)
    for where, record in _records(path):
        passages = [passage for group in record["evidences"] for passage in group]
        names = record.get("docids") or list(dict.fromkeys(p["docid"] for p in passages)) or [record["annotation_id"]]
        missing = next((name for name in names if name not in documents), None)
        if missing is not None or len(names) > 2:
            found = f"the document {missing!r} is not beside it" if missing is not None else f"{len(names)} documents"
            raise ValueError(f"{where}: {found}; one or two are needed, in docs/, docs.jsonl or docs.tar.gz.")
        texts = [joined(documents[name], glued=()) for name in names]
        evidence = [
            tuple((spans[p["start_token"]][0], spans[p["end_token"] - 1][1]) for p in passages if p["docid"] == name)
            for name, (_, spans) in zip(names, texts, strict=True)
        ]
        second = texts[1][0] if len(texts) > 1 else record.get("query") or None
        if any(evidence):
            of_second = evidence[1] if len(evidence) > 1 else None
            key = record["annotation_id"]
            yield Example(texts[0][0], record["classification"], evidence[0], key, where, second, of_second)


def esnli_examples(path: Path) -> Iterator[Example]:
    """The pairs of a file in which somebody has marked a word."""
    with path.open(encoding=ENCODING, newline="") as lines:
        for row in csv.DictReader(lines):
            texts, evidence = [], []
            for number in (1, 2):
                marked = [row[name] for name in row if re.fullmatch(rf"Sentence{number}_marked_\d", name) and row[name]]
                text, spans = joined(row[f"Sentence{number}"].split(), glued=())
                texts.append(text)
                evidence.append(_by_majority([[bool(re.search(r"\*.+\*", word)) for word in of.split()]
                                              for of in marked], spans))
            if any(evidence):
                yield Example(texts[0], row["gold_label"], evidence[0], row["pairID"], str(path), texts[1], evidence[1])


def hatexplain_examples(path: Path) -> Iterator[Example]:
    """The posts of a file with marked words and a label of most annotators."""
    for key, record in json.loads(read_text(path)).items():
        [(label, votes)] = Counter(annotator["label"] for annotator in record["annotators"]).most_common(1)
        text, spans = joined(record["post_tokens"], glued=())
        evidence = _by_majority(record["rationales"], spans)
        if evidence and 2 * votes > len(record["annotators"]):
            yield Example(text, label, evidence, key, f"{path}, {key}")


def cose_examples(path: Path) -> Iterator[Example]:
    """The questions with their right answer, where the selected words stand in the question."""
    questions = {q["id"]: q for file in sorted(path.parent.glob("*_rand_split*.jsonl")) for _, q in _records(file)}
    if not questions:
        raise ValueError(f"{path}: the questions (*_rand_split.jsonl of CommonsenseQA) should lie beside it.")
    for where, record in _records(path):
        question = questions.get(record["id"])
        selected = record["explanation"]["selected"].strip()
        if question is None or not selected:
            continue
        stem = question["question"]["stem"]
        start = stem.lower().find(selected.lower())
        answers = {choice["label"]: choice["text"] for choice in question["question"]["choices"]}
        if start >= 0:
            span = (start, start + len(selected))
            yield Example(stem, question["answerKey"], (span,), record["id"], where, answers[question["answerKey"]])


def blimp_examples(path: Path) -> Iterator[Example]:
    """The pairs whose sentences begin alike: what they share, the good continuation, and the bad one."""
    for number, (where, record) in enumerate(_records(path)):
        good, bad = record["sentence_good"].split(), record["sentence_bad"].split()
        shared = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), None)
        if shared:
            key = f"{record.get('UID', path.stem)}-{record.get('pairID', number)}"
            label, foil = (words[shared].strip(".,!?") for words in (good, bad))
            yield Example(" ".join(good[:shared]), label, None, key, where, foil=foil)


def alignment_examples(path: Path) -> Iterator[Example]:
    """The pairs of a file of alignments, a word of each translation."""
    sides = [read_lines(path.parent / f"test.{name}") for name in ("de", "en")]
    lines = read_lines(path)
    for number, (source, translation, links) in enumerate(zip(*sides, lines, strict=True), 1):
        sure = [tuple(int(word) - 1 for word in link.split("-")) for link in links.split() if "-" in link]
        (text, spans), words = joined(source.split(), glued=()), translation.split()
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


def _documents(folder: Path) -> dict[str, list[str]]:
    """The words of every document."""
    documents: dict[str, list[str]] = {}
    if (folder / "docs.jsonl").is_file():
        documents = {record["docid"]: record["document"].split() for _, record in _records(folder / "docs.jsonl")}
    if (folder / "docs").is_dir():
        documents |= {file.name: read_text(file).split() for file in (folder / "docs").iterdir()}
    if (folder / "docs.tar.gz").is_file():
        with tarfile.open(folder / "docs.tar.gz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    documents[Path(member.name).name] = content.read().decode(ENCODING).split()
    return documents


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield f"{path}, line {number}", json.loads(line)
