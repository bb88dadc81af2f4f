"""Which texts go through the model together?  Those of like length, in batches that never change.

A study sorts its texts by their number of tokens, those of one length by their content, and cuts them into batches
before anything runs.  So a batch holds the same texts in whatever order the data has them, whichever process computes
it and wherever an earlier run stopped.  Results are bit-equal for that reason: floating-point sums depend on what is
padded beside a text.

Axes: b batch, s token (padding included), c class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from captum_norm.class_names import ClassNames
from captum_norm.forward import HFForward
from captum_norm.numerals import whole_number
from captum_norm.study.metrics.answers import Answers
from captum_norm.study.tokenized import Tokenized, tokenize

__all__ = [
    "Explained",
    "Padding",
    "TextBatch",
    "Tokenized",
    "class_of",
    "cut",
    "explain",
    "logits_of",
    "padded",
    "pair_of",
    "tokenize",
    "with_places",
    "with_target",
]


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
        rows: (b,) long, whose row of the output is explained; None for the one that the model's kind says.
        places: (b, s) bool, where the answer may stand, of a model that answers with a place; None for others.
        memo: what metrics keep of this batch for each other.
        sources: (b, s) long, the number of each token's source; -1 for none; None where no example names any.
        foil: (b,) long, the class that the target is set against; None where it is not.
    """

    number: int
    examples: tuple[Tokenized, ...]
    inputs: dict[str, Tensor]
    real: Tensor
    special: Tensor
    evidence: Tensor | None
    words: Tensor
    target: Tensor
    rows: Tensor | None = None
    places: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    sources: Tensor | None = None
    foil: Tensor | None = None

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
        alone, target = padded(self.number, (self.examples[row],), pad), self.target[row : row + 1]
        foil = None if self.foil is None else self.foil[row : row + 1]
        return with_target(alone if self.places is None else with_places(alone), target, foil)


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

    inputs = {}
    for name in examples[0].inputs:
        fill, of_name = (pad.token if name.endswith("input_ids") else 0), [text.inputs[name] for text in examples]
        if name.startswith("decoder_"):  # what a decoder has written is no part of the text, and begins at the left
            written = max(map(len, of_name))
            inputs[name] = torch.stack([_filled(row, written, fill, "right") for row in of_name])
        else:
            inputs[name] = together(of_name, fill)
    real = together([torch.ones(len(text), dtype=torch.bool) for text in examples], False)
    special = together([text.special for text in examples], False)
    evidence = None
    if any(text.evidence is not None for text in examples):
        marked = [torch.zeros_like(text.special) if text.evidence is None else text.evidence for text in examples]
        evidence = together(marked, False)
    words = together([torch.tensor([-1 if w is None else w for w in text.words.index]) for text in examples], -1)
    shifts = [longest - len(text) if pad.side == "left" else 0 for text in examples]
    asked = [text.row + shift for text, shift in zip(examples, shifts, strict=True) if text.row is not None]
    rows = torch.tensor(asked) if asked else None
    target = torch.zeros(0, dtype=torch.long) if target is None else target
    sources = None
    if any(text.sources is not None for text in examples):
        none = [torch.full(text.special.shape, -1) for text in examples]
        of = [no if text.sources is None else text.sources for no, text in zip(none, examples, strict=True)]
        sources = together(of, -1)
    return TextBatch(number, examples, inputs, real, special, evidence, words, target, rows, sources=sources)


def with_places(batch: TextBatch) -> TextBatch:
    """The batch for a model that answers with a place in the text."""
    length = batch.real.shape[1]
    places = torch.stack([_filled(text.places, length, False, "right") for text in batch.examples])
    return replace(batch, places=places)


@dataclass(frozen=True)
class Explained:
    """What is explained of each example of a batch.

    Attributes:
        target: (b,) long, the class.
        predicted: (b,) long, the class the model finds most probable.
        probability: (b,) of the target, float64; its value where the model answers with values.
        label: the class that the data names, for each example; None where it names none that the model has.
        foil: (b,) long, the class that the target is set against; None where it is not.
    """

    target: Tensor
    predicted: Tensor
    probability: Tensor
    label: tuple[int | None, ...]
    foil: Tensor | None = None


def explain(batch: TextBatch, forward: HFForward, labels: ClassNames, which: str) -> Explained:
    """The class that is explained: the one the model predicts, or the label of the data, or why it and not the foil.

    Raises:
        ValueError: naming the example, where a label is needed and missing, or the model has no such class.
    """
    logits = logits_of(batch, forward)
    predicted, classes = logits.argmax(-1), logits.shape[1]
    target, foil = predicted, None
    if which == "contrast":
        target, foil = torch.tensor([pair_of(text, labels, classes) for text in batch.examples]).unbind(1)
    if which == "label":
        target = torch.tensor([class_of(text, labels, classes) for text in batch.examples])
    answers = Answers.of(forward.model, logits, target)
    known = tuple(_known_class(text, labels, classes) for text in batch.examples)
    return Explained(target, predicted, answers.numbers.gather(1, target[:, None])[:, 0], known, foil)


def logits_of(batch: TextBatch, forward: HFForward) -> Tensor:
    """What the model says of each example, (b, c) float64 on the CPU."""
    arguments = forward.inputs(batch.inputs, batch.rows)
    with torch.no_grad():
        logits = forward(arguments["inputs"], *(arguments["additional_forward_args"] or ())).double().cpu()
    return logits if batch.places is None else logits.masked_fill(~batch.places, -torch.inf)


def with_target(batch: TextBatch, target: Tensor, foil: Tensor | None = None) -> TextBatch:
    """The batch with what is explained; an answer with a place is read from that place's row."""
    return replace(batch, target=target, foil=foil, rows=batch.rows if batch.places is None else target)


def class_of(text: Tokenized, labels: ClassNames, classes: int) -> int:
    """The number of the class that an example's label names.

    Raises:
        ValueError: where there is no label, or the model has no such class.
    """
    if text.label is not None:
        return text.label
    example, label = text.example, text.example.label
    if label is None:
        raise ValueError(f'{example.where} has no label, which target="label" explains.')
    try:
        named = labels.number_of(label) if isinstance(label, str) else None
    except ValueError as error:
        raise ValueError(f"{example.where}: the label {error}") from None
    if named is not None:
        return named
    number = label if isinstance(label, int) else whole_number(label)
    if number is None or not 0 <= number < classes:
        known = f"0 to {classes - 1}" + (f" or {', '.join(labels)}" if labels else "")
        raise ValueError(f"{example.where}: the label {label!r} is no class of the model, which has {known}.")
    return number


def pair_of(text: Tokenized, labels: ClassNames, classes: int) -> tuple[int, int]:
    """The classes of an example's label and foil.

    Raises:
        ValueError: where one is missing or is no class of the model, or both are the same.
    """
    example = text.example
    if example.foil is None:
        raise ValueError(f'{example.where} has no foil, which target="contrast" sets the label against.')
    against = replace(text, example=replace(example, label=example.foil), label=text.foil)
    pair = class_of(text, labels, classes), class_of(against, labels, classes)
    if pair[0] == pair[1]:
        raise ValueError(
            f"{example.where}: label {example.label!r} and foil {example.foil!r} begin with the same class or token."
        )
    return pair


def _known_class(text: Tokenized, labels: ClassNames, classes: int) -> int | None:
    try:
        return class_of(text, labels, classes)
    except ValueError:
        return None


def _filled(row: Tensor, length: int, fill: int | bool, side: str) -> Tensor:
    filling = row.new_full((length - len(row),), fill)
    return torch.cat([filling, row] if side == "left" else [row, filling])
