"""Three BERT classifiers of one layer whose weights are written by hand, so that it is known which words decide.

Every token's embedding is a unit vector with zero mean, a sum of a few directions that are orthogonal to each other:

    key     of the trigger words, and another one for the words that only attract attention
    class   + or - for the trigger words of either class, almost nothing for the others
    out     held by no word: where a head writes what it found
    own     one for each word

To this comes one more direction, the same for every token, through the token types; so a word that is taken out of its
place leaves something, and a word that is made smaller is weaker beside it, which a layer norm alone would undo.

Queries are the same for every token, so a head's weights depend on the keys alone; a head's values are what the token
holds of *class*; the classifier reads *out* at [CLS].  The feed-forward layer is zero and the layer norms only scale.
In which directions all this lies is drawn from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_norm.study.planted.texts import DECOYS, SPECIAL_TOKENS, TRIGGERS, WORDS, draw_examples, word_tokenizer
from captum_norm.study.planted.truth import Planted

_WIDTH, _HEADS = 64, 2
_TRIGGER_KEY, _DECOY_KEY, _CLASS, _OUT, _COMMON, _OWN = range(6)  # places of the directions; each word's own come last
_PART = 0.6  # how much of a unit vector a key, or a class, is


@dataclass(frozen=True)
class _Head:
    """What a head does: by what factor triggers and decoys outweigh other tokens, and whether it passes anything on."""

    trigger: float = 1.0
    decoy: float = 1.0
    reads_class: bool = True


def copy_head(seed: int = 0, count: int = 100) -> Planted:
    """One head attends to the trigger words and copies their class; the other attends to all alike and copies nothing.

    Weights and norms both find the triggers: who fails here, fails at the simplest.

    Args:
        seed: of directions and texts.
        count: how many texts.
    """
    heads = (_Head(trigger=100.0), _Head(reads_class=False))
    return _planted("copy_head", heads, seed, count, "One head attends to the trigger words and copies their class.")


def zero_value_head(seed: int = 0, count: int = 100) -> Planted:
    """One head copies from the trigger words at little weight; the other gives decoys much weight and has zero values.

    Who reads weights finds the decoys; who looks at what is passed on finds the triggers.

    Args:
        seed: of directions and texts.
        count: how many texts.

    Example:
        >>> zero_value_head(count=2).name
        'zero_value_head'
    """
    heads = (_Head(trigger=4.0), _Head(decoy=200.0, reads_class=False))
    return _planted(
        "zero_value_head", heads, seed, count, "One head gives decoys high weights, but all its values are zero."
    )


def sink_head(seed: int = 0, count: int = 100) -> Planted:
    """Both heads rest on decoys, which hold next to nothing, and copy from the trigger words at lower weight.

    As trained models rest on [SEP] and full stops: large weight, small vector (Kobayashi et al. 2020,
    https://arxiv.org/abs/2004.10102, section 4).

    Args:
        seed: of directions and texts.
        count: how many texts.
    """
    heads = (_Head(trigger=8.0, decoy=60.0), _Head(trigger=4.0, decoy=60.0))
    return _planted("sink_head", heads, seed, count, "Both heads rest on decoys, whose values are next to nothing.")


def _planted(name: str, heads: tuple[_Head, ...], seed: int, count: int, description: str) -> Planted:
    return Planted(name, description, _model(heads, seed), word_tokenizer(), tuple(draw_examples(count, seed)))


def _model(heads: tuple[_Head, ...], seed: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(WORDS),
        hidden_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=_HEADS,
        intermediate_size=_WIDTH,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("LayerNorm.weight" in name))
        directions = _directions(generator)
        model.bert.embeddings.word_embeddings.weight.copy_(_coordinates(generator) @ directions)
        model.bert.embeddings.token_type_embeddings.weight.copy_(directions[_COMMON])
        attention = model.bert.encoder.layer[0].attention
        for number, head in enumerate(heads):
            _write_head(attention, number, head, directions, generator)
        model.bert.pooler.dense.weight[0] = 0.4 * directions[_OUT]
        model.classifier.weight[:, 0] = torch.tensor([-2.5, 2.5])
    return model.train(False)


def _directions(generator: torch.Generator) -> Tensor:
    """Orthogonal unit vectors with zero mean, which a layer norm only scales: (direction, width)."""
    drawn = torch.randn(_WIDTH, _WIDTH, generator=generator, dtype=torch.float64)
    drawn[:, 0] = 1.0
    return torch.linalg.qr(drawn).Q.T[1:].float()


def _coordinates(generator: torch.Generator) -> Tensor:
    """What each token's embedding holds of each direction, of length one in all: (token, direction)."""
    tokens = (*SPECIAL_TOKENS, *WORDS)
    held = torch.zeros(len(tokens), _WIDTH - 1)
    held[:, _CLASS] = 0.03 * (2 * torch.rand(len(tokens), generator=generator) - 1)
    for number, token in enumerate(tokens):
        for sign, triggers in zip((-1, 1), TRIGGERS, strict=True):
            if token in triggers:
                held[number, _TRIGGER_KEY], held[number, _CLASS] = _PART, sign * _PART
        if token in DECOYS:
            held[number, _DECOY_KEY] = _PART
        held[number, _OWN + number] = (1 - held[number].square().sum()).sqrt()
    return held


def _write_head(attention: Any, number: int, head: _Head, directions: Tensor, generator: torch.Generator) -> None:
    """One head's queries, keys, values and its part of the output projection."""
    width = _WIDTH // _HEADS
    rows = slice(number * width, (number + 1) * width)
    asked, carried = (torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0) for _ in range(2))
    # A word and what is common to all have length sqrt(2) together; a layer norm makes it sqrt(width of the model).
    scale = 1 / (_PART * (_WIDTH / 2) ** 0.5)
    wanted = directions[[_TRIGGER_KEY, _DECOY_KEY]].T @ torch.tensor([head.trigger, head.decoy]).log()
    attention.self.query.bias[rows] = asked * width**0.5
    attention.self.key.weight[rows] = torch.outer(asked, wanted) * scale
    attention.self.value.weight[rows] = torch.outer(carried, directions[_CLASS]) * scale * head.reads_class
    attention.output.dense.weight[:, rows] = torch.outer(directions[_OUT], carried) * 8
