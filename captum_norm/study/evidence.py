"""From published data sets to texts with evidence, as a study reads them: ``python -m captum_norm.study.evidence``.

Three sources of sentiment, beside the forms of `captum_norm.study.published`; none is copied here:

- ``sst``: trees of the Stanford Sentiment Treebank (Socher et al. 2013, https://aclanthology.org/D13-1170), every
  phrase rated from 0 to 4.  Evidence for a sentence are the largest phrases, of at most half of its words, that carry
  the sentence's polarity at its strength or beyond; sentences where these add up to more than half are left out.
- ``cad``: counterfactually augmented film reviews (Kaushik et al. 2020, https://arxiv.org/abs/1909.12434).  Evidence
  are the words that a person changed to turn the judgement around.
- ``movies``: ERASER's film reviews (DeYoung et al. 2020, https://arxiv.org/abs/1911.03429) with marked passages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from captum_norm.files import replacing
from captum_norm.numerals import at_least
from captum_norm.study.data import LATER_FIELDS, Example, Span
from captum_norm.study.published import (
    alignment_examples,
    blimp_examples,
    cose_examples,
    documents_of_archive,
    eraser_examples,
    esnli_examples,
    hatexplain_examples,
    in_form,
    joined,
    passage_span,
)
from captum_norm.study.records import records_of_lines, records_of_table
from captum_norm.text_files import read_lines

LABELS = ("negative", "positive")

_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]"}


@dataclass(frozen=True)
class Phrase:
    """A phrase of a tree.

    Attributes:
        rating: 0 (very negative) to 4 (very positive); 2 is neutral.
        start: its first word.
        end: after its last word.
        parts: the phrases that it is made of.
    """

    rating: int
    start: int
    end: int
    parts: tuple[Phrase, ...] = ()

    def __len__(self) -> int:
        return self.end - self.start


def sst_examples(path: Path) -> Iterator[Example]:
    """The sentences of a file of trees that are not neutral and have evidence."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        words, tree = read_tree(line, f"{path}, line {number}")
        phrases = carriers(tree) if tree.rating != 2 else []
        if phrases and 2 * sum(map(len, phrases)) <= len(tree):
            text, spans = joined(words)
            evidence = tuple((spans[phrase.start][0], spans[phrase.end - 1][1]) for phrase in phrases)
            yield Example(text, LABELS[tree.rating > 2], evidence, f"{path.stem}-{number}", f"{path}, line {number}")


def carriers(tree: Phrase) -> list[Phrase]:
    """The largest phrases, of at most half of the words, that carry a sentence's polarity at its strength or beyond.

    Example:
        >>> words, tree = read_tree("(3 (2 It) (3 (2 is) (4 (2 a) (4 (4 lovely) (2 film)))))")
        >>> [" ".join(words[phrase.start : phrase.end]) for phrase in carriers(tree)]
        ['lovely film']
    """

    def carries(phrase: Phrase) -> bool:
        side = 1 if tree.rating > 2 else -1
        return side * (phrase.rating - 2) >= side * (tree.rating - 2) and 2 * len(phrase) <= len(tree)

    def search(phrase: Phrase) -> list[Phrase]:
        return [phrase] if carries(phrase) else [carrier for part in phrase.parts for carrier in search(part)]

    return search(tree)


def read_tree(line: str, where: str = "tree") -> tuple[list[str], Phrase]:
    """The words of a tree ``(3 (2 It) (3 works))``, in plain spelling, and its phrases.

    Raises:
        ValueError: if the line is no tree.
    """
    words: list[str] = []
    open_phrases: list[tuple[int, int, list[Phrase]]] = []
    closed: Phrase | None = None
    for opening, word in re.findall(r"\((\d) |([^()\s]+)|\)", line):
        if opening:
            open_phrases.append((int(opening), len(words), []))
        elif word:
            words.append(_ESCAPES.get(word, word.replace("\\/", "/").replace("\\*", "*")))
        elif not open_phrases:
            raise ValueError(f"{where} is no tree: it closes more than it opens.")
        else:
            rating, start, parts = open_phrases.pop()
            closed = Phrase(rating, start, len(words), tuple(parts))
            if open_phrases:
                open_phrases[-1][2].append(closed)
    if closed is None or open_phrases or not words or closed.start or closed.end != len(words):
        raise ValueError(f"{where} is no tree: {line[:60]!r}.")
    return words, closed


def cad_examples(path: Path) -> Iterator[Example]:
    """One review of every pair, by turns the first and the second, with the words that the other has changed.

    Two versions of one text would not be two independent examples.
    """
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for where, row in records_of_table(path, "\t"):
        with in_form("cad", where):
            text, label = " ".join(re.sub(r"<br ?/?>", " ", row["Text"]).split()), row["Sentiment"].lower()
            if label not in LABELS:
                raise ValueError(f"{where}: Sentiment should be Negative or Positive, got {row['Sentiment']!r}.")
            pairs[row["batch_id"]].append((label, text))
    for number, (key, pair) in enumerate((key, pair) for key, pair in pairs.items() if len(pair) == 2):
        (label, text), (_, other) = pair if number % 2 == 0 else pair[::-1]
        evidence = changed_words(text, other)
        if evidence:
            yield Example(text, label, evidence, f"{path.stem}-{key}")


