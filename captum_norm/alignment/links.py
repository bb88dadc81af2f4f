"""Links between the words of a sentence and of its translation, and the three formats in which they are passed around.

A link is (source word, target word), both counted from 0.  In files they may be counted from 0 or 1 and written in
either order, which nothing in a file tells, so the reader is told.

    talp    one sentence per line, ``4-7`` sure, ``4p7`` possible           (RWTH, the TALP centre's tools)
    pharaoh one sentence per line, ``4-7``, all sure                        (Moses, fast_align, eflomal)
    naacl   one link per line: ``sentence source target [S|P] [confidence]`` (Mihalcea and Pedersen 2003)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from captum_norm.files import replacing
from captum_norm.text_files import read_lines

Link: TypeAlias = tuple[int, int]
Order: TypeAlias = Literal["source-target", "target-source"]
Format: TypeAlias = Literal["talp", "naacl", "pharaoh"]

_TALP = re.compile(r"(\d+)([-p])(\d+)")
_PHARAOH = re.compile(r"(\d+)([-])(\d+)")


@dataclass(frozen=True)
class GoldLinks:
    """What people said of one pair of sentences.

    Attributes:
        sure: links that must be found.
        possible: links that may be found; the sure ones are always among them.

    Example:
        >>> GoldLinks(sure={(0, 0)}, possible={(1, 1)}).possible == {(0, 0), (1, 1)}
        True
    """

    sure: frozenset[Link]
    possible: frozenset[Link]

    def __init__(self, sure: Iterable[Link], possible: Iterable[Link] = ()) -> None:
        object.__setattr__(self, "sure", frozenset(sure))
        object.__setattr__(self, "possible", self.sure | frozenset(possible))


def read_links(
    path: str | Path, format: Format, *, first: Literal[0, 1], order: Order = "source-target",
    sentences: int | None = None,
) -> list[GoldLinks]:  # fmt: skip
    """Read a file of links.

    Args:
        path: a UTF-8 file.
        format: ``"talp"``, ``"pharaoh"`` or ``"naacl"``.
        first: the number of the first word (and, in the NAACL format, of the first sentence, which is 1 there either
            way): talp and NAACL files count from 1, Pharaoh files mostly from 0.
        order: which side is written first.
        sentences: how many sentences there are; needed where the last ones of a NAACL file may have no link, and
            checked in any case.

    Returns:
        One `GoldLinks` per sentence, counted from 0, the source first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for anything that cannot be read, with the number of the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/gold.talp").write_text("1-1 2p3\\n")
        ...     read_links(f"{folder}/gold.talp", "talp", first=1)[0].sure
        frozenset({(0, 0)})
    """
    if format not in _READERS:
        raise ValueError(f"read_links: format should be one of {', '.join(_READERS)}, got {format!r}.")
    if first not in (0, 1):
        raise ValueError(f"read_links: first is the number of the first word, 0 or 1, got {first!r}.")
    if order not in ("source-target", "target-source"):
        raise ValueError(f'read_links: order should be "source-target" or "target-source", got {order!r}.')
    lines = read_lines(path)
    found = _READERS[format](_Lines(str(path), lines, first, order == "target-source"))
    if format == "naacl" and sentences is not None:
        found += [GoldLinks(()) for _ in range(sentences - len(found))]
    if sentences is not None and len(found) != sentences:
        raise ValueError(f"{path} holds links of {len(found)} sentences, but there are {sentences} sentences.")
    return found


def read_sentences(source: str | Path, target: str | Path) -> list[tuple[list[str], list[str]]]:
    """Pairs of sentences from two files with one tokenised sentence per line, cut at white space.

    Raises:
        FileNotFoundError: if one of them is missing.
        ValueError: if they have different numbers of lines, or a line is empty, with its number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/de").write_text("das stimmt .\\n"), Path(f"{folder}/en").write_text("true .\\n")
        ...     read_sentences(f"{folder}/de", f"{folder}/en")
        [(['das', 'stimmt', '.'], ['true', '.'])]
    """
    sides = [[line.split() for line in read_lines(path)] for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{source} has {len(sides[0])} lines, {target} has {len(sides[1])}: line n of one should translate "
            "line n of the other."
        )
    for path, side in zip((source, target), sides, strict=True):
        if not side:
            raise ValueError(f"{path} is empty: there is nothing to align.")
        empty = [number for number, words in enumerate(side, 1) if not words]
        if empty:
            raise ValueError(f"{path}, line {empty[0]} is empty: every sentence needs a word. Take the pair out.")
    return list(zip(*sides, strict=True))


def check_links(
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]], gold: Sequence[GoldLinks], caller: str = "check_links"
) -> None:
    """See that links and sentences belong together.

    Raises:
        TypeError: if one of them is no list.
        ValueError: if there are not as many of one as of the other, or a link names a word that its sentence does not
            have, with the number of the sentence.
    """
    check_sequence(caller, "pairs", pairs)
    check_sequence(caller, "gold", gold)
    if len(pairs) != len(gold):
        raise ValueError(f"{caller}: {len(pairs)} pairs of sentences, but gold links of {len(gold)}.")
    for number, ((source, target), links) in enumerate(zip(pairs, gold, strict=True), 1):
        for s, t in sorted(links.possible):
            if not (0 <= s < len(source) and 0 <= t < len(target)):
                raise ValueError(
                    f"{caller}: pair {number} (line {number}) has {len(source)} source and {len(target)} target "
                    f"words, but a gold link joins source word {s + 1} and target word {t + 1}, counted from 1. The "
                    "sentences should be tokenised as they were when the links were made, and first= and order= "
                    "should be those of the file."
                )


def check_sequence(caller: str, name: str, given: Any, ordered: bool = True) -> None:
    """See that something can be counted and read again, as a list can and a generator cannot.

    Args:
        caller: who asks, for the error.
        name: of the argument.
        given: anything.
        ordered: whether a set is refused, too; where each entry is looked at besides, that error says more.

    Raises:
        TypeError: if it cannot.
    """
    if not hasattr(given, "__len__") or (ordered and not hasattr(given, "__getitem__")):
        raise TypeError(f"{caller}: {name} should be a list, got {type(given).__name__}. list({name}) makes one.")


def as_pharaoh(links: Iterable[Link], *, first: Literal[0, 1] = 0) -> str:
    """One line of Pharaoh links.

    >>> as_pharaoh([(1, 0), (0, 2)])
    '0-2 1-0'
    """
    return " ".join(f"{s + first}-{t + first}" for s, t in sorted(links))


def as_talp(gold: GoldLinks, *, first: Literal[0, 1] = 1) -> str:
    """One line of talp links, the sure ones first.

    >>> as_talp(GoldLinks({(0, 0)}, {(1, 2)}))
    '1-1 2p3'
    """
    sure = [f"{s + first}-{t + first}" for s, t in sorted(gold.sure)]
    return " ".join([*sure, *(f"{s + first}p{t + first}" for s, t in sorted(gold.possible - gold.sure))])


def as_naacl(gold: GoldLinks, sentence: int, *, first: Literal[0, 1] = 1) -> str:
    """The NAACL lines of one sentence, which is counted from 1.

    >>> as_naacl(GoldLinks({(0, 0)}, {(1, 2)}), sentence=1)
    '0001 1 1 S\\n0001 2 3 P'
    """
    marked = [(s, t, "S" if (s, t) in gold.sure else "P") for s, t in sorted(gold.possible)]
    return "\n".join(f"{sentence:04d} {s + first} {t + first} {mark}" for s, t, mark in marked)


def write_links(
    path: str | Path, links: Sequence[Iterable[Link]], format: Format = "pharaoh", *, first: Literal[0, 1] | None = None
) -> None:
    """Write the links of many sentences, all of them sure, the source first; the file is there whole or not at all.

    Args:
        path: the file.
        links: of each sentence.
        format: ``"pharaoh"`` (counted from 0), ``"talp"`` or ``"naacl"`` (counted from 1).
        first: the number of the first word, where it should be another.
    """
    with replacing(path) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in written(links, format, first=first)), encoding="utf-8")


def written(
    links: Sequence[Iterable[Link]], format: Format = "pharaoh", *, first: Literal[0, 1] | None = None
) -> Iterator[str]:
    """The lines that ``write_links`` writes.

    >>> list(written([[(0, 1)], [(2, 2)]], "talp"))
    ['1-2', '3-3']
    """
    if format not in _READERS:
        raise ValueError(f"written: format should be one of {', '.join(_READERS)}, got {format!r}.")
    counted: Literal[0, 1] = first if first is not None else (0 if format == "pharaoh" else 1)
    for number, one in enumerate(links, 1):
        if format == "naacl":
            yield from as_naacl(GoldLinks(one), number, first=counted).splitlines()
        else:
            yield as_pharaoh(one, first=counted) if format == "pharaoh" else as_talp(GoldLinks(one), first=counted)


@dataclass(frozen=True)
class _Lines:
    """A file's lines, and how its numbers are meant."""

    path: str
    lines: list[str]
    first: int
    swapped: bool

    def link(self, number: int, one: str, other: str) -> Link:
        """The link of two numbers as they stand on a line (counted from 1)."""
        s, t = int(one) - self.first, int(other) - self.first
        if s < 0 or t < 0:
            raise self.wrong(number, f"holds a 0 in {one}-{other}, but words are counted from 1: is first=0 meant?")
        return (t, s) if self.swapped else (s, t)

    def wrong(self, number: int, what: str) -> ValueError:
        return ValueError(f"{self.path}, line {number} {what}")


