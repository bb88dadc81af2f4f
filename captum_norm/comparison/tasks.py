"""What does a model's output say of a text, and where is it read?  One question for each task of transformers' heads.

A head's class tells its task.  Each task says how the text goes in, which row of the output is explained, and what its
numbers are: classes, tokens of the vocabulary, positions of the text, or one value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_norm.class_names import ClassNames
from captum_norm.forward import HFForward
from captum_norm.forward.inputs import check_model
from captum_norm.numerals import number_of, whole_number
from captum_norm.suggestions import did_you_mean
from captum_norm.text_files import check_characters
from captum_norm.words import special_tokens, words_of

Row = int | Literal["mean"] | None
Meaning = Literal["classes", "tokens", "positions", "value", "none"]

# By the end of a class's name; an encoder without a head compares two texts, or predicts nothing.
_HEADS = {
    "ForSequenceClassification": "sequence classification",
    "ForTokenClassification": "token classification",
    "ForQuestionAnswering": "question answering",
    "ForMultipleChoice": "multiple choice",
    "ForMaskedLM": "masked language model",
    "ForCausalLM": "causal language model",
    "LMHeadModel": "causal language model",
    "ForConditionalGeneration": "sequence to sequence",
    "ForSeq2SeqLM": "sequence to sequence",
    "MTModel": "sequence to sequence",
}
TASKS = (*dict.fromkeys(_HEADS.values()), "similarity", "none")
"""The tasks that are told apart."""


@dataclass(frozen=True)
class Question:
    """One row of a model's output, ready to be explained.

    Attributes:
        task: of `TASKS`.
        model: what is run: the model, or the model with what makes one number of its output.
        tokenizer: the model's.
        text: what went in, as ``words_of`` takes it.
        encoding: of it.
        position: whose row is explained, ``"mean"`` for the mean of all; None: the one that the output is read from.
        meaning: what the numbers of the row are.
        values: (class,), the row; empty where the model predicts nothing.
        chances: (class,), the probabilities they stand for; None where they stand for none.
        allowed: the entries that can be predicted; None: all.
        note: what was taken, in words; ``""`` where the task says it all.
    """

    task: str
    model: nn.Module
    tokenizer: Any
    text: Any
    encoding: Any
    position: Row
    meaning: Meaning
    values: Tensor
    chances: Tensor | None = None
    allowed: Tensor | None = None
    note: str = ""

    @property
    def predicted(self) -> int:
        """The entry with the largest value."""
        values = self.values if self.allowed is None else self.values.masked_fill(~self.allowed, -torch.inf)
        return int(values.argmax())

    def label(self, index: int) -> str:
        """What an entry stands for."""
        if self.meaning == "tokens":
            return repr(self.tokenizer.decode([index]))
        if self.meaning == "positions":
            return repr(self.tokenizer.decode(self.encoding["input_ids"][0, index : index + 1]).strip())
        if self.meaning == "value" or (self.chances is None and len(self.values) == 1):
            return {"similarity": "the cosine", "multiple choice": "the choice's logit"}.get(self.task, "the value")
        return ClassNames.of(self.model).names.get(index, str(index))

    def index_of(self, asked: str | int) -> int:
        """The entry that a class's name, a token, a word of the text or a number means.

        An int is a number.  A str is a name first: digits are the number of a class or of a token only where no class
        is called so and no token is written so.

        Raises:
            TypeError: for what is neither.
            ValueError: if there is none, if several classes are called so, or if digits are a word of the text and the
                number of another.
        """
        if not isinstance(asked, str):
            return self._numbered(number_of(asked, "a target"))
        check_characters("the target", asked)
        known = ClassNames.of(self.model)
        try:
            named = known.number_of(asked) if self.meaning == "classes" else None
        except ValueError as error:
            raise ValueError(f"target {error}") from None
        if named is not None:
            return named
        if self.meaning == "positions":
            return find_position(self.encoding, self.text, asked, last=True)
        token = self._token(asked) if self.meaning == "tokens" else None
        if token is not None:
            return token
        number = whole_number(asked)
        if number is not None:
            return self._numbered(number)
        if self.meaning == "tokens":
            cut = self.tokenizer.convert_ids_to_tokens(self.tokenizer(asked, add_special_tokens=False)["input_ids"])
            raise ValueError(
                f"target {asked!r} should be one token of the vocabulary, but the tokenizer makes {cut} of it."
            )
        raise ValueError(f"target {asked}: no such class. There are: {', '.join(known)}.{did_you_mean(asked, known)}")

    def _numbered(self, number: int) -> int:
        """The entry of a number."""
        if 0 <= number < len(self.values):
            return number
        raise ValueError(f"target {number}: the model has {len(self.values)} outputs, 0 to {len(self.values) - 1}.")

    def _token(self, written: str) -> int | None:
        """The one token that a text is; None where it is several, or none that the vocabulary has."""
        pieces = self.tokenizer(written, add_special_tokens=False)["input_ids"]
        token = pieces[0] if len(pieces) == 1 else self.tokenizer.get_vocab().get(written)
        unknown = token == self.tokenizer.unk_token_id and written != self.tokenizer.unk_token
        return None if token is None or unknown else int(token)


def question(
    model: Any, tokenizer: Any, text: str, pair: str | None = None, *, position: int | str | None = None
) -> Question:
    """What a model says of a text, by its task.

    Args:
        model: with a head of transformers', in evaluation mode.
        tokenizer: its tokenizer.
        text: the text; a question for question answering.
        pair: the second text: of a pair of sentences, the context of a question, one choice of a multiple choice, or
            what an encoder without a head compares the text with.
        position: whose row is explained: a number of a token, negative from the end, or a word of the text; None: the
            row that the model answers from; of a token classifier the token that it is surest of.

    Raises:
        TypeError: for what is no model, tokenizer or text.
        ValueError: for a task that needs a pair or a mask and has none, and a position that is not there.
    """
    check_model(model)
    if not callable(tokenizer):
        raise TypeError(f"the tokenizer should be one of transformers', got {type(tokenizer).__name__}.")
    for given_text in (text, *([] if pair is None else [pair])):
        if not isinstance(given_text, str):
            raise TypeError(f"one text is explained at a time, as a str, got {type(given_text).__name__}.")
        if not given_text.strip():
            raise ValueError("the text is empty: there is nothing to explain.")
        check_characters("the text" if given_text is text else "the pair", given_text)
    task = task_of(model, pair)
    if task in ("question answering", "multiple choice") and pair is None:
        what = "the context" if task == "question answering" else "one of the choices"
        raise ValueError(f"{type(model).__name__} reads two texts: give {what} as the pair (--pair).")
    given = (text,) if pair is None or task == "similarity" else (text, pair)
    encoding = tokenizer(*given, return_tensors="pt", padding=False).to(model.device)
    if not encoding["input_ids"].numel():
        raise ValueError("the tokenizer makes no token of this text: there is nothing to explain.")
    texts: Any = given if len(given) == 2 else text
    place = None if position is None else find_position(encoding, texts, position)
    return _ASKED[task](_Asked(task, model, tokenizer, texts, encoding, place, pair))


def task_of(model: Any, pair: str | None = None) -> str:
    """The task of a model, by its class: of `TASKS`."""
    title = type(model).__name__
    found = next((task for ending, task in _HEADS.items() if title.endswith(ending)), None)
    return found or ("none" if pair is None else "similarity")


def find_position(encoding: Any, text: Any, asked: int | str, *, last: bool = False) -> int:
    """The token that a number or a word means: the first of the word, where it first (or last) occurs.

    Raises:
        ValueError: for a number out of range, a word that the text does not have, and digits that are a word of the
            text and the number of another token.
    """
    length = encoding["input_ids"].shape[1]
    number = whole_number(asked) if isinstance(asked, str) else number_of(asked, "a position")
    of_number = number % length if number is not None and -length <= number < length else None
    if isinstance(asked, str) and (number is None or getattr(encoding, "encodings", None)):
        words = words_of(encoding, text, split="punctuation")
        places = [place for place, word in enumerate(words.strings) if word.lower() == asked.lower()]
        if number is None and not places:
            known = dict.fromkeys(words.strings)
            raise ValueError(f"position {asked!r}: the text has no such word.{did_you_mean(asked, known)}")
        if places:
            of_word = words.index.index(places[-1 if last else 0])
            if of_number in (None, of_word):
                return of_word
            raise ValueError(
                f"position {asked!r} is a word of the text, token {of_word}, and the number of another token. Count "
                f"from the end: {of_word - length} is the word, {of_number - length} the other."
            )
    if of_number is None:
        raise ValueError(f"position {asked}: the text has {length} tokens, 0 to {length - 1}.")
    return of_number


@dataclass(frozen=True)
class _Asked:
    """What a task makes its question of."""

    task: str
    model: Any
    tokenizer: Any
    text: Any
    encoding: Any
    position: int | None
    pair: str | None

    def row(self, position: int | None = None, model: nn.Module | None = None) -> Tensor:
        """The model's output at a position, (class,), in float64 on the CPU."""
        forward = HFForward(model or self.model, position=position)
        given = forward.inputs(self.encoding)
        with torch.no_grad():
            [values] = forward(given["inputs"], *(given["additional_forward_args"] or ()))
        return values.cpu().double()

    def question(self, meaning: Meaning, values: Tensor, position: Row = None, **others: Any) -> Question:
        model = others.pop("model", self.model)
        return Question(
            self.task, model, self.tokenizer, self.text, self.encoding, position, meaning, values, **others
        )

    def token(self, position: int) -> str:
        return repr(self.tokenizer.decode(self.encoding["input_ids"][0, position : position + 1]).strip())


