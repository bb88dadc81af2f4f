"""``captum-norm compare``: several methods on one text, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_figure,
    check_outputs,
    from_stdin,
    say,
    write_figure,
    write_json,
)
from captum_norm.methods import DEFAULT, METHODS, known_methods, run_method
from captum_norm.suggestions import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from captum_norm.cli.loading import Loaded
    from captum_norm.maps import CheckedCall
    from captum_norm.methods import TokenScores
    from captum_norm.words import Words


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
class. The others explain one output: the predicted class of a classifier, the predicted next token of a language
model, or --target. On a model that predicts neither (a plain encoder), attention methods run alone.

{_kinds()}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("text", metavar="TEXT", help="the text to explain; - reads it from standard input")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"which ones (default: {', '.join(DEFAULT)})")
    parser.add_argument("--target", help="class (name or number) or next token to explain (default: the predicted one)")
    add_model_arguments(parser, default="the embedded sentiment model")
    add_output_arguments(parser, figure="the words shaded by each method's scores")


def run(asked: argparse.Namespace) -> int:
    """Check, load, score, print and save; the exit code."""
    check_outputs(asked.json, asked.figure)
    check_figure(asked.figure)
    names = known_methods(_split(asked.methods)) if asked.methods else None
    if asked.text == "-":
        asked.text = from_stdin().strip()
    if not asked.text.strip():
        raise ValueError("the text is empty: there is nothing to explain.")
    from captum_norm.cli import loading

    with loading.quiet():
        comparison = _compare(asked, names, loading.load(asked))
        say(comparison.as_text(), asked.json)
        if asked.json:
            write_json(asked.json, comparison.as_dict())
        if asked.figure:
            write_figure(asked.figure, comparison.figure())
    return 0


@dataclass(frozen=True)
class Prediction:
    """What the model says of the text, and what is explained; a regression has values and no probabilities."""

    label: str
    index: int
    value: float
    probability: float | None
    target: str
    target_index: int
    target_value: float
    target_probability: float | None

    @property
    def found(self) -> str:
        """The value of what is said, as it is shown."""
        return _shown(self.value, self.probability)

    @property
    def of_target(self) -> str:
        """The value of what is explained, as it is shown."""
        return _shown(self.target_value, self.target_probability)


def _shown(value: float, probability: float | None) -> str:
    return f"{value:.4g}" if probability is None else f"{probability:.1%}"


@dataclass(frozen=True)
class ComparedText:
    """Everything that is printed and saved."""

    text: str
    loaded: Loaded
    words: Words
    special: tuple[bool, ...]
    prediction: Prediction | None
    results: dict[str, TokenScores]
    calls: list[CheckedCall]
    left_out: tuple[str, ...]

    def scores(self, name: str) -> Tensor:
        """(word,): a method's scores, those of the pieces of a word added up."""
        from captum_norm.words import word_scores

        return word_scores(self.results[name].scores[0].double(), self.words)

    def agreement(self) -> dict[str, dict[str, float | None]]:
        """Spearman's ρ of |score| over the words that are no special tokens; None where it is not defined."""
        import torch

        from captum_norm.ranks import spearman

        plain = ~torch.tensor(self.special)
        sizes = {name: self.scores(name).abs()[plain] for name in self.results}
        rho = {a: {b: float(spearman(sizes[a], sizes[b])) for b in sizes} for a in sizes}
        return {a: {b: None if r != r else r for b, r in row.items()} for a, row in rho.items()}

    def worst_error(self) -> tuple[float, float]:
        """The largest certificate error of the attention calls, and what was allowed."""
        worst = max((c.certificate for c in self.calls if c.certificate is not None), key=float)
        return float(worst), worst.tolerance

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: the unrounded scores."""
        error, tolerance = self.worst_error()
        return {
            "text": self.text,
            "model": self.loaded.name,
            "prediction": None if self.prediction is None else vars(self.prediction),
            "words": list(self.words.strings),
            "special": list(self.special),
            "word_of_token": list(self.words.index),
            "methods": {
                name: {
                    "explains": METHODS[name].explains,
                    "seconds": result.seconds,
                    "token_scores": result.scores[0].double().tolist(),
                    "word_scores": self.scores(name).tolist(),
                }
                for name, result in self.results.items()
            },
            "rank_agreement": self.agreement(),
            "certificate": {"calls": len(self.calls), "error": error, "tolerance": tolerance},
            "left_out": list(self.left_out),
        }

    def as_text(self) -> str:
        """What is printed."""
        parts = [self._head(), *self._score_tables(), *self._agreement_table(), self._foot()]
        return "\n\n".join(parts)

    def figure(self) -> Any:
        """The words shaded by each method."""
        from captum_norm.visualization import method_strips

        said = self.prediction
        return method_strips(
            {name: self.scores(name) for name in self.results},
            list(self.words.strings),
            signed=[name for name in self.results if METHODS[name].signed],
            title=None if said is None else f"Explained: {said.target} ({said.of_target})",
        )

    def _head(self) -> str:
        lines = [draw.wrap(draw.shown(self.text.strip()))]
        model = f"{self.loaded.name} ({type(self.loaded.model).__name__})"
        said = self.prediction
        if said is None:
            lines.append(draw.wrap(f"{model} predicts neither classes nor a next token: attention methods only"))
        else:
            found = f"{model} predicts {draw.emphasised(said.label)} ({said.found})"
            if said.probability is None:  # nothing was chosen among others
                found = f"{model} predicts {draw.emphasised(said.found)} as {said.label}"
            other = f"; explained: {said.target} ({said.of_target})"
            lines.append(draw.wrap(found + (other if said.target_index != said.index else "")))
        return "\n".join(lines)

    def _score_tables(self) -> list[str]:
        """Scores as parts of each method's total; as many methods side by side as fit."""
        total = {name: self.scores(name).abs().sum().clamp_min(1e-300) for name in self.results}
        parts = {name: (100 * self.scores(name) / total[name]).tolist() for name in self.results}
        words = [draw.cut(draw.shown(word), 24) for word in self.words.strings]
        room = draw.screen_width() - max(map(draw.width_of, ["seconds", *words]))
        tables = ["score of each word, in % of the method's total |score|"]
        for names in _fitting(list(self.results), room):
            top = {name: sorted(map(abs, parts[name]), reverse=True)[:3][-1] for name in names}
            rows = [[w, *(_part(parts[n][i], top[n], METHODS[n].signed) for n in names)] for i, w in enumerate(words)]
            seconds = ["seconds", *(f"{self.results[name].seconds:.2f}" for name in names)]
            tables.append(draw.table(["", *map(_two_lines, names)], [*rows, [], seconds]))
        return ["\n".join(tables[:2]), *tables[2:]]

    def _agreement_table(self) -> list[str]:
        names = list(self.results)
        if len(names) < 2:
            return []
        agreement = self.agreement()
        rows = [
            [f"{i + 1} {a}", *("" if i < j else "1" if i == j else _rho(agreement[a][b]) for j, b in enumerate(names))]
            for i, a in enumerate(names)
        ]
        title = "rank agreement: Spearman's ρ of |score| over words, special tokens left out"
        numbers = map(str, range(1, len(names) + 1))
        return [f"{draw.wrap(title)}\n{draw.table(['', *numbers], rows, width=draw.screen_width())}"]

    def _foot(self) -> str:
        error, tolerance = self.worst_error()
        read = (
            f"{len(self.calls)} attention calls read, each checked: worst error {error:.1e} (allowed {tolerance:.0e})"
        )
        lines = [read] if not self.left_out else [f"left out, for want of a target: {', '.join(self.left_out)}", read]
        return "\n".join(map(draw.wrap, lines))


