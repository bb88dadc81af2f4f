"""Which texts go through the model together?  Those of like length, in batches that never change.

A study sorts its texts by their number of tokens, those of one length by their content, and cuts them into batches
before anything runs.  So a batch holds the same texts in whatever order the data has them, whichever process computes
it and wherever an earlier run stopped.  Results are bit-equal for that reason: floating-point sums depend on what is
padded beside a text.

Axes: b batch, s token (padding included), c class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.forward.inputs import longest_input
from captum_norm.study.data import Example
from captum_norm.study.metrics.answers import Answers
from captum_norm.words import Words, words_of


@dataclass(frozen=True)
class Tokenized:
    """An example as the model reads it, without padding.

    Attributes:
        number: its place in the data.
        example: the text and what is known of it.
        inputs: what the tokenizer made of it, by name, (token,) each.
        tokens: its tokens as strings.
        words: the word of each token.
        special: (token,) bool, True at special tokens.
        evidence: (token,) bool, True at tokens that overlap the evidence; None where there is none.
    """

    number: int
    example: Example
    inputs: dict[str, Tensor]
    tokens: tuple[str, ...]
    words: Words
    special: Tensor
    evidence: Tensor | None

    def __len__(self) -> int:
        return len(self.tokens)

    def seed(self, *more: Any) -> int:
        """A number that depends on the text and on ``more`` alone, wherever the text stands in the data; below 2^63."""
        content = repr((*self.example.texts, *more)).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class TextBatch:
    """Texts that go through the model together.

    Attributes:
        number: its place among the batches.
        examples: the texts.
        inputs: what the model takes, padded, (b, s) each.
        real: (b, s) bool, False at padding.
        special: (b, s) bool.
        evidence: (b, s) bool, all False for an example without any; None where no example has any.
        words: (b, s) long, the number of each token's word; -1 at padding.
        target: (b,) long, the class that is explained; empty until that is known.
        memo: what metrics keep of this batch for each other.
    """

    number: int
    examples: tuple[Tokenized, ...]
    inputs: dict[str, Tensor]
    real: Tensor
    special: Tensor
    evidence: Tensor | None
    words: Tensor
    target: Tensor
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The examples' places in the data."""
        return tuple(text.number for text in self.examples)

    def removable(self, special: str) -> Tensor:
        """(b, s) bool, the tokens that are ranked and removed: the real ones, special ones only to ``"keep"`` them."""
        return self.real if special == "keep" else self.real & ~self.special

    def single(self, row: int, pad: Padding) -> TextBatch:
        """One of its examples by itself, without padding."""
        return padded(self.number, (self.examples[row],), pad, self.target[row : row + 1])


@dataclass(frozen=True)
class Padding:
    """What fills up shorter texts, and on which side.

    Attributes:
        token: the id; the attention mask hides it.
        side: ``"right"`` or ``"left"``.
    """

    token: int = 0
    side: str = "right"

    @classmethod
    def of(cls, tokenizer: Any) -> Padding:
        """As the tokenizer pads; where it has no token for that, the one that ends a text."""
        ids = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
        return cls(next((token for token in ids if token is not None), 0), getattr(tokenizer, "padding_side", "right"))