def _classes(asked: _Asked) -> Question:
    values = asked.row(asked.position)
    problem = getattr(asked.model.config, "problem_type", None)
    chances: Tensor | None = values.softmax(-1)
    note = ""
    if problem == "multi_label_classification":
        chances, note = values.sigmoid(), "each label by itself"
    elif problem == "regression" or len(values) == 1:
        chances, note = None, "regression"
    return asked.question("classes", values, asked.position, chances=chances, note=note)


def _token_classes(asked: _Asked) -> Question:
    position = asked.position
    if position is None:
        with torch.no_grad():
            chances = asked.model(**asked.encoding).logits[0].double().softmax(-1).cpu()
        outside = [i for i, name in asked.model.config.id2label.items() if str(name).upper() == "O"]
        sure = 1 - chances[:, outside].sum(-1) if outside else chances.max(-1).values
        special = torch.tensor(special_tokens(asked.encoding, asked.tokenizer))
        position = int(sure.masked_fill(special, -1.0).argmax())
    values = asked.row(position)
    note = f"the token {asked.token(position)}, at position {position}"
    return asked.question("classes", values, position, chances=values.softmax(-1), note=note)


def _answer(asked: _Asked) -> Question:
    values = asked.row()
    sequences = asked.encoding.sequence_ids(0) if getattr(asked.encoding, "encodings", None) else None
    allowed = None if sequences is None else torch.tensor([one == 1 for one in sequences])
    inside = values if allowed is None else values.masked_fill(~allowed, -torch.inf)
    start = int(inside.argmax()) if asked.position is None else asked.position
    return asked.question(
        "positions", values, start, chances=inside.softmax(-1), allowed=allowed, note="where the answer begins"
    )


