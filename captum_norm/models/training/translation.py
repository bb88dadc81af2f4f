"""How was the embedded translation model made?  A small Marian-type Transformer learnt to translate German to English:

    python -m captum_norm.models.training.translation --tatoeba deu-eng.zip --wmt wmt --europarl europarl \\
        --kept-out gold.de gold.en --folder run --tokens 60000000

A run keeps everything in its folder.  If it is stopped or killed, the same line resumes it from its last checkpoint,
with the result that an unbroken run would have had.  The learning rate stays at its height and falls to zero over the
last ``--cool-down`` tokens.  So any state becomes a finished model: copy the folder, and run the copy to the tokens it
has plus those of the cool-down.  At the end, or at once with ``--write-only``, the run writes the weights, their
description and the pieces to the folder as ``translation.*``.

Nothing teaches the model how to align: it learns to predict the next piece, and no more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from captum_norm.files import replacing
from captum_norm.models.training import parallel_text, versions
from captum_norm.models.training.parallel_text import Pair
from captum_norm.models.training.translation_batches import encode
from captum_norm.models.training.translation_pieces import learn_pieces
from captum_norm.models.training.translation_run import TranslationRun, TranslationSettings
from captum_norm.models.training.translation_writing import write
from captum_norm.models.translation import read_pieces

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
_DEFAULT = TranslationSettings()
VOCABULARY_REPEATS = (1, 3, 6)  # how often each collection counts where the pieces are learnt


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the data, trains or resumes training, and writes the model; exits with 2 where that is impossible."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = TranslationSettings(
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


def _run(
    options: argparse.Namespace, settings: TranslationSettings, learnt: Sequence[Sequence[Pair]]
) -> TranslationRun:
    """The run of a folder, trained to its end unless ``--write-only`` is given."""
    vocabulary = options.folder / "pieces.json"
    if not vocabulary.exists():
        times = zip(learnt, VOCABULARY_REPEATS, strict=True)
        sentences = [side for pairs, n in times for pair in pairs for side in pair for _ in range(n)]
        with replacing(vocabulary) as unfinished:
            learn_pieces(sentences, settings.vocabulary).save(str(unfinished), pretty=False)
    pieces = read_pieces(vocabulary)
    run = TranslationRun(options.folder, pieces, settings, options.threads)
    if not options.write_only:
        run.train([encode(pieces, pairs) for pairs in learnt])
    return run


def read_collections(tatoeba: Path, wmt: Path, europarl: Path, kept_out: Sequence[Path]) -> list[list[Pair]]:
    """The usable pairs of Tatoeba, WMT and Europarl that have none of the sentences kept out.

    Args:
        tatoeba: ``deu-eng.zip``.
        wmt: a folder with ``src-train.txt`` (English) and ``tgt-train.txt`` (German).
        europarl: a folder with ``toy.bpe.de`` and ``toy.bpe.en``.
        kept_out: files with a sentence on each line, of either language.

    Raises:
        FileNotFoundError, ValueError: if one of them is missing or in another format.
    """
    barred = [line for path in kept_out for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    read = (
        parallel_text.read_tatoeba(tatoeba),
        parallel_text.read_tokenised(wmt / "tgt-train.txt", wmt / "src-train.txt"),  # their source side is English
        parallel_text.read_tokenised(europarl / "toy.bpe.de", europarl / "toy.bpe.en"),
    )
    return [parallel_text.without(parallel_text.usable(pairs), barred) for pairs in read]


def _card(run: TranslationRun, split: Sequence[tuple[list[Pair], list[Pair]]]) -> dict[str, Any]:
    """The description of a file of weights: what it was trained on, how, and with which versions."""
    data = [
        {"name": name, **facts, "training": len(learnt), "held_out": len(held)}
        for (name, facts), (learnt, held) in zip(COLLECTIONS.items(), split, strict=True)
    ]
    return {
        "task": "translation, sentence by sentence; lower-cased words, punctuation apart",
        "languages": ["de", "en"],
        "parameters": sum(p.numel() for p in run.named.values()),
        "data": data,
        "kept_out": "every pair with a sentence, on either side, of the alignments tested on",
        "guided_alignment": False,
        "training": asdict(run.settings) | {"progress": asdict(run.progress), "cores": run.threads},
        "versions": versions(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captum_norm.models.training.translation",
        description="Trains the embedded translation model, German to English; resumes a run that was stopped.",
        epilog="example: python -m captum_norm.models.training.translation --tatoeba deu-eng.zip --wmt wmt "
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
