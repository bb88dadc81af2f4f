"""Word alignment from the cross-attention of any encoder-decoder.

Source: Kobayashi et al. (2020), "Attention is Not Only a Weight", section 5, https://arxiv.org/abs/2004.10102.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from captum_norm.alignment.batches import SETTINGS, PairBatch, PairEncoder, Setting
from captum_norm.alignment.evaluation import AlignmentEvaluation, Choice, EvaluationRow, LayerChoice, PlaceTotals
from captum_norm.alignment.links import GoldLinks, Link, check_links, check_sequence
from captum_norm.alignment.methods import CrossMap, LinkMethod, link_method
from captum_norm.alignment.scoring import alignment_score, diagonal
from captum_norm.tables import Table, Tabular

Sentence: TypeAlias = Sequence[str]
Gold: TypeAlias = Sequence[GoldLinks]


@dataclass(frozen=True)
class AlignedPair(Tabular):
    """Two sentences, their links, and what the links were read from: a table with a row for each target word.

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

    def as_table(self) -> Table:
        """Each target word, the source word it is linked to (None for none), and that candidate's share of its row."""
        linked = {target: source for source, target in self.links}
        best = (self.scores / self.scores.sum(-1, keepdim=True)).double().max(-1).values.tolist()
        rows = tuple(
            (word, self.source[linked[i]] if i in linked else None, best[i]) for i, word in enumerate(self.target)
        )
        return Table(("target", "source", "share"), rows)


