"""``captum-norm compare``: several methods on one text, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_figure,
    check_outputs,
    from_stdin,
    plain_text,
    say,
    write_figure,
    write_json,
)
from captum_norm.cli.progress import Steps
from captum_norm.methods import DEFAULT, METHODS, known_methods
from captum_norm.text_files import lines_of, read_text

if TYPE_CHECKING:
    from captum_norm.cli.loading import Loaded
    from captum_norm.comparison import Comparison


def _kinds() -> str:
    """The methods there are, by what they explain and whose they are."""
    ours = [name for name, method in METHODS.items() if method.mode == "ids" and not method.decoders]
    kinds = {
        "methods that say what the representation is made of": [n for n in ours if METHODS[n].explains == "position"],
        "methods that say what the output rests on, by way of attention": [
            n for n in ours if METHODS[n].explains == "target"
        ],
        "of language models alone": [n for n in METHODS if METHODS[n].decoders],
        "what the output rests on, Captum's own": [n for n in METHODS if METHODS[n].mode == "gate"],
    }
    return "\n\n".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())


SUMMARY = "several methods on one text, side by side"
EXAMPLE = "captum-norm compare 'A delightful, warm film that never feels forced.' --figure strips.png"
DESCRIPTION = f"""\
Scores every word of a text by several methods, and says how far they agree.

Attention methods say what the representation the model reads its answer from is made of; they do not look at the
class. The others explain one output, the predicted one or --target. What a model predicts is told by its head: classes
(one, several labels, or a value), a class for each token, the beginning of an answer (TEXT is the question, --pair the
context), a masked word, the next token, one of several choices (--pair is the choice); an encoder without a head
compares TEXT with --pair. On a model that predicts nothing, attention methods run alone.

{_kinds()}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "text", metavar="TEXT", type=plain_text, nargs="*", help="texts to explain; - reads one from standard input"
    )
    parser.add_argument(
        "--pair", metavar="TEXT", type=plain_text, help="the second text of a pair: context, choice, other sentence"
    )
    parser.add_argument(
        "--file", metavar="FILE", help="texts, one per line, a tab before the second of a pair; - is standard input"
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"which ones (default: {', '.join(DEFAULT)})")
    parser.add_argument(
        "--target", type=plain_text,
        help="class, next token or word of the text to explain, or the number of one where nothing is called so "
        "(default: the predicted one)",
    )
    parser.add_argument(
        "--position", metavar="N", type=plain_text,
        help="token whose row is explained: a number, or a word (default: the one read)",
    )  # fmt: skip
    parser.add_argument(
        "--specials", choices=("keep", "drop"), default="keep", help="special tokens in shares (default: keep)"
    )
    parser.add_argument(
        "--mixers-as-identity", action="store_true",
        help="compose attention calls as if nothing beside attention mixed positions between them, and list what did",
    )  # fmt: skip
    parser.add_argument("--top", metavar="N", type=int, help="only the N words with the largest shares (default: all)")
    add_model_arguments(parser, default="the embedded sentiment model")
    add_output_arguments(parser, figure="the words shaded by each method's scores")


def run(asked: argparse.Namespace) -> int:
    """Check, load, score, print and save; the exit code."""
    check_outputs(asked.json, asked.figure)
    check_figure(asked.figure)
    names = known_methods(_split(asked.methods)) if asked.methods else None
    if asked.top is not None and asked.top < 1:
        raise ValueError(f"--top {asked.top} should be at least 1.")
    texts = list(_texts(asked))
    if len(texts) > 1 and asked.figure:
        raise ValueError(f"--figure draws one text, and there are {len(texts)}.")
    from captum_norm.cli import loading

    with loading.quiet():
        loaded = loading.load(asked)
        shown = []
        for text, pair in texts:
            one = ShownComparison(text, pair, loaded, _compared(asked, names, loaded, text, pair), asked.top)
            shown.append(one)
            rule = "\n" + "═" * 40 + "\n" if len(shown) > 1 else ""
            say(rule + one.as_text(), asked.json)
        if asked.json:
            saved = [one.as_dict() for one in shown]
            write_json(asked.json, saved[0] if len(saved) == 1 else {"texts": saved})
        if asked.figure:
            write_figure(asked.figure, shown[0].figure())
    return 0


