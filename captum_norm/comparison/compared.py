"""Several methods asked about one output of a model: scores of each word, and how far they agree on their order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from captum_norm.comparison.tasks import Question, question
from captum_norm.maps import CheckedCall, checked_calls
from captum_norm.methods import DEFAULT, METHODS, Attributor, TokenScores, known_methods
from captum_norm.ranks import spearman
from captum_norm.tables import Table, Tabular
from captum_norm.words import Words, special_tokens, word_scores, words_of


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


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """What methods say of one text: a table with a row for each word and a column of shares for each method.

    Attributes:
        asked: the task, and the row of the output that is explained.
        prediction: what the model says; None where it predicts nothing.
        words: of the text, special tokens among them.
        special: (word,), which are special tokens: those that the tokenizer put around the text.  An unknown word and a
            mask or another token that is written in the text are words of it.
        results: method -> its scores of each token, and the seconds they took.
        calls: the attention calls of the model, each checked.
        left_out: methods that were left out for want of a target.
        specials: ``"keep"``, or ``"drop"`` for tables, shares and figures of the text's own words alone.
        mixers: what beside attention mixed positions, where methods composed calls as if it had not; in words.
    """

    asked: Question
    prediction: Prediction | None
    words: Words
    special: tuple[bool, ...]
    results: dict[str, TokenScores]
    calls: tuple[CheckedCall, ...]
    left_out: tuple[str, ...] = ()
    specials: Literal["keep", "drop"] = "keep"
    mixers: tuple[str, ...] = ()

    @cached_property
    def _scores(self) -> dict[str, Tensor]:
        return {name: word_scores(found.scores[0].double(), self.words) for name, found in self.results.items()}

    def scores(self, name: str) -> Tensor:
        """(word,): a method's scores, those of the pieces of a word added up; special tokens among them."""
        return self._scores[name]

    def kept(self, top: int | None = None) -> list[int]:
        """The words to show, in the order of the text: all but special tokens where these are dropped; at most the
        ``top`` that methods give the largest shares, mean over methods."""
        words = [i for i, special in enumerate(self.special) if self.specials == "keep" or not special]
        if top is None or top >= len(words):
            return words
        sizes = torch.stack([self.shares(name).abs() for name in self.results]).mean(0)
        return sorted(sorted(words, key=lambda i: -float(sizes[i]))[:top])

    def shares(self, name: str) -> Tensor:
        """(word,): a method's scores as parts of the sum of their sizes, over the words that are kept."""
        kept = self.scores(name).clone()
        if self.specials == "drop":
            kept[torch.tensor(self.special)] = 0.0
        return kept / kept.abs().sum().clamp_min(1e-300)

    def agreement(self) -> dict[str, dict[str, float | None]]:
        """Spearman's ρ of |score| over the words that are no special tokens; None where it is not defined."""
        plain = ~torch.tensor(self.special)
        sizes = {name: self.scores(name).abs()[plain] for name in self.results}
        rho = {a: {b: float(spearman(sizes[a], sizes[b])) for b in sizes} for a in sizes}
        return {a: {b: None if r != r else r for b, r in row.items()} for a, row in rho.items()}

    def worst_error(self) -> tuple[float, float]:
        """The largest certificate error of the attention calls, and what was allowed."""
        worst = max((c.certificate for c in self.calls if c.certificate is not None), key=float)
        return float(worst), worst.tolerance

    def as_table(self) -> Table:
        """A row for each word that is kept: its share by each method."""
        shares = {name: self.shares(name).tolist() for name in self.results}
        rows = tuple((self.words.strings[i], *(shares[name][i] for name in shares)) for i in self.kept())
        return Table(("word", *shares), rows, self.headline())

    def agreement_table(self) -> Table:
        """Methods against methods: Spearman's ρ of |score| over words, special tokens left out."""
        rho = self.agreement()
        return Table(("method", *rho), tuple((a, *row.values()) for a, row in rho.items()), form="+.2f")

    def headline(self) -> str:
        """The task, and what is explained."""
        said = self.prediction
        if said is None:
            return "neither classes nor a next token are predicted"
        note = f" ({self.asked.note})" if self.asked.note else ""
        return f"{self.asked.task}{note}; explained: {said.target} ({said.of_target})"

    def as_dict(self) -> dict[str, Any]:
        """Everything, unrounded, for JSON."""
        error, tolerance = self.worst_error()
        return {
            "task": self.asked.task,
            "note": self.asked.note,
            "position": self.asked.position,
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
            "mixers": list(self.mixers),
        }


