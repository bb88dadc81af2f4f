"""How do pairs of sentences become batches of pieces, and scores of pieces become scores of words and links?

The decoder reads the reference translation (teacher forcing), and the aligner reads its cross-attention.

A row of cross-attention belongs to two target pieces: the one the decoder has just *read* there, and the one it is
about to *write*.  The paper uses both readings (Kobayashi et al. 2020, section 5, https://arxiv.org/abs/2004.10102):

    awi   alignment with input: row r counts for the piece that is read there
    awo   alignment with output: row r counts for the piece that is written there, one before

Weights and norms become scores of words alike: the sum over a source word's pieces, the mean over the rows of a target
word's pieces.  Each special token of the source is a candidate of its own; a target word with its largest score there
gets no link.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from captum_norm.alignment.links import Link
from captum_norm.alignment.pieces import Pieces, TokenizerPieces, WordPieces, checked_words
from captum_norm.forward.inputs import ModelInputs

Setting: TypeAlias = Literal["awi", "awo"]
SETTINGS: tuple[Setting, ...] = ("awi", "awo")


@dataclass(frozen=True)
class SentencePair:
    """A pair of sentences, as words and as pieces."""

    source: Sequence[str]
    target: Sequence[str]
    source_pieces: Pieces
    target_pieces: Pieces


@dataclass(frozen=True)
class PairBatch:
    """Pairs that the model reads in one batch.

    Attributes:
        numbers: their positions among all pairs.
        pairs: the pairs.
        inputs: the model's inputs.
        sources: (batch, key, candidate) 1 where a piece belongs to a source word or is a special token.
        targets: by setting, (batch, word, query) the weights that average the rows of each target word.
    """

    numbers: Sequence[int]
    pairs: Sequence[SentencePair]
    inputs: ModelInputs
    sources: Tensor
    targets: dict[Setting, Tensor]

    @cached_property
    def marks(self) -> Tensor:
        """(batch, candidate, 2): 1 at special tokens in the first column, at punctuation marks in the second."""
        marks = torch.zeros(len(self.pairs), self.sources.shape[-1], 2)
        for row, pair in enumerate(self.pairs):
            marks[row, len(pair.source) :, 0] = 1
            for place, word in enumerate(pair.source):
                marks[row, place, 1] = all(unicodedata.category(character)[0] in "PS" for character in word)
        return marks.to(self.sources.device)

    def to_words(self, scores: Tensor, setting: Setting) -> Tensor:
        """(batch, [head,] word, candidate) from scores of pieces, (batch, [head,] query, key).

        Candidates are the source words and then each special token of the source.
        """
        sources, targets = self.sources.to(scores.dtype), self.targets[setting].to(scores.dtype)
        if scores.ndim == 4:
            sources, targets = sources[:, None], targets[:, None]
        return targets @ (scores @ sources)

    def links(self, of_words: Tensor) -> list[list[Link]]:
        """The links of each pair: a target word's largest score, unless that is a special token's.

        A word without pieces, or with no positive score (possible in ALTI), gets none.

        Args:
            of_words: (batch, word, candidate).
        """
        best = of_words.argmax(-1).tolist()
        has_row = (of_words.amax(-1) > 0).tolist()
        return [
            sorted((row[t], t) for t in range(len(pair.target)) if has[t] and row[t] < len(pair.source))
            for pair, row, has in zip(self.pairs, best, has_row, strict=True)
        ]


class PairEncoder:
    """Encodes pairs of sentences and makes batches of them for a model.

    Arguments are those of `CrossAttentionAligner`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, prefix: str = "") -> None:
        self.config = getattr(model, "config", None)
        if self.config is not None and not getattr(self.config, "is_encoder_decoder", False):
            raise ValueError(
                f"CrossAttentionAligner: {type(model).__name__} is no encoder-decoder, so it has no cross-attention to "
                "read alignments from. Take a translation model (Marian, BART, mBART, M2M100, NLLB, T5 ...)."
            )
        self.model = model
        # The output layer over the vocabulary is left out: no attention depends on it.
        self.body = getattr(model, "base_model", model) if self.config is not None else model
        own = hasattr(tokenizer, "source") and hasattr(tokenizer, "target")
        self.pieces: WordPieces = tokenizer if own else TokenizerPieces(tokenizer, prefix)  # type: ignore[assignment]

    def encode(self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> list[SentencePair]:
        """The pairs with their pieces.

        Raises:
            ValueError: if the numbers of sources and targets differ, or a sentence is empty or too long.
        """
        if len(sources) != len(targets):
            raise ValueError(
                f"CrossAttentionAligner: {len(sources)} source sentences, but {len(targets)} target sentences."
            )
        pairs = []
        for number, (source, target) in enumerate(zip(sources, targets, strict=True), 1):
            source, target = checked_words("source", source, number), checked_words("target", target, number)
            pairs.append(SentencePair(source, target, self.pieces.source(source), self.pieces.target(target)))
        return pairs

    def batches(self, pairs: Sequence[SentencePair], size: int) -> Iterator[PairBatch]:
        """The pairs in batches of similar length."""
        order = sorted(range(len(pairs)), key=lambda i: _lengths(pairs[i]))
        while order:
            chosen = order[:size]
            if self.config is None:  # such a model has no known argument for padding, so its batches need none
                chosen = [i for i in chosen if _lengths(pairs[i]) == _lengths(pairs[chosen[0]])]
            yield self._batch(chosen, [pairs[i] for i in chosen])
            del order[: len(chosen)]

    def _batch(self, numbers: Sequence[int], pairs: Sequence[SentencePair]) -> PairBatch:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        pad = int(getattr(self.config, "pad_token_id", None) or 0)
        source, mask = _padded([pair.source_pieces.ids for pair in pairs], pad)
        read = self._shifted(*_padded([pair.target_pieces.ids for pair in pairs], pad))
        inputs: ModelInputs = (source.to(device), read.to(device))
        if self.config is not None:
            inputs = {
                "input_ids": source.to(device),
                "attention_mask": mask.long().to(device),
                "decoder_input_ids": read.to(device),
                "use_cache": False,
            }
        targets = {setting: _target_rows(pairs, read.shape[1], setting).to(device) for setting in SETTINGS}
        return PairBatch(numbers, pairs, inputs, _source_columns(pairs, source.shape[1]).to(device), targets)

    def _shifted(self, labels: Tensor, real: Tensor) -> Tensor:
        """The decoder's input: the start token, then all labels but the last."""
        shift: Callable[..., Tensor] | None = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None:
            return shift(labels.masked_fill(~real, -100))
        start = getattr(self.config, "decoder_start_token_id", None) if self.config else self.pieces.start
        if start is None:
            raise ValueError(
                f"CrossAttentionAligner: {type(self.model).__name__} does not say which token its decoder reads first: "
                "set model.config.decoder_start_token_id."
            )
        return torch.cat([torch.full((len(labels), 1), start), labels[:, :-1]], 1)


def _lengths(pair: SentencePair) -> tuple[int, int]:
    return len(pair.target_pieces.ids), len(pair.source_pieces.ids)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids (batch, position), and (batch, position) bool, True at real ones."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


def _source_columns(pairs: Sequence[SentencePair], keys: int) -> Tensor:
    """(batch, key, candidate): 1 at the candidate that each piece adds to; padding adds to none."""
    wide = max(len(pair.source) + pair.source_pieces.words.count(None) for pair in pairs)
    columns = torch.zeros(len(pairs), keys, wide)
    for row, pair in enumerate(pairs):
        special = len(pair.source)
        for key, word in enumerate(pair.source_pieces.words):
            columns[row, key, special if word is None else word] = 1
            special += word is None
    return columns


def _target_rows(pairs: Sequence[SentencePair], queries: int, setting: Setting) -> Tensor:
    """(batch, word, query): the weights that average the rows of each word; zeros for a word without pieces.

    The decoder writes the piece at position p of the labels in row p and reads it in row p + 1.
    """
    rows = torch.zeros(len(pairs), max(len(pair.target) for pair in pairs), queries)
    for number, pair in enumerate(pairs):
        for place, word in enumerate(pair.target_pieces.words):
            row = place + (setting == "awi")
            if word is None:
                continue
            if row >= queries:
                raise ValueError(
                    "CrossAttentionAligner: the decoder never reads the last piece of the target, so "
                    'setting="awi" has no row for it. End the target with the token that ends a sentence.'
                )
            rows[number, word, row] = 1
    return rows / rows.sum(-1, keepdim=True).clamp(min=1)