def _choice(asked: _Asked) -> Question:
    model = _OneChoice(asked.model)
    return asked.question("value", asked.row(model=model), model=model, note=f"the choice {asked.pair!r}")


def _masked(asked: _Asked) -> Question:
    mask = asked.tokenizer.mask_token
    places = (asked.encoding["input_ids"][0] == asked.tokenizer.mask_token_id).nonzero().flatten().tolist()
    if asked.position is None and not places:
        raise ValueError(f"{type(asked.model).__name__} guesses masked words: write {mask} in the text for one.")
    position = places[0] if asked.position is None else asked.position
    values = asked.row(position)
    note = f"the first of {len(places)} masks" if asked.position is None and len(places) > 1 else ""
    return asked.question("tokens", values, position, chances=values.softmax(-1), note=note)


def _next(asked: _Asked) -> Question:
    values = asked.row(asked.position)
    return asked.question("tokens", values, asked.position, chances=values.softmax(-1))


def _similarity(asked: _Asked) -> Question:
    other = asked.tokenizer(asked.pair, return_tensors="pt", padding=False).to(asked.model.device)
    model = _Similarity(asked.model)
    with torch.no_grad():
        model.other = model.embedded(other["input_ids"], other.get("attention_mask"))
    note = f"with {asked.pair!r}, by the mean of the last layer's vectors"
    place: Row = "mean" if asked.position is None else asked.position
    return asked.question("value", asked.row(model=model), place, model=model, note=note)


def _nothing(asked: _Asked) -> Question:
    return asked.question("none", torch.empty(0), asked.position)


_ASKED: dict[str, Callable[[_Asked], Question]] = {
    "sequence classification": _classes,
    "token classification": _token_classes,
    "question answering": _answer,
    "multiple choice": _choice,
    "masked language model": _masked,
    "causal language model": _next,
    "sequence to sequence": _next,
    "similarity": _similarity,
    "none": _nothing,
}


class _Around(nn.Module):
    """A model with something around it that makes one number of its output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.train(model.training)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device


class _OneChoice(_Around):
    """The logit of one choice, (batch, 1)."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(**{name: one[:, None] for name, one in given.items() if one is not None}).logits


class _Similarity(_Around):
    """The cosine of the mean of the last layer's vectors with that of another text, (batch, 1)."""

    other: Tensor

    def embedded(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mean of the states, (batch, model); one text, so there is no padding among them."""
        states = getattr(self.model(input_ids=input_ids, attention_mask=attention_mask), "last_hidden_state", None)
        if states is None:
            raise ValueError(
                f"two texts are compared by the last layer's states, and {type(self.model).__name__} gives none: load "
                "the encoder alone (AutoModel), or leave the pair out."
            )
        return states.mean(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found = self.embedded(input_ids, attention_mask)
        return nn.functional.cosine_similarity(found, self.other.expand_as(found), dim=-1)[:, None]