def compare(
    model: Any,
    tokenizer: Any,
    text: str,
    pair: str | None = None,
    *,
    methods: Sequence[str] | None = None,
    target: str | int | None = None,
    position: int | str | None = None,
    specials: Literal["keep", "drop"] = "keep",
    on_method: Callable[[str], None] = lambda name: None,
    show_progress: bool = False,
    mixers_as_identity: bool = False,
) -> Comparison:
    """Several methods on one text, whatever the model's task.

    Args:
        model, tokenizer: of transformers, in evaluation mode.
        text, pair, position: as for :func:`captum_norm.comparison.question`.
        methods: of ``captum_norm.methods.METHODS``; None: ``DEFAULT``.
        target: the class, token or position to explain; an int is its number, a str its name. Digits in a str are a
            number only where no class is called so, no token is written so and no word of the text is; None: the
            predicted one.
        specials: whether tables and shares count special tokens.
        on_method: told of each method before it runs.
        show_progress: whether slow methods say how much longer they take.
        mixers_as_identity: where methods compose attention calls along the model, go on as if nothing beside attention
            mixed positions between them; the comparison's ``mixers`` say what did.

    Raises:
        ValueError: for a model whose attention cannot be read, a target or position that is not there, and methods that
            explain a target on a model that predicts nothing.

    Example:
        >>> from captum_norm.models import load_sentiment
        >>> found = compare(*load_sentiment(), "A warm film.", methods=["AttentionNorm", "DecompX"])
        >>> found.headline()
        'sequence classification; explained: positive (93.7%)'
        >>> found.as_table().columns
        ('word', 'AttentionNorm', 'DecompX')
    """
    if specials not in ("keep", "drop"):
        raise ValueError(f"compare: specials should be 'keep' or 'drop', got {specials!r}.")
    names = None if methods is None else known_methods(methods)
    asked = question(model, tokenizer, text, pair, position=position)
    calls = checked_calls(asked.model, _whole(asked))
    refused = [c for c in calls if c.refusal]
    if refused:
        raise ValueError(f"{refused[0].refusal}. captum-norm certify lists every attention call of the model.")
    prediction = None if asked.meaning == "none" else _prediction(asked, target)
    if prediction is None and target is not None:
        raise ValueError(f"--target {target}: {type(model).__name__} predicts neither classes nor a next token.")
    chosen, left_out = _applicable(names, prediction)
    results, mixers = {}, dict[str, None]()
    for name in chosen:
        on_method(name)
        index = None if prediction is None else prediction.target_index
        results[name], mixed = _asked_of(name, asked, index, show_progress, mixers_as_identity)
        mixers |= dict.fromkeys(mixed)
    words, special = _words(asked)
    listed = tuple(mixers) if mixers_as_identity else ()
    return Comparison(asked, prediction, words, special, results, tuple(calls), left_out, specials, listed)


def _asked_of(
    name: str, asked: Question, target: int | None, show_progress: bool, mixers_as_identity: bool
) -> tuple[TokenScores, list[str]]:
    """The scores of one method, and what beside attention mixed positions on the way."""
    attributor = Attributor(
        name, asked.model, position=asked.position, show_progress=show_progress, mixers_as_identity=mixers_as_identity
    )
    start = time.perf_counter()
    scores = attributor(asked.encoding, target).cpu()  # a GPU has finished only when its numbers are here
    report = getattr(attributor.attribution, "report", None)
    return TokenScores(scores, time.perf_counter() - start), [str(mixer) for mixer in getattr(report, "mixers", ())]


def _whole(asked: Question) -> Any:
    """What the model itself takes: for an encoder-decoder, with the start token that its decoder begins with."""
    config: Any = asked.model.config
    if not getattr(config, "is_encoder_decoder", False):
        takes_types = asked.task != "similarity"
        return {name: one for name, one in asked.encoding.items() if name != "token_type_ids" or takes_types}
    start = getattr(config, "decoder_start_token_id", None) or 0
    return {**asked.encoding, "decoder_input_ids": torch.full_like(asked.encoding["input_ids"][:, :1], start)}


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


def _prediction(asked: Question, target: str | int | None) -> Prediction:
    index = asked.predicted
    wanted = index if target is None else asked.index_of(target)

    def said(index: int) -> tuple[str, int, float, float | None]:
        chance = None if asked.chances is None else float(asked.chances[index])
        return asked.label(index), index, float(asked.values[index]), chance

    return Prediction(*said(index), *said(wanted))


def _words(asked: Question) -> tuple[Words, tuple[bool, ...]]:
    """The words of the text, special tokens among them, and which are special."""
    ids = asked.encoding["input_ids"][0].tolist()
    if getattr(asked.encoding, "encodings", None):
        words = words_of(asked.encoding, asked.text, special="keep")
    else:  # a tokenizer without offsets: its tokens are the words
        words = Words(tuple(asked.tokenizer.convert_ids_to_tokens(ids)), tuple(range(len(ids))))
    special = [False] * len(words)
    for added, word in zip(special_tokens(asked.encoding, asked.tokenizer), words.index, strict=True):
        if word is not None and added:
            special[word] = True
    return words, tuple(special)