def _read_rows(file: _Lines, pattern: re.Pattern[str], form: str) -> list[GoldLinks]:
    """Formats with a sentence on each line."""
    found = []
    for number, line in enumerate(file.lines, 1):
        sure: list[Link] = []
        possible: list[Link] = []
        for item in line.split():
            parts = pattern.fullmatch(item)
            if parts is None:
                raise file.wrong(number, f"holds {item!r}, which is no link: {form}.")
            link = file.link(number, parts[1], parts[3])
            (possible if parts[2] == "p" else sure).append(link)
        found.append(GoldLinks(sure, possible))
    return found


def _read_naacl(file: _Lines) -> list[GoldLinks]:
    """One link per line, each with its sentence's number; sentences may stand in any order."""
    kept: dict[int, tuple[list[Link], list[Link]]] = {}
    for number, line in enumerate(file.lines, 1):
        cells = line.split()
        if not cells:
            continue
        mark = cells[3].upper() if len(cells) > 3 else "S"
        if len(cells) < 3 or not all(cell.isdecimal() for cell in cells[:3]) or len(cells) > 5:
            raise file.wrong(number, f"is no link: {line.strip()!r} should be 'sentence source target [S|P]'.")
        if mark not in ("S", "P"):
            if len(cells) > 4 or not _is_number(mark):
                raise file.wrong(number, f"marks its link {cells[3]!r}, which is neither S (sure) nor P (possible).")
            mark = "S"  # a confidence in place of the mark
        if int(cells[0]) < 1:
            raise file.wrong(number, "is of sentence 0, but sentences are counted from 1.")
        sure, possible = kept.setdefault(int(cells[0]), ([], []))
        (sure if mark == "S" else possible).append(file.link(number, cells[1], cells[2]))
    return [GoldLinks(*kept.get(sentence, ((), ()))) for sentence in range(1, max(kept, default=0) + 1)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[_Lines], list[GoldLinks]]] = {
    "talp": lambda file: _read_rows(file, _TALP, "talp links are like 4-7 (sure) or 4p7 (possible)"),
    "pharaoh": lambda file: _read_rows(file, _PHARAOH, "Pharaoh links are like 4-7"),
    "naacl": _read_naacl,
}
