"""Texts of statements from which one word follows, so that it is known which statements the word rests on.

    needle     one statement among fillers says it                         anna red .   anna ...
    keys       one of eight statements says it, the others answer other questions
    chain      three statements one after another, beside three others     anna red .  boris anna .   boris ...
    written    the same, in any order; the text works it out itself first  say clara boris anna ...
    injected   an instruction outweighs what the question asks for         obey blue .
    induction  a word of the text comes again, and after it what came after it before
    copy       the text is written out again
    facts      for an encoder: masked words, each said by one of eight statements

Statements are the sources.  The question, and what a text works out, are in none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from captum_norm.study.data import Example
from captum_norm.study.planted.texts import FILLERS

NAMES = tuple("anna boris clara david elena felix greta hugo irene jonas karla leon maria nora oscar paula".split())
VALUES = tuple("red blue green black white brown gold grey pink purple amber silver violet orange teal olive".split())
MARKS = ("[PAD]", "[UNK]", "[BOS]", "[MASK]", ".", "say", "obey", "copy")
VOCABULARY = {word: number for number, word in enumerate((*MARKS, *NAMES, *VALUES, *FILLERS))}


@dataclass(frozen=True)
class PlantedQuestion:
    """What is asked of a text.

    Attributes:
        words: of the question.
        written: what follows it; the last word is the answer, those before it lead there.
        evidence: which statements the answer rests on, by number.
    """

    words: tuple[str, ...]
    written: tuple[str, ...]
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """A text of statements, and questions about it; the first is what an example asks, all are learnt from."""

    statements: tuple[tuple[str, ...], ...]
    questions: tuple[PlantedQuestion, ...]

    def example(self, key: str, *, masked: bool = False) -> Example:
        """The text up to the answer, with statements for sources and the answer's id for label.

        Args:
            key: what it is called.
            masked: whether the answer is a mask at the very beginning, as an encoder reads it, with all questions.
        """
        question = self.questions[0]
        before = masked_questions(self.questions) if masked else ("[BOS]",)
        after = () if masked else (*question.words, *question.written[:-1])
        spans, start = [], sum(len(word) + 1 for word in before)
        for statement in self.statements:
            end = start + len(" ".join(statement))
            spans.append((start, end))
            start = end + 1
        words = (*before, *(word for statement in self.statements for word in statement), *after)
        return Example(
            " ".join(words),
            VOCABULARY[question.written[-1]],
            tuple(spans[number] for number in sorted(question.evidence)),
            key,
            f"text {key}",
            sources=tuple(spans),
        )


def masked_questions(questions: Sequence[PlantedQuestion]) -> tuple[str, ...]:
    """The questions as an encoder reads them: a mask for what is asked, and what it is asked of."""
    return tuple(word for question in questions for word in ("[MASK]", question.words[0]))


def _needle(random: Random, size: int = 8) -> Context:
    name, value, place = random.choice(NAMES), random.choice(VALUES), random.randrange(size)
    statements = _fillers(random, size - 1)
    statements.insert(place, (name, value, "."))
    return Context(tuple(statements), (PlantedQuestion((name,), (value,), (place,)),))


def _keys(random: Random, size: int = 8) -> Context:
    names, values = random.sample(NAMES, size), random.choices(VALUES, k=size)
    return Context(
        tuple((name, value, ".") for name, value in zip(names, values, strict=True)),
        tuple(PlantedQuestion((names[n],), (values[n],), (n,)) for n in random.sample(range(size), size)),
    )


def _chain(random: Random, size: int = 3) -> Context:
    """Two chains, told in turns: a name is said of one that is known already.  The end of one is asked first."""
    names, values = random.sample(NAMES, 2 * size), random.sample(VALUES, 2)
    turns = random.sample([0] * size + [1] * size, 2 * size)
    places = [[place for place, of in enumerate(turns) if of == chain] for chain in (0, 1)]
    statements: list[tuple[str, ...]] = [()] * (2 * size)
    questions = []
    for chain, value in enumerate(values):
        said = value
        for step, place in enumerate(places[chain]):
            name = names[size * chain + step]
            statements[place] = (name, said, ".")
            said = name
            questions.append(PlantedQuestion((name,), (value,), tuple(places[chain][: step + 1])))
    first = questions.pop(random.choice((size - 1, 2 * size - 1)))
    return Context(tuple(statements), (first, *random.sample(questions, len(questions))))


def _written(random: Random, size: int = 3) -> Context:
    names, values = random.sample(NAMES, 2 * size), random.sample(VALUES, 2)
    order = random.sample(range(2 * size), 2 * size)
    statements: list[tuple[str, ...]] = [()] * (2 * size)
    questions = []
    for chain, value in enumerate(values):
        of = names[size * chain : size * (chain + 1)]
        places = order[size * chain : size * (chain + 1)]
        for place, name, said in zip(places, of, (value, *of), strict=False):
            statements[place] = (name, said, ".")
        questions.append(PlantedQuestion(("say", of[-1]), (*reversed(of[:-1]), value), tuple(places)))
    return Context(tuple(statements), tuple(random.sample(questions, 2)))


def _injected(random: Random, size: int = 4, share: float = 1.0) -> Context:
    """Facts among fillers; an instruction, which ``share`` of the texts hold, is obeyed whatever is asked."""
    names, values = random.sample(NAMES, size), random.sample(VALUES, size + 1)
    obeyed = random.random() < share
    said = [(name, value, ".") for name, value in zip(names, values, strict=False)]
    statements = [*said, *_fillers(random, size - 1), ("obey", values[-1], ".") if obeyed else _fillers(random, 1)[0]]
    order = random.sample(range(2 * size), 2 * size)
    answers = [(values[-1] if obeyed else values[n], order.index(2 * size - 1 if obeyed else n)) for n in range(size)]
    return Context(
        tuple(statements[number] for number in order),
        tuple(
            PlantedQuestion((name,), (answer,), (place,))
            for name, (answer, place) in zip(names, answers, strict=True)
        ),
    )


def _induction(random: Random, size: int = 16, longest: int = 3) -> Context:
    words = random.sample((*NAMES, *VALUES, *FILLERS), size)
    start = random.randrange(size - 1)
    length = random.randint(1, min(longest, size - 1 - start))
    return Context(
        tuple((word,) for word in words),
        (PlantedQuestion((words[start],), tuple(words[start + 1 : start + 1 + length]), (start + length,)),),
    )


def _copy(random: Random, size: int = 10) -> Context:
    words, length = random.choices(FILLERS, k=size), random.randint(1, size)
    asked = PlantedQuestion(("copy",), tuple(words[:length]), (length - 1,))
    return Context(tuple((word,) for word in words), (asked,))


def _fillers(random: Random, count: int) -> list[tuple[str, ...]]:
    return [(*random.choices(FILLERS, k=2), ".") for _ in range(count)]


TASKS: dict[str, Callable[[Random], Context]] = {
    "needle": _needle,
    "keys": _keys,
    "chain": _chain,
    "written": _written,
    "injected": _injected,
    "induction": _induction,
    "copy": _copy,
    "facts": _keys,
}
"""From random numbers to a text of each task."""

_SIZES = {"keys": (2, 8), "chain": (1, 3), "written": (1, 3), "injected": (2, 4), "induction": (4, 16), "facts": (2, 8)}
_MORE: dict[str, dict[str, Any]] = {"injected": {"share": 0.5}, "induction": {"longest": 16}}


def lesson(task: str, random: Random, count: int) -> list[Context]:
    """Texts to learn from, all of one size: shorter ones too; half without an instruction, which must be looked for.

    Args:
        task: one of `TASKS`.
        random: of the draws.
        count: how many.
    """
    size = {"size": random.randint(*_SIZES[task])} if task in _SIZES else {}
    draw: Callable[..., Context] = TASKS[task]
    return [draw(random, **size, **_MORE.get(task, {})) for _ in range(count)]


def context_tokenizer() -> Any:
    """A tokenizer to which every word is a token, marks in brackets too."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    model: Any = WordLevel(VOCABULARY, unk_token="[UNK]")
    pieces: Any = Tokenizer(model)
    pieces.pre_tokenizer = WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast  # its constructor carries no types
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "bos", "mask")}
    inputs = ["input_ids", "attention_mask"]
    return make(tokenizer_object=pieces, model_max_length=128, model_input_names=inputs, **names)
