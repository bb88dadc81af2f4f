"""How does a translation model train so that it may be killed at any moment?  State, step and checkpoint.

Every random draw depends only on the seed and the number of the step or epoch.  So a checkpoint needs the weights,
their running average, the optimizers' state and how far the run has come, and the result depends neither on
interruptions nor on the number of threads.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Muon, Optimizer
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import MarianMTModel

from captum_norm.files import replacing
from captum_norm.models.training.translation_batches import Part, Row, epoch_batches
from captum_norm.models.translation import EOS, PAD, build_translation


@dataclass(frozen=True)
class TranslationSettings:
    """How to train.

    Attributes:
        seed: of the weights at the start, the order of the data and the dropout.
        tokens: the target pieces, </s> included, after which the run ends.
        cool_down: the last of these tokens, over which the learning rate falls to zero.
        warmup: steps over which it rises.
        learning_rate: its height, for Muon (the layers' matrices) and AdamW (embedding, biases, norms) alike.
        part: the most pieces, padding included, of each of the two parts of a batch.
        dropout: on embeddings and on every sublayer's output.
        averaging: the decay per step of the running average of the weights.  The average is what is shipped.
        joined: the probabilities that a row has one, two, three or four short pairs.
        repeats: how often an epoch has Tatoeba, WMT and Europarl.
        vocabulary: pieces.
        held_out: how many pairs of Tatoeba, WMT and Europarl are kept for tests.
    """

    seed: int = 0
    tokens: int = 60_000_000
    cool_down: int = 6_000_000
    warmup: int = 400
    learning_rate: float = 1e-3
    part: int = 2000
    dropout: float = 0.1
    averaging: float = 0.999
    joined: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    repeats: tuple[float, float, float] = (0.5, 3, 6)
    vocabulary: int = 6000
    held_out: tuple[int, int, int] = (500, 250, 100)


@dataclass
class Progress:
    """How far a run has come.  With the settings, this is enough to resume it exactly.

    Attributes:
        step: steps made.
        tokens: target pieces seen.
        seconds: spent.
        epoch: the current one, counted from 0.
        batch: how many batches of this epoch are done.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch: int = 0
    batch: int = 0


class TranslationRun:
    """A model in training, in a folder of its own.

    Args:
        folder: the place of its checkpoint.
        pieces: its vocabulary.
        settings: how to train.
        threads: how many parts of a batch are computed at once.

    Raises:
        ValueError: if the checkpoint is corrupt or of another model.
    """

    def __init__(self, folder: Path, pieces: Tokenizer, settings: TranslationSettings, threads: int) -> None:
        self.folder, self.pieces, self.settings, self.threads = folder, pieces, settings, threads
        self.progress = Progress()
        torch.manual_seed(settings.seed)
        # torch's fused attention is slow backward on CPUs.
        self.model = build_translation(settings.vocabulary, attn_implementation="eager")
        self.model.train(True)
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        self.optimizers = _optimizers(self.named, settings)
        self._dropout = PooledDropout(self.model, settings.dropout, settings.seed)
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """The file that keeps the state."""
        return self.folder / "checkpoint.safetensors"

    def train(self, data: Sequence[Sequence[Row]], save_every: float = 300.0) -> None:
        """Trains up to the settings' tokens; saves a checkpoint every ``save_every`` seconds and at the end.

        Args:
            data: the rows of Tatoeba, WMT and Europarl.
            save_every: seconds.
        """
        goal, progress = self.settings.tokens, self.progress
        with (
            (self.folder / "log.jsonl").open("a", encoding="utf-8") as log,
            ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as workers,
            tqdm(total=goal, initial=progress.tokens, desc="training", unit="token", unit_scale=True) as bar,
        ):
            watch = _Watch(self, log, bar, save_every)
            while progress.tokens < goal:
                for parts in self._batches(data)[progress.batch :]:
                    watch.note(*self._step(parts, workers))
                    if progress.tokens >= goal:
                        break
                else:
                    progress.epoch, progress.batch = progress.epoch + 1, 0
        self.save()

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        tensors = {f"model.{name}": p.detach() for name, p in self.named.items()}
        tensors |= {f"average.{name}": p for name, p in self.average.items()}
        for name, p in self.named.items():
            for optimizer in self.optimizers:
                tensors |= {f"{key}.{name}": value for key, value in optimizer.state.get(p, {}).items()}
        with replacing(self.checkpoint) as unfinished:
            save_file(tensors, unfinished, {"progress": json.dumps(asdict(self.progress))})

    def _load(self) -> None:
        try:
            with safe_open(self.checkpoint, "pt") as file:
                self.progress = Progress(**json.loads(file.metadata()["progress"]))
                with torch.no_grad():
                    for name, p in self.named.items():
                        p.copy_(file.get_tensor(f"model.{name}"))
                        self.average[name].copy_(file.get_tensor(f"average.{name}"))
                for optimizer in self.optimizers:
                    for name, p in self.named.items():
                        if any(p is q for group in optimizer.param_groups for q in group["params"]):
                            muon = isinstance(optimizer, Muon)
                            keys = ("momentum_buffer",) if muon else ("step", "exp_avg", "exp_avg_sq")
                            optimizer.state[p] = {key: file.get_tensor(f"{key}.{name}") for key in keys}
        except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.checkpoint} is no checkpoint of this run: {error}. Take another folder."
            ) from error

    def _batches(self, data: Sequence[Sequence[Row]]) -> list[list[Part]]:
        s = self.settings
        return epoch_batches(data, s.repeats, s.joined, s.part, self.progress.epoch, s.seed)

    def _step(self, parts: Sequence[Part], workers: ThreadPoolExecutor) -> tuple[float, int]:
        """One step; the loss per target piece, and how many pieces there were."""
        count = sum(len(target) + 1 for part in parts for _, target in part)
        keys = [f"{self.settings.seed}/{self.progress.step}/{n}" for n in range(len(parts))]
        done = list(workers.map(self._gradients, parts, keys, [count] * len(parts)))
        for p, *gradients in zip(self.named.values(), *(gradients for _, gradients in done), strict=True):
            p.grad = sum(gradients[1:], start=gradients[0])
        nn.utils.clip_grad_norm_(list(self.named.values()), 1.0)
        rate = self.settings.learning_rate * rate_factor(self.progress, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        # Early on, the average must follow quickly, or it would remember the random start.
        keep = min(self.settings.averaging, (self.progress.step + 1) / (self.progress.step + 10))
        for name, p in self.named.items():
            self.average[name].lerp_(p.detach(), 1 - keep)
        return sum(loss for loss, _ in done), count

    def _gradients(self, part: Part, key: str, count: int) -> tuple[float, tuple[Tensor, ...]]:
        """A part's share of the loss and its gradients, computed in a thread of its own."""
        self._dropout.begin(key)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = summed_loss(self.model, part) / count
        return loss.item(), torch.autograd.grad(loss, list(self.named.values()))


class PooledDropout:
    """Dropout by slices of one pool of noise: drawing new noise each time would take an eighth of a step.

    It hooks the embedding and every sublayer's last projection.  Each thread draws its own slices.

    Args:
        model: the model to hook.
        rate: the share of numbers set to zero; the others are scaled up.
        seed: of the pool.
    """

    def __init__(self, model: MarianMTModel, rate: float, seed: int) -> None:
        noise = torch.rand(1 << 23, generator=torch.Generator().manual_seed(seed))
        self._pool = (noise >= rate).to(torch.bfloat16) / (1 - rate)
        self._slices = threading.local()
        for name, module in model.named_modules():
            if name.endswith(("out_proj", "fc2", "shared")):
                module.register_forward_hook(self._drop)

    def begin(self, key: str) -> None:
        """Seeds the slices of this thread's next forward pass."""
        self._slices.random = random.Random(key)

    def _drop(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if not module.training:
            return output
        start = self._slices.random.randrange(len(self._pool) - output.numel())
        return output * self._pool[start : start + output.numel()].view(output.shape).to(output.dtype)


class _Watch:
    """What happens between steps: the progress bar, a log line every hundred steps, a checkpoint every so often."""

    def __init__(self, run: TranslationRun, log: TextIO, bar: Any, save_every: float) -> None:
        self._run, self._log, self._bar, self._save_every = run, log, bar, save_every
        self._saved = self._last = time.monotonic()
        self._losses: list[float] = []

    def note(self, loss: float, tokens: int) -> None:
        """Counts a step."""
        progress, now = self._run.progress, time.monotonic()
        progress.step, progress.batch = progress.step + 1, progress.batch + 1
        progress.tokens, progress.seconds = progress.tokens + tokens, progress.seconds + now - self._last
        self._last = now
        self._losses.append(loss)
        self._bar.update(tokens)
        if progress.step % 100 == 0:
            mean = sum(self._losses) / len(self._losses)
            self._losses.clear()
            self._bar.set_postfix(loss=f"{mean:.3f}", epoch=progress.epoch, refresh=False)
            self._log.write(json.dumps(asdict(progress) | {"loss": round(mean, 4)}) + "\n")
            self._log.flush()
        if now - self._saved > self._save_every:
            self._run.save()
            self._saved = now


def rate_factor(progress: Progress, settings: TranslationSettings) -> float:
    """The learning rate's part of its height: it rises over the warm-up and falls over the cool-down."""
    falling = (settings.tokens - progress.tokens) / max(settings.cool_down, 1)
    return max(min((progress.step + 1) / settings.warmup, 1.0, falling), 0.0)


def summed_loss(model: MarianMTModel, part: Sequence[Row]) -> Tensor:
    """The sum of -log p(next piece) over the rows' target pieces and their </s>."""
    source = _padded([ids for ids, _ in part])
    target = _padded([ids for _, ids in part])
    read = torch.cat([torch.full((len(part), 1), PAD), target[:, :-1]], 1)
    states = model.model(
        input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=read, use_cache=False
    ).last_hidden_state
    real = target != PAD
    logits = linear(states[real], model.lm_head.weight)
    return cross_entropy(logits.float(), target[real], reduction="sum")


def _padded(rows: Sequence[list[int]]) -> Tensor:
    return pad_sequence([torch.tensor([*row, EOS]) for row in rows], batch_first=True, padding_value=PAD)


def _optimizers(named: dict[str, nn.Parameter], settings: TranslationSettings) -> list[Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for name, p in named.items() if p.dim() == 2 and "shared" not in name]
    rest = [p for p in named.values() if not any(p is matrix for matrix in matrices)]
    rate = settings.learning_rate
    return [
        AdamW(rest, rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        Muon(matrices, rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
