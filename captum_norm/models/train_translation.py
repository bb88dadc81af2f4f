"""How was the embedded translation model made?  By this: a small Marian-type Transformer, German to English.

    python -m captum_norm.models.train_translation --tatoeba deu-eng.zip --wmt wmt --europarl europarl \\
        --kept-out gold.de gold.en --folder run --tokens 60000000

A run lives in its folder.  Stopped or killed, it goes on from its last checkpoint when the same line is typed again,
and what comes out is what an unbroken run would have given.  The learning rate stays at its height and falls to zero
over the last ``--cool-down`` tokens.  So any state can be made into a finished model: copy the folder, and run the copy
to the tokens it has plus those of the cool-down.  At the end, and with ``--write-only`` at once, the weights, their
description and the pieces are written to the folder as ``translation.*``.

Nothing teaches the model how to align: its loss is that of the next piece alone.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from captum_norm.files import replacing
from captum_norm.models import parallel_text
from captum_norm.models.parallel_text import Pair
from captum_norm.models.translation import learn_pieces, read_pieces
from captum_norm.models.translation_batches import encode
from captum_norm.models.translation_run import Run, Settings
from captum_norm.models.translation_writing import write

COLLECTIONS = {
    "Tatoeba": {
        "source": "tatoeba.org, as sentence pairs of manythings.org/anki, 2018-04-07",
        "licence": "CC BY 2.0 (France)",
    },
    "WMT 2015 sample": {
        "source": "data/ of OpenNMT-py: 10,000 pairs of Europarl v7, News Commentary and Common Crawl",
        "licence": "MIT (repository); the texts are their publishers', released by WMT for research",
    },
    "Europarl v7 sample": {
        "source": "data/europarl.de-en of marian-regression-tests; statmt.org/europarl",
        "licence": "MIT (repository); the European Parliament asks to be named as the source",
    },
}
_DEFAULT = Settings()
VOCABULARY_REPEATS = (1, 3, 6)  # how often each collection counts where the pieces are learnt


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the data, trains or goes on training, and writes the model; exit code 2 where it cannot."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = Settings(
        seed=options.seed, tokens=options.tokens, cool_down=options.cool_down, learning_rate=options.learning_rate
    )
    torch.set_num_threads(1)
    try:
        collections = read_collections(options.tatoeba, options.wmt, options.europarl, options.kept_out)
        split = [parallel_text.hold_out(pairs, n) for pairs, n in zip(collections, settings.held_out, strict=True)]
        options.folder.mkdir(parents=True, exist_ok=True)
        run = _run(options, settings, [learnt for learnt, _ in split])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    held_out = {name: held for name, (_, held) in zip(COLLECTIONS, split, strict=True)}
    write(run, held_out, _card(run, split))


def _run(options: argparse.Namespace, settings: Settings, learnt: Sequence[Sequence[Pair]]) -> Run:
    """The run of a folder, trained."""
    vocabulary = options.folder / "pieces.json"
    if not vocabulary.exists():
        times = zip(learnt, VOCABULARY_REPEATS, strict=True)
        sentences = [side for pairs, n in times for pair in pairs for side in pair for _ in range(n)]
        with replacing(vocabulary) as unfinished:
            learn_pieces(sentences, settings.vocabulary).save(str(unfinished), pretty=False)
    pieces = read_pieces(vocabulary)
    run = Run(options.folder, pieces, settings, options.threads)
    if not options.write_only:
        run.train([encode(pieces, pairs) for pairs in learnt])
    return run


def read_collections(tatoeba: Path, wmt: Path, europarl: Path, kept_out: Sequence[Path]) -> list[list[Pair]]:
    """The usable pairs of Tatoeba, WMT and Europarl, without any that has a sentence to be kept out.

    Args:
        tatoeba: ``deu-eng.zip``.
        wmt: a folder with ``src-train.txt`` (English) and ``tgt-train.txt`` (German).
        europarl: a folder with ``toy.bpe.de`` and ``toy.bpe.en``.
        kept_out: files with a sentence on each line, of either language.

    Raises:
        FileNotFoundError, ValueError: if one of them is missing or is something else.
    """
    barred = [line for path in kept_out for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    read = (
        parallel_text.read_tatoeba(tatoeba),
        parallel_text.read_tokenised(wmt / "tgt-train.txt", wmt / "src-train.txt"),  # their source side is English
        parallel_text.read_tokenised(europarl / "toy.bpe.de", europarl / "toy.bpe.en"),
    )
    return [parallel_text.without(parallel_text.usable(pairs), barred) for pairs in read]


def _card(run: Run, split: Sequence[tuple[list[Pair], list[Pair]]]) -> dict[str, Any]:
    """What the file of weights was made from, and with what."""
    data = [
        {"name": name, **facts, "training": len(learnt), "held_out": len(held)}
        for (name, facts), (learnt, held) in zip(COLLECTIONS.items(), split, strict=True)
    ]
    packages = ("captum-norm", "torch", "transformers", "tokenizers")
    return {
        "task": "translation, sentence by sentence; lower-cased words, punctuation apart",
        "languages": ["de", "en"],
        "parameters": sum(p.numel() for p in run.named.values()),
        "data": data,
        "kept_out": "every pair with a sentence, on either side, of the alignments tested on",
        "guided_alignment": False,
        "training": asdict(run.settings) | {"progress": asdict(run.progress), "cores": run.threads},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captum_norm.models.train_translation",
        description="Trains the embedded translation model, German to English; goes on where it was stopped.",
        epilog="example: python -m captum_norm.models.train_translation --tatoeba deu-eng.zip --wmt wmt "
        "--europarl europarl --kept-out gold.de gold.en --folder run",
    )
    parser.add_argument("--tatoeba", required=True, type=Path, metavar="ZIP", help="deu-eng.zip of manythings.org/anki")
    parser.add_argument("--wmt", required=True, type=Path, metavar="FOLDER", help="src-train.txt and tgt-train.txt")
    parser.add_argument("--europarl", required=True, type=Path, metavar="FOLDER", help="toy.bpe.de and toy.bpe.en")
    parser.add_argument(
        "--kept-out", required=True, nargs="+", type=Path, metavar="FILE", help="sentences to learn nothing from"
    )
    parser.add_argument("--folder", required=True, type=Path, metavar="FOLDER", help="of the run; made if need be")
    parser.add_argument("--tokens", type=int, default=_DEFAULT.tokens, help="target pieces in all (%(default)s)")
    parser.add_argument("--cool-down", type=int, default=_DEFAULT.cool_down, help="of them at the end (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=_DEFAULT.learning_rate, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=_DEFAULT.seed, help="of weights, order and dropout (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="parts of a batch at a time, 1 or 2 (%(default)s)")
    parser.add_argument("--write-only", action="store_true", help="write the model as it is now, without training")
    return parser


if __name__ == "__main__":
    main()