def changed_words(text: str, other: str) -> tuple[Span, ...]:
    """The words of a text that were changed or left out in another version of it, neighbours as one span.

    Example:
        >>> text = "I liked this warm film."
        >>> [text[start:end] for start, end in changed_words(text, "I hated this film.")]
        ['liked', 'warm']
    """
    found = list(re.finditer(r"\S+", text))
    words, spans = [word[0] for word in found], [word.span() for word in found]
    matcher = SequenceMatcher(None, words, other.split(), autojunk=False)
    edits = [(a, b) for kind, a, b, _, _ in matcher.get_opcodes() if kind in ("replace", "delete")]
    return tuple((spans[a][0], spans[b - 1][1]) for a, b in edits)


def movie_examples(path: Path) -> Iterator[Example]:
    """The reviews of a file of annotations; ``docs.tar.gz`` lies beside it."""
    documents = documents_of_archive(path.with_name("docs.tar.gz"))
    for where, record in records_of_lines(path):
        with in_form("movies", where):
            key, said = record["annotation_id"], record["classification"]
            if key not in documents:
                raise ValueError(f"{where}: docs.tar.gz beside it has no document {key!r}.")
            if said not in ("NEG", "POS"):
                raise ValueError(f"{where}: classification should be NEG or POS, got {said!r}.")
            text, spans = joined(documents[key], glued=())
            evidence = tuple(passage_span(spans, p, where) for group in record["evidences"] for p in group)
            if evidence:
                yield Example(text, LABELS[said == "POS"], evidence, key, where)


SOURCES: dict[str, Callable[[Path], Iterator[Example]]] = {
    "sst": sst_examples,
    "cad": cad_examples,
    "movies": movie_examples,
    "eraser": eraser_examples,
    "esnli": esnli_examples,
    "hatexplain": hatexplain_examples,
    "cose": cose_examples,
    "blimp": blimp_examples,
    "alignment": alignment_examples,
}


def drawn(examples: Sequence[Example], count: int | None) -> list[Example]:
    """So many of them, as many of each label as can be, in an order that depends on the texts alone.

    Raises:
        TypeError: if ``count`` is no whole number.
        ValueError: if it is below 1, or there are fewer.
    """
    if count is None:
        return list(examples)
    at_least(1, count, "count")
    in_order = sorted(examples, key=lambda example: hashlib.blake2b(example.text.encode()).digest())
    by_label: dict[object, list[Example]] = defaultdict(list)
    for example in in_order:
        by_label[example.label].append(example)
    groups = [by_label[label] for label in sorted(by_label, key=str)]
    rounds = max(map(len, groups), default=0)
    by_turns = [group[i] for i in range(rounds) for group in groups if i < len(group)]
    if len(by_turns) < count:
        raise ValueError(f"{count} examples are asked for, but only {len(by_turns)} have evidence.")
    return by_turns[:count]


def write(examples: Sequence[Example], path: Path) -> None:
    """Write examples as JSONL, whole or not at all."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for example in examples:
            record = {"id": example.key, "text": example.text, "label": example.label, "evidence": example.evidence}
            more = {name: getattr(example, name) for name in ("text_pair", "evidence_pair", *LATER_FIELDS)}
            record |= {name: of for name, of in more.items() if of is not None}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Read a source, draw examples and write them; what is wrong ends it with code 2 and leaves the output alone."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        if arguments.count is not None:
            at_least(1, arguments.count, "--count")
        examples = [example for path in arguments.files for example in SOURCES[arguments.source](Path(path))]
        if not examples:
            raise ValueError(
                f"{', '.join(arguments.files)}: no text with evidence in the form of {arguments.source}, so nothing is "
                "written. Are these the right files?"
            )
        chosen = drawn(examples, arguments.count)
        write(chosen, Path(arguments.output))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{arguments.output}: {len(chosen)} of {len(examples)} texts with evidence")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captum_norm.study.evidence",
        description="Makes texts with evidence, as captum-norm study reads them, from published data sets.",
        epilog="example: python -m captum_norm.study.evidence sst trees/dev.txt trees/test.txt --output sst.jsonl",
    )
    parser.add_argument("source", choices=SOURCES, help="which data set")
    parser.add_argument("files", nargs="+", metavar="FILE", help="its files: trees, paired .tsv, or annotations .jsonl")
    parser.add_argument("--output", required=True, metavar="FILE", help="the JSONL to write")
    parser.add_argument("--count", type=int, metavar="N", help="so many texts (default: all)")
    return parser


if __name__ == "__main__":
    main()