def _compare(asked: argparse.Namespace, names: Sequence[str] | None, loaded: Loaded) -> ComparedText:
    from captum_norm.cli.loading import check_length
    from captum_norm.maps import checked_calls

    encoding = loaded.encode(asked.text)
    if not encoding["input_ids"].numel():
        raise ValueError("the tokenizer makes no token of this text: there is nothing to explain.")
    check_length(loaded, encoding["input_ids"])
    calls = checked_calls(loaded.model, loaded.forward_inputs(encoding))
    refused = [c for c in calls if c.refusal]
    if refused:
        raise ValueError(f"{refused[0].refusal}. captum-norm certify lists every attention call of the model.")
    prediction = None if loaded.task == "none" else _predict(loaded, encoding, asked.target)
    if prediction is None and asked.target is not None:
        raise ValueError(f"--target {asked.target}: {loaded.name} predicts neither classes nor a next token.")
    chosen, left_out = _applicable(names, prediction)
    target = None if prediction is None else prediction.target_index
    results = {name: run_method(name, loaded.model, encoding, target) for name in chosen}
    words, special = _words(asked.text, encoding, loaded)
    return ComparedText(asked.text, loaded, words, special, prediction, results, calls, left_out)


def _applicable(names: Sequence[str] | None, prediction: Prediction | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The methods to run, and those of the default that need a target where there is none."""
    if prediction is not None:
        return tuple(names or DEFAULT), ()
    wanting = [name for name in names or DEFAULT if METHODS[name].explains == "target"]
    if names and wanting:
        raise ValueError(
            f"{wanting[0]} explains a class or a next token, and this model predicts neither. What runs on it: "
            f"{', '.join(name for name in METHODS if METHODS[name].explains == 'position')}."
        )
    return tuple(name for name in names or DEFAULT if name not in wanting), tuple(wanting)


def _predict(loaded: Loaded, encoding: Mapping[str, Any], asked: str | None) -> Prediction:
    import torch

    from captum_norm.forward import HFForward

    forward = HFForward(loaded.model)
    given = forward.inputs(encoding)
    with torch.no_grad():
        [values] = forward(given["inputs"], *(given["additional_forward_args"] or ())).cpu().double()
    chances = _chances(loaded, values)
    index = int(values.argmax())
    target = index if asked is None else _target(loaded, asked, len(values))

    def said(index: int) -> tuple[str, int, float, float | None]:
        name = "the value" if chances is None and len(values) == 1 else loaded.label(index)
        return name, index, float(values[index]), None if chances is None else float(chances[index])

    return Prediction(*said(index), *said(target))


def _chances(loaded: Loaded, values: Tensor) -> Tensor | None:
    """The probabilities that outputs stand for: of classes that exclude each other, or of each class by itself, as the
    model's ``problem_type`` says; None for a regression, which a single output is unless it says otherwise."""
    problem = getattr(loaded.model.config, "problem_type", None) if loaded.task == "classes" else None
    if problem == "multi_label_classification":
        return values.sigmoid()
    if problem == "regression" or len(values) == 1:
        return None
    return values.softmax(dim=-1)


def _target(loaded: Loaded, asked: str, classes: int) -> int:
    """The class or token that ``--target`` names."""
    known = loaded.labels()
    if asked.lower() in known:
        return known[asked.lower()]
    if asked.lstrip("-").isdigit():
        if 0 <= int(asked) < classes:
            return int(asked)
        raise ValueError(f"--target {asked}: the model has {classes} outputs, 0 to {classes - 1}.")
    if loaded.task == "next token":
        pieces = loaded.tokenizer(asked, add_special_tokens=False)["input_ids"]
        if len(pieces) == 1:
            return int(pieces[0])
        cut = loaded.tokenizer.convert_ids_to_tokens(pieces)
        raise ValueError(f"--target {asked!r} should be one token, but the tokenizer makes {len(pieces)} of it: {cut}.")
    raise ValueError(f"--target {asked}: no such class. There are: {', '.join(known)}.{did_you_mean(asked, known)}")


def _words(text: str, encoding: Any, loaded: Loaded) -> tuple[Words, tuple[bool, ...]]:
    """The words of the text, special tokens among them, and which are special."""
    from captum_norm.words import Words, words_of

    ids = encoding["input_ids"][0].tolist()
    marks = set(loaded.tokenizer.all_special_ids)
    if getattr(encoding, "encodings", None):
        words = words_of(encoding, text, special="keep")
    else:  # a tokenizer without offsets: its tokens are the words
        words = Words(tuple(loaded.tokenizer.convert_ids_to_tokens(ids)), tuple(range(len(ids))))
    special = [False] * len(words)
    for token, word in zip(ids, words.index, strict=True):
        if word is not None and token in marks:
            special[word] = True
    return words, tuple(special)


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
