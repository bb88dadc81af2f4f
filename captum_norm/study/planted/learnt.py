"""Models that have learnt to answer from a context, so that it is known on which statements their answers rest.

    python -m captum_norm.study.planted.learnt --folder planted --seed 0

One decoder learns six of the tasks of `contexts` together, a deeper one chains, an encoder facts: each in seconds on
one core, since they begin with heads that look up (`start`).  Weights are kept in the folder and taken from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count as numbers
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captum_norm.files import replacing
from captum_norm.study.data import Example
from captum_norm.study.planted.contexts import (
    TASKS,
    VOCABULARY,
    Context,
    context_tokenizer,
    lesson,
    masked_questions,
)
from captum_norm.study.planted.start import begin_decoder, begin_encoder
from captum_norm.study.planted.truth import Planted

_NOT_LEARNT = -100
_FRESH = 500  # texts that tell whether a model knows a task


@dataclass(frozen=True)
class Pupil:
    """A model and what it learns.

    Attributes:
        tasks: which, in turns; one that stands here twice is learnt from twice as often.
        build: makes it.
        steps: how many batches it learns from at most; fewer, once it knows all tasks.
        batch: texts in each.
        learning_rate: behind a warm-up of 50 steps; it falls in the last third.
        masked: whether it is an encoder, whose questions are masks.
        needed: what share of fresh texts it must be right about to be a truth.
    """

    tasks: tuple[str, ...]
    build: Callable[[], Any]
    steps: int
    batch: int = 32
    learning_rate: float = 3e-3
    masked: bool = False
    needed: float = 0.95


def _decoder(layers: int) -> Callable[[], Any]:
    def build() -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=128,
            max_position_embeddings=128,
            attention_bias=True,
            initializer_range=0.05,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=None,
        )
        model = LlamaForCausalLM(config)
        begin_decoder(model)
        return model

    return build


def _encoder() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.02,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    model = BertForMaskedLM(config)
    begin_encoder(model)
    return model


PUPILS = {
    "recall": Pupil(tuple("keys written injected induction needle copy".split()), _decoder(2), 600),
    "chain": Pupil(("chain",), _decoder(4), 450),
    "facts": Pupil(("facts",), _encoder, 600, masked=True),
}
"""Which model learns which tasks."""


def learnt(task: str, seed: int = 0, count: int = 100, folder: str | Path | None = None) -> Planted:
    """A model that answers from a context, and texts that it answers rightly.

    Args:
        task: one of `TASKS`.
        seed: of initial weights, lessons and texts.
        count: how many texts.
        folder: where weights are kept; None trains anew.

    Returns:
        The truth; its ``accuracy`` is the share of 500 fresh texts that the model is right about.

    Raises:
        ValueError: for another task.
        RuntimeError: if the model has not learnt the task, so that it is not known what it rests on.
    """
    if task not in TASKS:
        raise ValueError(f"learnt: there are {', '.join(TASKS)}, not {task!r}.")
    name, pupil = next((name, of) for name, of in PUPILS.items() if task in of.tasks)
    model, tokenizer = _model(name, pupil, seed, folder), context_tokenizer()
    accuracy = sum(right for _, right in _answered(model, pupil, task, Random(f"test {seed}"), _FRESH)) / _FRESH
    if accuracy < pupil.needed:
        raise RuntimeError(
            f"{task} (seed {seed}) is right about {accuracy:.1%} of {_FRESH} texts after training, so it is not known "
            "what it rests on. Take another seed."
        )
    examples: list[Example] = []
    for context, right in _answered(model, pupil, task, Random(f"texts {seed}"), None):
        if right:
            examples.append(context.example(str(len(examples)), masked=pupil.masked))
        if len(examples) == count:
            break
    description = f"Trained to answer from statements of which it is known which decide ({task})."
    return Planted(task, description, model, tokenizer, tuple(examples), accuracy)


def _model(name: str, pupil: Pupil, seed: int, folder: str | Path | None) -> Any:
    """The trained model, from the folder if it is there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = pupil.build().train(False)  # without dropout: so small a model needs none
        path = None if folder is None else Path(folder) / f"{name}-{seed}.safetensors"
        if path is not None and path.exists():
            model.load_state_dict(load_file(path), strict=False)  # tied weights are there once
            return model
        _train(model, pupil, Random(f"lessons {seed}"))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            own = {n: p.detach().clone() for n, p in model.named_parameters()}
            save_file(own, unfinished)
    return model


