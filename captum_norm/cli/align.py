"""``captum-norm align``: which source word does each word of a translation come from?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_figure,
    check_outputs,
    plain_text,
    say,
    write_figure,
    write_json,
)
from captum_norm.numerals import whole_number
from captum_norm.suggestions import did_you_mean

if TYPE_CHECKING:
    from captum_norm.alignment import AlignmentEvaluation, CrossAttentionAligner, EvaluationRow, GoldLinks, Link

    Pairs = list[tuple[list[str], list[str]]]

SUMMARY = "which source word does each word of a translation come from"
EXAMPLE = "captum-norm align --source test.de --target test.en --gold alignment.talp"
DESCRIPTION = """\
Links the words of translations to those of their sources by the cross-attention of an encoder-decoder: each target word
to the source word that contributes most, by norm, by weight or by another method (Kobayashi et al. 2020, section 5).

Source and target are UTF-8 files with one sentence per line, words apart. The embedded model reads German, writes
English, and takes lower-cased words. Without files, a dozen sentences of our own are aligned.

Without --gold, the links are printed, one line per pair. With --gold, every layer and head is scored: alignment error
rate (AER), precision and recall beside a diagonal, and the intervals that resampled sentences give. Which layer, head
and setting to use is then chosen on the first --dev pairs and reported on all others.

settings: awi reads a row of attention for the word that the decoder reads there, awo for the one that it writes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--source", metavar="FILE", help="source sentences, one per line (default: our own)")
    parser.add_argument("--target", metavar="FILE", help="their translations")
    parser.add_argument("--gold", metavar="FILE", help="gold links to score against")
    parser.add_argument(
        "--gold-format", choices=("talp", "naacl", "pharaoh"), default="talp", help="of --gold (default: talp)"
    )
    parser.add_argument(
        "--first", type=int, choices=(0, 1), help="number of the first word in --gold (default: 1, for pharaoh 0)"
    )
    parser.add_argument("--target-first", action="store_true", help="--gold has the target word first in each link")
    parser.add_argument("--dev", type=int, metavar="N", help="choose on the first N pairs (default: 100, or half)")
    parser.add_argument(
        "--method", metavar="METHOD", help="norm, weights ... (default: norm; with --gold also weights)"
    )
    parser.add_argument("--layer", metavar="N", help="layer of the decoder, from 0, or mean (default: the best)")
    parser.add_argument("--head", type=int, metavar="N", help="one head of it (default: all together)")
    parser.add_argument("--setting", choices=("awi", "awo"), help="how rows are read (default: the better)")
    parser.add_argument("--output", choices=("pharaoh", "talp", "naacl"), help="print links so (default: pharaoh)")
    parser.add_argument("--links", metavar="FILE", help="write the links to a file instead; - prints them alone")
    parser.add_argument("--languages", nargs=2, metavar=("FROM", "TO"), help="codes, for a model of many languages")
    parser.add_argument(
        "--prefix", type=plain_text, default="", help="what source sentences begin with for this model (T5)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="pairs at a time (default: 32)")
    add_model_arguments(parser, default="the embedded translation model, German to English")
    add_output_arguments(parser, figure="the scores of the first pair, weight beside norm")


def run(asked: argparse.Namespace) -> int:
    """Check, load, align, print and save; the exit code."""
    check_outputs(asked.json, asked.figure, asked.links)
    check_figure(asked.figure)
    _check_together(asked)
    pairs, gold = _read(asked)
    from captum_norm.cli import loading

    with loading.quiet():
        aligners = _aligners(asked, gold is not None)
        result = _scored(asked, aligners, pairs, gold) if gold is not None else {}
        _give_links(asked, aligners[0], pairs, gold is not None)
        if asked.json:
            write_json(asked.json, result | {"links": [list(map(list, one)) for one in _links(aligners[0], pairs)]})
        if asked.figure:
            write_figure(asked.figure, _figure(asked, aligners[0], pairs))
    return 0


def _check_together(asked: argparse.Namespace) -> None:
    if (asked.source is None) != (asked.target is None):
        raise ValueError("--source and --target belong together: give both, or neither for sentences of our own.")
    if asked.gold is not None and asked.source is None:
        raise ValueError("--gold needs the sentences whose links it has: give --source and --target.")
    if asked.dev is not None and (asked.gold is None or asked.dev < 1):
        raise ValueError("--dev is the number of pairs to choose on, at least 1, and needs --gold.")
    if asked.batch_size < 1:
        raise ValueError(f"--batch-size {asked.batch_size} should be at least 1.")
    if asked.layer is not None and asked.layer != "mean" and whole_number(asked.layer) is None:
        raise ValueError(f"--layer {asked.layer} should be a number from 0 on, or mean.")


def _read(asked: argparse.Namespace) -> tuple[Pairs, list[GoldLinks] | None]:
    from captum_norm.alignment import read_links, read_sentences
    from captum_norm.alignment.examples import examples
    from captum_norm.alignment.links import check_links

    if asked.source is None:
        return examples()
    pairs = read_sentences(asked.source, asked.target)
    if asked.gold is None:
        return pairs, None
    first = asked.first if asked.first is not None else int(asked.gold_format != "pharaoh")
    order = "target-source" if asked.target_first else "source-target"
    gold = read_links(asked.gold, asked.gold_format, first=first, order=order, sentences=len(pairs))  # type: ignore[arg-type]
    check_links(pairs, gold, asked.gold)
    return pairs, gold


def _aligners(asked: argparse.Namespace, scored: bool) -> list[CrossAttentionAligner]:
    """One for each method, the one asked for first."""
    from captum_norm.alignment import METHODS, CrossAttentionAligner
    from captum_norm.alignment.embedded import EMBEDDED_CHOICES
    from captum_norm.cli import loading

    names = [asked.method] if asked.method else (["norm", "weights"] if scored else ["norm"])
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"--method {unknown[0]}: there are {', '.join(METHODS)}.{did_you_mean(unknown[0], METHODS)}")
    loaded = loading.load(asked, translation=True)
    _set_languages(loaded.tokenizer, asked.languages)
    layer: Any = {None: "best", "mean": "mean"}.get(asked.layer) or int(asked.layer)
    aligners = []
    for name in names:
        aligner = CrossAttentionAligner(
            loaded.model, loaded.tokenizer, name, layer, asked.head, asked.setting or "best",
            prefix=asked.prefix, batch_size=asked.batch_size, show_progress=sys.stderr.isatty(),
        )  # fmt: skip
        if asked.model is None and (asked.layer, asked.head, asked.setting) == (None, None, None):
            aligner.choice = EMBEDDED_CHOICES[name]
        aligners.append(aligner)
    return aligners


