"""What does a model read of an example?  Its tokens, and what is told by characters told by tokens.

Evidence becomes marks of tokens, the span that is asked about a row or the place of an answer, the label of a language
model the token that continues the text, and what has been written the decoder's input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_norm.forward.inputs import longest_input
from captum_norm.forward.keywords import title, unwrapped
from captum_norm.study.data import Example
from captum_norm.study.metrics.answers import answers_with_a_place
from captum_norm.words import Words, words_of


@dataclass(frozen=True)
class Tokenized:
    """An example as the model reads it, without padding.

    Attributes:
        number: its place in the data.
        example: the text and what is known of it.
        inputs: what the tokenizer made of it, by name, (token,) each; for decoders (written token,).
        tokens: its tokens as strings.
        words: the word of each token.
        special: (token,) bool, True at special tokens.
        evidence: (token,) bool, True at tokens that overlap the evidence; None where there is none.
        places: (token,) bool, where an answer may stand: not at special tokens, of a pair in the second text.
        row: the token whose row of the output is explained; None for the one that the model's kind says.
        label: the class that follows from tokens, the next token or an answer's place; None where none does.
        foil: the same of the foil.
        sources: (token,) long, the number of the source that each token lies in, -1 for none; None where the example
            names no sources.
    """

    number: int
    example: Example
    inputs: dict[str, Tensor]
    tokens: tuple[str, ...]
    words: Words
    special: Tensor
    evidence: Tensor | None
    places: Tensor
    row: int | None = None
    label: int | None = None
    foil: int | None = None
    sources: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def seed(self, *more: Any) -> int:
        """A number that depends on the text and on ``more`` alone, wherever the text stands in the data; below 2^63."""
        example = self.example
        later = [of for of in (example.span, example.span_pair, example.written) if of is not None]
        content = repr((*example.texts, *later, *more)).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def tokenize(examples: Sequence[Example], tokenizer: Any, model: Any, max_length: int | None = None) -> list[Tokenized]:
    """The examples as the model reads them.

    Args:
        examples: the data.
        tokenizer: a fast tokenizer of transformers.
        model: the model, which may limit the number of tokens.
        max_length: longer texts are cut to so many tokens; None refuses texts that are too long for the model.

    Raises:
        ValueError: naming the example, where a text is too long, gives no token of its own, has evidence or a span that
            no token overlaps, or lacks what other examples have (a span, what has been written).
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} keeps no offsets, so words and evidence are not known. Use a fast tokenizer."
        )
    limits = [longest_input(model), _longest_text(tokenizer)]
    limit = min((length for length in limits if length is not None), default=None)
    reader = _Reader(tokenizer, model, limit, max_length)
    texts = [reader.read(number, example) for number, example in enumerate(examples)]
    _check_alike(texts, model, tokenizer)
    return texts


