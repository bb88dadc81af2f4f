"""A translation task of which every link is known: sentences of an invented grammar, and a small model that learns it.

The source says ``the red dog indeed the cat sees`` where the target says ``the dog red sees the cat``: verbs move from
the end to the middle, adjectives go behind their nouns, a particle has no translation at all.  Which word comes from
which is known by construction, so that an error rate of zero is possible, and anything else is the model's or the
method's doing.

The model is an ``nn.Transformer`` with embeddings around it; it is trained on the next word alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from captum_norm.alignment.links import GoldLinks
from captum_norm.alignment.pieces import Pieces

PAD, START, END = 0, 1, 2
_SIZES = {"det": 8, "adj": 16, "noun": 20, "verb": 12, "and": 2, "particle": 4}


@dataclass(frozen=True)
class KnownPair:
    """A sentence, its translation, and what comes from what."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    gold: GoldLinks


class Vocabulary:
    """Each word is one piece, and ``</s>`` ends both sides: what the aligner needs to know (``WordPieces``)."""

    start = START

    def __init__(self) -> None:
        words = [f"{kind}{n}" for kind, size in _SIZES.items() for n in range(size)]
        self._source = {word: 3 + i for i, word in enumerate(words)}
        self._target = {word: 3 + i for i, word in enumerate(map(str.upper, words))}

    def __len__(self) -> int:
        return 3 + max(len(self._source), len(self._target))

    def source(self, words: Sequence[str]) -> Pieces:
        """What the encoder reads; ValueError for a word that the grammar does not have."""
        return _pieces(words, self._source)

    def target(self, words: Sequence[str]) -> Pieces:
        """What the decoder is to write; ValueError for a word that the grammar does not have."""
        return _pieces(words, self._target)


def known_pairs(count: int, seed: int, clauses: int = 2) -> list[KnownPair]:
    """Sentences of the grammar with their translations, the same for the same seed.

    Args:
        count: how many.
        seed: of the drawing.
        clauses: the most clauses of a sentence.

    Example:
        >>> pair = known_pairs(1, seed=3)[0]
        >>> len(pair.target) >= 5, all(t < len(pair.target) for _, t in pair.gold.sure)
        (True, True)
    """
    chance = random.Random(seed)
    return [_sentence(chance, chance.randint(1, clauses)) for _ in range(count)]


class SyntheticTranslator(nn.Module):
    """``nn.Transformer`` between embeddings and an output layer.

    Args:
        vocabulary: how many ids there are, on each side.
        model: dimensions.
        heads: of each attention.
        layers: of encoder and of decoder.
    """

    def __init__(self, vocabulary: int, model: int = 64, heads: int = 4, layers: tuple[int, int] = (1, 2)) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, model), nn.Embedding(vocabulary, model)
        self.transformer = nn.Transformer(model, heads, *layers, 2 * model, dropout=0.0, batch_first=True)
        self.output = nn.Linear(model, vocabulary)
        rates = torch.exp(torch.arange(0, model, 2) * (-math.log(10000.0) / model))
        places = torch.arange(128)[:, None] * rates
        sinusoids = torch.stack([places.sin(), places.cos()], -1).flatten(1)
        self.register_buffer("places", sinusoids, persistent=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (batch, target, vocabulary) from ids (batch, source) and (batch, target); padding only at the end."""
        ahead = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device, dtype=torch.bool)
        padding = source == PAD if bool((source == PAD).any()) else None
        states = self.transformer(
            self._placed(self.source(source)),
            self._placed(self.target(target)),
            tgt_mask=ahead,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        logits: Tensor = self.output(states)
        return logits

    def _placed(self, embedded: Tensor) -> Tensor:
        places: Tensor = self.get_buffer("places")
        return embedded * math.sqrt(embedded.shape[-1]) + places[: embedded.shape[1]]


def untrained(seed: int) -> tuple[SyntheticTranslator, Vocabulary]:
    """A model that knows nothing, in evaluation mode, and its vocabulary."""
    vocabulary = Vocabulary()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SyntheticTranslator(len(vocabulary))
        with torch.no_grad():
            for table in (model.source, model.target):
                table.weight.normal_(0, table.embedding_dim**-0.5)
    return model.train(False), vocabulary


def trained(seed: int, steps: int = 600, batch: int = 64) -> tuple[SyntheticTranslator, Vocabulary]:
    """A model that has learnt the task, in evaluation mode, and its vocabulary; some seconds on one CPU core.

    Args:
        seed: of the weights and of the sentences.
        steps: of training.
        batch: sentences in each; all are new.
    """
    model, vocabulary = untrained(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    model.train(True)
    for step in range(steps):
        pairs = known_pairs(batch, seed=1_000_000 * (seed + 1) + step)
        source = _padded([vocabulary.source(pair.source).ids for pair in pairs])
        labels = _padded([vocabulary.target(pair.target).ids for pair in pairs])
        read = torch.cat([torch.full((batch, 1), START), labels[:, :-1]], 1)
        logits = model(source, read)
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.train(False), vocabulary


def _sentence(chance: random.Random, clauses: int) -> KnownPair:
    draw = _Draw(chance)
    source: list[str] = []
    target: list[tuple[str, int]] = []  # a word and the source word that it comes from
    for number in range(clauses):
        if number:
            target.append(_say(draw.word("and"), source))
        subject = _noun_phrase(draw, source)
        if chance.random() < 0.3:
            source.append(draw.word("particle"))
        thing = _noun_phrase(draw, source)
        target += [*subject, _say(draw.word("verb"), source), *thing]
    links = {(s, t) for t, (_, s) in enumerate(target)}
    return KnownPair(tuple(source), tuple(word for word, _ in target), GoldLinks(links))


class _Draw:
    """Draws words, none of them twice: of two equal words, either would do, and a link would say nothing."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._left: dict[str, list[int]] = {kind: list(range(size)) for kind, size in _SIZES.items()}

    def word(self, kind: str) -> str:
        left = self._left[kind]
        return f"{kind}{left.pop(self.chance.randrange(len(left)))}"


def _noun_phrase(draw: _Draw, source: list[str]) -> list[tuple[str, int]]:
    """Adds article, adjectives and noun to the source; gives their translation, the adjectives behind the noun."""
    count = draw.chance.choices((0, 1, 2), (0.4, 0.4, 0.2))[0]
    article = _say(draw.word("det"), source)
    adjectives = [_say(draw.word("adj"), source) for _ in range(count)]
    return [article, _say(draw.word("noun"), source), *adjectives]


def _say(word: str, source: list[str]) -> tuple[str, int]:
    """Adds a word to the source; its translation, and where it stands."""
    source.append(word)
    return word.upper(), len(source) - 1


def _pieces(words: Sequence[str], ids: dict[str, int]) -> Pieces:
    unknown = [word for word in words if word not in ids]
    if unknown:
        raise ValueError(f"synthetic: {unknown[0]!r} is no word of the grammar; known_pairs(...) makes sentences.")
    return Pieces((*(ids[word] for word in words), END), (*range(len(words)), None))


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)