def _texts(asked: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """The texts asked about, each with the second text of its pair."""
    if not asked.text and not asked.file:
        raise ValueError("give a text, or --file with one per line.")
    if asked.text and asked.file:
        raise ValueError("give TEXT or --file, not both.")
    if len(asked.text) > 1 and not any(" " in text for text in asked.text):
        raise ValueError("put a text of several words in quotes; several texts of one word each go into a --file.")
    if asked.file:
        lines = lines_of(from_stdin() if asked.file == "-" else read_text(asked.file))
        given = [tuple(line.split("\t", 1)) for line in lines if line.strip()]
    else:
        given = [(from_stdin().strip(),) if text == "-" else (text,) for text in asked.text]
    for text, *pair in given:
        if not text.strip():
            raise ValueError("the text is empty: there is nothing to explain.")
        yield text, pair[0] if pair else asked.pair
    if not given:
        raise ValueError(f"--file {asked.file}: there is no text in it.")


def _compared(
    asked: argparse.Namespace, names: Sequence[str] | None, loaded: Loaded, text: str, pair: str | None
) -> Comparison:
    from captum_norm.cli.loading import check_length
    from captum_norm.comparison import compare

    check_length(loaded, loaded.encode(text)["input_ids"])
    with Steps(len(names or DEFAULT)) as steps:
        return compare(
            loaded.model, loaded.tokenizer, text, pair, methods=names, target=asked.target, position=asked.position,
            specials=asked.specials, on_method=steps.begin, show_progress=sys.stderr.isatty(),
            mixers_as_identity=asked.mixers_as_identity,
        )  # fmt: skip


@dataclass(frozen=True)
class ShownComparison:
    """A comparison as it is printed, drawn and saved."""

    text: str
    pair: str | None
    loaded: Loaded
    found: Comparison
    top: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: the unrounded scores."""
        pair = {} if self.pair is None else {"pair": self.pair}
        return {"text": self.text, **pair, "model": self.loaded.name, **self.found.as_dict()}

    def as_text(self) -> str:
        """What is printed."""
        return "\n\n".join([self._head(), *self._score_tables(), *self._agreement_table(), self._foot()])

    def figure(self) -> Any:
        """The words shaded by each method."""
        from captum_norm.visualization import method_strips

        said, kept = self.found.prediction, self.found.kept(self.top)
        return method_strips(
            {name: self.found.scores(name)[kept] for name in self.found.results},
            [self.found.words.strings[i] for i in kept],
            signed=[name for name in self.found.results if METHODS[name].signed],
            title=None if said is None else f"Explained: {said.target} ({said.of_target})",
        )

    def _head(self) -> str:
        lines = [draw.wrap(draw.shown(text.strip())) for text in (self.text, self.pair) if text is not None]
        model = f"{self.loaded.name} ({type(self.loaded.model).__name__})"
        said = self.found.prediction
        if said is None:
            lines.append(draw.wrap(f"{model} predicts neither classes nor a next token: attention methods only"))
            return "\n".join(lines)
        found = f"{model} predicts {draw.emphasised(said.label)} ({said.found})"
        if said.probability is None:  # nothing was chosen among others
            found = f"{model} predicts {draw.emphasised(said.found)} as {said.label}"
        other = f"; explained: {said.target} ({said.of_target})"
        lines.append(draw.wrap(found + (other if said.target_index != said.index else "")))
        note = f": {self.found.asked.note}" if self.found.asked.note else ""
        lines.append(draw.wrap(f"taken as {self.found.asked.task}{note}"))
        return "\n".join(lines)

    def _score_tables(self) -> list[str]:
        """Scores as parts of each method's total; as many methods side by side as fit."""
        found, kept = self.found, self.found.kept(self.top)
        parts = {name: (100 * found.shares(name)).tolist() for name in found.results}
        words = {i: draw.cut(draw.shown(found.words.strings[i]), 24) for i in kept}
        room = draw.screen_width() - max(map(draw.width_of, ["seconds", *words.values()]))
        of_all = "" if len(kept) == len(found.kept()) else f", the {len(kept)} largest of {len(found.kept())}"
        left = "; special tokens left out" if found.specials == "drop" else ""
        tables = [draw.wrap(f"score of each word{of_all}, in % of the method's total |score|{left}")]
        for names in _fitting(list(found.results), room):
            top = {name: sorted((abs(parts[name][i]) for i in kept), reverse=True)[:3][-1] for name in names}
            rows = [[words[i], *(_part(parts[n][i], top[n], METHODS[n].signed) for n in names)] for i in kept]
            seconds = ["seconds", *(f"{found.results[name].seconds:.2f}" for name in names)]
            tables.append(draw.table(["", *map(_two_lines, names)], [*rows, [], seconds]))
        return ["\n".join(tables[:2]), *tables[2:]]

    def _agreement_table(self) -> list[str]:
        names = list(self.found.results)
        if len(names) < 2:
            return []
        agreement = self.found.agreement()
        rows = [
            [f"{i + 1} {a}", *("" if i < j else "1" if i == j else _rho(agreement[a][b]) for j, b in enumerate(names))]
            for i, a in enumerate(names)
        ]
        title = "rank agreement: Spearman's ρ of |score| over words, special tokens left out"
        numbers = map(str, range(1, len(names) + 1))
        return [f"{draw.wrap(title)}\n{draw.table(['', *numbers], rows, width=draw.screen_width())}"]

    def _foot(self) -> str:
        error, tolerance = self.found.worst_error()
        calls = len(self.found.calls)
        read = f"{calls} attention calls read, each checked: worst error {error:.1e} (allowed {tolerance:.0e})"
        left_out = self.found.left_out
        lines = [f"left out, for want of a target: {', '.join(left_out)}", read] if left_out else [read]
        lines += [f"taken for the identity: {mixer}" for mixer in self.found.mixers]
        return "\n".join(map(draw.wrap, lines))


def _split(names: Sequence[str]) -> list[str]:
    """``A B`` and ``A,B`` are both two methods."""
    return [name for given in names for name in given.split(",") if name]


def _fitting(names: list[str], room: int) -> list[list[str]]:
    """Methods in as few blocks as fit side by side in ``room`` columns, all about as wide."""
    needs = [2 + max(map(len, [*_two_lines(name).split("\n"), "+100.0"])) for name in names]
    count = len(_blocks(needs, room))
    narrowest = next(width for width in range(max(needs), room + 1) if len(_blocks(needs, width)) <= count)
    return [[names[i] for i in block] for block in _blocks(needs, narrowest)]


def _blocks(needs: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of columns, in blocks of at most ``room`` characters."""
    blocks: list[list[int]] = []
    left = 0
    for number, need in enumerate(needs):
        if not blocks or need > left:
            blocks.append([])
            left = room
        blocks[-1].append(number)
        left -= need
    return blocks


def _two_lines(name: str) -> str:
    """``IntegratedGradients`` over two lines, cut where it is shortest; ``GlobEnc`` on one."""
    if len(name) <= 8:
        return name
    cuts = [
        i for i in range(1, len(name)) if name[i].isupper() and (name[i - 1 : i + 2].upper() != name[i - 1 : i + 2])
    ]
    best = min(cuts, key=lambda i: max(i, len(name) - i), default=0)
    return f"{name[:best]}\n{name[best:]}"


def _part(part: float, top: float, signed: bool) -> str:
    """A share in per cent, with its sign where the method has signs; the three largest stand out."""
    cell = f"{part:+.1f}" if signed else f"{part:.1f}"
    return draw.emphasised(cell) if abs(part) >= top > 0 else cell


def _rho(rho: float | None) -> str:
    return "·" if rho is None else f"{rho:+.2f}"