def _train(model: Any, pupil: Pupil, random: Random) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=pupil.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1.0, 3 * (pupil.steps - step) / pupil.steps)
    )
    for step in range(pupil.steps):
        if step and step % 150 == 0 and _knows(model, pupil, step):
            return
        task = pupil.tasks[step % len(pupil.tasks)]
        ids, wanted = _encoded(lesson(task, random, pupil.batch), pupil.masked)
        learnt = wanted != _NOT_LEARNT
        logits = model(ids, attention_mask=(ids != 0).long()).logits
        loss = nn.functional.cross_entropy(logits[learnt], wanted[learnt])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _knows(model: Any, pupil: Pupil, step: int) -> bool:
    """Whether it is right about 199 of 200 texts of every task."""
    return all(
        sum(right for _, right in _answered(model, pupil, task, Random(f"known {step}"), 200)) > 198
        for task in dict.fromkeys(pupil.tasks)
    )


def _encoded(contexts: Sequence[Context], masked: bool) -> tuple[Tensor, Tensor]:
    """Ids, and at each row the id that it should predict, (text, token) each."""
    rows = [_masked_lesson(context) if masked else _written_lesson(context) for context in contexts]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    return ids, torch.tensor([row + [_NOT_LEARNT] * (longest - len(row)) for _, row in rows])


def _written_lesson(context: Context) -> tuple[list[int], list[int]]:
    words = [("[BOS]", False), *((word, False) for statement in context.statements for word in statement)]
    for question in context.questions:
        words += [(word, False) for word in question.words] + [(word, True) for word in question.written]
        words.append((".", False))
    ids = [VOCABULARY[word] for word, _ in words]
    wanted = [VOCABULARY[word] if learnt else _NOT_LEARNT for word, learnt in words[1:]]
    return ids, [*wanted, _NOT_LEARNT]


def _masked_lesson(context: Context) -> tuple[list[int], list[int]]:
    words = [*masked_questions(context.questions), *(word for statement in context.statements for word in statement)]
    answers = [VOCABULARY[question.written[-1]] for question in context.questions]
    wanted = [number for answer in answers for number in (answer, _NOT_LEARNT)]
    return [VOCABULARY[word] for word in words], wanted + [_NOT_LEARNT] * (len(words) - len(wanted))


def _answered(model: Any, pupil: Pupil, task: str, random: Random, count: int | None) -> Iterator[tuple[Context, bool]]:
    """Fresh texts, and whether the model answers the first question rightly; without end where count is None."""
    for start in numbers(0, 50):
        contexts = [TASKS[task](random) for _ in range(50 if count is None else min(50, count - start))]
        if not contexts:
            return
        asked = contexts if pupil.masked else [replace(of, questions=of.questions[:1]) for of in contexts]
        ids, wanted = _encoded(asked, pupil.masked)
        with torch.no_grad():
            written = model(ids, attention_mask=(ids != 0).long()).logits.argmax(-1)
        for context, row, should in zip(contexts, written, wanted, strict=True):
            places = (should != _NOT_LEARNT).nonzero()[:, 0]
            places = places[:1] if pupil.masked else places
            yield context, bool((row[places] == should[places]).all())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every model of a seed, and say how well it knows its tasks."""
    parser = argparse.ArgumentParser(
        prog="python -m captum_norm.study.planted.learnt",
        description="Trains the models of which it is known on which statements their answers rest.",
        epilog="example: python -m captum_norm.study.planted.learnt --folder planted --seed 0",
    )
    parser.add_argument("--folder", required=True, type=Path, help="where weights are kept")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of weights, lessons and texts (0)")
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS), help="which tasks (all)")
    asked = parser.parse_args(arguments)
    for seed in asked.seed:
        for task in asked.task:
            start = time.perf_counter()
            try:
                said = f"right about {learnt(task, seed, 1, asked.folder).accuracy:.1%} of 500 fresh texts"
            except RuntimeError as error:
                said = str(error)
            print(f"{task}, seed {seed}: {said} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