def _set_languages(tokenizer: Any, languages: Sequence[str] | None) -> None:
    if languages is None:
        return
    if not hasattr(tokenizer, "src_lang") or not hasattr(tokenizer, "tgt_lang"):
        raise ValueError("--languages: the tokenizer of this model knows no languages. Leave it out.")
    try:
        tokenizer.src_lang, tokenizer.tgt_lang = languages
    except KeyError as error:
        raise ValueError(f"--languages: the tokenizer of this model has no code {error}.") from error


def _scored(
    asked: argparse.Namespace, aligners: Sequence[CrossAttentionAligner], pairs: Pairs, gold: Sequence[GoldLinks]
) -> dict[str, Any]:
    """Chooses where that is left open, scores, prints; what is to be saved."""
    open_choice = any(aligner.choice is None for aligner in aligners) or asked.dev is not None
    dev = 0 if not open_choice else asked.dev or min(100, max(1, len(pairs) // 2))
    if dev >= len(pairs):
        raise ValueError(
            f"{dev} pairs to choose on leave none of {len(pairs)} to report on: give a smaller --dev, or --layer and "
            "--setting."
        )
    saved = []
    for aligner in aligners:
        if dev:
            aligner.fit(pairs[:dev], gold[:dev])
        evaluation = aligner.evaluate(pairs[dev:], gold[dev:])
        say(_as_text(evaluation, dev) + "\n", asked.json, asked.links)
        saved.append(evaluation.as_dict())
    return {"dev": dev, "evaluations": saved}


def _give_links(asked: argparse.Namespace, aligner: CrossAttentionAligner, pairs: Pairs, scored: bool) -> None:
    from captum_norm.alignment import write_links
    from captum_norm.alignment.links import written

    if asked.links and asked.links != "-":
        write_links(asked.links, _links(aligner, pairs), asked.output or "pharaoh")
    elif asked.json == "-":
        return
    elif asked.links or asked.output or not scored:
        for line in written(_links(aligner, pairs), asked.output or "pharaoh"):
            print(line)
    elif asked.source is None:
        print(_in_words(aligner, pairs))


def _links(aligner: CrossAttentionAligner, pairs: Pairs) -> list[list[Link]]:
    if aligner.choice is None:
        raise ValueError(
            "which layer and setting to read links from is not known for this model: give --layer and --setting, or "
            "--gold links to choose by."
        )
    return aligner.align([source for source, _ in pairs], [target for _, target in pairs])


def _as_text(evaluation: AlignmentEvaluation, dev: int) -> str:
    """The table of a method, and what is to be said of it."""
    on = f"{evaluation.pairs} pairs" + (f" (chosen on {dev} others)" if dev else "")
    lines = [f"alignment error rate by {evaluation.method}, %, on {on}", _table(evaluation), ""]
    if evaluation.chosen is not None:
        lines.append(draw.wrap(f"chosen: {evaluation.chosen.choice}: {_score(evaluation.chosen)}"))
    best = evaluation.best(heads=True)
    lines.append(draw.wrap(f"best on these very pairs: {best.choice}: {_score(best)}"))
    diagonal = evaluation.diagonal
    lines.append(f"diagonal: {100 * diagonal.error_rate:.1f} ({100 * diagonal.low:.1f} to {100 * diagonal.high:.1f})")
    return "\n".join(lines)


def _table(evaluation: AlignmentEvaluation) -> str:
    heads = evaluation.heads(0)
    headers = ["layer", *(["all", *(f"h{head}" for head in range(heads)), "</s>", "punct."] * 2)]
    groups = [("", 1), *((setting.upper(), heads + 3) for setting in ("awi", "awo"))]
    rows = [
        [str(layer), *(cell for setting in ("awi", "awo") for cell in _cells(evaluation, setting, layer))]
        for layer in range(evaluation.layers())
    ]
    means = ["mean"]
    for setting in ("awi", "awo"):
        means += [f"{100 * evaluation.layer_mean(setting):.1f}", *[""] * (heads + 2)]
    return draw.table(headers, [*rows, [], means], groups=groups, width=draw.screen_width())


def _cells(evaluation: AlignmentEvaluation, setting: Any, layer: int) -> list[str]:
    row = evaluation.row(setting, layer)
    heads = [evaluation.row(setting, layer, head).score.error_rate for head in range(evaluation.heads(layer))]
    rates = [f"{100 * rate:.1f}" for rate in (row.score.error_rate, *heads)]
    return [*rates, f"{100 * row.special_share:.0f}", f"{100 * row.punctuation_share:.0f}"]


def _score(row: EvaluationRow) -> str:
    score = row.score
    return (
        f"{100 * score.error_rate:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f}), "
        f"precision {100 * score.precision:.1f}, recall {100 * score.recall:.1f}"
    )


def _in_words(aligner: CrossAttentionAligner, pairs: Pairs) -> str:
    """Every target word with the source word it is linked to."""
    lines = []
    for (source, target), links in zip(pairs, _links(aligner, pairs), strict=True):
        of_target = {t: source[s] for s, t in links}
        lines.append(draw.wrap("  ".join(f"{word}←{of_target.get(t, '∅')}" for t, word in enumerate(target))))
    return "\n".join(lines)


def _figure(asked: argparse.Namespace, aligner: CrossAttentionAligner, pairs: Pairs) -> Any:
    """The first pair's scores, by the method asked for and by weight, where the links are read."""
    from captum_norm.alignment import METHODS
    from captum_norm.alignment import CrossAttentionAligner as Aligner
    from captum_norm.visualization import token_map

    source, target = pairs[0]
    choice = aligner.choice
    if choice is None:
        raise ValueError("--figure needs --layer and --setting for this model, or --gold links to choose by.")
    maps = {}
    for name in dict.fromkeys(["weights", aligner.method]):
        other = Aligner(
            aligner.model, aligner.tokenizer, name, choice.layer, choice.head if name == aligner.method else None,
            choice.setting, prefix=asked.prefix,
        )  # fmt: skip
        found = other.align(source, target, scores=True)
        maps[f"by {METHODS[name].title}"] = found.scores / found.scores.sum(-1, keepdim=True)
    return token_map(
        maps, query_tokens=target, key_tokens=list(found.candidates), query_axis="Target word",
        title=f"Cross-attention, {choice}", unit="share",
    )  # fmt: skip