def tokenize(examples: Sequence[Example], tokenizer: Any, model: Any, max_length: int | None = None) -> list[Tokenized]:
    """The examples as the model reads them.

    Args:
        examples: the data.
        tokenizer: a fast tokenizer of transformers.
        model: the model, which may limit the number of tokens.
        max_length: longer texts are cut to so many tokens; None refuses texts that are too long for the model.

    Raises:
        ValueError: naming the example, where a text is too long, gives no token of its own, or has evidence that no
            token overlaps.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} keeps no offsets, so words and evidence are not known. Use a fast tokenizer."
        )
    limits = [longest_input(model), _longest_text(tokenizer)]
    limit = min((length for length in limits if length is not None), default=None)
    return [_tokenized(number, example, tokenizer, limit, max_length) for number, example in enumerate(examples)]


def cut(examples: Sequence[Tokenized], size: int) -> list[tuple[Tokenized, ...]]:
    """Batches of up to ``size`` texts of like length, the longest first, the others in a mixed but fixed order.

    The longest batch needs the most memory, so a study that does not fit shows it at once.  The others are mixed so
    that the rate of the first minutes foretells the rest.
    """
    in_order = sorted(examples, key=lambda text: (len(text), text.seed("batch"), text.number))
    batches = [tuple(in_order[i : i + size]) for i in range(0, len(in_order), size)]
    longest = batches.pop()
    return [longest, *sorted(batches, key=lambda batch: batch[0].seed("order"))]


def padded(
    number: int, examples: tuple[Tokenized, ...], pad: Padding, target: Tensor | None = None
) -> TextBatch:
    """The texts side by side in one batch."""
    longest = max(map(len, examples))

    def together(rows: Sequence[Tensor], fill: int) -> Tensor:
        return torch.stack([_filled(row, longest, fill, pad.side) for row in rows])

    fills = {"input_ids": pad.token}
    inputs = {
        name: together([text.inputs[name] for text in examples], fills.get(name, 0)) for name in examples[0].inputs
    }
    real = together([torch.ones(len(text), dtype=torch.bool) for text in examples], False)
    special = together([text.special for text in examples], False)
    evidence = None
    if any(text.evidence is not None for text in examples):
        marked = [torch.zeros_like(text.special) if text.evidence is None else text.evidence for text in examples]
        evidence = together(marked, False)
    words = together([torch.tensor([-1 if w is None else w for w in text.words.index]) for text in examples], -1)
    if target is None:
        target = torch.zeros(0, dtype=torch.long)
    return TextBatch(number, examples, inputs, real, special, evidence, words, target)


@dataclass(frozen=True)
class Explained:
    """What is explained of each example of a batch.

    Attributes:
        target: (b,) long, the class.
        predicted: (b,) long, the class the model finds most probable.
        probability: (b,) of the target, float64; its value where the model answers with values.
        label: the class that the data names, for each example; None where it names none that the model has.
    """

    target: Tensor
    predicted: Tensor
    probability: Tensor
    label: tuple[int | None, ...]


def explain(batch: TextBatch, forward: HFForward, labels: Mapping[str, int], which: str) -> Explained:
    """The class that is explained: the one the model predicts, or the label of the data.

    Raises:
        ValueError: naming the example, where a label is needed and missing, or the model has no such class.
    """
    logits = logits_of(batch, forward)
    predicted, classes = logits.argmax(-1), logits.shape[1]
    target = predicted
    if which == "label":
        target = torch.tensor([class_of(text.example, labels, classes) for text in batch.examples])
    answers = Answers.of(forward.model, logits, target)
    known = tuple(_known_class(text.example, labels, classes) for text in batch.examples)
    return Explained(target, predicted, answers.numbers.gather(1, target[:, None])[:, 0], known)


def logits_of(batch: TextBatch, forward: HFForward) -> Tensor:
    """What the model says of each example, (b, c) float64 on the CPU."""
    arguments = forward.inputs(batch.inputs)
    with torch.no_grad():
        return forward(arguments["inputs"], *(arguments["additional_forward_args"] or ())).double().cpu()


def with_target(batch: TextBatch, target: Tensor) -> TextBatch:
    """The batch with what is explained."""
    return replace(batch, target=target)


def class_of(example: Example, labels: Mapping[str, int], classes: int) -> int:
    """The number of the class that an example's label names.

    Raises:
        ValueError: where there is no label, or the model has no such class.

    Example:
        >>> class_of(Example("Warm.", label="Positive"), {"negative": 0, "positive": 1}, classes=2)
        1
    """
    label = example.label
    if label is None:
        raise ValueError(f'{example.where} has no label, which target="label" explains.')
    if isinstance(label, str) and label.lower() in labels:
        return labels[label.lower()]
    number = int(label) if isinstance(label, int) or label.lstrip("-").isdigit() else -1
    if not 0 <= number < classes:
        named = f"0 to {classes - 1}" + (f" or {', '.join(labels)}" if labels else "")
        raise ValueError(f"{example.where}: the label {label!r} is no class of the model, which has {named}.")
    return number


def _known_class(example: Example, labels: Mapping[str, int], classes: int) -> int | None:
    try:
        return class_of(example, labels, classes)
    except ValueError:
        return None


def _tokenized(number: int, example: Example, tokenizer: Any, limit: int | None, cut_at: int | None) -> Tokenized:
    encoding = tokenizer(
        *example.texts, truncation=cut_at is not None, max_length=cut_at, return_special_tokens_mask=True, verbose=False
    )
    ids = encoding["input_ids"]
    special = torch.tensor(encoding["special_tokens_mask"], dtype=torch.bool)
    if limit is not None and len(ids) > limit:
        raise ValueError(
            f"{example.where} has {len(ids)} tokens, but the model takes {limit}. Shorten it, or let texts be cut: "
            f"max_length={limit}."
        )
    if bool(special.all()):
        raise ValueError(f"{example.where}: the tokenizer makes no token of its text {example.text[:40]!r}.")
    inputs = {name: torch.tensor(encoding[name]) for name in tokenizer.model_input_names if name in encoding}
    tokens = tuple(tokenizer.convert_ids_to_tokens(ids))
    texts: Any = example.text if example.text_pair is None else example.texts
    words = words_of(encoding, texts, special="keep")
    evidence = _evidence(example, encoding.encodings[0], special, was_cut=cut_at is not None)
    return Tokenized(number, example, inputs, tokens, words, special, evidence)


def _evidence(example: Example, encoded: Any, special: Tensor, was_cut: bool) -> Tensor | None:
    of_texts = (example.evidence, example.evidence_pair)
    if of_texts == (None, None):
        return None
    overlaps = [
        any(start < last and first < end for first, last in of_texts[text or 0] or ())
        for text, (start, end) in zip(encoded.sequence_ids, encoded.offsets, strict=True)
    ]
    evidence = torch.tensor(overlaps, dtype=torch.bool) & ~special
    spans = [span for spans in of_texts for span in spans or ()]
    if spans and not bool(evidence.any()):
        if was_cut:
            return None  # all of it lay beyond the cut
        raise ValueError(f"{example.where}: no token overlaps its evidence {spans[0]}.")
    return evidence


def _filled(row: Tensor, length: int, fill: int | bool, side: str) -> Tensor:
    filling = row.new_full((length - len(row),), fill)
    return torch.cat([filling, row] if side == "left" else [row, filling])


def _longest_text(tokenizer: Any) -> int | None:
    limit = getattr(tokenizer, "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 10**9 else None
