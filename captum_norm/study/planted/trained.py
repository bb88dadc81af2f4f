"""Two tiny classifiers, trained here in seconds on texts whose label rests on trigger words alone.

A model that is right about such texts must have used the triggers, wherever its layers put them together; how it does
is its own affair.  Decoys occur in every text, of either class.  Labels are smoothed in training, so that probabilities
stay away from 1 and a word taken out can be seen in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.study.data import Example
from captum_norm.study.planted.texts import SPECIAL_TOKENS, WORDS, draw_examples, word_tokenizer
from captum_norm.study.planted.truth import Planted

_VOCABULARY = len(SPECIAL_TOKENS) + len(WORDS)
_STEPS, _BATCH, _LEARNING_RATE = 200, 32, 3e-3


def trained_encoder(seed: int = 0, count: int = 100) -> Planted:
    """A BERT classifier of two layers that has learned which words decide.

    Args:
        seed: of initial weights and texts.
        count: how many texts.

    Raises:
        RuntimeError: if it has not learned them, so that its evidence is not known.
    """
    return _planted("trained_encoder", _encoder, seed, count)


def trained_decoder(seed: int = 0, count: int = 100) -> Planted:
    """A Llama classifier of two layers, causal, that has learned which words decide; it answers at the last token.

    Args:
        seed: of initial weights and texts.
        count: how many texts.

    Raises:
        RuntimeError: if it has not learned them, so that its evidence is not known.
    """
    return _planted("trained_decoder", _decoder, seed, count)


def _encoder() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return BertForSequenceClassification(config)


def _decoder() -> Any:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]


def _planted(name: str, build: Callable[[], Any], seed: int, count: int) -> Planted:
    tokenizer = word_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().train(False)  # without dropout: so small a model needs none
        _train(model, tokenizer, draw_examples(_STEPS * _BATCH, seed + 1))
    examples = draw_examples(count, seed)
    with torch.no_grad():
        right = model(**_encoded(tokenizer, examples)).logits.argmax(-1) == _labels(examples)
    if not right.all():
        raise RuntimeError(
            f"{name}(seed={seed}) is wrong about {int((~right).sum())} of {count} texts after training, so it is not "
            "known what it rests on. Take another seed."
        )
    return Planted(
        name, "Trained on texts whose label rests on trigger words alone.", model, tokenizer, tuple(examples)
    )


def _train(model: Any, tokenizer: Any, examples: list[Example]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        loss = nn.functional.cross_entropy(
            model(**_encoded(tokenizer, batch)).logits, _labels(batch), label_smoothing=0.1
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _encoded(tokenizer: Any, examples: list[Example]) -> Any:
    return tokenizer([example.text for example in examples], return_tensors="pt", padding=True)


def _labels(examples: list[Example]) -> Tensor:
    return torch.tensor([example.label for example in examples])
