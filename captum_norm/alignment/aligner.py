"""Word alignment from the cross-attention of any encoder-decoder.

Source: Kobayashi et al. (2020), "Attention is Not Only a Weight", section 5, https://arxiv.org/abs/2004.10102.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from captum_norm.alignment.evaluation import AlignmentEvaluation, Choice, EvaluationRow
from captum_norm.alignment.gathered import Gathered, marked
from captum_norm.alignment.links import GoldLinks, Link, check_links
from captum_norm.alignment.methods import CrossMap, LinkMethod, link_method
from captum_norm.alignment.scoring import alignment_score, diagonal
from captum_norm.alignment.teacher import SETTINGS, Batch, Pair, Setting, Teacher

Words: TypeAlias = Sequence[str]
Gold: TypeAlias = Sequence[GoldLinks]


@dataclass(frozen=True)
class AlignedPair:
    """Two sentences, their links, and what the links were read from.

    Attributes:
        source, target: the words.
        links: (source word, target word), counted from 0; at most one for each target word.
        scores: (target word, candidate), in the method's unit.
        candidates: the source words, then each special token of the source.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    links: tuple[Link, ...]
    scores: Tensor
    candidates: tuple[str, ...]


class CrossAttentionAligner:
    """Links the words of a translation to those of its source, by the cross-attention of an encoder-decoder.

    The translation given is shown to the decoder, and each of its words is linked to the source word that contributed
    most; to none, where that is a special token such as ``</s>``.

    Args:
        model: an encoder-decoder of transformers (Marian, BART, mBART, M2M100, NLLB, T5 ...), in evaluation mode; or
            any module, such as one around ``nn.Transformer``, that takes source ids (batch, source) and decoder ids
            (batch, target).
        tokenizer: its tokenizer, with ``src_lang`` and ``tgt_lang`` set where it has them; or, for other models, an
            object with ``source(words)``, ``target(words)`` and ``start``
            (:class:`captum_norm.alignment.WordPieces`).
        method: ``"norm"``, ``"weights"``, ``"block_norm"``, ``"alti"``, ``"value_zeroing"`` or ``"rollout"``: a row of
            :data:`captum_norm.alignment.METHODS`.
        layer: of the decoder, counted from 0 (negative from the last); ``"mean"`` over the layers, each brought to row
            sums of 1; or ``"best"``, which ``fit`` has to find.
        head: of that layer; None takes all heads together (for norms, the norm of their sum); ``"best"`` lets ``fit``
            choose between them and all together.
        setting: ``"awi"`` reads a row for the word that the decoder reads there, ``"awo"`` for the one that it writes
            there; ``"best"`` lets ``fit`` choose.
        prefix: what source sentences begin with for this model and is no word of them, such as T5's
            ``"translate German to English:"``.
        batch_size: pairs that run at a time.

    Raises:
        TypeError, ValueError: for a model without cross-attention, a tokenizer that is none, or an unknown choice.

    Example:
        >>> from captum_norm.alignment.synthetic import untrained
        >>> model, pieces = untrained(seed=0)
        >>> aligner = CrossAttentionAligner(model, pieces, layer=0, setting="awo")
        >>> links = aligner.align(["det0", "noun3"], ["DET0", "NOUN3"])
        >>> all(s in (0, 1) for s, _ in links)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        method: str = "norm",
        layer: int | Literal["best", "mean"] = "best",
        head: int | Literal["best"] | None = None,
        setting: Setting | Literal["best"] = "best",
        *,
        prefix: str = "",
        batch_size: int = 32,
    ) -> None:
        self.model, self.tokenizer, self.method = model, tokenizer, method
        self._method = link_method(method)
        self.layer, self.head, self.setting = _checked_choice(layer, head, setting, self._method)
        if batch_size < 1:
            raise ValueError(f"CrossAttentionAligner: batch_size should be at least 1, got {batch_size}.")
        self.batch_size = batch_size
        self._teacher = Teacher(model, tokenizer, prefix)
        open_choices = "best" in (layer, head, setting)
        self.choice = None if open_choices else Choice(setting, layer, head)  # type: ignore[arg-type]

    @overload
    def align(  # type: ignore[overload-overlap]  # a str is a sequence of str, and refused when the call is made
        self, source: Words, target: Words, *, scores: Literal[False] = ...
    ) -> list[Link]: ...
    @overload
    def align(  # type: ignore[overload-overlap]
        self, source: Words, target: Words, *, scores: Literal[True]
    ) -> AlignedPair: ...
    @overload
    def align(
        self, source: Sequence[Words], target: Sequence[Words], *, scores: Literal[False] = ...
    ) -> list[list[Link]]: ...
    @overload
    def align(
        self, source: Sequence[Words], target: Sequence[Words], *, scores: Literal[True]
    ) -> list[AlignedPair]: ...
    def align(self, source: Any, target: Any, *, scores: bool = False) -> Any:
        """The links between a sentence and its translation, or between many and theirs.

        Args:
            source: the words of a sentence, or a list of such lists.
            target: those of its translation.
            scores: give the scores along.

        Returns:
            Links (source word, target word), counted from 0, in order; with ``scores`` an `AlignedPair`.  A list of
            these for many.

        Raises:
            TypeError, ValueError: for empty sentences, sentences that are no lists of words, or too long ones; if
                layer, head or setting are still to be chosen.
            InexactCaptureError: if a cross-attention call cannot be read exactly.
        """
        if self.choice is None:
            raise ValueError(
                "CrossAttentionAligner: which layer, head and setting to use is still to be found: call fit(pairs, "
                "gold) first, or give them."
            )
        one = isinstance(source, str) or (len(source) > 0 and isinstance(source[0], str))
        pairs = self._teacher.encode([source] if one else source, [target] if one else target)
        found: list[AlignedPair | None] = [None] * len(pairs)
        for batch in self._teacher.batches(pairs, self.batch_size):
            of_words = self._chosen_scores(batch, self.choice)
            for row, (number, links) in enumerate(zip(batch.numbers, batch.links(of_words), strict=True)):
                found[number] = _aligned(batch.pairs[row], links, of_words[row])
        results = [pair if scores else list(pair.links) for pair in found if pair is not None]
        return results[0] if one else results

    def fit(self, pairs: Sequence[tuple[Words, Words]], gold: Gold) -> CrossAttentionAligner:
        """Finds what was left open (layer, head, setting) by the error rate on development pairs.

        Args:
            pairs: (source words, target words), none of which should be tested on later.
            gold: their gold links.

        Returns:
            This aligner, its ``choice`` made.

        Raises:
            ValueError: as `evaluate`.
        """
        rows = [row for row in self._rows(pairs, gold, resamples=0) if self._allows(row.choice)]
        if not rows:
            raise ValueError(
                f"CrossAttentionAligner: the model has no layer {self.layer!r} or no head {self.head!r} there."
            )
        self.choice = min(rows, key=lambda row: row.score.error_rate).choice
        return self

    def evaluate(
        self, pairs: Sequence[tuple[Words, Words]], gold: Gold, *, resamples: int = 1000
    ) -> AlignmentEvaluation:
        """Error rate, precision and recall of every layer and head in both settings, beside a diagonal.

        Args:
            pairs: (source words, target words).
            gold: their gold links.
            resamples: for the intervals: how many times sentences are drawn.

        Raises:
            ValueError: if pairs and gold links do not fit, or a sentence cannot be aligned.
            InexactCaptureError: if a cross-attention call cannot be read exactly.
        """
        rows = self._rows(pairs, gold, resamples)
        chosen = None
        if self.choice is not None:
            chosen = next((row for row in rows if row.choice == self._counted(self.choice, rows)), None)
        knowing_nothing = [diagonal(len(source), len(target)) for source, target in pairs]
        return AlignmentEvaluation(
            self.method, len(pairs), tuple(rows), chosen, alignment_score(knowing_nothing, gold, resamples=resamples)
        )

    def links_everywhere(self, pairs: Sequence[tuple[Words, Words]]) -> dict[Choice, list[list[Link]]]:
        """The links of all pairs wherever they can be read: what ``evaluate`` counts."""
        return {choice: place.links for choice, place in self._places(pairs).items()}

    def _rows(self, pairs: Sequence[tuple[Words, Words]], gold: Gold, resamples: int) -> list[EvaluationRow]:
        check_links(pairs, gold, "CrossAttentionAligner")
        if not pairs:
            raise ValueError("CrossAttentionAligner: there are no pairs to learn from or to test on.")
        rows = []
        for choice, place in self._places(pairs).items():
            score = alignment_score(place.links, gold, resamples=resamples)
            special, punctuation = (place.shares / place.words).tolist()
            rows.append(EvaluationRow(choice, score, special, punctuation))
        return rows

    def _places(self, pairs: Sequence[tuple[Words, Words]]) -> dict[Choice, Gathered]:
        encoded = self._teacher.encode([source for source, _ in pairs], [target for _, target in pairs])
        places: dict[Choice, Gathered] = {}
        for batch in self._teacher.batches(encoded, self.batch_size):
            marks = marked(batch)
            for choice, of_words in self._all_scores(batch):
                places.setdefault(choice, Gathered(len(pairs))).add(batch, of_words, marks)
        return places

    def _allows(self, choice: Choice) -> bool:
        if self.setting not in ("best", choice.setting):
            return False
        if self.head != "best" and choice.head != self.head:
            return False
        if self.layer == "best":
            return choice.layer != "mean"
        return choice.layer == self.layer

    def _counted(self, choice: Choice, rows: Sequence[EvaluationRow]) -> Choice:
        """A choice whose layer and head are counted from the first."""
        layers = 1 + max(row.choice.layer for row in rows if row.choice.layer != "mean")
        heads = 1 + max((row.choice.head for row in rows if row.choice.head is not None), default=-1)
        layer = choice.layer if choice.layer == "mean" or choice.layer >= 0 else choice.layer + layers
        head = choice.head if choice.head is None or choice.head >= 0 else choice.head + heads
        return Choice(choice.setting, layer, head)

    def _chosen_scores(self, batch: Batch, choice: Choice) -> Tensor:
        """(batch, word, candidate) at one place."""
        only = choice.layer if choice.layer != "mean" and choice.layer >= 0 else None
        maps = self._maps(batch, choice.head is not None, only)
        if choice.layer == "mean":
            return _mean_of_layers(
                [batch.to_words(one.summed, choice.setting) for one in maps if one.summed is not None]
            )
        found = _at(maps, choice.layer, "layer", "cross-attention layers")
        scores = found.summed
        if choice.head is not None:
            scores = _at(list(found.by_head.unbind(1)), choice.head, "head", "heads in that layer")
        return batch.to_words(scores, choice.setting)

    def _all_scores(self, batch: Batch) -> Iterator[tuple[Choice, Tensor]]:
        """(batch, word, candidate) at every place."""
        layers: dict[Setting, list[Tensor]] = {setting: [] for setting in SETTINGS}
        for layer, found in enumerate(self._maps(batch, True, None)):
            for setting in SETTINGS:
                if found.summed is not None:
                    layers[setting].append(batch.to_words(found.summed, setting))
                    yield Choice(setting, layer), layers[setting][-1]
                if found.by_head is not None:
                    for head, of_head in enumerate(batch.to_words(found.by_head, setting).unbind(1)):
                        yield Choice(setting, layer, head), of_head
        for setting in SETTINGS:
            yield Choice(setting, "mean"), _mean_of_layers(layers[setting])

    def _maps(self, batch: Batch, heads: bool, only: int | None) -> list[CrossMap]:
        """The maps of the cross-attention, layer by layer."""
        found = self._method.read(self._teacher.body, batch.inputs, heads, only)
        if not found:
            raise ValueError(
                f"CrossAttentionAligner: {type(self.model).__name__} ran, but no cross-attention was seen: its decoder "
                "attends to nothing that an encoder gave out. Take an encoder-decoder."
            )
        return found


def _mean_of_layers(layers: Sequence[Tensor]) -> Tensor:
    """The mean of (batch, word, candidate), each brought to row sums of 1, so that all count alike."""
    sums = [one.sum(-1, keepdim=True) for one in layers]
    shares = [one / total.clamp(min=torch.finfo(one.dtype).tiny) for one, total in zip(layers, sums, strict=True)]
    return torch.stack(shares).mean(0)


def _aligned(pair: Pair, links: list[Link], of_words: Tensor) -> AlignedPair:
    candidates = (*pair.source, *pair.source_pieces.special_names())
    scores = of_words[: len(pair.target), : len(candidates)].cpu()
    return AlignedPair(tuple(pair.source), tuple(pair.target), tuple(links), scores, candidates)


def _at(found: Sequence[Any], index: int, name: str, what: str) -> Any:
    if not -len(found) <= index < len(found):
        raise ValueError(f"CrossAttentionAligner: {name}={index}, but there are {len(found)} {what}.")
    return found[index]


def _checked_choice(layer: Any, head: Any, setting: Any, method: LinkMethod) -> tuple[Any, Any, Any]:
    if not (layer in ("best", "mean") or (isinstance(layer, int) and not isinstance(layer, bool))):
        raise ValueError(f'CrossAttentionAligner: layer should be an integer, "best" or "mean", got {layer!r}.')
    if not (head in (None, "best") or (isinstance(head, int) and not isinstance(head, bool))):
        raise ValueError(f'CrossAttentionAligner: head should be an integer, "best" or None, got {head!r}.')
    if setting not in (*SETTINGS, "best"):
        raise ValueError(f'CrossAttentionAligner: setting should be "awi", "awo" or "best", got {setting!r}.')
    if isinstance(head, int) and not method.has_heads:
        raise ValueError(f"CrossAttentionAligner: {method.title} has no form for a single head. Leave head out.")
    if isinstance(head, int) and layer == "mean":
        raise ValueError('CrossAttentionAligner: head belongs to one layer; with layer="mean" leave it out.')
    return layer, head, setting
