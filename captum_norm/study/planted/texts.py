"""Texts made of words that mean nothing, words that decide the class, and words that only look as if they did."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from captum_norm.study.data import Example

TRIGGERS: tuple[tuple[str, ...], ...] = (("dull", "awful", "clumsy"), ("superb", "lovely", "moving"))
"""The words that decide the class, by class."""

DECOYS: tuple[str, ...] = ("famous", "loud", "bright")
"""Words that occur in texts of either class alike, and say nothing of it."""

FILLERS: tuple[str, ...] = tuple(
    "lamp river table stone window paper garden bottle street cloud button ladder kettle pencil carpet harbour".split()
)
"""All other words."""

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*TRIGGERS[0], *TRIGGERS[1], *DECOYS, *FILLERS)


def draw_examples(count: int, seed: int, *, decoys: int = 2) -> list[Example]:
    """Texts of 10 to 16 words in random order: one or two triggers of the label's class, decoys, and fillers.

    Args:
        count: how many; the two classes take turns.
        seed: of the draws.
        decoys: how many decoys each text holds.

    Raises:
        ValueError: if ``count`` is below 1.

    Example:
        >>> [example] = draw_examples(1, seed=0)
        >>> [example.text[start:end] for start, end in example.evidence][0] in TRIGGERS[example.label]
        True
    """
    if count < 1:
        raise ValueError(f"a planted truth needs at least one example, got {count}.")
    random = Random(seed)
    return [_example(random, number, decoys) for number in range(count)]


def _example(random: Random, number: int, decoys: int) -> Example:
    label = number % 2
    triggers = random.choices(TRIGGERS[label], k=random.choice((1, 2)))
    plain = random.choices(DECOYS, k=decoys) + random.choices(FILLERS, k=random.randint(9, 14) - decoys)
    words = [(word, True) for word in triggers] + [(word, False) for word in plain]
    random.shuffle(words)
    return Example(" ".join(word for word, _ in words), label, _spans(words), key=str(number), where=f"text {number}")


def _spans(words: Sequence[tuple[str, bool]]) -> tuple[tuple[int, int], ...]:
    """Where in the text the words that are marked stand."""
    spans, start = [], 0
    for word, marked in words:
        if marked:
            spans.append((start, start + len(word)))
        start += len(word) + 1
    return tuple(spans)


def word_tokenizer() -> Any:
    """A tokenizer to which every word is a token, between [CLS] and [SEP]."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    model: Any = WordLevel(ids, unk_token="[UNK]")
    pieces: Any = Tokenizer(model)
    pieces.pre_tokenizer = WhitespaceSplit()
    pieces.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    make: Any = PreTrainedTokenizerFast  # its constructor carries no types
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return make(
        tokenizer_object=pieces, model_max_length=64, model_input_names=["input_ids", "attention_mask"], **names
    )
