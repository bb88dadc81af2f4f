"""What a planted truth is: a model, its texts, and the words that its answer rests on by construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from captum_norm.study.data import Example


@dataclass(frozen=True)
class Planted:
    """A model whose evidence is known.

    Attributes:
        name: how it is called.
        description: how the truth was planted, in a sentence.
        model: a Hugging Face model, in evaluation mode; its classes are those of the texts' labels.
        tokenizer: its tokenizer; a token is a word.
        examples: texts with label and evidence; the model classifies every one as labelled.
        accuracy: the share of fresh texts that it is right about.
    """

    name: str
    description: str
    model: nn.Module
    tokenizer: Any
    examples: tuple[Example, ...]
    accuracy: float = 1.0
