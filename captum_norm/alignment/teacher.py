"""The reference translation is shown to the decoder, and its cross-attention is read: pieces in, words out.

A row of cross-attention belongs to two target pieces: the one the decoder has just *read* there, and the one it is
about to *write*.  Both readings are used (Kobayashi et al. 2020, section 5, https://arxiv.org/abs/2004.10102):

    awi   alignment with input: row r counts for the piece that is read there
    awo   alignment with output: row r counts for the piece that is written there, one before

From pieces to words, on weights and norms alike: the scores of a source word's pieces are added up, the rows of a
target word's pieces averaged.  Each special token of the source stays a candidate of its own; a target word whose
largest score is there gets no link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from captum_norm.alignment.links import Link
from captum_norm.alignment.pieces import Pieces, TokenizerPieces, WordPieces, checked_words
from captum_norm.forward.inputs import ModelInputs

Setting: TypeAlias = Literal["awi", "awo"]
SETTINGS: tuple[Setting, ...] = ("awi", "awo")


@dataclass(frozen=True)
class Pair:
    """A pair of sentences, as words and as pieces."""

    source: Sequence[str]
    target: Sequence[str]
    source_pieces: Pieces
    target_pieces: Pieces


@dataclass(frozen=True)
class Batch:
    """Pairs that run together.

    Attributes:
        numbers: which of all the pairs these are.
        pairs: the pairs.
        inputs: what the model takes.
        sources: (batch, key, candidate) 1 where a piece belongs to a source word or is a special token.
        targets: by setting, (batch, word, query) the mean over the rows of each target word.
    """

    numbers: Sequence[int]
    pairs: Sequence[Pair]
    inputs: ModelInputs
    sources: Tensor
    targets: dict[Setting, Tensor]

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

        A word without pieces, or to which nothing contributes (ALTI knows such), gets none.

        Args:
            of_words: (batch, word, candidate).
        """
        best = of_words.argmax(-1).tolist()
        has_row = (of_words.amax(-1) > 0).tolist()
        return [
            sorted((row[t], t) for t in range(len(pair.target)) if has[t] and row[t] < len(pair.source))
            for pair, row, has in zip(self.pairs, best, has_row, strict=True)
        ]


class Teacher:
    """Makes batches of pairs for a model.

    Args:
        model: an encoder-decoder of transformers, or any module that takes source ids and decoder ids, batch first.
        tokenizer: its tokenizer, or a `WordPieces`.
        prefix: what a tokenizer's source sentences begin with.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, prefix: str = "") -> None:
        self.config = getattr(model, "config", None)
        if self.config is not None and not getattr(self.config, "is_encoder_decoder", False):
            raise ValueError(
                f"CrossAttentionAligner: {type(model).__name__} is no encoder-decoder: it has no cross-attention to "
                "read alignments from. Take a translation model (Marian, BART, mBART, M2M100, NLLB, T5 ...)."
            )
        self.model = model
        # Without its output layer over the vocabulary, which no attention looks at.
        self.body = getattr(model, "base_model", model) if self.config is not None else model
        own = hasattr(tokenizer, "source") and hasattr(tokenizer, "target")
        self.pieces: WordPieces = tokenizer if own else TokenizerPieces(tokenizer, prefix)  # type: ignore[assignment]

    def encode(self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> list[Pair]:
        """The pieces of all pairs.

        Raises:
            ValueError: if there are not as many sources as targets, or one of them is empty or too long.
        """
        if len(sources) != len(targets):
            raise ValueError(
                f"CrossAttentionAligner: {len(sources)} source sentences, but {len(targets)} target sentences."
            )
        pairs = []
        for number, (one, other) in enumerate(zip(sources, targets, strict=True), 1):
            source, target = checked_words("source", one, number), checked_words("target", other, number)
            pairs.append(Pair(source, target, self.pieces.source(source), self.pieces.target(target)))
        return pairs

    def batches(self, pairs: Sequence[Pair], size: int) -> Iterator[Batch]:
        """The pairs in batches, those of like length together."""
        order = sorted(range(len(pairs)), key=lambda i: _lengths(pairs[i]))
        start = 0
        while start < len(order):
            chosen = order[start : start + size]
            if self.config is None:  # how such a model is told of padding is not known: there is none
                chosen = [i for i in chosen if _lengths(pairs[i]) == _lengths(pairs[chosen[0]])]
            yield self._batch(chosen, [pairs[i] for i in chosen])
            start += len(chosen)

    def _batch(self, numbers: Sequence[int], pairs: Sequence[Pair]) -> Batch:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        source, mask = _padded([pair.source_pieces.ids for pair in pairs], self._pad())
        labels, label_mask = _padded([pair.target_pieces.ids for pair in pairs], self._pad())
        inputs: ModelInputs
        read = self._shifted(labels, label_mask)
        if self.config is None:
            inputs = (source.to(device), read.to(device))
        else:
            inputs = {
                "input_ids": source.to(device),
                "attention_mask": mask.long().to(device),
                "decoder_input_ids": read.to(device),
                "use_cache": False,
            }
        targets = {setting: _target_rows(pairs, read.shape[1], setting).to(device) for setting in SETTINGS}
        return Batch(numbers, pairs, inputs, _source_columns(pairs, source.shape[1]).to(device), targets)

    def _pad(self) -> int:
        pad = getattr(self.config, "pad_token_id", None)
        return int(pad) if pad is not None else 0

    def _shifted(self, labels: Tensor, real: Tensor) -> Tensor:
        """What the decoder reads: the start, then each label up to the last but one."""
        shift: Callable[..., Tensor] | None = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None:
            return shift(labels.masked_fill(~real, -100))
        start = getattr(self.config, "decoder_start_token_id", None) if self.config else self.pieces.start
        if start is None:
            raise ValueError(
                f"CrossAttentionAligner: {type(self.model).__name__} does not say what its decoder reads first: set "
                "model.config.decoder_start_token_id."
            )
        return torch.cat([torch.full((len(labels), 1), start), labels[:, :-1]], 1)


def _lengths(pair: Pair) -> tuple[int, int]:
    return len(pair.target_pieces.ids), len(pair.source_pieces.ids)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(batch, position) ids and, of the same shape, True where they are real."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


def _source_columns(pairs: Sequence[Pair], keys: int) -> Tensor:
    """(batch, key, candidate): which candidate each piece adds to; none for padding."""
    wide = max(len(pair.source) + pair.source_pieces.words.count(None) for pair in pairs)
    columns = torch.zeros(len(pairs), keys, wide)
    for row, pair in enumerate(pairs):
        special = len(pair.source)
        for key, word in enumerate(pair.source_pieces.words):
            columns[row, key, special if word is None else word] = 1
            special += word is None
    return columns


def _target_rows(pairs: Sequence[Pair], queries: int, setting: Setting) -> Tensor:
    """(batch, word, query): the mean over the rows of each word; zeros for a word without pieces.

    A piece at place p of the labels is written at row p and read at row p + 1.
    """
    rows = torch.zeros(len(pairs), max(len(pair.target) for pair in pairs), queries)
    for number, pair in enumerate(pairs):
        for place, word in enumerate(pair.target_pieces.words):
            row = place + (setting == "awi")
            if word is not None and row >= queries:
                raise ValueError(
                    "CrossAttentionAligner: the last piece of the target is never read by the decoder, so there is "
                    'no row for setting="awi". End the target with the token that ends a sentence.'
                )
            if word is not None:
                rows[number, word, row] = 1
    return rows / rows.sum(-1, keepdim=True).clamp(min=1)