class CrossAttentionAligner:
    """Links the words of a translation to those of its source, by the cross-attention of an encoder-decoder.

    The decoder reads the given translation.  Each of its words is linked to the source word that contributed most, or
    to none where a special token such as ``</s>`` contributed most.

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
        prefix: the words that begin every source sentence for this model and are no words of it, such as T5's
            ``"translate German to English:"``.
        batch_size: pairs in one run of the model.
        show_progress: whether to say on standard error how many pairs are done and how much longer it takes.

    Raises:
        TypeError, ValueError: if the model has no cross-attention, ``tokenizer`` is no tokenizer, or a choice is
        unknown.

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
        show_progress: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.method = model, tokenizer, method
        self._method = link_method(method)
        _check_choice(layer, head, setting, self._method)
        self.layer, self.head, self.setting = layer, head, setting
        if batch_size < 1:
            raise ValueError(f"CrossAttentionAligner: batch_size should be at least 1, got {batch_size}.")
        self.batch_size, self.show_progress = batch_size, show_progress
        self._encoder = PairEncoder(model, tokenizer, prefix)
        open_choices = "best" in (layer, head, setting)
        self.choice = None if open_choices else Choice(setting, layer, head)  # type: ignore[arg-type]

    @overload
    def align(  # type: ignore[overload-overlap]  # a str is a sequence of str, and refused when the call is made
        self, source: Sentence, target: Sentence, *, scores: Literal[False] = ...
    ) -> list[Link]: ...
    @overload
    def align(  # type: ignore[overload-overlap]
        self, source: Sentence, target: Sentence, *, scores: Literal[True]
    ) -> AlignedPair: ...
    @overload
    def align(
        self, source: Sequence[Sentence], target: Sequence[Sentence], *, scores: Literal[False] = ...
    ) -> list[list[Link]]: ...
    @overload
    def align(
        self, source: Sequence[Sentence], target: Sequence[Sentence], *, scores: Literal[True]
    ) -> list[AlignedPair]: ...
    def align(self, source: Any, target: Any, *, scores: bool = False) -> Any:
        """The links of a sentence and its translation, or of many sentences and theirs.

        Args:
            source: the words of a sentence, or a list of such lists.
            target: the words of its translation, or a list of such lists.
            scores: return the scores, too.

        Returns:
            Links (source word, target word), counted from 0, in order; with ``scores`` an `AlignedPair`.  For many
            sentences, a list of these.

        Raises:
            TypeError, ValueError: if a sentence is empty, no list of words, or too long, or if layer, head or setting
                are not chosen yet.
            InexactCaptureError: if a cross-attention call cannot be read exactly.
        """
        if self.choice is None:
            raise ValueError(
                "CrossAttentionAligner: layer, head or setting is still 'best', so links have no place to be read at: "
                "call fit(pairs, gold) first, or give all three."
            )
        check_sequence("CrossAttentionAligner", "source", source)
        check_sequence("CrossAttentionAligner", "target", target)
        single = isinstance(source, str) or (len(source) > 0 and isinstance(source[0], str))
        pairs = self._encoder.encode([source] if single else source, [target] if single else target)
        aligned: list[AlignedPair | None] = [None] * len(pairs)
        for batch in self._batches(pairs):
            of_words = self._chosen_scores(batch, self.choice)
            rows = zip(batch.numbers, batch.pairs, batch.links(of_words), of_words.cpu(), strict=True)
            for number, pair, links, row in rows:
                candidates = (*pair.source, *pair.source_pieces.special_names())
                table = row[: len(pair.target), : len(candidates)]
                aligned[number] = AlignedPair(tuple(pair.source), tuple(pair.target), tuple(links), table, candidates)
        results = [pair if scores else list(pair.links) for pair in aligned if pair is not None]
        return results[0] if single else results

    def fit(self, pairs: Sequence[tuple[Sentence, Sentence]], gold: Gold) -> CrossAttentionAligner:
        """Chooses the open ones of layer, head and setting by the error rate on development pairs.

        Args:
            pairs: (source words, target words); use none of them in a later test.
            gold: their gold links.

        Returns:
            This aligner, with its ``choice`` set.

        Raises:
            ValueError: as `evaluate`.
        """
        rows = _rows_at(self._rows(pairs, gold, resamples=0), self.layer, self.head, self.setting)
        self.choice = min(rows, key=lambda row: row.score.error_rate).choice
        return self

    def evaluate(
        self, pairs: Sequence[tuple[Sentence, Sentence]], gold: Gold, *, resamples: int = 1000
    ) -> AlignmentEvaluation:
        """Error rate, precision and recall of every layer and head in both settings, beside a diagonal.

        Args:
            pairs: (source words, target words).
            gold: their gold links.
            resamples: the number of bootstrap samples of sentences for the intervals.

        Raises:
            ValueError: if pairs and gold links differ in number or do not fit, a sentence cannot be aligned, or the
                model has no such layer or head as was chosen.
            InexactCaptureError: if a cross-attention call cannot be read exactly.
        """
        rows = self._rows(pairs, gold, resamples)
        choice, chosen = self.choice, None
        if choice is not None:
            [chosen] = _rows_at(rows, choice.layer, choice.head, choice.setting)
        diagonals = [diagonal(len(source), len(target)) for source, target in pairs]
        score = alignment_score(diagonals, gold, resamples=resamples)
        return AlignmentEvaluation(self.method, len(pairs), tuple(rows), chosen, score)

    def links_everywhere(self, pairs: Sequence[tuple[Sentence, Sentence]]) -> dict[Choice, list[list[Link]]]:
        """The links of all pairs at every place; ``evaluate`` scores these."""
        return {choice: place.links for choice, place in self._places(pairs).items()}

    def _rows(self, pairs: Sequence[tuple[Sentence, Sentence]], gold: Gold, resamples: int) -> list[EvaluationRow]:
        check_links(pairs, gold, "CrossAttentionAligner")
        if not pairs:
            raise ValueError("CrossAttentionAligner: pairs is empty; give at least one pair with its gold links.")
        rows = []
        for choice, place in self._places(pairs).items():
            score = alignment_score(place.links, gold, resamples=resamples)
            special, punctuation = (place.shares / place.words).tolist()
            rows.append(EvaluationRow(choice, score, special, punctuation))
        return rows

    def _places(self, pairs: Sequence[tuple[Sentence, Sentence]]) -> dict[Choice, PlaceTotals]:
        check_sequence("CrossAttentionAligner", "pairs", pairs)
        encoded = self._encoder.encode([source for source, _ in pairs], [target for _, target in pairs])
        places: dict[Choice, PlaceTotals] = {}
        for batch in self._batches(encoded):
            for choice, of_words in self._all_scores(batch):
                places.setdefault(choice, PlaceTotals(len(pairs))).add(batch, of_words)
        return places

    def _batches(self, pairs: Sequence[Any]) -> Iterator[PairBatch]:
        """The batches of the pairs, and a bar of how far they are."""
        with tqdm(total=len(pairs), unit="pair", disable=not self.show_progress, leave=False) as bar:
            for batch in self._encoder.batches(pairs, self.batch_size):
                yield batch
                bar.update(len(batch.numbers))

    def _chosen_scores(self, batch: PairBatch, choice: Choice) -> Tensor:
        """Scores (batch, word, candidate) at one place."""
        only = choice.layer if choice.layer != "mean" and choice.layer >= 0 else None
        maps = self._maps(batch, choice.head is not None, only)
        if choice.layer == "mean":
            layers = [layer.summed for layer in maps if layer.summed is not None]
            return _mean_of_layers([batch.to_words(scores, choice.setting) for scores in layers])
        layer_map = _entry(maps, choice.layer, "layer", "cross-attention layers")
        scores = layer_map.summed
        if choice.head is not None:
            scores = _entry(layer_map.by_head.unbind(1), choice.head, "head", "heads in that layer")
        return batch.to_words(scores, choice.setting)

    def _all_scores(self, batch: PairBatch) -> Iterator[tuple[Choice, Tensor]]:
        """Scores (batch, word, candidate) at every place."""
        layers: dict[Setting, list[Tensor]] = {setting: [] for setting in SETTINGS}
        for layer, layer_map in enumerate(self._maps(batch, True, None)):
            for setting in SETTINGS:
                if layer_map.summed is not None:
                    layers[setting].append(batch.to_words(layer_map.summed, setting))
                    yield Choice(setting, layer), layers[setting][-1]
                if layer_map.by_head is not None:
                    for head, of_head in enumerate(batch.to_words(layer_map.by_head, setting).unbind(1)):
                        yield Choice(setting, layer, head), of_head
        for setting in SETTINGS:
            yield Choice(setting, "mean"), _mean_of_layers(layers[setting])

    def _maps(self, batch: PairBatch, heads: bool, only: int | None) -> list[CrossMap]:
        """The maps of the cross-attention, layer by layer."""
        maps = self._method.read(self._encoder.body, batch.inputs, heads, only)
        if not maps:
            raise ValueError(
                f"CrossAttentionAligner: {type(self.model).__name__} ran without any cross-attention: its decoder "
                "attends to no output of an encoder. Take an encoder-decoder."
            )
        return maps


def _mean_of_layers(layers: Sequence[Tensor]) -> Tensor:
    """The mean of (batch, word, candidate), each brought to row sums of 1, so that all count alike."""
    sums = [one.sum(-1, keepdim=True) for one in layers]
    shares = [one / total.clamp(min=torch.finfo(one.dtype).tiny) for one, total in zip(layers, sums, strict=True)]
    return torch.stack(shares).mean(0)


def _entry(found: Sequence[Any], index: int, name: str, what: str) -> Any:
    if not -len(found) <= index < len(found):
        raise ValueError(f"CrossAttentionAligner: {name}={index}, but there are {len(found)} {what}.")
    return found[index]


def _rows_at(
    rows: Sequence[EvaluationRow],
    layer: LayerChoice | Literal["best"],
    head: int | Literal["best"] | None,
    setting: Setting | Literal["best"],
) -> list[EvaluationRow]:
    """The rows of a layer, head and setting, each counted from either end or ``"best"`` for any.

    Raises:
        ValueError: if the model has no such layer or head.
    """
    if layer == "best":
        found = [row for row in rows if row.choice.layer != "mean"]
    elif layer == "mean":
        found = [row for row in rows if row.choice.layer == "mean"]
    else:
        layers = 1 + max(row.choice.layer for row in rows if row.choice.layer != "mean")
        place = _entry(range(layers), layer, "layer", "cross-attention layers")
        found = [row for row in rows if row.choice.layer == place]
    if isinstance(head, int):
        heads = Counter(of.layer for of in {replace(row.choice, setting="awi") for row in found} if of.head is not None)
        if not any(-count <= head < count for count in heads.values()):
            most = max(heads.values(), default=0)
            there = f"no layer has more than {most}" if layer == "best" else f"there are {most} heads in that layer"
            raise ValueError(f"CrossAttentionAligner: head={head}, but {there}.")
        found = [row for row in found if row.choice.head == (head if head >= 0 else head + heads[row.choice.layer])]
    elif head is None:
        found = [row for row in found if row.choice.head is None]
    return [row for row in found if setting in ("best", row.choice.setting)]


def _check_choice(layer: Any, head: Any, setting: Any, method: LinkMethod) -> None:
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