@dataclass(frozen=True)
class _Reader:
    tokenizer: Any
    model: Any
    limit: int | None
    cut_at: int | None

    def read(self, number: int, example: Example) -> Tokenized:
        """One example."""
        cut = self.cut_at is not None
        encoding = self.tokenizer(
            *example.texts, truncation=cut, max_length=self.cut_at, return_special_tokens_mask=True, verbose=False
        )
        ids = encoding["input_ids"]
        special = torch.tensor(encoding["special_tokens_mask"], dtype=torch.bool)
        if self.limit is not None and len(ids) > self.limit:
            raise ValueError(
                f"{example.where} has {len(ids)} tokens, but the model takes {self.limit}. Shorten it, or let texts be "
                f"cut: max_length={self.limit}."
            )
        if bool(special.all()):
            raise ValueError(f"{example.where}: the tokenizer makes no token of its text {example.text[:40]!r}.")
        names = [name for name in self.tokenizer.model_input_names if name in encoding]
        inputs = {name: torch.tensor(encoding[name]) for name in names}
        texts: Any = example.text if example.text_pair is None else example.texts
        encoded = encoding.encodings[0]
        second = torch.tensor([text == 1 for text in encoded.sequence_ids])
        asked = _asked(example, encoded)
        of_place = answers_with_a_place(self.model)
        return Tokenized(
            number,
            example,
            inputs | self._written(example),
            tuple(self.tokenizer.convert_ids_to_tokens(ids)),
            words_of(encoding, texts, special="keep"),
            special,
            _evidence(example, encoded, special, was_cut=cut),
            ~special if example.text_pair is None else second & ~special,
            row=None if of_place else asked,
            label=asked if of_place else self._next_token(example),
            foil=None if of_place or example.foil is None else self._next_token(replace(example, label=example.foil)),
            sources=_sources(example, encoded, special),
        )

    def _written(self, example: Example) -> dict[str, Tensor]:
        """The decoder's input; nothing where nothing has been written."""
        if example.written is None:
            return {}
        if not _decodes(self.model):
            raise ValueError(
                f"{example.where} says what has been written, but {title(self.model)} has no decoder of its own: for a "
                "language model that is the end of the text."
            )
        core: Any = unwrapped(self.model)
        starts = [getattr(getattr(core, name, None), "decoder_start_token_id", None) for name in
                  ("config", "generation_config")]
        start = next((token for token in starts if token is not None), None)
        if start is None:
            raise ValueError(f"{title(core)} has no decoder_start_token_id, so its decoder cannot be begun.")
        ids = torch.tensor([start, *self._ids(example.written, target=True)])
        return {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}

    def _next_token(self, example: Example) -> int | None:
        """The token that the label of a language model continues its text with; None for numbers and other models.

        A label of digits is the token that is written so.  It is a token's number where the vocabulary has no such
        token at all.

        Raises:
            ValueError: where the label begins with no token of its own, or with none that the vocabulary has, and for
                digits that are several tokens, which might as well be the number of one.
        """
        label = example.label
        generates = bool(getattr(unwrapped(self.model), "can_generate", lambda: False)())
        if not isinstance(label, str) or not generates:
            return None
        decodes = _decodes(self.model)
        before = (example.written or "") if decodes else example.texts[-1]
        ids = self._ids(before, decodes) if before else []
        joined = self._ids(f"{before} {label}".strip() if not label[0].isspace() else before + label, decodes)
        digits = label.isascii() and label.isdecimal()
        unknown = self.tokenizer.unk_token_id
        if digits and unknown in joined[len(ids) :]:
            return None
        if joined[: len(ids)] != ids or len(joined) == len(ids):
            raise ValueError(
                f"{example.where}: the label {label!r} begins with no token of its own behind {before[-20:]!r}. Give "
                "the token's number, or end the text before a word."
            )
        if joined[len(ids)] == unknown and label.strip() != self.tokenizer.unk_token:
            raise ValueError(
                f"{example.where}: the vocabulary has no token that the label {label!r} begins with. Give the token's "
                "number."
            )
        if digits and len(joined) > len(ids) + 1:
            raise ValueError(
                f"{example.where}: the label {label!r} may be a token's number or the text {label!r}, of which the "
                f"tokenizer makes {self.tokenizer.convert_ids_to_tokens(joined[len(ids) :])}. Give the number of the "
                "token that is meant as a number: an int, in JSON without quotes."
            )
        return joined[len(ids)]

    def _ids(self, text: str, target: bool) -> list[int]:
        given = {"text_target": text} if target else {"text": text}
        ids: list[int] = self.tokenizer(**given, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _decodes(model: Any) -> bool:
    """Whether a model has a decoder that writes by itself, beside what reads the text."""
    return bool(getattr(getattr(unwrapped(model), "config", None), "is_encoder_decoder", False))


def _check_alike(texts: Sequence[Tokenized], model: Any, tokenizer: Any) -> None:
    """Refuse data of which some examples have a span, or a beginning that was written, and others have none."""
    without = {
        "span": [text for text in texts if text.row is None],
        "beginning that was written": [text for text in texts if "decoder_input_ids" not in text.inputs],
    }
    for what, lacking in without.items():
        if lacking and len(lacking) < len(texts):
            raise ValueError(f"{lacking[0].example.where} has no {what}, but others have one.")
    if answers_with_a_place(model) and getattr(tokenizer, "padding_side", "right") != "right":
        raise ValueError(f"{title(unwrapped(model))} answers with a place: let the tokenizer pad on the right.")


def _asked(example: Example, encoded: Any) -> int | None:
    """The first token of the span that is asked about."""
    span, text = (example.span, 0) if example.span is not None else (example.span_pair, 1)
    if span is None:
        return None
    places = enumerate(zip(encoded.sequence_ids, encoded.offsets, strict=True))
    found = next((i for i, (of, (start, end)) in places if of == text and start < span[1] and span[0] < end), None)
    if found is None:
        raise ValueError(f"{example.where}: no token overlaps the span {list(span)} that is asked about.")
    return found


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


def _sources(example: Example, encoded: Any, special: Tensor) -> Tensor | None:
    """The source of each token: the one that holds most of its characters, the first of equals."""
    if example.sources is None:
        return None
    found = torch.full(special.shape, -1)
    for place, (text, (start, end)) in enumerate(zip(encoded.sequence_ids, encoded.offsets, strict=True)):
        shared = [min(end, last) - max(start, first) for first, last in example.sources]
        most = max(shared, default=0)  # an example may say that it has no source
        if text == 0 and not special[place] and most > 0:
            found[place] = shared.index(most)
    return found


def _longest_text(tokenizer: Any) -> int | None:
    limit = getattr(tokenizer, "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 10**9 else None
